"""Log-probabilities and their gradients against NumPy, and what a backward pass keeps."""

import jax
import jax.numpy as jnp
import numpy as np

from vlp_jax.objectives.log_probability import log_probability

RNG = np.random.default_rng(0)
LOGITS = (10 * RNG.normal(size=(2, 3, 7))).astype(np.float32)
IDS = RNG.integers(0, 7, (2, 3)).astype(np.int32)
G = RNG.normal(size=(2, 3)).astype(np.float32)


def probabilities(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_it_is_the_logarithm_of_the_softmax_at_the_ids():
    expected = np.take_along_axis(np.log(probabilities(LOGITS)), IDS[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_probability(LOGITS, IDS), expected, rtol=1e-5, atol=1e-5)


def test_its_gradient_is_one_at_the_id_less_the_softmax():
    got = jax.grad(lambda x: (log_probability(x, IDS) * G).sum())(LOGITS)
    expected = (np.eye(7)[IDS] - probabilities(LOGITS)) * G[..., None]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_logits_of_minus_infinity_and_of_any_size_leave_value_and_gradient_finite():
    logits = np.array([[1e9, 0.0, -np.inf], [-1e9, -1e9, -np.inf]], np.float32)
    ids = np.array([0, 1], np.int32)
    value, gradient = jax.value_and_grad(lambda x: log_probability(x, ids).sum())(logits)
    np.testing.assert_allclose(value, np.log(0.5), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, 0, 0], [-0.5, 0.5, 0]], atol=1e-7)


def test_a_backward_pass_keeps_no_second_array_of_the_logits_shape():
    _, backward = jax.vjp(lambda x: log_probability(x, IDS), jnp.asarray(LOGITS))
    kept = [leaf for leaf in jax.tree.leaves(backward) if getattr(leaf, "shape", None) == LOGITS.shape]
    assert len(kept) == 1
