"""Bringing an index up to what its folder holds: only new and changed files are decoded and embedded."""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from vlp_jax.indexing import windows
from vlp_jax.indexing.folder import UNREADABLE, Found, Stamp
from vlp_jax.indexing.store import Bad, Entry, Store
from vlp_jax.indexing.windows import Span
from vlp_jax.input.container import VideoError
from vlp_jax.telemetry.counting import CountProgress
from vlp_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Reading:
    """How videos are cut and decoded.

    Attributes:
      window, stride: seconds, as of `windows.spans`.
      frames, size: T, and height and width, pixels.
      timeout_s, max_pixels: limits of a window, as of `video.decode`.
    """

    window: float
    stride: float
    frames: int
    size: int
    timeout_s: float
    max_pixels: int

    def end_of(self, path: str) -> float:
        """As `windows.end_of`."""
        return windows.end_of(path, self.timeout_s, self.max_pixels)

    def tube(self, path: str, span: Span, end: float) -> np.ndarray:
        """As `windows.tube`."""
        return windows.tube(
            *(path, span, end),
            frames=self.frames,
            size=self.size,
            timeout_s=self.timeout_s,
            max_pixels=self.max_pixels,
        )

    def spans(self, end: float) -> list[Span]:
        """As `windows.spans`."""
        return windows.spans(end, self.window, self.stride)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an update has to do; paths are relative, in their order.

    Attributes:
      new, changed: files to embed.
      moved: `(old, new)` of files that were renamed.
      removed: files that are gone.
    """

    new: list[str]
    changed: list[str]
    moved: list[tuple[str, str]]
    removed: list[str]

    def __bool__(self) -> bool:
        return any((self.new, self.changed, self.moved, self.removed))


def plan(entries: dict[str, Entry], found: Found) -> Plan:
    """Compares an index with what its folder holds; files below folders that cannot be listed stay."""
    files = found.files
    hidden = tuple(folder + os.sep for folder in found.unreadable)
    gone = {path for path in entries if path not in files and not path.startswith(hidden)}
    new = [path for path in files if path not in entries]
    changed = [path for path, stamp in files.items() if path in entries and not entries[path].stamp.same(stamp)]
    # A file that was renamed on its file system keeps its number, size and time.
    by_stamp = {entries[path].stamp: path for path in sorted(gone)}
    moved = []
    for path in new:
        old = by_stamp.pop(files[path], None) if files[path].changed_ns != UNREADABLE else None
        if old is not None:
            moved.append((old, path))
    done = {path for _, path in moved}
    removed = sorted(gone - {path for path, _ in moved})
    return Plan([path for path in new if path not in done], changed, moved, removed)


def update(
    store: Store,
    root: str,
    found: Found,
    todo: Plan,
    reading: Reading,
    embed: Callable[[np.ndarray], np.ndarray],
    *,
    batch_size: int,
    threads: int,
    progress: CountProgress,
) -> None:
    """Does what `plan` says; every batch is committed, so that an update that was ended continues where it was.

    A file is committed when its last window is embedded.

    Args:
      root: folder of the videos.
      embed: uint8 `[batch_size, T, size, size, 3]` -> float32 `[batch_size, E]`; always of this shape, the last batch
        is filled up with copies.
      threads: that decode, ahead of the model.
      progress: counts the files.

    Raises:
      UserError: an embedding is not finite.
    """
    store.move(todo.moved, found.files)
    store.remove(todo.removed)
    waiting: collections.deque[_File] = collections.deque()  # files whose last window is not embedded yet
    tubes: list[np.ndarray] = []
    bad = 0

    def commit() -> None:
        nonlocal bad
        if tubes:
            batch = np.stack([*tubes, *[tubes[-1]] * (batch_size - len(tubes))])
            rows = iter(_finite(embed(batch))[: len(tubes)])
            for file in waiting:
                file.rows += [next(rows) for _ in range(file.decoded - len(file.rows))]
            tubes.clear()
        entries: list[Entry] = []
        rows_out: list[np.ndarray] = []
        while waiting and waiting[0].is_done():
            file = waiting.popleft()
            entries.append(Entry(file.path, file.stamp, len(rows_out), tuple(file.spans), tuple(file.bad)))
            rows_out += file.rows
            bad += bool(file.bad)
            progress.add(f"{bad:,} bad" if bad else "")
        if entries:
            store.add(entries, np.reshape(rows_out, (-1, store.width)))
        else:
            progress.show()

    paths = sorted([*todo.new, *todo.changed])
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for part in _decoded(pool, root, paths, reading, 2 * batch_size):
                if not waiting or waiting[-1].path != part.path:
                    waiting.append(_File(part.path, found.files[part.path], part.windows))
                tube = waiting[-1].take(part)
                if tube is not None:
                    tubes.append(tube)
                if len(tubes) == batch_size or len(waiting) >= 2 * batch_size:
                    commit()
            commit()
        finally:
            pool.shutdown(cancel_futures=True)
    store.compact()


@dataclasses.dataclass(frozen=True)
class _Part:
    """A window of a file, one of `windows`; or, without a span, a file that cannot be read."""

    path: str
    windows: int
    span: Span | None
    end: float
    tube: np.ndarray | None = None
    error: str = ""
    again: bool = False  # whether a later run should try it again, though it is the same file


@dataclasses.dataclass
class _File:
    """What is known of a file whose windows come one after the other."""

    path: str
    stamp: Stamp
    windows: int
    seen: int = 0
    decoded: int = 0
    spans: list[Span] = dataclasses.field(default_factory=list)
    bad: list[Bad] = dataclasses.field(default_factory=list)
    rows: list[np.ndarray] = dataclasses.field(default_factory=list)

    def take(self, part: _Part) -> np.ndarray | None:
        """Notes a window; returns its frames where it decodes."""
        self.seen += 1
        if part.again:
            self.stamp = dataclasses.replace(self.stamp, changed_ns=UNREADABLE)
        if part.error:
            start, end = part.span or (None, None)
            self.bad.append(Bad(start, end, part.error))
            return None
        assert part.span is not None
        self.decoded += 1
        self.spans.append(part.span)
        return part.tube

    def is_done(self) -> bool:
        """Whether there is nothing more to come."""
        return self.seen == self.windows and len(self.rows) == self.decoded


def _decoded(
    pool: concurrent.futures.Executor,
    root: str,
    paths: list[str],
    reading: Reading,
    ahead: int,
) -> Iterator[_Part]:
    """Every window of every file, in order, decoded in threads."""

    def cut(path: str) -> list[_Part]:
        full = os.path.join(root, path)
        try:
            os.close(os.open(full, os.O_RDONLY | os.O_NONBLOCK))  # a pipe is none of the files, and nothing to wait for
        except OSError as error:
            # Permissions and network folders come back without a change of the file.
            return [_Part(path, 1, None, 0.0, error=f"file not readable: {error.strerror}", again=True)]
        try:
            end = reading.end_of(full)
        except Exception as error:
            return [_Part(path, 1, None, 0.0, error=_why(error))]
        spans = reading.spans(end)
        return [_Part(path, len(spans), span, end) for span in spans]

    def decode(part: _Part) -> _Part:
        if part.span is None:
            return part
        try:
            tube = reading.tube(os.path.join(root, part.path), part.span, part.end)
        except Exception as error:
            return dataclasses.replace(part, span=part.span if part.windows > 1 else None, error=_why(error))
        return dataclasses.replace(part, tube=tube)

    parts = (part for several in _map_ahead(pool, cut, paths, ahead) for part in several)
    yield from _map_ahead(pool, decode, parts, ahead)


def _why(error: Exception) -> str:
    """The reason in one line; whatever a damaged file makes a library raise is reported, and no end of an update."""
    text = str(error) if isinstance(error, VideoError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _map_ahead(
    pool: concurrent.futures.Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """`map` in threads, in order, which begins at most `ahead` items early."""
    begun: collections.deque[concurrent.futures.Future] = collections.deque()
    for item in items:
        begun.append(pool.submit(function, item))
        if len(begun) > ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _finite(embeddings: np.ndarray) -> np.ndarray:
    if not np.isfinite(embeddings).all():
        raise UserError("the model gives embeddings that are not finite: it has diverged; choose another --checkpoint")
    return embeddings
