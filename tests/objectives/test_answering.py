"""Likelihood of answers and the choice among numbered items, against loops in float64."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from vlp_jax.objectives import answering

B, L, V = 4, 3, 7
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, L, V)).astype(np.float32) * 3
IDS = RNG.integers(0, V, (B, L + 1)).astype(np.int32)
CHOICE = jax.jit(answering.choice)
MASK = np.arange(L + 1) < np.array([4, 2, 3, 4])[:, None]


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum())


def by_hand(row):
    """The token after position i is predicted at position i, as long as there is one."""
    return sum(log_softmax(LOGITS[row, i])[IDS[row, i + 1]] for i in range(L) if MASK[row, i + 1])


def test_an_answers_likelihood_is_the_sum_over_its_tokens_without_the_first_and_the_padding():
    got = answering.log_likelihood(LOGITS, IDS, MASK)
    np.testing.assert_allclose(got, [by_hand(row) for row in range(B)], rtol=1e-5)


def test_generation_is_summed_over_tokens_and_counted_in_valid_examples():
    valid = np.array([True, False, True, True])
    (loss, examples), (right, tokens) = answering.generation(LOGITS, IDS, MASK, valid)
    np.testing.assert_allclose(loss, -sum(by_hand(row) for row in np.flatnonzero(valid)), rtol=1e-5)
    assert float(examples) == 3
    hits = [LOGITS[b, i].argmax() == IDS[b, i + 1] for b in (0, 2, 3) for i in range(L) if MASK[b, i + 1]]
    assert (float(right), float(tokens)) == (sum(hits), len(hits))


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5))
def test_choice_equals_a_loop_with_ties_and_unknown_items(seed, examples, items):
    rng = np.random.default_rng(seed)
    # One shape, whatever the example, is compiled once: what is beyond `examples` and `items` cannot be chosen.
    logits = np.full((6, 5), -np.inf, np.float32)
    logits[:examples, :items] = rng.integers(-2, 3, (examples, items))  # many ties
    label = rng.integers(-1, items, 6).astype(np.int32)
    counted = (rng.random(6) < 0.7) & (np.arange(6) < examples)
    losses, hits = [], []
    for row, true, take in zip(logits, label, counted):
        if take and true >= 0:
            losses.append(-log_softmax(row)[true])
            hits.append(all(row[true] > other for i, other in enumerate(row) if i != true))
    (loss, count), (right, again) = CHOICE(logits, label, counted)
    np.testing.assert_allclose(loss, sum(losses), rtol=1e-5, atol=1e-6)
    assert float(count) == float(again) == len(losses)
    assert float(right) == sum(hits)


def test_examples_that_do_not_count_get_no_gradient_however_bad_they_are():
    label, counted = np.array([1, -1, 2, 0], np.int32), np.array([True, True, False, True])
    gradient = jax.grad(lambda x: answering.choice(x, label, counted)[0][0])(jnp.asarray(LOGITS[:, 0]) * 1e6)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[[1, 2]], 0)
    gradient = jax.grad(lambda x: answering.generation(x, IDS, MASK, counted)[0][0])(jnp.asarray(LOGITS))
    assert (np.asarray(gradient)[2] == 0).all() and (np.asarray(gradient)[1, 1:] == 0).all()
    assert (np.asarray(gradient)[1, 0] != 0).any()
