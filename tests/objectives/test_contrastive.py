"""VTC against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlp_jax.objectives import contrastive

RNG = np.random.default_rng(0)
B = 6
LOGITS = (RNG.normal(size=(B, B)) * 3).astype(np.float32)
IDS = np.array([0, 1, 2, 1, 4, 1], np.int32)
VALID = np.array([True, True, False, True, True, False])


@pytest.fixture(params=[0, 1, 2, 3, 6])
def pairs(request):
    """Builds Similarities with these logits, all at once or some rows at a time."""

    def build(logits, ids, valid):
        logits = jnp.asarray(logits)
        columns = jnp.eye(len(ids), dtype=logits.dtype)
        return contrastive.Similarities(
            logits, columns, jnp.float32(1), jnp.asarray(ids), jnp.asarray(valid), request.param
        )

    return build


@pytest.fixture
def vtc(pairs):
    def value(logits, ids, valid):
        total, count = contrastive.vtc(pairs(logits, ids, valid))
        return float(total), float(count)

    return value


def by_hand(logits, ids):
    """1/2 CE(rows) + 1/2 CE(columns), the target spread evenly over the rows of the same id; all rows valid."""
    logits = logits.astype(np.float64)
    total = 0.0
    for i in range(len(ids)):
        same = [j for j in range(len(ids)) if ids[j] == ids[i]]
        for line in (logits[i], logits[:, i]):
            log_z = np.log(np.exp(line).sum())
            total += 0.5 * sum(log_z - line[j] for j in same) / len(same)
    return total


def test_vtc_of_distinct_pairs_is_the_symmetric_cross_entropy(vtc):
    total, count = vtc(LOGITS, np.arange(B), np.ones(B, bool))
    np.testing.assert_allclose(total, by_hand(LOGITS, np.arange(B)), rtol=1e-5)
    assert count == B


def test_vtc_spreads_the_target_over_rows_of_the_same_id(vtc):
    np.testing.assert_allclose(vtc(LOGITS, IDS, np.ones(B, bool))[0], by_hand(LOGITS, IDS), rtol=1e-5)


def test_an_invalid_row_is_neither_anchor_nor_negative_nor_positive(vtc):
    total, count = vtc(LOGITS, IDS, VALID)
    rest = np.flatnonzero(VALID)
    np.testing.assert_allclose(total, by_hand(LOGITS[np.ix_(rest, rest)], IDS[rest]), rtol=1e-5)
    assert count == 4


def test_vtc_gives_no_gradient_to_similarities_of_invalid_rows_and_the_true_one_elsewhere(pairs):
    gradient = np.asarray(jax.grad(lambda s: contrastive.vtc(pairs(s, IDS, VALID))[0])(LOGITS))
    assert (gradient[~VALID] == 0).all()
    assert (gradient[:, ~VALID] == 0).all()
    expected = np.zeros((B, B))
    rest = np.flatnonzero(VALID)
    small, ids = LOGITS[np.ix_(rest, rest)].astype(np.float64), IDS[rest]
    for i, j in np.ndindex(small.shape):
        step = np.zeros_like(small)
        step[i, j] = 1e-5
        expected[rest[i], rest[j]] = (by_hand(small + step, ids) - by_hand(small - step, ids)) / 2e-5
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


@pytest.mark.parametrize("valid_rows", [0, 1])
def test_vtc_stays_finite_with_no_or_one_valid_row(vtc, pairs, valid_rows):
    valid = np.arange(B) < valid_rows
    total, count = vtc(LOGITS, np.arange(B), valid)
    assert (total, count) == (0.0, valid_rows)
    gradient = jax.grad(lambda s: contrastive.vtc(pairs(s, np.arange(B), valid))[0])(LOGITS)
    assert (np.asarray(gradient) == 0).all()


def test_vtc_survives_similarities_at_the_lowest_temperature(vtc):
    logits = np.sign(LOGITS) * 1000
    total, _ = vtc(logits, np.arange(B), np.ones(B, bool))
    assert np.isfinite(total)


def distilled_by_hand(logits, taught, ids, share):
    """As `by_hand`, the targets `share` of the teacher's softmax and the rest of the even ones."""
    total = 0.0
    for s, q in ((logits.astype(np.float64), taught.astype(np.float64)), (logits.T, taught.T)):
        for i in range(len(ids)):
            same = ids == ids[i]
            target = share * np.exp(q[i]) / np.exp(q[i]).sum() + (1 - share) * same / same.sum()
            total -= 0.5 * (target * (s[i] - np.log(np.exp(s[i]).sum()))).sum()
    return total


TAUGHT = (RNG.normal(size=(B, B)) * 2).astype(np.float32)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_teachers_share_of_the_targets_is_its_softmax_over_the_valid_ones(pairs, share):
    total, count = contrastive.vtc(pairs(LOGITS, IDS, VALID), pairs(TAUGHT, IDS, VALID), share)
    rest = np.flatnonzero(VALID)
    own = np.ix_(rest, rest)
    np.testing.assert_allclose(total, distilled_by_hand(LOGITS[own], TAUGHT[own], IDS[rest], share), rtol=1e-5)
    assert count == 4
    if not share:
        np.testing.assert_allclose(total, contrastive.vtc(pairs(LOGITS, IDS, VALID))[0], rtol=1e-6)


def test_no_gradient_flows_into_a_teacher_and_none_is_left_where_the_student_agrees(pairs):
    def value(s, q):
        return contrastive.vtc(pairs(s, IDS, VALID), pairs(q, IDS, VALID), 1.0)[0]

    student, teacher = jax.grad(value, argnums=(0, 1))(LOGITS, TAUGHT)
    assert (np.asarray(teacher) == 0).all()
    assert (np.asarray(student)[np.ix_(VALID, VALID)] != 0).all()
    assert (np.asarray(student)[~VALID] == 0).all() and (np.asarray(student)[:, ~VALID] == 0).all()
    np.testing.assert_allclose(jax.grad(value)(LOGITS, LOGITS), np.zeros((B, B)), atol=1e-6)


@pytest.mark.parametrize("valid_rows", [0, 1])
def test_a_teacher_of_no_or_one_valid_row_gives_finite_losses(pairs, valid_rows):
    args = np.arange(B), np.arange(B) < valid_rows
    loss = lambda s: contrastive.vtc(pairs(s, *args), pairs(TAUGHT, *args), 0.4)[0]
    value, gradient = jax.value_and_grad(loss)(LOGITS)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert np.isfinite(np.asarray(gradient)).all()


def test_similarities_are_cosines_over_the_temperature_with_videos_in_rows():
    v, w = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3))
    expected = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) / 0.07 for b in w] for a in v])
    got = contrastive.similarities(contrastive.unit(jnp.asarray(v)), contrastive.unit(jnp.asarray(w)), 0.07)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert got.dtype == jnp.float32


def test_unit_of_bfloat16_is_float32_and_zero_has_a_finite_gradient():
    assert contrastive.unit(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32
    assert np.isfinite(jax.grad(lambda x: contrastive.unit(x).sum())(jnp.zeros((1, 3)))).all()


def test_rows_are_those_of_the_matrix_and_positives_pairs_of_valid_rows_of_one_id(pairs):
    sims, own = pairs(LOGITS, IDS, VALID), np.arange(B)
    shown = lambda logits, positives, valid_B, own_R: (logits, positives, jnp.tile(valid_B, (len(own_R), 1)), own_R)
    for side, expected in ((sims, LOGITS), (sims.T, LOGITS.T)):
        logits, positives, valid, rows = side.each_row(shown, own)
        np.testing.assert_allclose(logits, expected, rtol=1e-6)
        assert (np.asarray(valid) == VALID).all() and (np.asarray(rows) == own).all()
        for i in range(B):
            for j in range(B):
                assert positives[i, j] == (VALID[i] and VALID[j] and IDS[i] == IDS[j])


def test_recall_at_1_counts_valid_videos_whose_best_valid_text_is_a_positive(pairs):
    hits = 0
    for i in np.flatnonzero(VALID):
        best = max(np.flatnonzero(VALID), key=lambda j: LOGITS[i, j])
        hits += IDS[best] == IDS[i]
    total, count = contrastive.recall_at_1(pairs(LOGITS, IDS, VALID))
    assert (float(total), float(count)) == (hits, 4)


@pytest.mark.parametrize(
    ("x", "g", "passed"),
    [
        (0.1, 2.0, 2.0),  # inside: untouched
        (0.1, -2.0, -2.0),
        (0.001, 2.0, 0.0),  # at and below the lower bound, descent with g > 0 would lead further out
        (0.0005, 2.0, 0.0),
        (0.0005, -2.0, -2.0),
        (0.5, -2.0, 0.0),
        (0.7, -2.0, 0.0),
        (0.7, 2.0, 2.0),
    ],
)
def test_bounded_passes_at_a_bound_only_the_gradient_that_leads_back(x, g, passed):
    value, pull = jax.vjp(lambda x: contrastive.bounded(x, 0.001, 0.5), jnp.float32(x))
    np.testing.assert_allclose(value, np.clip(x, 0.001, 0.5), rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.float32(g))[0], passed)


def test_a_parameter_that_overshot_its_bound_finds_back():
    x = jnp.float32(0.7)
    for _ in range(50):
        x = x - 0.1 * jax.grad(lambda x: (contrastive.bounded(x, 0.001, 0.5) - 0.3) ** 2)(x)
    assert abs(float(x) - 0.3) < 0.05
