"""The pixel decoder: its output stands in the order of the hidden patches, and depends on what it may see only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax import masking
from vlp_jax.models import decoder as decoder_lib

B, T, N, D = 2, 3, 9, 16
RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(B, T, 5, D)).astype(np.float32)
MASK = masking.sample_patches(
    "random", jax.random.split(jax.random.key(0), B), slots=T, patches=N, visible=(T, 5), hidden=4
)
VISIBLE, HIDDEN = np.asarray(MASK.visible), np.asarray(MASK.hidden)


@pytest.fixture(scope="module")
def decode(tiny_config, build_module):
    @functools.cache
    def make(attention, changes):
        config = config_lib.freeze(tiny_config({"model.decoder.attention": attention, **dict(changes)}))
        graph, params = nnx.split(build_module(decoder_lib.PixelDecoder, config, dtype=jnp.float32))
        return jax.jit(
            lambda tokens, visible, hidden: nnx.merge(graph, params)(tokens, visible, hidden, T, N),
        )

    return lambda attention, tokens=TOKENS, visible=VISIBLE, hidden=HIDDEN, **changes: np.asarray(
        make(attention, tuple((name.replace("__", "."), x) for name, x in changes.items()))(tokens, visible, hidden)
    )


@pytest.mark.parametrize("attention", ["frame", "joint"])
def test_predictions_stand_in_the_order_of_the_hidden_patches(decode, attention):
    got = decode(attention)
    assert got.shape == (B, T, 4, 8 * 8 * 3)
    assert got.dtype == np.float32
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(decode(attention, hidden=HIDDEN[..., order]), got[:, :, order], rtol=1e-3, atol=1e-5)
    assert abs(got[:, :, 0] - got[:, :, 1]).mean() > 1e-3  # each place gets pixels of its own


@pytest.mark.parametrize("attention", ["frame", "joint"])
def test_visible_tokens_are_known_by_their_number_not_their_order(decode, attention):
    order = np.array([4, 1, 0, 3, 2])
    got = decode(attention, tokens=TOKENS[:, :, order], visible=VISIBLE[..., order])
    np.testing.assert_allclose(got, decode(attention), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attention", ["frame", "joint"])
def test_only_joint_decoding_sees_other_frames_and_none_sees_other_clips(decode, attention):
    changed = TOKENS.copy()
    changed[0, 1] += 1.0
    before, after = decode(attention), decode(attention, tokens=changed)
    np.testing.assert_array_equal(before[1], after[1])
    assert abs(before[0, 1] - after[0, 1]).max() > 1e-3
    if attention == "frame":
        np.testing.assert_array_equal(before[0, [0, 2]], after[0, [0, 2]])
    else:
        assert abs(before[0, [0, 2]] - after[0, [0, 2]]).max() > 1e-3


@pytest.mark.parametrize("uses", [True, False])
def test_the_decoder_sees_the_cls_where_the_config_says_so(decode, uses):
    with_cls = np.concatenate([np.ones((B, T, 1, D), np.float32), TOKENS], axis=2)
    other = with_cls.copy()
    other[:, :, 0] = -1
    got = [decode("frame", tokens=x, model__decoder__cls=uses) for x in (with_cls, other)]
    assert (abs(got[0] - got[1]).max() > 1e-4) == uses


@pytest.mark.parametrize("positions", ["learned", "sequence"])
def test_places_are_told_apart_by_any_positions(decode, positions):
    got = decode("joint", model__decoder__positions=positions)
    flat = got.reshape(B, -1, got.shape[-1])
    apart = abs(flat[:, :, None] - flat[:, None]).max(-1) + np.eye(flat.shape[1])
    assert apart.min() > 1e-4


def test_joint_decoding_rebuilds_whole_hidden_frames(decode):
    mask = masking.sample_patches(
        "frame", jax.random.split(jax.random.key(1), B), slots=T, patches=N, visible=(2, N), hidden=N
    )
    tokens = RNG.normal(size=(B, 2, N, D)).astype(np.float32)
    got = decode("joint", tokens, np.asarray(mask.visible), np.asarray(mask.hidden))
    assert got.shape == (B, 1, N, 192)
    order = np.arange(N)[::-1]
    turned = decode("joint", tokens, np.asarray(mask.visible), np.asarray(mask.hidden)[..., order])
    np.testing.assert_allclose(turned, got[:, :, order], rtol=1e-3, atol=1e-5)
