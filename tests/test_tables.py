"""Tables of positions for another grid: each place by hand, what stays, and what is no table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_jax import tables

SIDES = st.integers(1, 6)


def table(rows, width=3, seed=0):
    return np.random.Generator(np.random.Philox(seed)).normal(size=(rows, width)).astype(np.float32)


def cubic(d):
    d = abs(d)
    if d <= 1:
        return 1.25 * d**3 - 2.25 * d**2 + 1
    return -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3 if d < 2 else 0.0


def linear(d):
    return max(0.0, 1 - abs(d))


def by_hand(square, to, kernel):
    """Every number of the new grid as a sum over the whole old one, whose border goes on outside."""
    side = len(square)
    out = np.zeros((to, to, square.shape[-1]))
    for y, x in np.ndindex(to, to):
        at_y, at_x = ((v + 0.5) * side / to - 0.5 for v in (y, x))
        for i, j in np.ndindex(side + 6, side + 6):
            inside = square[min(max(i - 3, 0), side - 1), min(max(j - 3, 0), side - 1)]
            out[y, x] += kernel(at_y - (i - 3)) * kernel(at_x - (j - 3)) * inside
    return out


@given(SIDES, SIDES)
def test_learned_places_are_the_bicubic_sum_over_the_old_grid_and_the_cls_stays(there, here):
    before = table(1 + there**2)
    after = tables.resize("vision/space", before, 1 + here**2)
    np.testing.assert_array_equal(after[0], before[0])
    expected = by_hand(before[1:].reshape(there, there, -1), here, cubic).reshape(here**2, -1)
    np.testing.assert_allclose(after[1:], expected, rtol=1e-5, atol=1e-5)


@given(SIDES, SIDES)
def test_relative_offsets_are_interpolated_linearly_and_the_three_rows_of_the_cls_stay(there, here):
    spans = [2 * side - 1 for side in (there, here)]
    before = np.stack([table(spans[0] ** 2 + 3, seed=layer) for layer in range(2)])
    after = tables.resize("vision/blocks/relative", before, spans[1] ** 2 + 3)
    for old, new in zip(before, after):
        np.testing.assert_array_equal(new[-3:], old[-3:])
        expected = by_hand(old[:-3].reshape(spans[0], spans[0], -1), spans[1], linear).reshape(spans[1] ** 2, -1)
        np.testing.assert_allclose(new[:-3], expected, rtol=1e-5, atol=1e-5)


@given(st.sampled_from([("space", lambda s: 1 + s * s), ("relative", lambda s: (2 * s - 1) ** 2 + 3)]), SIDES, SIDES)
def test_a_constant_table_stays_constant_and_the_same_grid_is_the_same_table(kind, there, here):
    name, rows = kind
    same = tables.resize(name, np.full((rows(there), 2), 3.5, np.float32), rows(here))
    np.testing.assert_allclose(same, 3.5, rtol=1e-6)
    before = table(rows(there))
    np.testing.assert_array_equal(tables.resize(name, before, rows(there)), before)


@pytest.mark.parametrize(
    ("name", "there", "here", "can"),
    [
        ("vision/space", (10, 8), (17, 8), True),
        ("vision/space", (9, 8), (17, 8), False),  # no square and a CLS
        ("vision/space", (10, 8), (17, 4), False),
        ("vision/blocks/relative", (2, 28, 4), (2, 52, 4), True),
        ("vision/blocks/relative", (3, 28, 4), (2, 52, 4), False),
        ("vision/blocks/relative", (2, 19, 4), (2, 52, 4), False),  # 16 offsets are those of no grid
        ("vision/time", (4, 8), (6, 8), True),
        ("vision/cls", (4, 8), (6, 8), False),
        ("vision/time", (8,), (6,), False),
    ],
)
def test_only_tables_of_square_grids_and_of_one_width_can_be_resized(name, there, here, can):
    assert tables.can_resize(name, there, here) is can
