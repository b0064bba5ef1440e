"""Ranks and their summary against a loop-written oracle."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vlp_jax.evaluation import retrieval


def oracle(scores, relevant):
    """Sorts each row, wrong items first among equals, and walks down to the first relevant item."""
    out = []
    for row, right in zip(scores, relevant):
        order = sorted(range(len(row)), key=lambda j: (-row[j], right[j]))
        out.append(1 + next(i for i, j in enumerate(order) if right[j]))
    return out


@st.composite
def cases(draw):
    queries, gallery = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, draw(st.integers(1, 6)), (queries, gallery)).astype(np.float32)  # many ties
    relevant = rng.random((queries, gallery)) < 0.3
    relevant[np.arange(queries), rng.integers(0, gallery, queries)] = True
    return scores, relevant


@hypothesis.given(cases())
def test_ranks_equal_a_sorting_oracle_with_ties_and_several_relevant_items(case):
    assert retrieval.ranks(*case).tolist() == oracle(*case)


def test_equal_scores_rank_last_so_a_collapsed_model_earns_nothing():
    assert retrieval.ranks(np.ones((5, 5), np.float32), np.eye(5, dtype=bool)).tolist() == [5] * 5


def test_nan_scores_rank_last():
    scores = np.array([[np.nan, 0.0, -1.0]], np.float32)
    assert retrieval.ranks(scores, np.array([[True, False, False]])).tolist() == [3]


def test_a_query_without_any_relevant_item_is_an_error():
    with pytest.raises(ValueError, match=r"\[1\]"):
        retrieval.ranks(np.ones((2, 2)), np.array([[True, False], [False, False]]))


def test_summary_by_hand():
    got = retrieval.summarise(np.array([1, 1, 2, 6, 11]))
    assert got == {"R@1": 40.0, "R@5": 60.0, "R@10": 80.0, "median_rank": 2.0, "mean_rank": 4.2}
