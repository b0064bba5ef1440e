"""Hard negatives: never a positive, never invalid, drawn in proportion to the softmax; the loss over pairs by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlp_jax.objectives import contrastive, matching

B = 6
LOGITS = (np.random.default_rng(1).normal(size=(B, B)) * 1.5).astype(np.float32)
# Row 2 is invalid, rows 1 and 3 are positives of each other.
IDS = np.array([0, 1, 2, 1, 4, 5], np.int32)
VALID = np.array([True, True, False, True, True, True])


def pairs(logits, ids, valid, at_once=0):
    columns = jnp.eye(len(ids), dtype=jnp.float32)
    return contrastive.Similarities(
        jnp.asarray(logits), columns, jnp.float32(1), jnp.asarray(ids), jnp.asarray(valid), at_once
    )


def draw(logits, ids, valid, count=3000):
    keys = jax.random.split(jax.random.key(0), (count, len(ids)))
    one = lambda keys: matching.hard_negatives(keys, pairs(logits, ids, valid))
    index, exists = jax.jit(jax.vmap(one))(keys)
    return np.asarray(index), np.asarray(exists)


def test_a_hard_negative_is_never_a_positive_nor_invalid():
    index, exists = draw(LOGITS * 10, IDS, VALID)
    assert (exists == VALID).all()
    for row in np.flatnonzero(VALID):
        drawn = index[:, row]
        assert VALID[drawn].all()
        assert (IDS[drawn] != IDS[row]).all()


def test_hard_negatives_follow_the_softmax_over_the_allowed_columns():
    index, _ = draw(LOGITS, IDS, VALID)
    for row in np.flatnonzero(VALID):
        allowed = VALID & (IDS[row] != IDS)
        p = np.where(allowed, np.exp(LOGITS[row].astype(np.float64)), 0)
        p /= p.sum()
        np.testing.assert_allclose(np.bincount(index[:, row], minlength=B) / len(index), p, atol=0.04)


def test_hard_negatives_of_groups_are_those_of_each_group_by_itself():
    ids, valid = np.arange(B), np.ones(B, bool)
    keys = jax.random.split(jax.random.key(1), (500, B))
    one = lambda keys: matching.hard_negatives(keys, pairs(LOGITS, ids, valid), group=2)[0]
    index = np.asarray(jax.jit(jax.vmap(one))(keys))
    np.testing.assert_array_equal(index, np.broadcast_to(np.arange(B) ^ 1, index.shape))  # the other one of two
    _, exists = matching.hard_negatives(keys[0], pairs(LOGITS, np.arange(B) // 2, valid), group=2)
    assert not exists.any()
    whole, grouped = (matching.hard_negatives(keys[0], pairs(LOGITS, IDS, VALID), group=n) for n in (0, B))
    np.testing.assert_array_equal(whole, grouped)


def test_a_row_without_any_negative_is_reported_and_its_draw_is_in_range():
    index, exists = draw(LOGITS, np.zeros(B, np.int32), VALID, count=20)
    assert not exists.any()
    assert ((index >= 0) & (index < B)).all()
    index, exists = draw(LOGITS, np.array([0, 0, 7, 0, 0, 9], np.int32), VALID, count=20)
    assert exists[0].tolist() == [True, True, False, True, True, True]
    assert (index[:, [0, 1, 3, 4]] == 5).all()  # the only row of another id
    assert set(index[:, 5].tolist()) <= {0, 1, 3, 4}


def test_no_row_has_a_negative_where_only_one_is_valid():
    _, exists = draw(LOGITS, np.arange(B), np.arange(B) == 3, count=2)
    assert not exists.any()


def test_the_draw_passes_no_gradient_and_depends_on_the_key():
    keys = jax.random.split(jax.random.key(0), B)

    def chosen(logits):
        index, _ = matching.hard_negatives(keys, pairs(logits, IDS, VALID))
        return jnp.take_along_axis(jax.lax.stop_gradient(logits), index[:, None], 1).sum()

    assert (np.asarray(jax.grad(chosen)(LOGITS)) == 0).all()
    assert len({tuple(row) for row in draw(LOGITS, IDS, VALID, count=20)[0]}) > 5


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_few_rows_at_a_time_draw_what_all_at_once_draw(at_once):
    keys = jax.random.split(jax.random.key(3), B)
    for side in (lambda p: p, lambda p: p.T):
        whole, parts = (matching.hard_negatives(keys, side(pairs(LOGITS, IDS, VALID, n))) for n in (0, at_once))
        np.testing.assert_array_equal(whole, parts)


def test_vtm_is_the_binary_cross_entropy_of_the_counted_pairs():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(9, 2)).astype(np.float32) * 3
    match, counted = rng.random(9) < 0.4, rng.random(9) < 0.6
    loss = correct = 0.0
    for row, yes, used in zip(logits.astype(np.float64), match, counted):
        if used:
            p = np.exp(row) / np.exp(row).sum()
            loss -= np.log(p[1] if yes else p[0])
            correct += (p[1] > 0.5) == yes
    got = matching.vtm(jnp.asarray(logits), jnp.asarray(match), jnp.asarray(counted))
    np.testing.assert_allclose(jax.tree.map(float, got), ((loss, counted.sum()), (correct, counted.sum())), rtol=1e-5)


def test_vtm_without_counted_pairs_is_zero_with_zero_gradient():
    logits, no = jnp.ones((3, 2)), jnp.zeros(3, bool)
    (loss, count), _ = matching.vtm(logits, no, no)
    assert (float(loss), float(count)) == (0.0, 0.0)
    assert (np.asarray(jax.grad(lambda x: matching.vtm(x, no, no)[0][0])(logits)) == 0).all()
