"""The bootstrap where its answer is known."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vlp_jax.evaluation import statistics


def draws(seed):
    return np.random.Generator(np.random.Philox(seed))


def test_intervals_of_a_share_cover_the_true_one_19_times_in_20():
    rng, covered, trials = draws(0), 0, 300
    for trial in range(trials):
        low, high = statistics.interval(rng.random(150) < 0.3, np.mean, samples=300, seed=trial)
        covered += low <= 0.3 <= high
    # The standard error of the share covered is 1.3%.
    assert 0.91 <= covered / trials <= 0.98


def test_the_interval_of_a_mean_is_the_normal_one_where_there_are_many_values():
    values = draws(1).normal(5, 2, 4000)
    error = 1.96 * values.std() / len(values) ** 0.5
    low, high = statistics.interval(values, np.mean, samples=2000, seed=0)
    np.testing.assert_allclose([low, high], [values.mean() - error, values.mean() + error], atol=0.15 * error)


def test_copies_of_a_query_in_one_group_add_no_certainty():
    values = draws(2).normal(0, 1, 60)
    alone = statistics.interval(values, np.mean, samples=400, seed=3)
    copied, groups = np.repeat(values, 7), np.repeat(np.arange(60), 7)
    np.testing.assert_allclose(statistics.interval(copied, np.mean, groups_Q=groups, samples=400, seed=3), alone)
    low, high = statistics.interval(copied, np.mean, samples=400, seed=3)
    assert high - low < 0.6 * (alone[1] - alone[0])


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 8))
def test_resamples_hold_whole_groups_as_often_as_they_are_drawn(seed, count, labels):
    groups = draws(seed).integers(0, labels, count)
    for index in statistics._resamples(count, groups.astype(str), 5, seed):
        times = np.bincount(index, minlength=count)
        present = np.unique(groups)
        assert all(len(set(times[groups == g])) == 1 for g in present)
        assert sum(times[groups == g][0] for g in present) == len(present)


def test_a_statistic_of_several_numbers_gives_each_its_own_interval():
    values = draws(4).integers(1, 50, 80)
    both = lambda x: np.array([np.mean(x), np.median(x)])
    low, high = statistics.interval(values, both, samples=200, seed=5)
    for i, one in enumerate((np.mean, np.median)):
        assert statistics.interval(values, one, samples=200, seed=5) == (low[i], high[i])


def test_the_seed_alone_decides_the_resamples():
    values = draws(6).random(40)
    first = statistics.interval(values, np.mean, samples=50, seed=1)
    assert first == statistics.interval(values, np.mean, samples=50, seed=1)
    assert first != statistics.interval(values, np.mean, samples=50, seed=2)


def test_identical_runs_differ_by_nothing_with_p_1():
    values = draws(7).random(50)
    got = statistics.paired(values, values, np.mean, samples=200, seed=0)
    assert got == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_a_run_that_is_better_on_every_query_is_better_for_certain():
    values = draws(8).random(50)
    got = statistics.paired(values, values + 1, np.mean, samples=199, seed=0)
    np.testing.assert_allclose([got["difference"], got["low"], got["high"]], 1)
    assert got["p"] == 2 / 200  # the least that 199 resamples can say
    turned = statistics.paired(values + 1, values, np.mean, samples=199, seed=0)
    assert turned["p"] == got["p"] and turned["high"] < 0


def test_p_is_spread_evenly_where_both_runs_are_equally_good():
    rng = draws(9)
    found = [
        statistics.paired(*(rng.random((2, 100)) < 0.5), np.mean, samples=200, seed=trial)["p"] for trial in range(200)
    ]
    # 5% of them are expected below 0.05, with a standard error of 1.5%.
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.1


def test_pairing_sees_what_two_separate_intervals_hide():
    rng = draws(10)
    hard = rng.normal(0, 5, 200)
    a, b = hard + rng.normal(0, 0.1, 200), hard + 0.1 + rng.normal(0, 0.1, 200)
    assert statistics.paired(a, b, np.mean, samples=400, seed=0)["p"] < 0.01
    (_, high_a), (low_b, _) = (statistics.interval(x, np.mean, samples=400, seed=0) for x in (a, b))
    assert low_b < high_a


@pytest.mark.parametrize(("count", "groups", "samples"), [(0, None, 5), (3, None, 0), (3, [1, 2], 5)])
def test_nothing_to_resample_is_an_error(count, groups, samples):
    with pytest.raises(ValueError, match="expected"):
        statistics.interval(np.zeros(count), np.mean, groups_Q=groups, samples=samples, seed=0)


def test_runs_over_different_numbers_of_queries_cannot_be_paired():
    with pytest.raises(ValueError, match="3 and 4 values"):
        statistics.paired(np.zeros(3), np.zeros(4), np.mean, samples=5, seed=0)
