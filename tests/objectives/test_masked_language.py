"""MLM against a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from vlp_jax.objectives import masked_language

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(3, 4, 7)) * 2).astype(np.float32)
IDS = RNG.integers(0, 7, (3, 4)).astype(np.int32)
CHOSEN = RNG.random((3, 4)) < 0.5


def test_mlm_is_the_cross_entropy_at_the_chosen_places():
    loss = correct = 0.0
    for b, place in np.argwhere(CHOSEN):
        line = LOGITS[b, place].astype(np.float64)
        loss += np.log(np.exp(line).sum()) - line[IDS[b, place]]
        correct += line.argmax() == IDS[b, place]
    got = masked_language.mlm(jnp.asarray(LOGITS), jnp.asarray(IDS), jnp.asarray(CHOSEN))
    expected = ((loss, CHOSEN.sum()), (correct, CHOSEN.sum()))
    np.testing.assert_allclose(jax.tree.map(float, got), expected, rtol=1e-5)


def test_mlm_has_no_gradient_where_nothing_was_chosen():
    gradient = np.asarray(jax.grad(lambda x: masked_language.mlm(x, IDS, jnp.asarray(CHOSEN))[0][0])(LOGITS))
    assert (gradient[~CHOSEN] == 0).all()
    assert (gradient[CHOSEN] != 0).all()
    p = np.exp(LOGITS.astype(np.float64))
    expected = p / p.sum(-1, keepdims=True) - np.eye(7)[IDS]
    np.testing.assert_allclose(gradient[CHOSEN], expected[CHOSEN], atol=1e-6)


def test_mlm_with_nothing_chosen_is_zero_over_zero():
    pairs = masked_language.mlm(jnp.asarray(LOGITS), jnp.asarray(IDS), jnp.zeros((3, 4), bool))
    assert jax.tree.leaves(jax.tree.map(float, pairs)) == [0.0] * 4
