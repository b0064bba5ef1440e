"""Rows too many to copy into each process: written once as an Arrow file in a cache directory, then memory-mapped.

The cache is `$VLP_JAX_CACHE`, or else `$XDG_CACHE_HOME/vlp_jax/tables`, or else `~/.cache/vlp_jax/tables`. A file in it
is named by a digest of what it was made from (paths, sizes and times of the originals, columns, split), appears only
when it is complete, and is never changed. Nothing is removed: delete the directory whenever no run is using it.
"""

import bisect
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import pyarrow as pa

from vlp_jax.input.per_process import PerProcess
from vlp_jax.types import UserError

VARIABLE = "VLP_JAX_CACHE"
_FORMAT = 1  # part of every digest: goes up when what is stored changes
# A block of the file: large enough that few are held open, small enough that 32-bit offsets into its texts suffice.
_BLOCK_ROWS, _BLOCK_BYTES = 2**16, 2**24

_log = logging.getLogger(__name__)

# Yields blocks of one schema, and returns notes about all of them: JSON, kept in the file.
Blocks = Generator[pa.RecordBatch, None, dict[str, Any]]


def directory() -> pathlib.Path:
    """The cache directory; it need not exist.

    Raises:
      UserError: neither variable is set, and there is no home directory.
    """
    if os.environ.get(VARIABLE):
        return pathlib.Path(os.environ[VARIABLE]).absolute()
    if os.environ.get("XDG_CACHE_HOME"):
        return pathlib.Path(os.environ["XDG_CACHE_HOME"]).absolute() / "vlp_jax" / "tables"
    try:
        return pathlib.Path.home() / ".cache" / "vlp_jax" / "tables"
    except RuntimeError as e:
        raise UserError(f"no home directory to cache tables in ({e}); set {VARIABLE} to a writable directory") from e


def identity(file: str | os.PathLike) -> list[Any]:
    """`[absolute path, size in bytes, modification time in ns]`: what a digest holds of an original file."""
    info = os.stat(file)
    return [os.path.abspath(file), info.st_size, info.st_mtime_ns]


class Rows(PerProcess):
    """The rows of a cached file, by number; picklable as its path, and mapped by each process when it first reads.

    Attributes:
      notes: what the builder said about all rows.
    """

    _batches: list[pa.RecordBatch] | None
    _ends: list[int]
    _lock: threading.Lock

    def __init__(self, path: pathlib.Path):
        self._path = str(path)
        self._forget()
        batches, self.notes = self._map()
        self._length = sum(len(batch) for batch in batches)

    @property
    def digest(self) -> str:
        """Names the file by all that it was made from: for the key of what is made of its rows."""
        return pathlib.Path(self._path).stem

    def _fresh(self) -> dict[str, Any]:
        return {"_batches": None, "_ends": [], "_lock": threading.Lock()}

    def _map(self) -> tuple[list[pa.RecordBatch], dict[str, Any]]:
        reader = pa.ipc.open_file(pa.memory_map(self._path))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches - 1)]
        _, metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        return batches, json.loads(metadata[b"notes"])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns column -> value of row `index`, from 0.

        Raises:
          UserError: the cached file was removed between opening and reading.
        """
        if self._batches is None:
            with self._lock:
                if self._batches is None:
                    try:
                        batches, _ = self._map()
                    except FileNotFoundError as e:
                        raise UserError(
                            f"{self._path} vanished from the cache while a run was using it; start the run again, and "
                            f"set {VARIABLE} to a directory that nothing cleans up"
                        ) from e
                    ends = [0]
                    for batch in batches:
                        ends.append(ends[-1] + len(batch))
                    self._ends = ends[1:]
                    self._batches = batches
        if not 0 <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        number = bisect.bisect_right(self._ends, index)
        batch = self._batches[number]
        row = int(index) - (self._ends[number] - len(batch))
        return {name: batch.column(i)[row].as_py() for i, name in enumerate(batch.schema.names)}

    def column(self, name: str) -> Iterator[pa.Array]:
        """Yields a column, block by block; mapped anew, so that nothing of it stays in memory."""
        for batch in self._map()[0]:
            yield batch.column(name)


def open_rows(key: Sequence[Any], schema: pa.Schema, build: Callable[[], Blocks]) -> Rows:
    """Opens the cached file of `key`, which `build` writes where it is not there yet.

    Args:
      key: JSON; everything that the rows depend on.
      schema: of the blocks.
      build: makes the blocks; what it raises passes through, and nothing is kept.

    Raises:
      UserError: the cache directory cannot be written.
    """
    text = json.dumps([_FORMAT, str(schema), *key])
    path = directory() / f"{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}.arrow"
    if path.is_file():
        try:
            return Rows(path)
        except PermissionError as e:
            raise UserError(
                f"{path} cannot be read ({e.strerror}): another user cached it; make it readable, or set {VARIABLE} to "
                "a directory of your own"
            ) from e
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as e:
            _log.warning("%s is damaged (%s): made anew", path, e)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)
    except OSError as e:
        raise _unwritable(path.parent, e) from e
    os.close(number)
    try:
        _write(name, schema, build())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's is for one user alone, and a cache may be shared
        os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):  # it was renamed
            os.unlink(name)
        pa.default_memory_pool().release_unused()  # a parser's buffers; the process may live for weeks
    return Rows(path)


def _unwritable(folder: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"the cache directory {folder} cannot be written ({error.strerror or error}): tables and shard indices are "
        f"kept there as memory-mapped files; set the environment variable {VARIABLE} to a directory with room"
    )


def _write(path: str, schema: pa.Schema, blocks: Blocks) -> None:
    waiting: list[pa.RecordBatch] = []
    with contextlib.ExitStack() as stack:
        # Only the cache's own failures are the cache's fault: originals are read inside `next(blocks)`.
        def own(call, *arguments, **more):
            try:
                return call(*arguments, **more)
            except OSError as e:
                raise _unwritable(pathlib.Path(path).parent, e) from e

        sink = stack.enter_context(own(pa.OSFile, path, "wb"))
        writer = own(pa.ipc.new_file, sink, schema)

        def flush() -> None:
            for batch in pa.Table.from_batches(waiting, schema).combine_chunks().to_batches():
                own(writer.write_batch, batch)
            waiting.clear()

        while True:
            try:
                waiting.append(next(blocks))
            except StopIteration as stop:
                notes = stop.value
                break
            if sum(map(len, waiting)) >= _BLOCK_ROWS or sum(batch.nbytes for batch in waiting) >= _BLOCK_BYTES:
                flush()
        flush()
        # The notes are known last; the schema, where they would belong, stands at the file's beginning.
        own(
            writer.write_batch,
            pa.RecordBatch.from_pylist([], schema=schema),
            custom_metadata={"notes": json.dumps(notes)},
        )
        own(writer.close)
