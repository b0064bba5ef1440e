"""Attention against a softmax written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlp_jax.models import attention


def by_hand(q, k, v, bias=None):
    """softmax(q k / sqrt(Dh) + bias) v of each example and head, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, s, a in np.ndindex(q.shape[:3]):
        logits = np.array([q[b, s, a] @ k[b, u, a] for u in range(k.shape[1])]) / np.sqrt(q.shape[-1])
        if bias is not None:
            logits = logits + np.broadcast_to(bias, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))[b, a, s]
        weights = np.exp(logits - logits.max())
        out[b, s, a] = weights / weights.sum() @ v[b, :, a]
    return out


def random(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("with_bias", [False, True])
def test_attend_is_softmax_attention(with_bias):
    q, k, v, bias = random((2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4), (2, 1, 1, 5))
    bias = bias if with_bias else None
    np.testing.assert_allclose(attention.attend(q, k, v, bias), by_hand(q, k, v, bias), rtol=1e-4, atol=1e-5)


def test_attend_in_bfloat16_takes_the_softmax_in_float32():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in random((1, 2, 1, 4), (1, 300, 1, 4), (1, 300, 1, 4)))
    got = attention.attend(q, k, v)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), by_hand(q, k, v), atol=0.02)


def test_padded_keys_have_no_influence_and_get_no_gradient():
    q, k, v = random((2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4))
    mask = np.array([[True, True, True, False, False], [True] * 5])
    bias = attention.padding_bias(jnp.asarray(mask))
    assert bias.shape == (2, 1, 1, 5)
    assert bias.dtype == jnp.float32
    got = attention.attend(q, k, v, bias)
    np.testing.assert_allclose(got[:1], by_hand(q[:1], k[:1, :3], v[:1, :3]), rtol=1e-4, atol=1e-5)
    other_k, other_v = k.copy(), v.copy()
    other_k[~mask], other_v[~mask] = 50, -7
    np.testing.assert_array_equal(attention.attend(q, other_k, other_v, bias), got)
    gradient = jax.grad(lambda kv: attention.attend(q, kv[0], kv[1], bias).sum())((k, v))
    for g in gradient:
        assert (np.asarray(g)[~mask] == 0).all()


def test_a_fully_padded_row_stays_finite():
    q, k, v = random((1, 3, 2, 4), (1, 5, 2, 4), (1, 5, 2, 4))
    bias = attention.padding_bias(jnp.zeros((1, 5), bool))
    assert np.isfinite(attention.attend(q, k, v, bias)).all()


def test_an_unknown_kernel_is_refused():
    q, k, v = random(*[(1, 2, 1, 4)] * 3)
    with pytest.raises(ValueError, match="'flash'"):
        attention.attend(q, k, v, kernel="flash")


def affine(layer, x, axes):
    return np.tensordot(x, np.asarray(layer.kernel[...], np.float64), axes) + np.asarray(layer.bias[...])


def test_self_attention_projects_attends_and_projects_back(build_module):
    module = build_module(attention.SelfAttention, 8, 2, kernel="xla", dtype=jnp.float32)
    (x,) = random((2, 5, 8))
    qkv = affine(module.qkv, x, 1)
    mixed = by_hand(*(qkv[:, :, i] for i in range(3)))
    np.testing.assert_allclose(module(x), affine(module.out, mixed, 2), rtol=1e-4, atol=1e-5)


def test_cross_attention_reads_keys_and_values_projected_beforehand(build_module):
    module = build_module(attention.CrossAttention, 8, 6, 2, kernel="xla", dtype=jnp.float32)
    x, other, bias = random((2, 3, 8), (2, 5, 6), (2, 1, 1, 5))
    kv = affine(module.key_value, other, 1)
    mixed = by_hand(affine(module.query, x, 1), kv[:, :, 0], kv[:, :, 1], bias)
    got = module(x, module.keys_values(other), bias)
    np.testing.assert_allclose(got, affine(module.out, mixed, 2), rtol=1e-4, atol=1e-5)
