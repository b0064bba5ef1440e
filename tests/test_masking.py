"""Masks: exact counts, each kind's shape, independence of the batch; the gather and its gradient; words."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp_jax import masking

KEYS = jax.random.split(jax.random.key(3), 64)


@functools.lru_cache
def sampler(kind, slots, patches, visible, hidden):
    return jax.jit(
        lambda keys: masking.sample_patches(kind, keys, slots=slots, patches=patches, visible=visible, hidden=hidden)
    )


def sample(kind, slots, patches, visible, hidden, keys=KEYS):
    mask = sampler(kind, slots, patches, visible, hidden)(keys)
    return np.asarray(mask.visible), np.asarray(mask.hidden)


@st.composite
def sizes(draw):
    """A kind with slots, patches, visible and hidden counts that it allows."""
    kind = draw(st.sampled_from(["random", "tube", "block", "frame"]))
    slots = draw(st.integers(2 if kind == "frame" else 1, 4))
    patches = draw(st.integers(2, 4)) ** 2
    if kind == "frame":
        visible = (draw(st.integers(1, slots)), patches)
        return kind, slots, patches, visible, draw(st.integers(1, patches))
    keep = draw(st.integers(1, patches))
    return kind, slots, patches, (slots, keep), draw(st.integers(0, patches - keep))


@settings(max_examples=25, deadline=None)
@given(sizes(), st.integers(0, 2**31 - 1))
def test_counts_are_exact_and_visible_and_hidden_never_meet(case, seed):
    kind, slots, patches, (slots_visible, keep), hidden_count = case
    keys = jax.random.split(jax.random.key(seed), 3)
    visible, hidden = sample(kind, slots, patches, (slots_visible, keep), hidden_count, keys)
    slots_hidden = slots - slots_visible if kind == "frame" else slots
    assert visible.shape == (3, slots_visible, keep)
    assert hidden.shape == (3, slots_hidden, hidden_count)
    assert visible.dtype == hidden.dtype == np.int32
    assert (np.diff(visible, axis=-1) > 0).all()
    assert (np.diff(hidden, axis=-1) > 0).all()
    for one_visible, one_hidden in zip(visible, hidden):
        seen, unseen = set(one_visible.ravel().tolist()), set(one_hidden.ravel().tolist())
        assert len(seen) == slots_visible * keep
        assert len(unseen) == slots_hidden * hidden_count
        assert not seen & unseen
        assert seen | unseen <= set(range(slots * patches))
        for row in [*one_visible, *one_hidden]:
            assert len(set((row // patches).tolist())) <= 1  # each row lies in one slot
        if kind != "frame":
            np.testing.assert_array_equal(one_visible[:, 0] // patches, np.arange(slots))
            if hidden_count:
                np.testing.assert_array_equal(one_hidden[:, 0] // patches, np.arange(slots))
        if hidden_count == (patches if kind == "frame" else patches - keep):
            assert seen | unseen == set(range(slots * patches))


def test_random_draws_a_mask_of_its_own_for_each_frame():
    visible, _ = sample("random", 3, 16, (3, 8), 8)
    local = visible % 16
    assert (local[:, 0] != local[:, 1]).any(-1).mean() > 0.9
    assert (local[:, 1] != local[:, 2]).any(-1).mean() > 0.9


@pytest.mark.parametrize("kind", ["tube", "block"])
@pytest.mark.parametrize("hidden", [8, 3])
def test_tube_and_block_hide_the_same_patches_in_all_frames(kind, hidden):
    for index in sample(kind, 3, 16, (3, 8), hidden):
        local = index - np.arange(3)[:, None] * 16
        np.testing.assert_array_equal(local, np.broadcast_to(local[:, :1], local.shape))
    assert len({tuple(row) for row in sample(kind, 3, 16, (3, 8), hidden)[0][:, 0]}) > 10  # examples differ


def test_frame_hides_whole_frames():
    visible, hidden = sample("frame", 4, 9, (3, 9), 9)
    for seen, unseen in zip(visible, hidden):
        frames = seen[:, 0] // 9
        np.testing.assert_array_equal(seen, frames[:, None] * 9 + np.arange(9))
        (other,) = set(range(4)) - set(frames.tolist())
        np.testing.assert_array_equal(unseen, other * 9 + np.arange(9)[None])


def rectangles(key, patches):
    """The boxes of one block mask, by loops over BEiT's definition: area, aspect ratio, place."""
    side = round(patches**0.5)
    key_area, key_aspect, key_y, key_x, _ = jax.random.split(key, 5)
    draws = [np.asarray(jax.random.uniform(k, (masking.BLOCKS,)), np.float64) for k in (key_y, key_x)]
    areas = np.asarray(jax.random.uniform(key_area, (masking.BLOCKS,), minval=0.08, maxval=0.4)) * patches
    limit = np.log(1 / 0.3)
    aspects = np.exp(np.asarray(jax.random.uniform(key_aspect, (masking.BLOCKS,), minval=-limit, maxval=limit)))
    for area, aspect, y, x in zip(areas, aspects, *draws):
        height = int(np.clip(np.round(np.sqrt(area * aspect)), 1, side))
        width = int(np.clip(np.round(np.sqrt(area / aspect)), 1, side))
        top, left = int(y * (side - height + 1)), int(x * (side - width + 1))
        yield {row * side + column for row in range(top, top + height) for column in range(left, left + width)}


@pytest.mark.parametrize("keep", [10, 25, 33])
def test_block_hides_rectangles_one_after_another_until_the_count_is_reached(keep):
    patches = 49
    _, hidden = sample("block", 1, patches, (1, keep), patches - keep)
    for key, row in zip(KEYS, hidden[:, 0]):
        hidden_set: set[int] = set(row.tolist())
        union: set[int] = set()
        for box in rectangles(key, patches):
            if len(union | box) >= len(hidden_set):
                break
            union |= box
        else:
            pytest.fail("the rectangles do not cover the hidden patches")
        # Whole rectangles, and of the last one as many patches as the count still needs.
        assert union <= hidden_set <= union | box


def test_a_high_ratio_of_blocks_is_still_covered_by_rectangles():
    _, hidden = sample("block", 1, 196, (1, 20), 176)
    uncovered = [len(set(row.tolist()) - set().union(*rectangles(k, 196))) for k, row in zip(KEYS, hidden[:, 0])]
    assert np.mean(uncovered) < 0.05 * 176


def test_a_share_of_the_hidden_patches_is_a_uniform_sample_of_them():
    keys = jax.random.split(jax.random.key(0), 4000)
    for kind in ("random", "block"):
        _, all_hidden = sample(kind, 1, 9, (1, 3), 6, keys)
        _, some = sample(kind, 1, 9, (1, 3), 2, keys)
        chosen = (all_hidden[:, 0, :, None] == some[:, 0, None, :]).any(-1)
        assert (chosen.sum(-1) == 2).all()
        # Whatever the place in the grid, a hidden patch is rebuilt with probability 2/6.
        for patch in range(9):
            here = all_hidden[:, 0] == patch
            np.testing.assert_allclose(chosen[here].mean(), 1 / 3, atol=0.05)


def test_random_masks_are_uniform_over_patches_and_pairs():
    keys = jax.random.split(jax.random.key(1), 6000)
    visible, _ = sample("random", 2, 9, (2, 3), 6, keys)
    seen = np.zeros((6000, 18))
    np.put_along_axis(seen, visible.reshape(6000, -1), 1, axis=1)
    np.testing.assert_allclose(seen.mean(0), 1 / 3, atol=0.03)
    together = seen.T @ seen / 6000
    inside = together[:9, :9][~np.eye(9, dtype=bool)]
    np.testing.assert_allclose(inside, 3 / 9 * 2 / 8, atol=0.025)
    np.testing.assert_allclose(together[:9, 9:], 1 / 9, atol=0.025)  # frames are independent


def test_every_frame_is_hidden_equally_often():
    keys = jax.random.split(jax.random.key(1), 3000)
    visible, _ = sample("frame", 4, 4, (3, 4), 4, keys)
    hidden = np.array([(visible[:, :, 0] // 4 == t).any(1).mean() for t in range(4)])
    np.testing.assert_allclose(hidden, 0.75, atol=0.03)


@pytest.mark.parametrize("kind", ["random", "tube", "block", "frame"])
def test_the_mask_of_an_example_does_not_depend_on_its_batch(kind):
    visible = (2, 9) if kind == "frame" else (3, 4)
    key, index = jax.random.key(7), jnp.array([5, 900, 17, 2], jnp.int32)
    together = sample(kind, 3, 9, visible, 2, masking.example_keys(key, index))
    for row, number in enumerate(index):
        alone = sample(kind, 3, 9, visible, 2, masking.example_keys(key, jnp.array([number])))
        for a, b in zip(together, alone):
            np.testing.assert_array_equal(a[row], b[0])
    other = sample(kind, 3, 9, visible, 2, masking.example_keys(jax.random.key(8), index))
    assert any((a != b).any() for a, b in zip(together, other))


def test_an_unknown_kind_and_a_grid_that_is_no_square_are_refused():
    with pytest.raises(ValueError, match="'tubes'"):
        masking.sample_patches("tubes", KEYS, slots=2, patches=9, visible=(2, 3), hidden=6)
    with pytest.raises(ValueError, match="8 patches"):
        masking.sample_patches("block", KEYS, slots=2, patches=8, visible=(2, 3), hidden=5)


def test_all_visible_counts_through_the_clip():
    index = np.asarray(masking.all_visible(2, 3, 4))
    np.testing.assert_array_equal(index, np.broadcast_to(np.arange(12).reshape(3, 4), (2, 3, 4)))


# --- Gather -----------------------------------------------------------------------------------------------------------


def distinct(rng, lead, n, k):
    return np.argsort(rng.random((*lead, n)), axis=-1)[..., :k].astype(np.int32)


def plain(x, index):
    return jnp.take_along_axis(x, index[..., None], axis=-2)


@functools.lru_cache  # one compiled function, so that hypothesis is free to try many values
def gather_and_pull():
    def run(x, index, weight):
        out, pull = jax.vjp(lambda x: masking.gather_tokens(x, index), x)
        return out, pull(weight)[0]

    return jax.jit(run)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([((), 5, 3), ((2,), 4, 4), ((2, 3), 6, 1), ((3,), 1, 1)]), st.integers(0, 2**31))
def test_gather_tokens_and_its_gradient_are_those_of_plain_indexing(shape, seed):
    lead, n, k = shape
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*lead, n, 3)).astype(np.float32)
    index, weight = distinct(rng, lead, n, k), rng.normal(size=(*lead, k, 3)).astype(np.float32)
    expected = np.zeros((*lead, k, 3), np.float32)
    gradient = np.zeros_like(x)
    for row in np.ndindex(*lead):
        for j in range(k):
            expected[(*row, j)] = x[(*row, index[(*row, j)])]
            gradient[(*row, index[(*row, j)])] = weight[(*row, j)]
    got, pulled = gather_and_pull()(x, index, weight)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(pulled, gradient)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gather_tokens_under_jit_vmap_and_scan_keeps_value_gradient_and_dtype(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 2, 7, 3)), dtype)
    index = jnp.asarray(distinct(rng, (4, 2), 7, 4))
    weight = jnp.asarray(rng.normal(size=(4, 2, 4, 3)), dtype)

    def value_and_gradient(gather):
        return jax.value_and_grad(lambda x: (gather(x, index) * weight).astype(jnp.float32).sum())

    def scanned(x, index):
        return jax.lax.scan(lambda c, pair: (c, masking.gather_tokens(*pair)), 0, (x, index))[1]

    expected_value, expected_gradient = value_and_gradient(plain)(x)
    for gather in (masking.gather_tokens, jax.vmap(masking.gather_tokens), scanned):
        value, gradient = jax.jit(value_and_gradient(gather))(x)
        assert gradient.dtype == dtype
        np.testing.assert_allclose(value, expected_value, rtol=1e-5 if dtype == jnp.float32 else 0.02)
        np.testing.assert_array_equal(gradient, expected_gradient)


def test_gather_tokens_with_an_unbatched_side_under_vmap():
    rng = np.random.default_rng(0)
    x, index = rng.normal(size=(7, 3)).astype(np.float32), distinct(rng, (5,), 7, 4)
    np.testing.assert_array_equal(jax.vmap(masking.gather_tokens, (None, 0))(x, index), x[index])
    got = jax.grad(lambda x: jax.vmap(masking.gather_tokens, (None, 0))(x, index).sum())(x)
    expected = np.zeros_like(x)
    np.add.at(expected, index.ravel(), 1)
    np.testing.assert_array_equal(got, expected)


def test_visible_and_hidden_tokens_put_back_in_their_places_give_the_clip():
    visible, hidden = sample("random", 3, 9, (3, 4), 5)
    visible, hidden = visible.reshape(64, -1), hidden.reshape(64, -1)
    x = np.random.default_rng(0).normal(size=(64, 27, 2)).astype(np.float32)
    restored = np.full_like(x, np.nan)
    for index in (visible, hidden):
        np.put_along_axis(restored, index[..., None], np.asarray(masking.gather_tokens(x, index)), axis=1)
    np.testing.assert_array_equal(restored, x)


# --- Words ------------------------------------------------------------------------------------------------------------

WORDS = {"mask_id": 4, "special_ids": (0, 1, 2, 3, 4), "words": (5, 1005)}


@functools.lru_cache
def texts():
    """Long texts [CLS] words [SEP] padding, so that shares can be measured."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 1005, (200, 100)).astype(np.int32)
    ids[:, 0], ids[:, 79], ids[:, 40] = 2, 3, 1
    mask = np.broadcast_to(np.arange(100) < 80, ids.shape).copy()
    ids[~mask] = 0
    # A padding position that holds a word id shows that the mask decides, not the id alone.
    ids[:, 90] = 77
    return ids, mask


@functools.lru_cache
def masked(ratio, policy):
    ids, mask = texts()
    keys = jax.random.split(jax.random.key(5), len(ids))
    out, chosen = masking.mask_words(keys, ids, mask, ratio=ratio, policy=policy, **WORDS)
    return np.asarray(out), np.asarray(chosen)


@pytest.mark.parametrize("policy", ["80/10/10", "always"])
@pytest.mark.parametrize("ratio", [0.15, 0.5])
def test_words_are_chosen_at_the_ratio_and_nothing_else_is_touched(ratio, policy):
    ids, mask = texts()
    out, chosen = masked(ratio, policy)
    words = mask & (ids >= 5)
    assert out.dtype == ids.dtype
    assert not chosen[~words].any()
    np.testing.assert_array_equal(out[~chosen], ids[~chosen])
    # 15,400 words: four standard deviations.
    assert abs(chosen[words].mean() - ratio) < 4 * (ratio * (1 - ratio) / words.sum()) ** 0.5
    by_place = chosen[:, words.all(0)].mean(0)
    assert abs(by_place - ratio).max() < 0.17


def test_always_hides_every_chosen_word():
    out, chosen = masked(0.5, "always")
    assert (out[chosen] == 4).all()


def test_80_10_10_masks_replaces_and_keeps_in_these_shares():
    ids, _ = texts()
    out, chosen = masked(0.5, "80/10/10")
    masks, kept = out[chosen] == 4, out[chosen] == ids[chosen]
    replaced = out[chosen][~masks & ~kept]
    assert abs(masks.mean() - 0.8) < 0.02
    assert abs(kept.mean() - 0.1) < 0.015
    assert abs(len(replaced) / chosen.sum() - 0.1) < 0.015
    assert replaced.min() >= 5
    assert replaced.max() < 1005
    assert len(set(replaced.tolist())) > 300  # drawn from the whole vocabulary


def test_words_of_an_example_do_not_depend_on_its_batch():
    ids, mask = texts()
    keys = jax.random.split(jax.random.key(5), len(ids))
    out, chosen = masking.mask_words(keys[7:8], ids[7:8], mask[7:8], ratio=0.5, policy="80/10/10", **WORDS)
    np.testing.assert_array_equal(out[0], masked(0.5, "80/10/10")[0][7])
    np.testing.assert_array_equal(chosen[0], masked(0.5, "80/10/10")[1][7])


def test_an_unknown_policy_is_refused():
    ids, mask = texts()
    with pytest.raises(ValueError, match="'90/5/5'"):
        masking.mask_words(KEYS[:1], ids[:1], mask[:1], ratio=0.5, policy="90/5/5", **WORDS)
