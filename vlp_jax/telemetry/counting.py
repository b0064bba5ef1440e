"""Progress of commands that go through clips one by one; imports no JAX, as they do without it."""

import datetime
import sys
import time
from typing import TextIO

_LIVE_SECONDS, _PLAIN_SECONDS = 0.2, 5.0  # between lines: on a terminal, elsewhere


class CountProgress:
    """A line with the speed and the time left: redrawn on a terminal, a new one every 5 seconds elsewhere.

    Args:
      label: in front of the line; '' for none.
      total: how many clips there will be; None where nobody knows, and then no time left is shown.
      stream: where to print; None for stderr.
    """

    def __init__(self, label: str, total: int | None, stream: TextIO | None = None):
        self._label, self._total, self._done = f"{label}: " if label else "", total, 0
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._start = self._shown = time.monotonic()
        self._note = ""
        self._said = -1  # how many the last line counted

    def add(self, note: str = "") -> None:
        """Counts one more; `note` goes into the line."""
        self._done += 1
        self._note = note
        self.show()

    def show(self) -> None:
        """Shows the line where it is time; for what takes long between two counts."""
        now = time.monotonic()
        if now - self._shown >= (_LIVE_SECONDS if self._live else _PLAIN_SECONDS):
            self._shown = now
            self._show()

    def close(self) -> None:
        """Shows the last line."""
        if self._live or self._said != self._done:
            self._show()
        if self._live:
            self._stream.write("\n")

    def _show(self) -> None:
        self._said = self._done
        speed = self._done / max(time.monotonic() - self._start, 1e-9)
        text = f"{self._label}{self._done:,}"
        if self._total:
            text += f"/{self._total:,} clips ({self._done / self._total:.1%})"
        else:
            text += " clips"
        if self._note:
            text += f", {self._note}"
        text += f", {speed:,.0f}/s"
        if self._total and speed:
            left = datetime.timedelta(seconds=round(max(0, self._total - self._done) / speed))
            text += f", {left} left"
        self._stream.write(f"\r{text}\x1b[K" if self._live else f"{text}\n")
        self._stream.flush()
