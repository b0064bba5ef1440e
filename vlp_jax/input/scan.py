"""Decoding every clip of a source in worker processes, which survives clips that crash or hang the decoder."""

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import time
from collections.abc import Generator, Iterable
from multiprocessing import connection
from typing import Any

from vlp_jax import processes
from vlp_jax.input import features, video
from vlp_jax.input.decoder import MAX_PIXELS, Reader
from vlp_jax.input.sources import Source

_CHUNK = 8  # records sent to a worker at once
_START_S = 120.0  # a worker's start, its imports included, on a busy machine
_GRACE_S = 30.0  # over twice the clip's own limit, after which its worker is ended


@dataclasses.dataclass(frozen=True)
class Part:
    """A source, and how its clips are examined.

    Attributes:
      name: for the report.
      frames: T, frames that training would take.
      size: height and width they are scaled to, pixels.
      timeout_s, max_pixels: limits of a clip, as in `config.input`.
      captions: whether an empty caption makes a record a bad one.
      stills: whether one frame is enough of a picture, whatever T is.
      every_frame: decode all frames, rather than the T that evaluation takes.
      store: features that are read instead of the clips, always whole; None for videos.
    """

    name: str
    source: Source
    frames: int = 4
    size: int = 224
    timeout_s: float = 20.0
    max_pixels: int = MAX_PIXELS
    captions: bool = True
    stills: bool = False
    every_frame: bool = False
    store: features.FeatureStore | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one record turned out to be; `error` is '' where it is good, and what is not known is '' or 0."""

    part: int  # number of its part
    number: int  # of the record in its source
    clip_id: str = ""
    origin: str = ""
    error: str = ""
    codec: str = ""
    width: int = 0
    height: int = 0
    frames: int = 0
    seconds: float = 0.0


def examine(parts: tuple[Part, ...], part: int, number: int) -> Finding:
    """Reads and decodes one record."""
    p = parts[part]
    found = Finding(part, number)
    try:
        record = p.source[number] if p.store is None else p.source.annotation(number)
    except Exception as e:  # whatever a damaged file makes a library raise: it is reported, as any bad record is
        return dataclasses.replace(found, error=f"unreadable record: {type(e).__name__}: {e}".splitlines()[0])
    origin = features.origin(record, p.source, p.store)
    found = dataclasses.replace(found, clip_id=record.clip_id, origin=origin)
    try:
        if p.store is not None:
            p.store.read(record, p.frames)
        else:
            reader = Reader(record.video, p.timeout_s, span=record.span, max_pixels=p.max_pixels)
            found = dataclasses.replace(found, codec=reader.codec, width=reader.width, height=reader.height)
            found = dataclasses.replace(found, seconds=reader.duration(), frames=reader.count())
            if p.every_frame:
                reader.check_every_frame()
            frames = 1 if p.stills and reader.is_still else p.frames
            video.decode(reader, frames=frames, size=p.size, span=record.span)
        if p.captions and not record.caption:
            raise video.VideoError("empty caption")
    except video.VideoError as e:
        return dataclasses.replace(found, error=str(e))
    except Exception as e:  # it is reported; the decoder has not crashed
        return dataclasses.replace(found, error=f"{type(e).__name__}: {e}".splitlines()[0])
    return found


def scan(parts: tuple[Part, ...], records: Iterable[tuple[int, int]], workers: int) -> Generator[Finding, None, None]:
    """Examines records, `(part, number)` each, and yields what was found, in the order in which it is found.

    A clip that ends its worker, or keeps it past twice its time limit, is a bad clip; the worker is replaced. Closing
    the generator ends the workers.
    """
    waiting = iter(records)
    limit = 2 * max(p.timeout_s for p in parts) + _GRACE_S
    pool = [_Worker(parts) for _ in range(workers)]
    try:
        for worker in pool:
            worker.give(waiting)
        while any(worker.pending for worker in pool):
            busy = {worker.pipe: worker for worker in pool if worker.pending}
            ready = set(connection.wait(list(busy), timeout=1.0))
            for pipe, worker in busy.items():
                found = worker.take(limit, pipe in ready)
                if found is not None:
                    yield found
                if not worker.pending:
                    worker.give(waiting)
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    """One process, the records it was given and has not answered for, and the pipe to it."""

    def __init__(self, parts: tuple[Part, ...]):
        self._parts = parts
        self.pending: collections.deque[tuple[int, int]] = collections.deque()
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._parts), daemon=True)
        # Ctrl-C reaches all processes, and this one ends the others; they are deaf to it from their first moment on.
        with processes.uninterrupted():
            self._process.start()
        theirs.close()  # so that the pipe ends with the process
        self._is_ready = False
        self._heard = time.monotonic()

    def give(self, waiting: Iterable[tuple[int, int]]) -> None:
        """Sends the next few records."""
        self.pending.extend(itertools.islice(waiting, _CHUNK))
        self._heard = time.monotonic()
        self._send()

    def _send(self) -> None:
        if self.pending:
            # A process that has just ended is found by reading from it.
            with contextlib.suppress(ConnectionError):
                self.pipe.send(list(self.pending))

    def take(self, limit: float, is_ready: bool) -> Finding | None:
        """Returns what there is to say of the first pending record, if anything."""
        if is_ready:
            try:
                answer = self.pipe.recv()
            except (EOFError, ConnectionError):
                self._process.join()
                if not self._is_ready:
                    raise RuntimeError(f"a worker process ended at its start, with {self._process.exitcode}") from None
                return self._replace(f"crashes the decoder (exit status {self._process.exitcode})")
            self._heard = time.monotonic()
            if answer is None:
                self._is_ready = True
                return None
            self.pending.popleft()
            return answer
        if time.monotonic() - self._heard > (limit if self._is_ready else limit + _START_S):
            self._process.kill()
            self._process.join()
            return self._replace(f"hangs the decoder: no answer within {limit:g} s")
        return None

    def _replace(self, error: str) -> Finding:
        part, number = self.pending.popleft()
        self.pipe.close()
        self._start()
        self._send()
        try:
            record: Any = self._parts[part].source[number]
        except Exception:  # its name is then not to be had; the error says what matters
            return Finding(part, number, error=error)
        origin = features.origin(record, self._parts[part].source, self._parts[part].store)
        return Finding(part, number, record.clip_id, origin, error)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _work(pipe: connection.Connection, parts: tuple[Part, ...]) -> None:
    try:
        pipe.send(None)
        while True:
            for part, number in pipe.recv():
                pipe.send(examine(parts, part, number))
    except (EOFError, ConnectionError):
        return  # the first process has ended
