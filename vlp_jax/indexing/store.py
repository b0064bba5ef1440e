"""An index on disk: a journal of files and, beside it, the embeddings of their windows.

A folder holds::

    manifest.jsonl       one JSON object a line: first what the index is of, then one entry a file, newer ones below
    embeddings-1.f32     float32 rows, `[rows, E]`; an entry's windows have rows `row` to `row + windows`
    lock                 held by the process that writes

Rows are forced to disk before the entry that names them is appended, so that an index is whole whenever the process
dies: rows that no entry names are written over, a line cut in two is dropped, and the file is then a new one. Rows and
lines of changed and removed files stay until they are a quarter of all; then both files are written anew, and the
manifest, which names the other one, is replaced last.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vlp_jax import manifest
from vlp_jax.files import write_atomically
from vlp_jax.indexing.folder import Stamp
from vlp_jax.indexing.windows import Span
from vlp_jax.types import UserError

MANIFEST = "manifest.jsonl"
_FORMAT = 1
_TRIES = 3  # at opening an index that others write anew meanwhile
_REINDEX = "--reindex makes it anew"


@dataclasses.dataclass(frozen=True)
class Bad:
    """A window that did not decode; of a file that cannot be used at all, `start` and `end` are None.

    `again` tells a reason that is not of the file, such as a time limit: the next update tries it again.
    """

    start: float | None
    end: float | None
    error: str
    again: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file.

    Attributes:
      path: relative to the folder of videos.
      stamp: what the file was when it was read.
      row: of its first window.
      spans: `(start, end)` of its windows, seconds; () where none decodes.
      bad: what of it does not decode.
    """

    path: str
    stamp: Stamp
    row: int = 0
    spans: tuple[Span, ...] = ()
    bad: tuple[Bad, ...] = ()

    def line(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "path": self.path,
            "stamp": [self.stamp.size, self.stamp.changed_ns, self.stamp.inode],
            "row": self.row,
            "spans": self.spans,
            "bad": [dataclasses.astuple(bad) for bad in self.bad],
        }

    @classmethod
    def parse(cls, line: dict[str, Any]) -> "Entry":
        """The inverse of `line`; ValueError, KeyError or TypeError where it is none."""
        seconds = (int, float)
        if _of(line["row"], int) < 0:
            raise ValueError(f"row {line['row']}")
        return cls(
            _of(line["path"], str),
            Stamp(*(_of(number, int) for number in line["stamp"])),
            line["row"],
            tuple((_of(start, seconds), _of(end, seconds)) for start, end in line["spans"]),
            tuple(
                Bad(_of(start, (*seconds, type(None))), _of(end, (*seconds, type(None))), _of(error, str), *again)
                for start, end, error, *again in line["bad"]
            ),
        )


class Locked(UserError):
    """The index cannot be written now."""


class _Vanished(UserError):
    """The manifest names a file of embeddings that is not there: damage, or another process wrote both anew."""


class Store:
    """An index that `create` or `open` gives.

    Attributes:
      folder: of the index.
      settings: what it is of: a model's name and digest, how windows are cut and read, ...
      width: E.
      entries: path -> Entry, as of now.
    """

    def __init__(self, folder: pathlib.Path, settings: dict[str, Any], width: int, embeddings: str):
        self.folder, self.settings, self.width, self._embeddings = folder, settings, width, embeddings
        self.entries: dict[str, Entry] = {}
        self._end = 0  # the first row that nothing names
        self._lines = 0  # of the journal, with those that newer ones replace

    @classmethod
    def create(cls, folder: pathlib.Path, settings: dict[str, Any], width: int) -> "Store":
        """Makes an empty index, in place of one that is there."""
        store = cls(folder, settings, width, _next(folder))
        store._rewrite(np.zeros((0, width), np.float32))
        return store

    @classmethod
    def open(cls, folder: pathlib.Path) -> "Store | None":
        """Opens an index, and writes nothing; None where the folder holds none.

        Raises:
          UserError: it is damaged, or of another version.
        """
        path = folder / MANIFEST
        if not path.exists():
            return None
        whole = path.read_bytes().split(b"\n")[:-1]  # what follows the last line's end is a line cut in two
        try:
            header, *lines = (json.loads(line) for line in whole)
            if header["format"] != _FORMAT:
                raise UserError(f"the index {folder} has format {header['format']}, not {_FORMAT}: {_REINDEX}")
            if _of(header["width"], int) < 1:
                raise ValueError(f"width {header['width']}")
            settings = _of(header["settings"], dict)
            store = cls(folder, settings, header["width"], _of(header["embeddings"], str))
            for line in lines:
                store._take(line)
            size = (folder / store._embeddings).stat().st_size
        except FileNotFoundError as error:
            raise _Vanished(damaged(folder, error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(damaged(folder, error)) from error
        if size < 4 * store.width * store._end:
            raise UserError(
                damaged(folder, f"{store._embeddings} has {size} bytes, {4 * store.width * store._end} expected")
            )
        return store

    @classmethod
    def read(cls, folder: pathlib.Path) -> "tuple[Store, list[Entry], np.ndarray] | None":
        """Opens an index together with its `matrix`: a process that writes both anew does not come in between.

        Raises:
          UserError: as `open`.
        """
        tries = 0
        while True:
            try:
                store = cls.open(folder)
                return None if store is None else (store, *store.matrix())
            except _Vanished:
                tries += 1
                if tries == _TRIES:
                    raise

    def _take(self, line: dict[str, Any]) -> None:
        self._lines += 1
        if "removed" in line:
            self.entries.pop(line["removed"], None)
            return
        entry = Entry.parse(line)
        self.entries[entry.path] = entry
        self._end = max(self._end, entry.row + len(entry.spans))

    def add(self, entries: Iterable[Entry], rows: np.ndarray) -> None:
        """Adds or replaces entries, in one durable step.

        Args:
          entries: `row` of each counts from the first of `rows`.
          rows: float32 `[rows, E]`.
        """
        with open(self.folder / self._embeddings, "r+b") as file:
            file.seek(4 * self.width * self._end)
            file.write(np.ascontiguousarray(rows, np.float32).tobytes())
            _force(file)
        self._append([dataclasses.replace(entry, row=self._end + entry.row).line() for entry in entries])

    def move(self, pairs: Iterable[tuple[str, str]], stamps: dict[str, Stamp]) -> None:
        """Gives entries other paths, old -> new; their rows stay."""
        lines: list[dict[str, Any]] = []
        for old, new in pairs:
            entry = dataclasses.replace(self.entries[old], path=new, stamp=stamps[new])
            lines += [entry.line(), {"removed": old}]
        self._append(lines)

    def remove(self, paths: Iterable[str]) -> None:
        """Takes entries out."""
        self._append([{"removed": path} for path in paths])

    def _append(self, lines: list[dict[str, Any]]) -> None:
        if not lines:
            return
        with open(self.folder / MANIFEST, "r+b") as file:
            # A line cut in two would run into the next one.
            end = file.seek(0, os.SEEK_END)
            tail = b""
            while end and b"\n" not in tail:
                end = max(0, end - 2**16)
                file.seek(end)
                tail = file.read()
            file.seek(end + tail.rfind(b"\n") + 1)
            file.truncate()
            file.write(b"".join(_json(line) for line in lines))
            _force(file)
        for line in lines:
            self._take(line)

    def matrix(self) -> tuple[list[Entry], np.ndarray]:
        """The entries that have windows, in the order of their paths, and float32 `[windows, E]`, theirs in turn.

        Raises:
          UserError: the embeddings are not there.
        """
        entries = sorted((entry for entry in self.entries.values() if entry.spans), key=lambda entry: entry.path)
        try:
            rows = np.fromfile(self.folder / self._embeddings, np.float32, self._end * self.width)
        except FileNotFoundError as error:
            raise _Vanished(damaged(self.folder, error)) from error
        rows = rows.reshape(-1, self.width)
        order = _ranges([entry.row for entry in entries], [len(entry.spans) for entry in entries])
        return entries, rows if np.array_equal(order, np.arange(len(rows))) else rows[order]

    def rows(self, path: str) -> np.ndarray:
        """float32 `[windows, E]` of a file."""
        entry = self.entries[path]
        count, offset = len(entry.spans) * self.width, 4 * entry.row * self.width
        rows = np.fromfile(self.folder / self._embeddings, np.float32, count, offset=offset)
        return rows.reshape(-1, self.width)

    def compact(self) -> None:
        """Drops what of changed and removed files is left, where more than a quarter of rows or lines is theirs."""
        live = sum(len(entry.spans) for entry in self.entries.values())
        dead_rows, dead_lines = self._end - live, self._lines - len(self.entries)
        if 4 * dead_rows <= self._end and 4 * dead_lines <= self._lines:
            return
        entries, rows = self.matrix()
        without = [entry for entry in self.entries.values() if not entry.spans]
        starts = np.cumsum([0, *(len(entry.spans) for entry in entries)]).tolist()
        moved = [dataclasses.replace(entry, row=row) for entry, row in zip(entries, starts)]
        self._embeddings, self._end = _next(self.folder), 0
        self.entries = {entry.path: entry for entry in [*moved, *without]}
        self._rewrite(rows)

    def _rewrite(self, rows: np.ndarray) -> None:
        self._end, self._lines = len(rows), len(self.entries)
        file = self.folder / self._embeddings
        file.write_bytes(rows.tobytes())
        manifest.sync(file)
        header = {
            "format": _FORMAT,
            "settings": self.settings,
            "width": self.width,
            "embeddings": self._embeddings,
        }
        lines = [header, *(entry.line() for entry in self.entries.values())]
        write_atomically(self.folder / MANIFEST, b"".join(_json(line) for line in lines))
        for other in self.folder.glob("embeddings-*.f32"):
            if other.name != self._embeddings:
                other.unlink()


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes from writing there; the system lifts it when the process ends.

    Raises:
      Locked: another process writes there, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise Locked(
            f"the index {folder} cannot be written ({error.strerror}): give --index=DIR, a folder that can, or "
            "--noupdate to search what is indexed already"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(
                f"the index {folder} is being written by another process: wait for it, or give --noupdate to search "
                "what is indexed already"
            ) from None
        yield


def damaged(folder: pathlib.Path, why: object) -> str:
    """What an error says of an index that cannot be used, and the way out."""
    why = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else why
    return f"the index {folder} is damaged ({why}): {_REINDEX}"


def _of(value: Any, kind: Any) -> Any:
    """The value; TypeError where it is of another kind."""
    if not isinstance(value, kind):
        raise TypeError(f"unexpected {value!r}")
    return value


def _next(folder: pathlib.Path) -> str:
    """A name that no file of embeddings has."""
    numbers = [int(path.stem.partition("-")[2]) for path in folder.glob("embeddings-*.f32")]
    return f"embeddings-{max(numbers, default=0) + 1}.f32"


def _ranges(starts: list[int], counts: list[int]) -> np.ndarray:
    """The numbers `start .. start + count - 1` of each, one after the other."""
    counts_F = np.asarray(counts, np.int64)
    before = np.cumsum(counts_F) - counts_F
    return np.repeat(np.asarray(starts, np.int64) - before, counts_F) + np.arange(counts_F.sum())


def _json(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"  # ASCII: names of files need not be UTF-8


def _force(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
