"""Progress on the terminal, time spent waiting for data, and the table of parameters."""

import collections
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import jax
from clu import parameter_overview as clu_overview

from vlp_jax.text import duration

_LIVE_SECONDS = 0.2  # between redraws of the live line
_PLAIN_SECONDS = 5.0  # between lines where the output is no terminal


class DataWait:
    """Share of the wall time spent inside `with` blocks: `with waiting: batch = next(batches)`.

    Args:
      clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._since = clock()
        self._entered = 0.0
        self._waited = 0.0
        self.last = 0.0  # seconds of the newest block

    def __enter__(self) -> "DataWait":
        self._entered = self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        self.last = self._clock() - self._entered
        self._waited += self.last

    def share(self) -> float:
        """Returns waiting time over wall time since the last call (or the start), in [0, 1]; starts anew."""
        now = self._clock()
        wall, waited = now - self._since, self._waited
        self._since, self._waited = now, 0.0
        return min(1.0, waited / wall) if wall > 0 else 0.0


class Progress:
    """Shows how far a run is: one live line on a terminal, a plain line now and then elsewhere.

    Args:
      total_steps: steps of the whole run.
      start_step: steps done before this process started.
      batch_size: global examples a step.
      stream: where to print; None for stderr.
      enabled: False prints nothing (every process but the first); `update` still returns the speed.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        batch_size: int,
        stream: TextIO | None = None,
        *,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._batch_size = total_steps, batch_size
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled
        self._clock = clock
        self._live = enabled and self._stream.isatty()
        self._started = clock()
        self._step = start_step
        self._last = (self._started, start_step)  # of the last update, for the speed between two of them
        self._settled: tuple[float, int] | None = None  # first update: compilation lies before it, and out of the ETA
        self._origin = (self._started, start_step)
        self._shown_at = -math.inf
        self._details = ""
        self._line_pending = False  # the newest state has not been printed
        self._line_open = False  # the cursor stands at the end of a live line

    def update(self, step: int, terms: dict[str, float], data_wait_share: float) -> dict[str, float]:
        """Takes note of a finished step and of the newest losses.

        Args:
          step: steps done.
          terms: name -> value, shown in this order, the first one in front.
          data_wait_share: share of the time since the last update that the devices waited for data, [0, 1].

        Returns:
          `examples_per_second` since the last update, and `data_wait_share`, for the metric writers.
        """
        now = self._clock()
        then, last_step = self._last
        speed = (step - last_step) * self._batch_size / (now - then) if now > then else 0.0
        self._last = (now, step)
        if self._settled is None:
            self._settled = (now, step)
        pace = f"{speed:,.1f} examples/s, data wait {data_wait_share:.0%}"
        # The first term, the loss, stands before the pace: a narrow terminal shows both.
        first, *others = [f"{name} {value:.4g}" for name, value in terms.items()] or [""]
        self._details = "".join(f" | {part}" for part in (first, pace, "  ".join(others)) if part)
        self._show(step, now)
        return {"examples_per_second": speed, "data_wait_share": data_wait_share}

    def tick(self, step: int) -> None:
        """Redraws the live line between two updates; cheap enough for every step, and nothing off a terminal."""
        if self._live:
            self._show(step, self._clock())

    def finish(self) -> None:
        """Prints the last state where it is not on the screen yet, and ends the live line; may be called twice."""
        if self._line_pending:
            self._print(self._clock())
        if self._line_open:
            self._stream.write("\n")
            self._stream.flush()
            self._line_open = False

    def _show(self, step: int, now: float) -> None:
        self._step = step
        self._line_pending = self._enabled
        pause = _LIVE_SECONDS if self._live else _PLAIN_SECONDS
        if self._enabled and (now - self._shown_at >= pause or step >= self._total):
            self._print(now)

    def _print(self, now: float) -> None:
        text = (
            f"step {self._step:,}/{self._total:,} ({self._step / self._total:.1%}), {self._times(now)}{self._details}"
        )
        if self._live:
            # The last column stays free: writing there wraps on some terminals, and \r then returns to the wrong line.
            width = _width(self._stream) - 1
            self._stream.write("\r" + (text if len(text) <= width else text[: width - 1] + "…") + "\x1b[K")
            self._line_open = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
        self._shown_at, self._line_pending = now, False

    def _times(self, now: float) -> str:
        elapsed = f"{duration(now - self._started)} elapsed"
        # The mean over everything since the first update, so that evaluations and checkpoints count too.
        since, from_step = self._origin if self._settled in (None, self._last) else self._settled
        done = self._step - from_step
        if done <= 0 or self._step >= self._total:
            return elapsed
        left = f"{duration((self._total - self._step) * (now - since) / done)} left"
        return left if self._live else f"{elapsed}, {left}"


def parameter_overview(params: Any) -> str:
    """Returns a table of the parameters by module, the first two levels of the tree, and their total.

    Args:
      params: nested dicts (or any pytree) of arrays or `jax.ShapeDtypeStruct`s.
    """
    groups: dict[str, list] = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path[:2], simple=True, separator="/")
        groups[name.removesuffix("/value")].append(leaf)  # an nnx.Variable holds its array under that name
    leaves = [leaf for group in groups.values() for leaf in group]
    total = sum(leaf.size for leaf in leaves)
    rows = [
        _Row(name, len(group), sum(leaf.size for leaf in group), f"{sum(leaf.size for leaf in group) / total:.1%}")
        for name, group in groups.items()
    ]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    dtypes = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
    table = clu_overview.make_table(rows, column_names=["module", "arrays", "parameters", "share"])
    return f"{table}\nTotal: {total:,} parameters in {len(leaves)} arrays, {size / 1e6:,.1f} MB ({dtypes})"


@dataclasses.dataclass
class _Row:
    module: str
    arrays: int
    parameters: int
    share: str


def _width(stream: TextIO) -> int:
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):  # a terminal that does not tell, or a stand-in for one
        columns = 0
    return columns or 80
