"""Ranks on the device against a sorting oracle in NumPy.

Embeddings of small whole numbers have exact scores: ties are ties on every machine.
"""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax.evaluation import ranking


@pytest.fixture(scope="module")
def rank():
    mesh = sharding.make_mesh(config_lib.defaults())

    def call(*arguments, **more):
        with sharding.use_mesh(mesh):
            return ranking.rank(*arguments, mesh=mesh, **more)

    return call


def sorted_items(scores, right):
    """Numbers of the items of one query in the order that is worst for the model among equal scores."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    return sorted(range(len(scores)), key=lambda j: (-scores[j], right[j], j))


def first_right(order, right):
    return 1 + next(place for place, item in enumerate(order) if right[item])


@st.composite
def cases(draw, galleries=(1, 9)):
    """Queries, gallery, groups and validity: duplicates, many ties, several relevant items, NaN, invalid items."""
    rng = np.random.Generator(np.random.Philox(draw(st.integers(0, 2**32 - 1))))
    size, width = draw(st.integers(*galleries)), draw(st.integers(1, 3))
    gallery = rng.integers(-2, 3, (size, width)).astype(np.float32)
    groups = rng.integers(0, draw(st.integers(1, size)), size).astype(np.int32)
    count = draw(st.integers(1, 12))
    queries = rng.integers(-2, 3, (count, width)).astype(np.float32)
    if draw(st.booleans()):
        gallery[rng.random(size) < 0.3] = np.nan
        queries[rng.random(count) < 0.2] = np.nan
    valid = rng.random(size) < 0.8
    return queries, gallery, groups[rng.integers(0, size, count)], groups, valid


@hypothesis.settings(max_examples=40)
@hypothesis.given(cases(), st.integers(0, 5))
def test_ranks_and_shortlists_equal_a_sorting_oracle(rank, case, k):
    queries, gallery, query_groups, groups, valid = case
    got = rank(*case, shortlist=k)
    assert got.shortlist_QxK.shape == got.listed_QxK.shape == (len(queries), min(k, len(gallery)))
    scores = np.where(valid, queries @ gallery.T, np.nan)
    for row, group, one, items, listed in zip(scores, query_groups, got.rank_Q, got.shortlist_QxK, got.listed_QxK):
        order = sorted_items(row, groups == group)
        if valid[groups == group].any():
            assert one == first_right(order, groups == group)
        expected = [j for j in order[:k] if np.isfinite(row[j])]
        assert listed.tolist() == [True] * len(expected) + [False] * (len(listed) - len(expected))
        # Which of several wrong, or of several right, items of one score comes first is all the same.
        assert [(row[j], groups[j] == group) for j in items[listed]] == [(row[j], groups[j] == group) for j in expected]
        assert len(set(items[listed])) == len(expected)


def test_more_queries_and_items_than_one_block_holds(rank):
    rng = np.random.Generator(np.random.Philox(0))
    queries, gallery = rng.integers(-3, 4, (300, 4)), rng.integers(-3, 4, (277, 4))
    groups = np.arange(277) % 100
    own = np.arange(300) % 100
    got = rank(queries, gallery, own, groups, np.ones(277, bool), shortlist=7)
    scores = (queries @ gallery.T).astype(np.float32)
    for i in range(300):
        order = sorted_items(scores[i], groups == own[i])
        assert got.rank_Q[i] == first_right(order, groups == own[i])
        assert scores[i, got.shortlist_QxK[i]].tolist() == scores[i, order[:7]].tolist()


def test_items_of_one_embedding_tie_wherever_they_stand(rank):
    """Whatever the matrix product does at its edges, an item's score does not depend on its place."""
    rng = np.random.Generator(np.random.Philox(1))
    gallery = np.tile(rng.normal(size=(1, 256)), (200, 1)).astype(np.float32)
    queries = rng.normal(size=(200, 256)).astype(np.float32)
    got = rank(queries, gallery, np.arange(200), np.arange(200), np.ones(200, bool))
    assert got.rank_Q.tolist() == [200] * 200


def test_an_invalid_item_stands_before_nothing_that_has_a_score(rank):
    gallery = np.array([[3.0], [2.0], [1.0]], np.float32)
    got = rank(np.ones((1, 1)), gallery, np.array([2]), np.arange(3), np.array([False, True, True]))
    assert got.rank_Q.tolist() == [2]


def test_nan_scores_rank_last(rank):
    gallery = np.array([[np.nan], [0.0], [-1.0]], np.float32)
    got = rank(np.ones((1, 1)), gallery, np.array([0]), np.arange(3), np.ones(3, bool), shortlist=3)
    assert got.rank_Q.tolist() == [3] and got.listed_QxK.tolist() == [[True, True, False]]


def test_a_query_without_any_relevant_item_is_an_error(rank):
    with pytest.raises(ValueError, match=r"\[1\]"):
        rank(np.ones((2, 1)), np.ones((2, 1)), np.array([0, 5]), np.arange(2), np.ones(2, bool))


@hypothesis.settings(max_examples=60)
@hypothesis.given(cases(galleries=(2, 9)), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_reranking_equals_writing_the_new_scores_above_all_others_in_the_full_matrix(rank, case, k, seed):
    queries, gallery, query_groups, groups, _ = case
    ranked = rank(*case[:4], np.ones(len(gallery), bool), shortlist=k)
    rng = np.random.Generator(np.random.Philox(seed))
    match = rng.integers(0, 3, (len(queries), len(gallery))).astype(np.float32)
    got = ranking.rerank(
        ranked,
        groups[ranked.shortlist_QxK] == query_groups[:, None],
        np.take_along_axis(match, ranked.shortlist_QxK, axis=1),
    )
    scores = queries @ gallery.T
    for i, group in enumerate(query_groups):
        final = scores[i].copy()
        listed = ranked.shortlist_QxK[i][ranked.listed_QxK[i]]
        final[listed] = 1000 + match[i, listed]
        assert got[i] == first_right(sorted_items(final, groups == group), groups == group)


def test_a_nan_match_puts_the_right_item_at_the_end_of_the_shortlist():
    ranked = ranking.Ranked(np.array([1], np.int32), np.array([[0, 1, 2]], np.int32), np.ones((1, 3), bool))
    right = np.array([[True, False, False]])
    assert ranking.rerank(ranked, right, np.array([[np.nan, -5.0, 3.0]])).tolist() == [3]
    assert ranking.rerank(ranked, right, np.array([[-5.0, np.nan, 3.0]])).tolist() == [2]


def test_summary_by_hand():
    got = ranking.summarise(np.array([1, 1, 2, 6, 11]))
    assert got == {
        "R@1": 40.0,
        "R@5": 60.0,
        "R@10": 80.0,
        "mean_recall": 60.0,
        "median_rank": 2.0,
        "mean_rank": 4.2,
    }
    assert tuple(got) == ranking.METRICS
