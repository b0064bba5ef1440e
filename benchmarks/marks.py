"""What two systems need to reach a mark of quality, and how these compare."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

# A system's name; cost, in seconds or FLOPs -> R@1 at the end of its runs.
Ends = tuple[str, dict[float, list[float]]]


def time_to(mark: float, ends: dict[float, list[float]]) -> float | None:
    """Cost of the run that ends at R@1 = `mark`, interpolated in log cost; None outside what was trained.

    Args:
      ends: cost, in seconds or FLOPs -> R@1 at the end of its runs.
    """
    curve = [(cost, statistics.mean(values)) for cost, values in sorted(ends.items())]
    for (t0, r0), (t1, r1) in itertools.pairwise(curve):
        if r0 <= mark <= r1 and r0 < r1:
            return math.exp(math.log(t0) + (mark - r0) / (r1 - r0) * (math.log(t1) - math.log(t0)))
    return None


def pair_of(
    rows: list[dict[str, Any]], pair: tuple[str, str], cost: Callable[[dict[str, Any]], float]
) -> tuple[Ends, Ends]:
    """What both systems of a pair reached at each cost."""
    ours, theirs = pair
    return (ours, ends_of(rows, ours, cost)), (theirs, ends_of(rows, theirs, cost))


def ends_of(rows: list[dict[str, Any]], system: str, cost: Callable[[dict[str, Any]], float]) -> dict[float, list]:
    """Cost -> R@1 of a system's runs, as `time_to` takes them."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["system"] == system:
            found.setdefault(cost(row), []).append(row["R@1"])
    return found


def mark_lines(
    what: str, mark: float, pair: tuple[Ends, Ends], text: Callable[[float], str], rounds: Sequence[Any] = ()
) -> list[str]:
    """A line of what both need to reach a mark, and the ratio; none for marks that neither's curve holds.

    Args:
      what: the cost, `time` or `FLOPs`; `text` writes one.
      pair: ours and theirs.
      rounds: the same by each round of measurements, for the ratio's range.
    """

    def said(ends):
        cost = time_to(mark, ends)
        if cost is not None:
            return cost, text(cost)
        if ends and mark < statistics.mean(ends[min(ends)]):
            return None, f"under {text(min(ends))}"
        return None, "not reached"

    ours, theirs = pair
    (own, own_text), (other, other_text) = said(ours[1]), said(theirs[1])
    if own is None and other is None:
        return []
    ratio = "none"
    if own and other:
        ratio = f"{other / own:.2f}"
        costs = [(time_to(mark, a), time_to(mark, b)) for (_, a), (_, b) in rounds]
        if each := [b / a for a, b in costs if a and b]:
            ratio += f" ({min(each):.2f} to {max(each):.2f})"
    elif other and own_text.startswith("under"):
        ratio = f"over {other / min(ours[1]):.2f}"
    elif own and other_text.startswith("under"):
        ratio = f"under {min(theirs[1]) / own:.2f}"
    elif own and theirs[1]:
        ratio = f"over {max(theirs[1]) / own:.2f}"
    elif other and ours[1]:
        ratio = f"under {other / max(ours[1]):.2f}"
    return [f"    {what} to R@1 = {mark:g}: {ours[0]} {own_text}, {theirs[0]} {other_text}, ratio {ratio}"]
