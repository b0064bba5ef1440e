"""The encoder of precomputed features against NumPy, and what its tokens see."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vlp_jax import config as config_lib
from vlp_jax.models import layers
from vlp_jax.models.precomputed import PrecomputedEncoder

B, T, WIDTH = 2, 3, 5
COMMON = {
    **{"input.features.path": "features", "input.features.width": WIDTH, "model.vision.positions": "none"},
    **{"model.masking.kind": "none", "model.masking.ratio": 0.0, "model.pruning.layers": (), "loss.mvm": 0.0},
}


@pytest.fixture(scope="module")
def encoder(tiny_config, build_module):
    def make(**changes):
        config = config_lib.freeze(tiny_config({**COMMON, **changes}))
        return build_module(PrecomputedEncoder, config, dtype=jnp.float32)

    return make


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def affine(layer, x):
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)


def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


gelu = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)


@pytest.mark.parametrize("projection", ["linear", "mlp"])
@pytest.mark.parametrize(("regions", "boxes"), [(0, 0), (4, 0), (4, 6)])
def test_without_blocks_tokens_are_the_normalised_projections_and_their_mean(encoder, projection, regions, boxes):
    form = {"input.features.regions": regions, "input.features.boxes": boxes, "model.vision.layers": 0}
    made = encoder(**{**form, "model.vision.feature_projection": projection})
    if boxes:
        made.embed_boxes.bias[...] = jnp.asarray(noise(16))
    x = noise(B, T, regions or 1, WIDTH + boxes)
    got = made(x)
    features = np.float64(x[..., :WIDTH])
    if projection == "mlp":
        expected = affine(made.embed.down, norm(gelu(affine(made.embed.up, features))))
    else:
        expected = affine(made.embed, features)
    if boxes:
        expected = expected + affine(made.embed_boxes, np.float64(x[..., WIDTH:]))
    if regions:
        expected = np.concatenate([expected.mean(2, keepdims=True), expected], axis=2)
    expected = norm(expected + layers.time_positions(T, 16)[:, None])
    np.testing.assert_allclose(got.tokens, expected, atol=1e-5)
    np.testing.assert_allclose(got.cls, got.tokens[:, :, 0], atol=1e-6)
    assert got.kept.shape == (B, T, regions or 1)
    np.testing.assert_array_equal(got.early, got.tokens)
    np.testing.assert_allclose(got.pooled("mean"), expected[:, :, 1 if regions else 0 :].mean(2), atol=1e-5)


def test_joint_attention_sees_the_other_moments_and_frame_attention_does_not(encoder):
    x = noise(B, T, 1, WIDTH)
    other = x.copy()
    other[:, 2] += 1
    for mode, sees in (("joint", True), ("frame", False)):
        made = encoder(**{"model.vision.attention": mode})
        first, second = (np.asarray(made(clip).tokens) for clip in (x, other))
        assert (abs(first[:, :2] - second[:, :2]).max() > 1e-5) == sees
        assert abs(first[:, 2] - second[:, 2]).max() > 1e-3


def test_regions_of_a_frame_are_a_set_and_frames_are_in_order(encoder):
    made, x = encoder(**{"input.features.regions": 4}), noise(B, T, 4, WIDTH)
    order = np.array([2, 0, 3, 1])
    whole, swapped, reversed_ = (made(clip) for clip in (x, x[:, :, order], x[:, ::-1]))
    np.testing.assert_allclose(swapped.cls, whole.cls, atol=1e-5)
    np.testing.assert_allclose(swapped.tokens[:, :, 1:], whole.tokens[:, :, 1:][:, :, order], atol=1e-5)
    assert abs(np.asarray(reversed_.cls[:, ::-1]) - np.asarray(whole.cls)).max() > 1e-3


@pytest.mark.parametrize(("kind", "blind"), [("none", True), ("learned", True), ("sincos", False)])
def test_time_positions_are_those_of_the_config_and_learned_ones_begin_at_zero(encoder, kind, blind):
    made, x = encoder(**{"model.vision.time_positions": kind, "model.vision.attention": "joint"}), noise(B, T, 1, WIDTH)
    apart = abs(np.asarray(made(x[:, ::-1]).tokens[:, ::-1]) - np.asarray(made(x).tokens)).max()
    assert (apart < 1e-5) == blind
    assert (made.time is not None) == (kind == "learned")


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_clips_of_another_length_are_encoded(encoder, frames):
    for kind in ("learned", "sincos"):
        tokens = encoder(**{"model.vision.time_positions": kind})(noise(B, frames, 1, WIDTH)).tokens
        assert tokens.shape == (B, frames, 1, 16) and np.isfinite(tokens).all()


def test_masked_features_are_refused(encoder):
    with pytest.raises(ValueError, match="expected visible=None"):
        encoder()(noise(B, T, 1, WIDTH), np.zeros((B, T, 1), np.int32))
