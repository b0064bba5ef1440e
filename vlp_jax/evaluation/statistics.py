"""Intervals and paired comparisons by the bootstrap (Efron, 1979), over queries or over groups of queries.

Questions about one clip, and captions of one clip, are no independent draws: `groups_Q` names the clip of each query,
and whole clips are resampled (the cluster bootstrap). Resample number s is drawn from `(seed, s)` alone.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_TAILS = (0.025, 0.975)


def interval(
    values_Q: Any, statistic: Callable[[np.ndarray], Any], *, groups_Q: Any = None, samples: int, seed: int
) -> tuple[Any, Any]:
    """The 95% percentile interval of `statistic`.

    Args:
      values_Q: one value for each query.
      statistic: array `[n]` of values -> a number, or an array `[M]` of several; n differs between resamples where
        groups differ in size.
      groups_Q: labels; queries of one label are drawn together. None draws each query for itself.
      samples: resamples, 1 or more.

    Returns:
      `(low, high)`, floats, or arrays `[M]` where the statistic returns one.

    Raises:
      ValueError: no value, no resample, or another number of groups than of values.
    """
    values_Q = np.asarray(values_Q)
    drawn = [statistic(values_Q[index]) for index in _resamples(len(values_Q), groups_Q, samples, seed)]
    low, high = np.quantile(np.asarray(drawn, np.float64), _TAILS, axis=0)
    return _plain(low), _plain(high)


def paired(
    values_a_Q: Any,
    values_b_Q: Any,
    statistic: Callable[[np.ndarray], Any],
    *,
    groups_Q: Any = None,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Compares two systems on the same queries: the paired bootstrap (Koehn, 2004).

    Args:
      values_a_Q, values_b_Q: one value for each query, the same query at the same place.
      statistic, groups_Q, samples, seed: as `interval`; both systems are measured on the same resamples.

    Returns:
      `difference`, the statistic of b less that of a; `low` and `high`, its 95% percentile interval; `p`, two-sided:
      twice the share of resamples whose difference is 0 or of the other sign, one resample being added so that no p is
      0, and at most 1. Floats, or arrays `[M]` where the statistic returns one.

    Raises:
      ValueError: as `interval`, or the systems have different numbers of values.
    """
    a, b = np.asarray(values_a_Q), np.asarray(values_b_Q)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values: paired systems answer the same queries")
    change = lambda index: np.asarray(statistic(b[index]), np.float64) - np.asarray(statistic(a[index]), np.float64)
    drawn = np.asarray([change(index) for index in _resamples(len(a), groups_Q, samples, seed)])
    low, high = np.quantile(drawn, _TAILS, axis=0)
    against = np.minimum((drawn <= 0).sum(0), (drawn >= 0).sum(0))
    p = np.minimum(1.0, 2 * (against + 1) / (samples + 1))
    found = {"difference": change(slice(None)), "low": low, "high": high, "p": p}
    return {name: _plain(value) for name, value in found.items()}


def _resamples(count: int, groups_Q: Any, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the queries of each resample: as many groups as there are, drawn with replacement, whole."""
    if not count or samples < 1:
        raise ValueError(f"{samples} resamples of {count} values: expected 1 or more of each")
    groups = np.arange(count) if groups_Q is None else np.unique(np.asarray(groups_Q), return_inverse=True)[1]
    if groups.shape != (count,):
        raise ValueError(f"groups of shape {groups.shape} for {count} values: expected a label for each")
    members = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    for number in range(samples):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, number))))
        drawn = rng.integers(0, len(sizes), len(sizes))
        lengths = sizes[drawn]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        yield members[np.repeat(starts[drawn], lengths) + within]


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value
