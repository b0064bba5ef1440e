"""Whole-word masking against an oracle of loops, and its relation to masking piece by piece."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp_jax import masking, sharding
from vlp_jax.recipes import recipe

LENGTH, VOCABULARY, MASK = 14, 41, 4
SPECIAL = (0, 1, 2, 3, MASK, 38)  # the last one among the words' ids
WORDS = (5, 36)
STARTS = np.arange(VOCABULARY) % 3 > 0  # of ids below 5: 0 and 3 continue, which changes nothing
RATIOS = (0.15, 0.5, 0.9)


@functools.partial(jax.jit, static_argnames=("policy", "whole"))
def run(keys, ids, mask, ratio, policy="80/10/10", whole=True):
    fixed = {"mask_id": MASK, "special_ids": SPECIAL, "words": WORDS}
    return masking.mask_words(
        keys, ids, mask, ratio=ratio, policy=policy, starts_word_V=STARTS if whole else None, **fixed
    )


def words_of(ids, mask):
    """Places of each word of one text, in order; special tokens and padding belong to none."""
    groups: list[list[int]] = []
    for place, i in enumerate(ids):
        if place == 0 or STARTS[i]:
            groups.append([])
        groups[-1].append(place)
    maskable = [[p for p in group if mask[p] and ids[p] not in SPECIAL] for group in groups]
    return [(group[0], places) for group, places in zip(groups, maskable)]


def oracle(keys, ids, mask, ratio, policy):
    """By the definition, text after text and word after word, from the same draws."""
    out, chosen = ids.copy(), np.zeros(ids.shape, bool)
    for row, key in enumerate(keys):
        fold = functools.partial(jax.random.fold_in, key)
        choose, how = (np.asarray(jax.random.uniform(fold(n), (LENGTH,))) for n in (0, 1))
        replacement = np.asarray(jax.random.randint(fold(2), (LENGTH,), *WORDS))
        for first, places in words_of(ids[row], mask[row]):
            if choose[first] >= np.float32(ratio):
                continue
            for p in places:
                chosen[row, p] = True
                if policy == "always" or how[p] < np.float32(0.8):
                    out[row, p] = MASK
                elif how[p] < np.float32(0.9):
                    out[row, p] = replacement[p]
    return out, chosen


@st.composite
def texts(draw):
    """Three rows of any ids, special ones among them, masked from some place on (never wholly)."""
    ids = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=3 * LENGTH, max_size=3 * LENGTH))
    lengths = draw(st.lists(st.integers(1, LENGTH), min_size=3, max_size=3))
    return np.array(ids, np.int32).reshape(3, LENGTH), np.arange(LENGTH) < np.array(lengths)[:, None]


@settings(max_examples=60, deadline=None)
@given(texts(), st.integers(0, 2**31 - 1), st.sampled_from(RATIOS), st.sampled_from(["80/10/10", "always"]))
def test_masking_whole_words_equals_the_oracle(text, seed, ratio, policy):
    ids, mask = text
    keys = jax.random.split(jax.random.key(seed), 3)
    out, chosen = run(keys, ids, mask, ratio, policy)
    expected, expected_chosen = oracle(keys, ids, mask, ratio, policy)
    np.testing.assert_array_equal(chosen, expected_chosen)
    np.testing.assert_array_equal(out, expected)
    assert out.dtype == ids.dtype


@settings(max_examples=60, deadline=None)
@given(texts(), st.integers(0, 2**31 - 1), st.sampled_from(RATIOS))
def test_a_word_is_chosen_whole_or_not_at_all_and_nothing_else_is_touched(text, seed, ratio):
    ids, mask = text
    out, chosen = map(np.asarray, run(jax.random.split(jax.random.key(seed), 3), ids, mask, ratio))
    for row in range(3):
        for _, places in words_of(ids[row], mask[row]):
            assert len(set(chosen[row, places].tolist())) <= 1
    assert not chosen[~mask | np.isin(ids, SPECIAL)].any()
    np.testing.assert_array_equal(out[~chosen], ids[~chosen])


@settings(max_examples=30, deadline=None)
@given(texts(), st.integers(0, 2**31 - 1), st.sampled_from(RATIOS))
def test_words_of_one_piece_are_masked_as_pieces_are(text, seed, ratio):
    ids, mask = text
    ids = np.where(STARTS[ids], ids, ids + 1)
    keys = jax.random.split(jax.random.key(seed), 3)
    for whole, pieces in zip(run(keys, ids, mask, ratio), run(keys, ids, mask, ratio, whole=False)):
        np.testing.assert_array_equal(whole, pieces)


def many():
    """4,000 texts [CLS] words [SEP]: words of one to four pieces."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 36, (4000, LENGTH)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 2, 3
    ids[:, 1] = 7  # the first piece begins a word
    return ids, np.ones(ids.shape, bool), jax.random.split(jax.random.key(1), 4000)


@pytest.mark.parametrize("ratio", RATIOS)
def test_words_and_with_them_pieces_are_chosen_at_the_ratio(ratio):
    ids, mask, keys = many()
    chosen = np.asarray(run(keys, ids, mask, ratio)[1])
    inner = slice(1, LENGTH - 1)
    begins = STARTS[ids[:, inner]]
    assert 0.6 < begins.mean() < 0.75  # so that words and pieces differ
    spread = (ratio * (1 - ratio) / begins.sum()) ** 0.5
    assert abs(chosen[:, inner][begins].mean() - ratio) < 4 * spread
    assert abs(chosen[:, inner].mean() - ratio) < 8 * spread
    # Neighbouring words are independent of each other.
    both = begins[:, 1:] & begins[:, :-1]
    together = (chosen[:, inner][:, 1:] & chosen[:, inner][:, :-1])[both].mean()
    assert abs(together - ratio**2) < 0.015


def test_each_piece_of_a_chosen_word_draws_its_own_policy():
    ids, mask, keys = many()
    out, chosen = map(np.asarray, run(keys, ids, mask, 0.5))
    masks = out == MASK
    assert abs(masks[chosen].mean() - 0.8) < 0.02
    assert abs((out == ids)[chosen].mean() - 0.1 - 0.1 / 31) < 0.02
    replaced = out[chosen & ~masks & (out != ids)]
    assert set(replaced.tolist()) == set(range(*WORDS))
    pairs = chosen[:, 1:] & chosen[:, :-1] & ~STARTS[ids[:, 1:]]
    assert abs((masks[:, 1:] & masks[:, :-1])[pairs].mean() - 0.64) < 0.03


def test_words_of_an_example_do_not_depend_on_its_batch():
    ids, mask, keys = many()
    out, chosen = run(keys, ids, mask, 0.5)
    alone, alone_chosen = run(keys[7:8], ids[7:8], mask[7:8], 0.5)
    np.testing.assert_array_equal(alone[0], out[7])
    np.testing.assert_array_equal(alone_chosen[0], chosen[7])


def test_smaug_masks_whole_words_of_its_tokenizer_when_asked(tiny_config, fake_tokenizer, random_batch):
    changes = {"loss.vtc": 0.0, "loss.vtm": 0.0, "loss.mvm": 0.0, "model.masking.kind": "none"}
    paths, counts = {}, {}
    batch = random_batch(tiny_config(), 2)
    # One word of four pieces, in a valid and in an invalid row.
    batch.text_ids[:], batch.text_mask[:], batch.valid[:] = [2, 5, 6, 9, 12, 3], True, [True, False]
    assert fake_tokenizer.starts_word[5] and not any(fake_tokenizer.starts_word[i] for i in (6, 9, 12))
    for whole in (False, True):
        config = tiny_config({**changes, "model.text.whole_words": whole})
        make = lambda config=config: recipe.build(config, fake_tokenizer, nnx.Rngs(0))
        graph, abstract = sharding.abstract_model(make)
        paths[whole] = {"/".join(map(str, path)): x.shape for path, x in nnx.to_flat_state(abstract)}
        params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)  # what is masked does not ask them
        loss = jax.jit(lambda params, key, graph=graph: nnx.merge(graph, params).loss(batch, key).terms["mlm"])
        terms = [loss(params, jax.random.key(seed)) for seed in range(12)]
        counts[whole] = {int(count) for _, count in terms}
    assert paths[True] == paths[False]  # checkpoints do not know
    assert counts[True] == {0, 4}
    assert counts[False] & {1, 2, 3}
