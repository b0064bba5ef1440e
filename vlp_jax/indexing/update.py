"""Bringing an index up to what its folder holds: only new and changed files are decoded and embedded."""

import collections
import concurrent.futures
import dataclasses
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import av
import numpy as np

from vlp_jax.indexing import windows
from vlp_jax.indexing.folder import UNREADABLE, Found, Stamp
from vlp_jax.indexing.store import Bad, Entry, Store
from vlp_jax.indexing.windows import Span
from vlp_jax.input.container import OutOfTime, VideoError
from vlp_jax.telemetry.counting import CountProgress
from vlp_jax.types import UserError

# What libav gives as an error of the system though it is one of the file.
_OF_CONTENT = (errno.ENOSYS, errno.EINVAL, errno.EDOM, errno.ERANGE, errno.EAGAIN)


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
      again: files that did not change, but were bad for reasons that may have passed; they alone make no plan true,
        since there may be nothing to write.
    """

    new: list[str]
    changed: list[str]
    moved: list[tuple[str, str]]
    removed: list[str]
    again: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return any((self.new, self.changed, self.moved, self.removed))


def plan(entries: dict[str, Entry], found: Found) -> Plan:
    """Compares an index with what its folder holds; files below folders that cannot be listed stay."""
    files = found.files
    hidden = tuple(folder + os.sep for folder in found.unreadable)
    gone = {path for path in entries if path not in files and not path.startswith(hidden)}
    new = [path for path in files if path not in entries]
    changed, again = [], []
    for path in files.keys() & entries.keys():
        entry, stamp = entries[path], files[path]
        if entry.stamp.same(stamp):
            if any(bad.again for bad in entry.bad):
                again.append(path)
        elif stamp.changed_ns == entry.stamp.changed_ns == UNREADABLE:
            again.append(path)
        else:
            changed.append(path)
    # A file that was renamed on its file system keeps its number, size and time.
    by_stamp = {entries[path].stamp: path for path in sorted(gone)}
    moved = []
    for path in new:
        old = by_stamp.pop(files[path], None) if files[path].changed_ns != UNREADABLE else None
        if old is not None:
            moved.append((old, path))
    done = {path for _, path in moved}
    removed = sorted(gone - {path for path, _ in moved})
    return Plan([path for path in new if path not in done], sorted(changed), moved, removed, sorted(again))


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

    A file is committed when its last window is embedded. Of a file that is tried again only the windows that were bad
    are decoded, and nothing is written where that changed nothing.

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
    again = set(todo.again)
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
            before = store.entries[file.path] if file.path in again else None
            if before:
                file.join(before, store.rows(file.path))
            entry = Entry(file.path, file.stamp, len(rows_out), tuple(file.spans), tuple(file.bad))
            bad += bool(entry.bad)
            if not before or (entry.spans, entry.bad) != (before.spans, before.bad):
                entries.append(entry)
                rows_out += file.rows
            progress.add(f"{bad:,} bad" if bad else "")
        if entries:
            store.add(entries, np.reshape(rows_out, (-1, store.width)))
        else:
            progress.show()

    paths = sorted([*todo.new, *todo.changed, *todo.again])
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for part in _decoded(
                pool, root, paths, reading, 2 * batch_size, {path: store.entries[path].bad for path in again}
            ):
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
        if part.error:
            start, end = part.span or (None, None)
            self.bad.append(Bad(start, end, part.error, part.again))
            return None
        assert part.span is not None
        self.decoded += 1
        self.spans.append(part.span)
        return part.tube

    def join(self, before: Entry, rows: np.ndarray) -> None:
        """Puts what a second try gave among what the first one had, of `rows`; nothing that decoded once is lost."""
        if any(bad.start is None for bad in self.bad) and all(bad.start is not None for bad in before.bad):
            self.spans, self.bad, self.rows = list(before.spans), list(before.bad), list(rows)
            return
        pairs = zip([*before.spans, *self.spans], [*rows, *self.rows])
        in_order = sorted(pairs, key=lambda pair: pair[0])
        self.spans, self.rows = [span for span, _ in in_order], [row for _, row in in_order]
        kept = [bad for bad in before.bad if bad.start is not None and not bad.again]
        self.bad = sorted([*kept, *self.bad], key=lambda bad: bad.start or 0.0)

    def is_done(self) -> bool:
        """Whether there is nothing more to come."""
        return self.seen == self.windows and len(self.rows) == self.decoded


def _decoded(
    pool: concurrent.futures.Executor,
    root: str,
    paths: list[str],
    reading: Reading,
    ahead: int,
    before: dict[str, tuple[Bad, ...]],
) -> Iterator[_Part]:
    """Every window of every file, in order, decoded in threads; of the files `before` only the windows to try again."""

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
            return [_Part(path, 1, None, 0.0, error=_why(error), again=_may_pass(error))]
        tried = [bad for bad in before.get(path, ()) if bad.again]
        spans = [(bad.start, bad.end) for bad in tried if bad.start is not None and bad.end is not None]
        spans = spans or reading.spans(end)
        return [_Part(path, len(spans), span, end) for span in spans]

    def decode(part: _Part) -> _Part:
        if part.span is None:
            return part
        try:
            tube = reading.tube(os.path.join(root, part.path), part.span, part.end)
        except Exception as error:
            # The only window of a file is the file.
            span = None if part.span == (0.0, part.end) else part.span
            return dataclasses.replace(part, span=span, error=_why(error), again=_may_pass(error))
        return dataclasses.replace(part, tube=tube)

    parts = (part for several in _map_ahead(pool, cut, paths, ahead) for part in several)
    yield from _map_ahead(pool, decode, parts, ahead)


def _why(error: Exception) -> str:
    """The reason in one line; whatever a damaged file makes a library raise is reported, and no end of an update."""
    text = str(error) if isinstance(error, VideoError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _may_pass(error: BaseException | None) -> bool:
    """Whether an error is of the machine, such as a slow one or one out of memory, and not of the file's content."""
    while error:
        if isinstance(error, (MemoryError, OutOfTime, av.error.ExitError)):  # the last: libav gave up at the time limit
            return True
        if isinstance(error, OSError) and error.errno not in _OF_CONTENT:
            return True
        error = error.__cause__
    return False


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
