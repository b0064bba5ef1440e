"""Means of what steps measure, between two lines of metrics."""

from typing import Any


class Meters:
    """Sums and counts since the last line of metrics; saved with the state, so that a resumed run logs the same means.

    Args:
      pending: name -> [sum, count], from a checkpoint.
    """

    def __init__(self, pending: dict[str, list[float]] | None = None):
        self.pending = dict(pending or {})

    def add(self, metrics: dict[str, Any]) -> None:
        """Adds one step's `(sum, count)` pairs, and its loss and gradient norm as pairs of count 1."""
        pairs = {"loss": (metrics["loss"], 1.0), **metrics["terms"], **metrics["measurements"]}
        pairs["grad_norm"] = (metrics["grad_norm"], 1.0)
        for name, (total, count) in pairs.items():
            old = self.pending.get(name, [0.0, 0.0])
            self.pending[name] = [old[0] + float(total), old[1] + float(count)]

    def means(self) -> dict[str, float]:
        """Means of what was added since the last call; a name without any count is left out."""
        means = {name: total / count for name, (total, count) in self.pending.items() if count}
        self.pending = {}
        return means
