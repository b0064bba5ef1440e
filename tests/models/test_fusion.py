"""Fusion of (clip, text) pairs against each pair computed alone, from first principles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax.models import attention, fusion

B, T, S, P, L, D = 3, 4, 5, 5, 6, 16
RNG = np.random.default_rng(0)
VIDEO = RNG.normal(size=(B, T, S, D)).astype(np.float32)
TEXT = RNG.normal(size=(P, L, D)).astype(np.float32)
MASK = np.arange(L) < np.array([6, 3, 4, 6, 2])[:, None]
CLIP = np.array([0, 2, 2, 1, 0], np.int32)
FRAMES = np.array([[0, 2], [1, 3], [0, 1], [2, 3], [0, 3]], np.int32)
GATE = np.log(RNG.dirichlet([1, 1], P)).astype(np.float32)


@pytest.fixture(scope="module")
def module(tiny_config, build_module):
    config = config_lib.freeze(tiny_config({"model.fusion.layers": 2}))
    return build_module(fusion.Fusion, config, dtype=jnp.float32)


@pytest.fixture(scope="module")
def fuse(module):
    graph, params = nnx.split(module)
    run = jax.jit(lambda *args: nnx.merge(graph, params)(*args))
    return lambda text=TEXT, mask=MASK, video=VIDEO, clip=CLIP, frames=FRAMES, gate=GATE: np.asarray(
        run(text, mask, video, clip, frames, gate)
    )


def test_a_pair_is_the_direct_computation_on_its_own_words_and_frames(module, fuse):
    """Without batching over pairs, gathering, or scanning: one pair, one layer, one operation after another."""
    together = fuse()
    graph, params = nnx.split(module.blocks)
    layers = [nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], params)) for i in range(2)]
    for pair in range(P):
        x = jnp.asarray(TEXT[pair : pair + 1])
        tokens = jnp.asarray(np.concatenate([VIDEO[CLIP[pair], t] for t in FRAMES[pair]]))[None]
        gate = np.concatenate([[g] * S for g in GATE[pair]])[None, None, None]
        words = attention.padding_bias(jnp.asarray(MASK[pair : pair + 1]))
        for block in layers:
            x = x + block.self_attention(block.norm_self(x), words)
            cross = block.cross_attention
            x = x + cross(block.norm_cross(x), cross.keys_values(tokens), gate)
            x = x + block.mlp(block.norm_mlp(x))
        np.testing.assert_allclose(together[pair], module.norm(x)[0], rtol=1e-3, atol=1e-5)


def test_the_weights_that_are_observed_make_the_models_own_output(module, fuse):
    """Values weighed by what `observe` returns, through the rest of each layer, are what a call gives."""
    graph, params = nnx.split(module)
    words, video = jax.jit(lambda *args: nnx.merge(graph, params).observe(*args))(TEXT, MASK, VIDEO, CLIP, FRAMES, GATE)
    assert words.shape == (2, P, 2, L, L) and video.shape == (2, P, 2, L, 2, S)
    np.testing.assert_allclose(video.sum((-2, -1)), 1, rtol=1e-5)
    assert (np.asarray(words)[..., 0, :][:, ~np.broadcast_to(MASK[:, None], (P, 2, L))] == 0).all()  # no padding
    tokens = VIDEO[CLIP[:, None], FRAMES]
    graph, params = nnx.split(module.blocks)
    x = jnp.asarray(TEXT)
    for layer in range(2):
        block = nnx.merge(graph, jax.tree.map(lambda leaf, i=layer: leaf[i], params))
        own = block.self_attention.project(block.norm_self(x))[2]
        x = x + block.self_attention.out(jnp.einsum("palm,pmad->plad", words[layer], own))
        values = block.cross_attention.keys_values(tokens)[..., 1, :, :]
        looked = block.cross_attention.out(jnp.einsum("palts,ptsad->plad", video[layer], values))
        kv = block.cross_attention.keys_values(tokens.reshape(P, 2 * S, D))
        gate = jnp.repeat(GATE, S, axis=1)[:, None, None]
        np.testing.assert_allclose(looked, block.cross_attention(block.norm_cross(x), kv, gate), rtol=0, atol=1e-5)
        x = x + looked
        x = x + block.mlp(block.norm_mlp(x))
    np.testing.assert_allclose(fuse(), module.norm(x), rtol=0, atol=1e-5)


def test_a_pair_does_not_depend_on_the_other_pairs(fuse):
    text, clip = TEXT.copy(), CLIP.copy()
    text[[0, 1, 3, 4]] = 1.0
    clip[[0, 1, 3, 4]] = 1
    np.testing.assert_array_equal(fuse(text=text, clip=clip)[2], fuse()[2])


def test_dropped_frames_and_other_clips_have_no_influence(fuse):
    video = np.full_like(VIDEO, 9.0)
    video[2, FRAMES[1]] = VIDEO[2, FRAMES[1]]
    np.testing.assert_array_equal(fuse(video=video)[1], fuse()[1])
    assert abs(fuse(video=video)[0] - fuse()[0]).max() > 0.01


def test_a_frame_gated_to_nothing_is_as_if_dropped(fuse):
    gate = np.tile(np.array([0.0, -1e9], np.float32), (P, 1))
    video = VIDEO.copy()
    for pair in (1, 3):
        video[CLIP[pair], FRAMES[pair, 1]] = -4.0
    # Pairs 1 and 3 look at the changed frames with a closed gate, and share no clip's open frame with each other.
    np.testing.assert_array_equal(fuse(video=video, gate=gate)[[1, 3]], fuse(gate=gate)[[1, 3]])


def test_a_common_shift_of_the_gates_changes_nothing(fuse):
    np.testing.assert_allclose(fuse(gate=GATE + 3), fuse(), rtol=1e-3, atol=1e-5)


def test_padding_of_the_text_has_no_influence_on_its_words(fuse):
    text = np.where(MASK[..., None], TEXT, 5.0).astype(np.float32)
    np.testing.assert_array_equal(fuse(text=text)[MASK], fuse()[MASK])


def test_the_order_of_the_kept_frames_does_not_matter(fuse):
    np.testing.assert_allclose(fuse(frames=FRAMES[:, ::-1], gate=GATE[:, ::-1]), fuse(), rtol=1e-3, atol=1e-5)


def test_the_match_head_gives_float32_logits_of_no_and_yes(build_module):
    head = build_module(fusion.MatchHead, D)
    x = jnp.asarray(TEXT[:, 0], jnp.bfloat16)
    got = head(x)
    assert got.dtype == jnp.float32
    expected = np.asarray(x, np.float64) @ np.asarray(head.out.kernel[...]) + np.asarray(head.out.bias[...])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
