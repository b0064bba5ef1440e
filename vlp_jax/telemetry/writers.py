"""Metrics as JSON lines and TensorBoard events, written off the step's critical path."""

import json
import math
import os
import pathlib
import queue
import threading
import time
from typing import Any, TextIO

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from vlp_jax.files import write_atomically
from vlp_jax.types import UserError

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
_QUEUE_SIZE = 256  # writes that may wait for the disk before `write` blocks
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Writers:
    """Writes scalars to `WORKDIR/metrics.jsonl` and to TensorBoard event files in `WORKDIR/tensorboard`.

    A thread of its own does the writing; an error there (a full disk) is raised by the next call of any method. A line
    cut short by a killed process is dropped from metrics.jsonl when the next Writers opens it. What `write` has queued
    is lost when the process is killed: `flush` before saving a checkpoint, so that a resumed run finds every line up to
    its step.

    Args:
      workdir: existing directory.
      tensorboard: write event files too.
      enabled: False makes every method do nothing; for all processes but the first.
    """

    def __init__(self, workdir: str | os.PathLike, *, tensorboard: bool = True, enabled: bool = True):
        self._workdir = pathlib.Path(workdir)
        self._path = self._workdir / METRICS_FILE
        self._tensorboard = tensorboard
        self._enabled = enabled
        self._purge_step: int | None = None
        self._queue: queue.Queue = queue.Queue(_QUEUE_SIZE)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        if enabled:
            _keep_lines(self._path, last_step=None)

    def truncate_after(self, step: int) -> None:
        """Forgets what was written of steps above `step`; call on resuming there, before the first `write`.

        Raises:
          UserError: a line of metrics.jsonl, other than a torn last one, is not what `write` writes.
        """
        if self._enabled:
            if self._thread is not None:
                raise RuntimeError("truncate_after: expected before the first write of this Writers")
            _keep_lines(self._path, last_step=step)
            self._purge_step = step + 1

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Queues one line and one event for each scalar; blocks only while 256 earlier writes wait for the disk.

        Args:
          step: the step the scalars belong to.
          scalars: name -> Python, NumPy or jax number; not finite ones are allowed.
        """
        if not self._enabled:
            return
        self._raise_error()
        if "step" in scalars:
            raise ValueError(f"a scalar may not be called 'step': got {scalars['step']!r} with step {step}")
        values = {name: x if isinstance(x, int) else float(x) for name, x in scalars.items()}
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="metric-writers", daemon=True)
            self._thread.start()
        self._queue.put((step, values))

    def flush(self) -> None:
        """Blocks until everything written so far is in the files."""
        if self._thread is not None:
            done = threading.Event()
            self._queue.put(done)
            done.wait()
        self._raise_error()

    def close(self) -> None:
        """Flushes, closes the files and ends the thread; may be called twice."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        lines: TextIO | None = None
        events: _Events | None = None
        while True:
            item = self._queue.get()
            # After an error the queue is still emptied, so that nobody waits for ever on a full one.
            try:
                if item is None:
                    for file in (lines, events):
                        if file is not None:
                            file.close()
                elif isinstance(item, threading.Event):
                    if events is not None:
                        events.flush()
                else:
                    if lines is None:
                        lines = self._path.open("a", encoding="utf-8")
                        if self._tensorboard:
                            events = _Events(self._workdir / TENSORBOARD_FOLDER, self._purge_step)
                    step, values = item
                    lines.write(json.dumps({"step": step, **_to_json(values)}) + "\n")
                    lines.flush()
                    if events is not None:
                        events.add(step, values)
            except Exception as error:
                self._error = error
            finally:
                if isinstance(item, threading.Event):
                    item.set()
            if item is None:
                return


class _Events:
    """A TensorBoard event file. Not tensorboardX.SummaryWriter: its flush does not wait for its own queue, it loses the
    errors of its own thread, and two of them made within a second overwrite each other's file."""

    def __init__(self, folder: pathlib.Path, purge_step: int | None):
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
        self._flushed = time.monotonic()
        if purge_step is not None:  # TensorBoard drops what earlier files say of this step and later ones
            log = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=purge_step, session_log=log))

    def add(self, step: int, values: dict[str, float]) -> None:
        now = time.time()
        for name, value in values.items():
            self._file.write_event(Event(wall_time=now, step=step, summary=summary.scalar(name, value)))
        if time.monotonic() - self._flushed > 10:  # seconds; a flush includes an fsync
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of `WORKDIR/metrics.jsonl` in order, each `{"step": ..., name: value}`.

    A last line that is being written, or was cut short, is left out.

    Raises:
      UserError: there is no such file, or another line of it is damaged.
    """
    path = pathlib.Path(workdir) / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected the workdir of a run that has logged metrics")
    return [record for _, record in _parse(path)]


def _to_json(values: dict[str, float]) -> dict[str, Any]:
    """JSON has no nan and inf; they become the strings that Python prints."""
    return {name: x if math.isfinite(x) else str(x) for name, x in values.items()}


def _parse(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Returns `(line, its record)` of every whole line."""
    *lines, _ = path.read_bytes().split(b"\n")  # what follows the last newline is empty or torn
    out = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError(f"step is {record['step']!r}")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}:{number}: {line[:80]!r} is not a line of metrics ({error}); delete this line"
            ) from None
        out.append((line, {k: _NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in record.items()}))
    return out


def _keep_lines(path: pathlib.Path, last_step: int | None) -> None:
    """Drops a torn last line and, where `last_step` is given, later lines; the file is replaced in one operation."""
    if not path.is_file():
        return
    kept = b"".join(line + b"\n" for line, record in _parse(path) if last_step is None or record["step"] <= last_step)
    if kept != path.read_bytes():
        write_atomically(path, kept)
