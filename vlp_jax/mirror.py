"""A workdir in an object store: `--workdir=gs://BUCKET/runs/base`, or any other address that fsspec knows.

Object stores cannot rename a folder at once, which checkpoints rely on, so the run works in a folder of this machine
(below VLP_JAX_STAGING, by default ~/.cache/vlp_jax/runs) and the store follows:

- At the start, what the store has and the folder lacks is fetched: of the checkpoints the newest whose files are as
  its manifest says.
- After each commit of a checkpoint a thread sends what is new, the manifest of a checkpoint last: a checkpoint that is
  half there has none, and does not exist. Then steps go that are below all of the folder. What cannot be sent is said
  and tried again at the next commit; at the end of the run it is an error.
- A step that is damaged in the folder is fetched again where the store has it.
- An evaluation sends its results alone: the run may be trained elsewhere meanwhile.
- Of several processes each has a folder of its own (vlp_jax/mirrors.py).

Both hold a file `run_id`. A folder and a store of different runs are never mixed: that is an error, too.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import re
import secrets
import shutil
import threading
from collections.abc import Iterable
from typing import Any, TextIO

import fsspec

from vlp_jax import manifest
from vlp_jax import workdir as workdir_lib
from vlp_jax.types import UserError

_RUN_ID = "run_id"
_STEP = re.compile(r"(checkpoints|best)/(\d{9,})(?:\.(\d+))?/")
_OF_OTHERS = re.compile(r"ledger-\d+\.jsonl")  # what each process but the first sends itself
_UNFINISHED = re.compile(r"(checkpoints|best)/(unfinished|discarded)-|(^|/)lock$|\.(part|fetched)$")
_MANIFEST = "manifest.json"
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs"}

_log = logging.getLogger(__name__)


def is_address(workdir: str) -> bool:
    """Whether a --workdir is an address in a store rather than a path."""
    return "://" in workdir


def staging(address: str, of: str = "") -> pathlib.Path:
    """The folder of this machine in which a run at that address works; `of`: of another process than the first."""
    root = os.environ.get("VLP_JAX_STAGING") or pathlib.Path.home() / ".cache" / "vlp_jax" / "runs"
    last = re.sub(r"\W+", "_", address.rstrip("/").rpartition("/")[2])
    digest = hashlib.blake2b(address.rstrip("/").encode(), digest_size=6).hexdigest()
    return pathlib.Path(root) / (f"{last}-{digest}" + (f"-{of}" if of else ""))


class Mirror:
    """A folder and its copy in a store.

    Args:
      address: such as gs://BUCKET/runs/base.
      folder: of this machine; `staging(address)`.
      only: sends what is below this subfolder, removes nothing, and makes no new run; '' sends the whole run.

    Raises:
      UserError: the store cannot be reached, or there is no package for it.
    """

    def __init__(self, address: str, folder: pathlib.Path, only: str = ""):
        self.address, self.folder, self._only = address.rstrip("/"), folder, only
        self._sent: dict[str, tuple[int, int]] = {}  # path -> size and time of change of what the store has
        self._problem: UserError | None = None
        self._wanted, self._ended, self._has_new = threading.Event(), False, False
        self._lock: TextIO | None = None
        self._thread: threading.Thread | None = None
        scheme = address.partition("://")[0]
        options = {"auto_mkdir": True} if scheme in ("file", "local") else {}
        try:
            self._fs: Any
            self._fs, self._root = fsspec.core.url_to_fs(self.address, **options)
        except ImportError as error:
            package = _PACKAGES.get(scheme, f"the fsspec package of {scheme}://")
            raise UserError(f"--workdir={address} needs {package}: pip install {package} ({error})") from error
        except ValueError as error:
            raise UserError(f"--workdir={address}: {error}; expected a path, or an address such as gs://...") from error
        self._listing()  # says what is wrong with the credentials before anything is compiled

    def fetch(self, step: int | None = None) -> None:
        """Brings the folder up to what the store has.

        Args:
          step: a checkpoint that is wanted beside the newest one.

        Raises:
          UserError: the folder holds another run, or one that the store does not have; the store fails; every
            checkpoint there is damaged.
        """
        there = self._listing()
        own = self.folder / _RUN_ID
        if _RUN_ID not in there:
            if self._only:
                raise UserError(f"--workdir={self.address} holds no run: expected the address that one was trained at")
            if own.exists():
                raise UserError(
                    f"{self.folder} holds a run at --workdir={self.address}, where there is none: to send it there, "
                    f"copy {own} to {self.address}/{_RUN_ID}; to start anew, remove the folder"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            new = secrets.token_hex(16)
            self._try(lambda: self._fs.pipe_file(self._at(_RUN_ID), new.encode()))
            own.write_text(new)  # last: a store that refuses leaves no run here
            return
        theirs = self._try(lambda: self._fs.cat_file(self._at(_RUN_ID))).decode()
        if own.exists() and own.read_text() != theirs:
            raise UserError(
                f"--workdir={self.address} is another run than {self.folder} on this machine, its copy of an earlier "
                "one: move that folder away, or use another address"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._only:
            self._drop_damaged(there)
        kinds = {m[1] for m in map(_STEP.match, there) if m}
        newer = {kind: self._newer(there, kind) for kind in kinds}
        if not self._only:
            self._find_sent(there)
        # A folder that is ahead of the store has its own, later versions of these files.
        if not own.exists() or newer.get("checkpoints"):
            for name in there:
                if not _STEP.match(name) and name != _RUN_ID:
                    self._get(name)
        for kind, steps in newer.items():
            self._fetch_newest(there, kind, steps)
        wanted = [name for name, (number, _) in _complete(there, "checkpoints").items() if number == step]
        if wanted and not (self.folder / wanted[-1]).exists():
            self._fetch_newest(there, "checkpoints", wanted[-1:])
        own.write_text(theirs)  # last: what was interrupted begins anew

    def begin_anew(self) -> None:
        """Empties the folder, which is a copy of what the store has, and keeps others out of it until `finish`.

        Raises:
          UserError: another process works in it.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._lock or workdir_lib.lock(self.folder)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def steps(self, step: int | None = None) -> list[str]:
        """Names of the folders of the newest intact checkpoint and of the best one, or of that of `step` alone."""

        def newest_first(kind):
            return sorted(_steps(self._here(), kind).items(), key=lambda item: item[1], reverse=True)

        if step is not None:
            return [name for name, (number, _) in newest_first("checkpoints") if number == step][:1]
        is_intact = lambda name: manifest.problem(self.folder / name) is None
        return [next((n for n, _ in newest_first(kind) if is_intact(n)), "") for kind in ("checkpoints", "best")]

    def start(self) -> None:
        """Starts the thread that sends what `notify` tells of."""
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Says that there is a new checkpoint to send; returns at once."""
        self._has_new = True
        self._wanted.set()

    def finish(self) -> None:
        """Sends what is left, and raises the error of the last attempt where it failed."""
        self._ended = True
        self._wanted.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        # Once more: the thread may have listed the folder before the last files were there.
        self._attempt()
        if self._lock:
            self._lock.close()
        if self._problem is not None:
            raise self._problem

    # -- Sending -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._ended:
            self._wanted.wait()
            self._wanted.clear()
            self._attempt()

    def _attempt(self) -> None:
        try:
            self.send()
            self._problem = None
        except Exception as error:  # the thread has to live: what fails now may be sent at the next checkpoint
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self._problem = UserError(f"{reason}; what was not sent is in {self.folder}, run the same command again")
            if not self._ended:
                _log.warning("%s; tried again at the next checkpoint", reason)

    def send(self, anew: bool = False) -> None:
        """Sends what is new in the folder and, once it has a new checkpoint, removes steps that are no longer kept.

        Args:
          anew: sends everything, whatever the store has.

        Raises:
          UserError: the store fails.
        """
        if anew:
            self._sent.clear()
        here = self._here()
        new = [n for n, state in here.items() if self._is_mine(n) and self._sent.get(n) != state]
        for name in sorted(new, key=lambda name: name.endswith(_MANIFEST)):
            try:
                data = self.folder / name
                self._try(lambda data=data, name=name: self._fs.put_file(str(data), self._at(name)))
            except FileNotFoundError:
                continue  # a step that was discarded meanwhile; its manifest, too, is gone and not sent
            self._sent[name] = here[name]
        # A folder that was fetched has the newest step alone: it says nothing yet of what is kept.
        if self._has_new and not self._only:
            for kind in ("checkpoints", "best"):
                self._remove_below(kind, min(_steps(here, kind).values(), default=(0, 0)))

    def _is_mine(self, name: str) -> bool:
        return name.startswith(self._only) if self._only else not _OF_OTHERS.fullmatch(name)

    def _drop_damaged(self, there: dict[str, int]) -> None:
        """Removes damaged steps that the store has, too: sent, they would replace what may be intact there."""
        for kind in ("checkpoints", "best"):
            for step in _steps(self._here(), kind).keys() & _complete(there, kind).keys():
                problem = manifest.problem(self.folder / step)
                if problem is not None:
                    _log.warning("%s is corrupt (%s): fetched again", self.folder / step, problem)
                    shutil.rmtree(self.folder / step)

    def _find_sent(self, there: dict[str, int]) -> None:
        """Takes for sent the steps that an earlier process has sent: their manifests, which hold digests, are there."""
        here = self._here()
        for kind in ("checkpoints", "best"):
            for step in _complete(here, kind).keys() & _complete(there, kind).keys():
                files = [name for name in here if name.startswith(step)]
                own = (self.folder / step / _MANIFEST).read_bytes()
                if all(there.get(name) == here[name][0] for name in files) and own == self._try(
                    lambda step=step: self._fs.cat_file(self._at(step + _MANIFEST))
                ):
                    self._sent |= {name: here[name] for name in files}

    def _remove_below(self, kind: str, lowest: tuple[int, int]) -> None:
        """Removes the store's steps below all of the folder; above it there may be those of a machine that is ahead."""
        for step, number in _steps(self._listing(), kind).items():
            if number < lowest:
                self._remove(step)

    def _remove(self, step: str) -> None:
        files = [name for name in self._listing() if name.startswith(step)]
        for name in sorted(files, key=lambda name: not name.endswith(_MANIFEST)):
            with contextlib.suppress(FileNotFoundError):  # gone already, which is what is wanted
                self._try(lambda name=name: self._fs.rm_file(self._at(name)))
            self._sent.pop(name, None)

    def _here(self) -> dict[str, tuple[int, int]]:
        """Path -> size and time of change of every file that belongs to the run; of steps, committed ones alone."""
        found = {}
        # Unlike rglob, walk leaves out a folder that goes away while it is listed.
        listed = (pathlib.Path(root, name) for root, _, names in os.walk(self.folder) for name in names)
        for path in sorted(listed):
            name = path.relative_to(self.folder).as_posix()
            if _UNFINISHED.search(name):
                continue
            try:
                if path.is_file():
                    state = path.stat()
                    found[name] = (state.st_size, state.st_mtime_ns)
            except FileNotFoundError:
                continue  # a step that is being discarded
        return found

    # -- Fetching ------------------------------------------------------------------------------------------------------

    def _newer(self, there: dict[str, int], kind: str) -> list[str]:
        """The steps of the store that are complete and above all of the folder, the highest first."""
        own = max(_steps(self._here(), kind).values(), default=(-1, 0))
        steps = _complete(there, kind)
        return sorted((step for step in steps if steps[step] > own), key=lambda step: steps[step], reverse=True)

    def _fetch_newest(self, there: dict[str, int], kind: str, steps: list[str]) -> None:
        """Fetches the first of these steps that is intact."""
        bad = []
        for step in steps:
            folder = self.folder / step
            unfinished = folder.with_name(f"unfinished-{folder.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            for name in there:
                if name.startswith(step):
                    self._get(name, unfinished / name.removeprefix(step))
            kept = unfinished.rename(folder)
            problem = manifest.problem(kept)
            if problem is None:
                for name, state in self._here().items():
                    if name.startswith(step):
                        self._sent[name] = state
                return
            bad.append(f"{step}: {problem}")
            _log.warning("%s/%s is corrupt (%s)", self.address, step, problem)
            shutil.rmtree(kept)
        if bad and not any((self.folder / kind).iterdir()):
            raise UserError(f"every checkpoint in {self.address}/{kind} is corrupt: {'; '.join(bad)}")

    def _get(self, name: str, to: pathlib.Path | None = None) -> None:
        to = to or self.folder / name
        to.parent.mkdir(parents=True, exist_ok=True)
        part = to.with_name(f"{to.name}.fetched")
        self._try(lambda: self._fs.get_file(self._at(name), str(part)))
        part.replace(to)
        state = to.stat()
        self._sent[name] = (state.st_size, state.st_mtime_ns)

    # -- The store -----------------------------------------------------------------------------------------------------

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _listing(self) -> dict[str, int]:
        """Path below the address -> size, of every file there."""

        def find() -> dict[str, Any]:
            self._fs.invalidate_cache()
            try:
                return self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}

        prefix = self._root.rstrip("/") + "/"
        return {path.removeprefix(prefix): info["size"] for path, info in sorted(self._try(find).items())}

    def _try(self, call: Any) -> Any:
        try:
            return call()
        except FileNotFoundError:
            raise
        except Exception as error:  # stores have errors of many kinds, of packages that need not be installed
            reason = (str(error) or type(error).__name__).splitlines()[0][:300]
            raise UserError(
                f"--workdir={self.address}: the store fails: {type(error).__name__}: {reason}; check the address and "
                "the credentials (of gs://: gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS)"
            ) from error


def _complete(names: Iterable[str], kind: str) -> dict[str, tuple[int, int]]:
    """As `_steps`, of those with a manifest, which is sent last."""
    return _steps((name for name in names if name.endswith(f"/{_MANIFEST}")), kind)


def _steps(names: Iterable[str], kind: str) -> dict[str, tuple[int, int]]:
    """Folder of each step of `checkpoints` or `best` that has a file among these -> its step and number of the save."""
    return {m[0]: (int(m[2]), int(m[3] or 0)) for m in map(_STEP.match, names) if m and m[1] == kind}
