"""Checkpoints that survive being killed at any moment and notice when a byte of them has changed.

A checkpoint is a folder of the checkpoint directory::

    000000500/            the step; 000000500.1 where step 500 was saved a second time
      arrays/             the state's leaves by path, written by orbax (OCDBT); readable with orbax alone
      manifest.json       metadata; shape and dtype of each leaf; size and digest of each file, and its own digest

and comes into being in this order:

1. orbax writes `unfinished-000000500/arrays` (itself into a temporary folder that it renames).
2. Each file is hashed and forced to disk; `manifest.json`, which holds the hashes and a hash of its own content, is
   written beside them and forced to disk too.
3. The folder is renamed to `000000500`. This one atomic operation is the commit: before it the step does not exist,
   after it the step is whole. Saving a step again commits `000000500.1` before the old folder goes, so that there is
   no moment without it.
4. Folders that are no longer kept are renamed to `discarded-...` first, then deleted, so that a reader never meets a
   step with half its files gone.

The next save removes `unfinished-` and `discarded-` folders that a killed process has left. Readers write nothing, so
that a run may be evaluated while it trains. The directory must lie on a file system with atomic rename (local, NFS,
Lustre); object stores such as gs:// have none, and get copies (vlp_jax/mirror.py).

The processes of a job write together into one directory that all of them see. Where each has a folder of its own, the
first gathers the arrays, one after the other, and writes them alone; to restore, each needs a copy of the step.

This is the only file that imports orbax.
"""

import json
import logging
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vlp_jax import distributed, manifest, sharding, trees
from vlp_jax.types import UserError

_ARRAYS = "arrays"
_STEP_FOLDER = re.compile(r"(\d{9,})(?:\.(\d+))?")
_LEFTOVER = re.compile(r"(unfinished|discarded)-\d{9,}(\.\d+)?")

_log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores the states of one run.

    With several processes, each of them makes the same calls in the same order.

    Args:
      directory: made by the first save, parents included.
      shared: whether all processes see the same directory; otherwise the first alone saves into its own, and what is to
        be restored must lie in the directory of each.
      keep: newest checkpoints kept, at least 1.
      asynchronous: `save` returns as soon as the arrays are copied to host memory, and a thread does the rest. An error
        of that thread is raised by the next call of any method.
      committed: called after each commit, perhaps in that thread: on the first process, and on the others where the
        directory is not shared.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int,
        asynchronous: bool,
        shared: bool = True,
        committed: Callable[[], None] | None = None,
    ):
        if "://" in os.fspath(directory):
            raise UserError(
                f"checkpoint directory {os.fspath(directory)!r}: expected a path of a file system with atomic rename "
                "(local, NFS, Lustre), not an object store; --workdir takes the address of one"
            )
        if keep < 1:
            raise UserError(f"config.checkpoint.keep = {keep}: expected at least 1")
        self._directory = pathlib.Path(directory).absolute()
        self._keep = keep
        self._asynchronous = asynchronous
        self._committed = committed
        self._background: threading.Thread | None = None
        self._saving = False  # until `wait`, on every process
        self._error: BaseException | None = None
        logging.getLogger("absl").addFilter(_quiet_orbax)
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True))
        self._gathers = not shared and jax.process_count() > 1
        self._writer = _of_first() if self._gathers and distributed.is_first() else self._orbax

    # -- Writing -------------------------------------------------------------------------------------------------------

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Saves a state as `step`, replacing an earlier save of the same step, and drops the checkpoints beyond `keep`.

        Args:
          step: 0 or more.
          state: pytree of jax or NumPy arrays, sharded in any way; random keys as raw uint32 (`jax.random.key_data`).
            Leaves are stored by their path ("params/encoder/kernel"), without the Python classes around them.
          metadata: anything JSON can hold; comes back from `restore` and `read_metadata`, with tuples as lists.

        Raises:
          UserError: the directory holds an intact later step, which this save would turn into another run's future; or
            (later, where asynchronous) the file system refuses to take the files.
          TypeError: a leaf is no array, or `metadata` does not fit into JSON.
        """
        self.wait()
        if step < 0:
            raise ValueError(f"step = {step}: expected 0 or more")
        arrays = trees.by_path(state)
        leaves = {name: [str(x.dtype), list(x.shape)] for name, x in arrays.items()}
        # Through JSON and back, so that what is hashed is exactly what a reader will parse.
        body = json.loads(json.dumps({"step": step, "metadata": metadata, "leaves": leaves}))
        first = distributed.is_first()
        later = {s: manifest.problem(path) for s, path in self._folders().items() if s > step} if first else {}
        intact = distributed.from_first(lambda: max((s for s, problem in later.items() if problem is None), default=-1))
        if intact >= 0:
            raise UserError(
                f"cannot save step {step}: {self._directory} already holds step {intact}, which a resumed run would "
                "take for its newest; move the later checkpoints away, or use a new directory"
            )
        saves = lambda: [n for s, n, _ in self._listing() if s == step]
        number = distributed.from_first(lambda: 1 + max(saves(), default=-1))
        unfinished = self._directory / f"unfinished-{_name(step, number)}"
        distributed.together(lambda: self._prepare(unfinished, later) if first else None)
        # Orbax refuses arrays without elements; the manifest's leaves are enough to make them again.
        stored = {name: x for name, x in arrays.items() if x.size}
        if self._gathers:
            stored = _gathered(stored)
        self._saving = True
        if first or not self._gathers:
            self._writer.save(unfinished / _ARRAYS, args=ocp.args.PyTreeSave(stored))
            self._background = threading.Thread(
                target=self._finish, args=(unfinished, step, number, body), name=f"checkpoint-{step}"
            )
            self._background.start()
        elif self._committed:
            self._committed()
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Blocks until a background save is committed; raises its error where it failed, on every process."""
        if self._saving:
            self._saving = False
            # The first process alone commits: the others could list the directory before it, or wait for it for ever.
            distributed.together(self._join)

    def close(self) -> None:
        """Waits for a background save and frees orbax's threads; may be called twice.

        Unlike `wait`, it meets no other process: one that fails by itself may close, and say why it failed.
        """
        try:
            self._join()
        finally:
            self._orbax.close()
            self._writer.close()

    def _join(self) -> None:
        """Ends the background save, where there is one, and raises its error."""
        if self._background is None:
            return
        self._background.join()
        self._background = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _finish(self, unfinished: pathlib.Path, step: int, number: int, body: dict[str, Any]) -> None:
        """Steps 2 to 4 of the module's docstring; runs in the background thread."""
        try:
            try:
                self._writer.wait_until_finished()  # returns when every process that writes has written
            except (ValueError, OSError) as error:  # what orbax and tensorstore make of a full or failing disk
                reason = str(error).splitlines()[0][:300]
                raise UserError(
                    f"checkpoint step {step} cannot be written to {self._directory}: {reason}; the newest one there is "
                    f"step {max(self._folders(), default='none')}: make room, or mend the disk, and run the same "
                    "command again"
                ) from error
            if not distributed.is_first():
                return
            manifest.write(unfinished, body)
            unfinished.rename(self._directory / _name(step, number))
            manifest.sync(self._directory)
            kept = sorted(self._folders())[-self._keep :]
            for s, n, path in self._listing():
                if s not in kept or (s == step and n != number):
                    _discard(path)
            if self._committed:
                self._committed()
        except BaseException as error:
            self._error = error

    def _prepare(self, unfinished: pathlib.Path, corrupt: dict[int, str | None]) -> None:
        """Makes the folder to write into; removes what a killed process left and later checkpoints that are corrupt."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in self._directory.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path)
        for s, _, path in self._listing():
            if s in corrupt:
                _log.warning("checkpoint step %d in %s is corrupt (%s): removed", s, self._directory, corrupt[s])
                _discard(path)
        unfinished.mkdir()

    # -- Reading -------------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Returns the committed steps, ascending, after waiting for a save of this process; corrupt ones included."""
        self.wait()
        return sorted(self._folders())

    def latest(self) -> int | None:
        """Returns the newest committed step, as the first process lists it, or None; `restore` says if it is intact."""
        self.wait()
        return distributed.from_first(lambda: max(self._folders(), default=None))

    def restore(
        self, abstract_state: Any, step: int | None = None, *, part: str | None = None
    ) -> tuple[int, Any, dict[str, Any]]:
        """Reads a checkpoint, after comparing every file with the manifest.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings, of the saved structure; the arrays are
            created with these shardings, whatever the mesh they were saved from (none: on the first device).
          step: which one; None for the newest intact one. Corrupt newer ones are said in one warning each.
          part: reads only what is saved below this name; `abstract_state` is then that part alone.

        Returns:
          `(step, state, metadata)`, the state in the classes of `abstract_state`.

        Raises:
          UserError: there is no checkpoint, or none is intact; the step asked for is absent or corrupt; leaves are
            missing, unexpected, or of another shape or dtype than `abstract_state`'s.
        """
        self.wait()
        # The first process reads and hashes the files; the others take its word.
        name, body = distributed.from_first(lambda: self._newest_intact(step))
        folder, found = self._directory / name, body["step"]
        saved = body["leaves"]
        if part is None:
            abstract = trees.by_path(abstract_state)
        else:
            abstract = trees.by_path({part: abstract_state})
            saved = {name: leaf for name, leaf in saved.items() if name.startswith(f"{part}/")}
        trees.check_structure(folder, saved, abstract)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        places = {name: here if x.sharding is None else x.sharding for name, x in abstract.items()}
        full = {name: x for name, x in abstract.items() if x.size}
        wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[name]) for name, x in full.items()}
        arrays = self._orbax.restore(
            folder / _ARRAYS,
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=part is not None,
            ),
        )
        for name, x in abstract.items():
            if not x.size:
                arrays[name] = jax.device_put(np.zeros(x.shape, x.dtype), places[name])
        leaves = [arrays[name] for name in abstract]  # `trees.by_path` keeps the order of the leaves
        return found, jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), body["metadata"]

    def leaves(self, step: int | None = None) -> tuple[int, dict[str, jax.ShapeDtypeStruct]]:
        """Returns a step, by default the newest whose manifest is intact, and its leaves by path; reads no array.

        Raises:
          UserError: there is no such step, or its manifest is missing or damaged.
        """
        step, body = self._read_manifest(step)
        leaves = {
            name: jax.ShapeDtypeStruct(tuple(shape), jax.numpy.dtype(dtype))
            for name, (dtype, shape) in body["leaves"].items()
        }
        return step, leaves

    def read_metadata(self, step: int | None = None) -> dict[str, Any]:
        """Returns the metadata of a step, or of the newest one whose manifest is intact; reads no array.

        Raises:
          UserError: there is no such step, or its manifest is missing or damaged.
        """
        return self._read_manifest(step)[1]["metadata"]

    def _read_manifest(self, step: int | None) -> tuple[int, dict[str, Any]]:
        self.wait()

        def read():
            bad = {}
            for s in [step] if step is not None else sorted(self._folders(), reverse=True):
                try:
                    return s, manifest.read(self._folder(s))
                except manifest.Corrupt as error:
                    bad[s] = str(error)
            raise self._none_intact(step, bad)

        s, body = distributed.from_first(read)
        return s, body

    def _newest_intact(self, only: int | None) -> tuple[str, dict[str, Any]]:
        """Returns the name of the newest intact step's folder, and its manifest.

        It looks at the directory anew each time, because what looks corrupt may be a step that a training process is
        just discarding in favour of a newer one.
        """
        bad: dict[int, str] = {}
        if only is not None:
            self._folder(only)
        while True:
            folders = self._folders()
            left = [s for s in folders if s not in bad and only in (None, s)]
            there = {s: p for s, p in bad.items() if s in folders}
            if not left:
                raise self._none_intact(only, there)
            folder = folders[max(left)]
            try:
                problem, body = manifest.problem(folder), manifest.read(folder)
            except manifest.Corrupt as error:
                problem = str(error)
            if problem is not None:
                bad[max(left)] = problem
                continue
            for s, why in sorted(there.items(), reverse=True):
                _log.warning(
                    "checkpoint step %d in %s is corrupt (%s): falling back to step %d",
                    *(s, self._directory, why, max(left)),
                )
            return folder.name, body

    def _none_intact(self, step: int | None, bad: dict[int, str]) -> UserError:
        text = "; ".join(f"step {s}: {problem}" for s, problem in sorted(bad.items()))
        if step is not None:
            others = [s for s in sorted(self._folders()) if s != step]
            return UserError(
                f"checkpoint step {step} in {self._directory} is corrupt ({text or 'it has just gone'}); "
                + (f"there is also step {_list(others)}" if others else "there is no other step")
            )
        if not self._folders():
            return UserError(f"{self._directory} holds no checkpoint: expected folders such as {_name(500, 0)}")
        return UserError(
            f"every checkpoint in {self._directory} is corrupt: {text}; restore the "
            "files from a backup, or start again in a new directory"
        )

    def _folder(self, step: int) -> pathlib.Path:
        folders = self._folders()
        if step not in folders:
            known = f"there is step {_list(sorted(folders))}" if folders else "it holds no checkpoint"
            raise UserError(f"{self._directory} has no checkpoint of step {step}: {known}")
        return folders[step]

    def _folders(self) -> dict[int, pathlib.Path]:
        """Step -> its folder; the last save where a step was saved again."""
        return {s: path for s, _, path in self._listing()}

    def _listing(self) -> list[tuple[int, int, pathlib.Path]]:
        """`(step, number of the save, folder)` of everything committed, ascending."""
        if not self._directory.is_dir():
            return []
        matches = ((_STEP_FOLDER.fullmatch(path.name), path) for path in self._directory.iterdir())
        return sorted((int(m[1]), int(m[2] or 0), path) for m, path in matches if m and path.is_dir())


def _name(step: int, number: int) -> str:
    return f"{step:09d}" + (f".{number}" if number else "")


def _discard(path: pathlib.Path) -> None:
    doomed = path.with_name(f"discarded-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _list(steps: list[int]) -> str:
    return ", ".join(map(str, steps))


def _of_first() -> ocp.AsyncCheckpointer:
    """Orbax that writes in the first process alone, and waits for no other."""
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="first")
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, multiprocessing_options=alone)
    return ocp.AsyncCheckpointer(handler, multiprocessing_options=alone)


def _gathered(arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays as NumPy's on the first process, {} on the others; a device holds one of them whole at a time."""
    out = {}
    for name, x in arrays.items():
        whole = sharding.fetch(x) if isinstance(x, jax.Array) else np.asarray(x)
        if distributed.is_first():
            out[name] = whole
    return out


def _quiet_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs some forty lines a save at INFO."""
    return record.levelno >= logging.WARNING or f"{os.sep}orbax{os.sep}" not in record.pathname
