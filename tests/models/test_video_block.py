"""What blocks of the video encoder may add to a ViT's: relative position bias, attention over time, layers after it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax import masking
from vlp_jax.models import blocks, layers, sparsify, vision
from vlp_jax.models.temporal import TemporalEncoder

B, T, SIDE, N = 2, 3, 3, 9
RELATIVE = {"model.vision.positions": "relative"}
OVER_TIME = {"model.vision.temporal_attention": "zero_init", "model.masking.kind": "none", "model.pruning.layers": ()}


@pytest.fixture(scope="module")
def encoder(tiny_config, build_module):
    """`encoder(changes, seed)` -> (params, jitted function of params, video and visible patches)."""

    @functools.cache
    def make(items):
        config = config_lib.freeze(tiny_config(dict(items)))
        graph, params = nnx.split(build_module(vision.VideoEncoder, config, dtype=layers.compute_dtype("float32")))
        return params, jax.jit(lambda params, video, visible: nnx.merge(graph, params)(video, visible))

    return lambda changes: make(tuple(changes.items()))


@pytest.fixture(scope="module")
def video(tiny_config, random_batch):
    return random_batch(tiny_config(), B).video


def filled(params, **values):
    """The parameters with every leaf whose last name is in `values` drawn at that scale instead of zero."""
    flat = nnx.to_flat_state(params)
    rng = np.random.default_rng(0)
    new = [
        jnp.asarray(rng.normal(0, values[path[-1]], leaf.shape), jnp.float32) if path[-1] in values else leaf[...]
        for path, leaf in flat
    ]
    return jax.tree.unflatten(jax.tree.structure(params), new)


# --- Relative position bias -------------------------------------------------------------------------------------------


def beit_index(side):
    """BEiT's table of indices, written after its description: an offset per pair, three more for the CLS."""
    place = [divmod(n, side) for n in range(side * side)]
    span = 2 * side - 1
    out = np.zeros((side * side + 1,) * 2, int)
    for i, (yi, xi) in enumerate(place):
        for j, (yj, xj) in enumerate(place):
            out[i + 1, j + 1] = (yi - yj + side - 1) * span + xi - xj + side - 1
    out[0, :], out[:, 0], out[0, 0] = span**2, span**2 + 1, span**2 + 2
    return out


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_the_relative_index_of_all_patches_is_beits(side):
    np.testing.assert_array_equal(blocks.relative_index(np.arange(side * side), side), beit_index(side))


def test_the_relative_index_of_some_patches_is_that_part_of_the_whole():
    kept = np.array([[[0, 4, 8], [1, 2, 3]]])
    got = np.asarray(blocks.relative_index(kept, SIDE))
    for t in range(2):
        rows = np.concatenate([[0], kept[0, t] + 1])
        np.testing.assert_array_equal(got[0, t], beit_index(SIDE)[np.ix_(rows, rows)])


def test_seeing_all_patches_by_index_equals_seeing_all_of_them(encoder, video):
    """The bias gathered by surviving indices, through masking and two prunings, against the one for whole frames."""
    params, run = encoder({**RELATIVE, "model.pruning.layers": (0, 1)})
    params = filled(params, relative=1.0)
    every = np.asarray(masking.all_visible(B, T, N))
    whole, indexed = run(params, video, None), run(params, video, every)
    np.testing.assert_array_equal(whole.kept, indexed.kept)
    np.testing.assert_allclose(whole.tokens, indexed.tokens, atol=1e-5)


def test_the_bias_alone_tells_places_apart(encoder, video):
    """Without it an encoder without absolute positions sees a bag of patches."""
    params, run = encoder({**RELATIVE, "model.pruning.layers": ()})
    order = np.random.default_rng(1).permutation(N)
    patches = vision.patchify(video, 8, 1)[:, :, order]
    shuffled = np.asarray(vision.unpatchify(patches, 8, 1))
    cls = lambda params, clip: np.asarray(run(params, clip, None).cls)
    np.testing.assert_allclose(cls(params, video), cls(params, shuffled), atol=1e-5)
    params = filled(params, relative=1.0)
    assert abs(cls(params, video) - cls(params, shuffled)).max() > 1e-2


def test_cls_scores_are_the_attention_with_the_bias_in_it():
    rng = np.random.default_rng(0)
    q, k, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((B, T, 2, 4), (B, T, 5, 2, 4), (B, T, 2, 5)))
    logits = np.einsum("btad,btsad->btas", q, k) / 2 + bias
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    got = sparsify.cls_scores(q, k, own_frame_only=True, bias=bias)
    np.testing.assert_allclose(got, weights.mean(2), rtol=1e-5)


# --- Attention over time in every block -------------------------------------------------------------------------------


def test_attention_over_time_begins_as_if_it_were_not_there(encoder, video):
    params, run = encoder(OVER_TIME)
    plain, without = encoder({**OVER_TIME, "model.vision.temporal_attention": "none"})
    names = {path for path, _ in nnx.to_flat_state(plain)}
    shared = nnx.from_flat_state([(path, leaf) for path, leaf in nnx.to_flat_state(params) if path in names])
    np.testing.assert_allclose(run(params, video, None).tokens, without(shared, video, None).tokens, atol=1e-5)


def test_attention_over_time_joins_frames_and_skips_images(encoder, video):
    params, run = encoder(OVER_TIME)
    params = filled(params, time_scale=1.0)
    changed = video.copy()
    changed[:, 2] = 255 - changed[:, 2]
    first, second = (np.asarray(run(params, clip, None).tokens) for clip in (video, changed))
    assert (abs(first - second).max((0, 2, 3)) > 1e-4).all()  # every frame sees that the last one changed
    image = video[:, :1]
    params_without = filled(params, time_scale=0.0)
    np.testing.assert_array_equal(run(params, image, None).tokens, run(params_without, image, None).tokens)


def test_attention_over_time_stays_at_its_location(encoder, video):
    """One block: a patch changed in one frame reaches that place of the other frames, and no other place of them."""
    params, run = encoder({**OVER_TIME, "model.vision.layers": 1})
    params = filled(params, time_scale=1.0)
    # The spatial attention after it would spread everything: switch it off.
    params["blocks"]["attention"]["out"]["kernel"][...] = jnp.zeros_like(params["blocks"]["attention"]["out"]["kernel"])
    changed = video.copy()
    changed[:, 0, 8:16, 8:16] = 255 - changed[:, 0, 8:16, 8:16]  # patch 4 of frame 0
    difference = abs(np.asarray(run(params, video, None).tokens) - np.asarray(run(params, changed, None).tokens))
    moved = difference.max((0, 3)) > 1e-6
    expected = np.zeros((T, 1 + N), bool)
    expected[:, 1 + 4] = True
    np.testing.assert_array_equal(moved, expected)


# --- Time positions of clips of other lengths -------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 6, 12])
def test_fixed_time_positions_are_interpolated_for_clips_of_another_length(tiny_config, build_module, frames):
    config = config_lib.freeze(tiny_config())
    module = build_module(vision.VideoEncoder, config, dtype=layers.compute_dtype("float32"))
    got = np.asarray(module._time_positions(frames))
    table = layers.time_positions(3, 16)
    at = np.clip((np.arange(frames) + 0.5) * 3 / frames - 0.5, 0, 2)
    expected = np.stack([np.interp(at, np.arange(3), table[:, d]) for d in range(16)], axis=1)
    np.testing.assert_allclose(got, table[:1] if frames == 1 else expected, atol=1e-6)


def test_a_model_for_longer_clips_that_keeps_the_table_has_the_positions_of_the_shorter_ones(tiny_config, build_module):
    build = lambda changes: build_module(
        vision.VideoEncoder, config_lib.freeze(tiny_config(changes)), dtype=layers.compute_dtype("float32")
    )
    tuned = build({"input.frames": 12, "model.vision.time_slots": 3})
    np.testing.assert_array_equal(tuned._time_positions(12), build({})._time_positions(12))
    own = np.asarray(build({"input.frames": 12})._time_positions(12))
    assert abs(own - np.asarray(tuned._time_positions(12))).max() > 0.1


# --- Divided attention ------------------------------------------------------------------------------------------------

DIVIDED = {**OVER_TIME, "model.vision.temporal_attention": "divided"}


def test_divided_attention_keeps_one_cls_for_the_clip_which_other_frames_reach(encoder, video):
    params, run = encoder(DIVIDED)
    tokens = np.asarray(run(params, video, None).tokens)
    np.testing.assert_allclose(tokens[:, 1:, 0], np.repeat(tokens[:, :1, 0], T - 1, 1), atol=1e-6)
    other = np.array(video)
    other[:, 2] = 255 - other[:, 2]
    moved = np.asarray(run(params, other, None).tokens) - tokens
    assert abs(moved[:, :, 0]).max(-1).min() > 1e-4  # through the mean over the frames


def test_divided_attention_over_time_starts_from_nothing_and_then_joins_the_frames_of_a_location(build_module):
    # Without the CLS, which joins everything, a patch is reached by its own frame and its own location.
    block = build_module(
        blocks.VideoBlock, 16, 2, 2.0, side=0, temporal="divided", activation="gelu", epsilon=1e-6, scale=0.0,
        kernel="xla", dtype=jnp.float32,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, T, 1 + N, 16)), jnp.float32)
    other = x.at[0, 1, 3].add(jnp.asarray(rng.normal(size=16)))
    reach = lambda: abs(np.asarray(block.encode(x, "frame") - block.encode(other, "frame"))[0, :, 1:]).max(-1) > 1e-6
    frame = np.zeros((T, N), bool)
    frame[1] = True
    np.testing.assert_array_equal(reach(), frame)
    block.time_out.kernel[...] = jnp.asarray(rng.normal(size=(16, 16)), jnp.float32)
    assert reach().all()  # the location over time, and from there each frame
    one = block.encode(x[:, :1], "frame")
    block.time_out.kernel[...] = jnp.zeros((16, 16))
    np.testing.assert_array_equal(one, block.encode(x[:, :1], "frame"))  # an image has no time


# --- Without a CLS ----------------------------------------------------------------------------------------------------

BARE = {
    "model.vision.cls": False, "model.vision.pool": "mean", "model.pruning.layers": (),
    "model.vision.positions": "sequence", "model.vision.time_positions": "none", "model.vision.attention": "joint",
}  # fmt: skip


def test_without_a_cls_there_are_patches_alone_and_their_mean_stands_for_a_frame(encoder, video):
    params, run = encoder(BARE)
    assert not any("cls" in path for path, _ in nnx.to_flat_state(params))
    got = run(params, video, None)
    assert got.tokens.shape == got.early.shape == (B, T, N, 16)
    for feature in (got.cls, got.pooled("mean"), got.pooled("cls")):
        np.testing.assert_allclose(feature, got.tokens.mean(2), atol=1e-6)


def test_positions_of_a_sequence_are_the_transformers_of_place_in_the_clip():
    slots, count, width = 3, 4, 8
    table = np.zeros((slots * count, width))
    for place in range(slots * count):
        for j in range(width):
            angle = place / 10000 ** (2 * (j // 2) / width)
            table[place, j] = np.cos(angle) if j % 2 else np.sin(angle)
    np.testing.assert_allclose(
        layers.sequence_positions(slots, count, width), table.reshape(slots, count, width), atol=1e-6
    )


def test_visible_patches_keep_the_positions_that_they_have_in_the_clip(encoder, video):
    params, run = encoder(BARE)
    every = np.asarray(masking.all_visible(B, T, N))
    np.testing.assert_allclose(run(params, video, None).tokens, run(params, video, every).tokens, atol=1e-6)
    order = np.random.default_rng(0).permuted(every, axis=2)
    shuffled = run(params, video, order).tokens
    back = np.argsort(order, axis=2)[..., None]
    np.testing.assert_allclose(
        np.take_along_axis(np.asarray(shuffled), back, 2), run(params, video, every).tokens, atol=1e-5
    )


# --- Layers over time after the encoder -------------------------------------------------------------------------------


def test_the_temporal_encoder_joins_the_frames_of_a_location_only(tiny_config, build_module):
    config = config_lib.freeze(tiny_config({"model.temporal.layers": 2}))
    module = build_module(TemporalEncoder, config, dtype=layers.compute_dtype("float32"))
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(B, T, 5, 16)), jnp.float32)
    video = vision.EncodedVideo(tokens=tokens, kept=jnp.zeros((B, T, 4), jnp.int32), early=tokens[:, :, 1:])
    changed = dataclasses.replace(video, tokens=tokens.at[0, 1, 3].add(jnp.asarray(rng.normal(size=16))))
    moved = abs(np.asarray(module(video).tokens) - np.asarray(module(changed).tokens)).max(-1) > 1e-6
    expected = np.zeros((B, T, 5), bool)
    expected[0, :, 3] = True
    np.testing.assert_array_equal(moved, expected)


def test_the_temporal_encoder_tells_frames_apart_by_its_table_and_takes_clips_of_any_length(tiny_config, build_module):
    config = config_lib.freeze(tiny_config({"model.temporal.layers": 1}))
    module = build_module(TemporalEncoder, config, dtype=layers.compute_dtype("float32"))
    one = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 2, 16)), jnp.float32)
    still = lambda frames: vision.EncodedVideo(
        tokens=jnp.tile(one, (1, frames, 1, 1)), kept=jnp.zeros((1, frames, 1), jnp.int32), early=one[:, :, :0]
    )
    spread = lambda frames: float(np.ptp(np.asarray(module(still(frames)).tokens), axis=1).max())
    assert spread(T) < 1e-5
    module.time[...] = jnp.asarray(np.random.default_rng(1).normal(size=(T, 16)), jnp.float32)
    assert spread(T) > 1e-2
    assert spread(6) > 1e-2
    assert module(still(1)).tokens.shape == (1, 1, 2, 16)
