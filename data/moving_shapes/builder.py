"""Writes moving_shapes to disk, as a TFDS dataset in ArrayRecord or as a folder of mp4 files with a CSV file."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import json
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence

from data.moving_shapes import questions, render, scenes
from data.moving_shapes.scenes import SPLITS, Scene
from vlp_jax.types import UserError

VERSION = "1.0.0"  # goes up with every change of the clips, captions or questions
SETTINGS_FILE = "moving_shapes.json"  # what the directory was made with; its presence says that it is complete


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the data depends on; clips per split, `seed` from 0, and `format`, tfds or folder."""

    train: int = 6000
    validation: int = 256
    test: int = 256
    compositional: int = 128
    seed: int = 0
    format: str = "tfds"
    version: str = VERSION

    def counts(self) -> dict[str, int]:
        """Returns split -> number of clips."""
        return dict(zip(SPLITS, (self.train, self.validation, self.test, self.compositional)))


def prepare(out: str | os.PathLike, settings: Settings, workers: int = 1) -> str:
    """Makes the dataset in `out` and returns one line that says what was done.

    The data does not depend on `workers`, the number of processes that draw clips (1 draws in this one). Everything is
    written to a sibling `<out>.<random>.tmp` and renamed at the end, so `out` is either absent or complete; where it
    is complete already, nothing is done.

    Raises:
      UserError: a setting is out of range, or `out` holds something else than this data set.
    """
    out = pathlib.Path(out)
    _check(settings, workers)
    if _is_complete(out, settings):
        return f"{out} already holds this data set ({sum(settings.counts().values())} clips): nothing done"
    plan = scenes.plan(settings.counts(), settings.seed)
    start = time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        with _workers(workers) as executor:
            clips = _Clips(plan, executor)
            finished = (_write_tfds if settings.format == "tfds" else _write_folder)(partial, clips)
        test = [scene for scene in plan if scene.split == "test"]
        if test:
            questions.write(finished, test)
        text = json.dumps(dataclasses.asdict(settings), indent=1) + "\n"
        (finished / SETTINGS_FILE).write_text(text, encoding="utf-8")
        finished.rename(out)  # replaces an empty directory, fails on any other
    finally:
        shutil.rmtree(partial)
    counts = ", ".join(f"{count} {split}" for split, count in settings.counts().items() if count)
    return f"wrote {len(plan)} clips ({counts}) to {out} in {time.monotonic() - start:.0f} s"


def _check(settings, workers):
    for name in ("train", "validation", "test", "compositional", "seed"):
        low = 1 if name == "train" else 0
        if getattr(settings, name) < low:
            raise UserError(f"--{name} {getattr(settings, name)}: expected an integer from {low}")
    if settings.format not in ("tfds", "folder"):
        raise UserError(f"--format {settings.format!r}: expected tfds or folder")
    if workers < 1:
        raise UserError(f"--workers {workers}: expected an integer from 1")


def _is_complete(out: pathlib.Path, settings: Settings) -> bool:
    """True where `out` holds the data of `settings`, False where it is absent or empty; UserError otherwise."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    path = out / SETTINGS_FILE
    if not path.is_file():
        raise UserError(
            f"{out} exists and has no {SETTINGS_FILE}: expected a new or empty directory; choose another --out"
        )
    found, asked = json.loads(path.read_text(encoding="utf-8")), dataclasses.asdict(settings)
    differ = [f"{k}={found.get(k)!r} there, {v!r} asked" for k, v in asked.items() if found.get(k) != v]
    if differ:
        raise UserError(f"{out} holds moving_shapes with {'; '.join(differ)}: delete it or choose another --out")
    return True


@contextlib.contextmanager
def _workers(count: int) -> Iterator[concurrent.futures.Executor | None]:
    if count == 1:
        yield None
        return
    # spawn: forking a process that runs threads (those of TFDS and Arrow) can deadlock.
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Makes this worker end when its parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Clips:
    """Draws the clips of a plan, in its order, and shows the progress."""

    def __init__(self, plan: Sequence[Scene], executor: concurrent.futures.Executor | None):
        self.scenes = {split: [scene for scene in plan if scene.split == split] for split in SPLITS}
        self.splits = [split for split in SPLITS if self.scenes[split]]
        self._executor = executor
        self._progress = _Progress(len(plan))

    def records(self, split: str) -> Iterator[dict]:
        """Yields video (mp4 bytes), caption, clip_id and attributes (JSON) of each clip of `split`."""
        plan = self.scenes[split]
        if self._executor is None:
            clips: Iterator[tuple[bytes, str]] = map(render.clip, plan)
        else:
            clips = self._executor.map(render.clip, plan, chunksize=32)
        for scene, (video, attributes) in zip(plan, clips):
            yield {"video": video, "caption": scene.caption, "clip_id": scene.clip_id, "attributes": attributes}
            self._progress.add()


class _Progress:
    """A line on stderr with the time left: rewritten on a terminal, a new one every 5 seconds elsewhere."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._live = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    def add(self) -> None:
        self._done += 1
        now = time.monotonic()
        last = self._done == self._total
        if not last and now - self._shown < (0.2 if self._live else 5.0):
            return
        self._shown = now
        left = (now - self._start) / self._done * (self._total - self._done)
        line = f"moving_shapes: {self._done}/{self._total} clips, {100 * self._done // self._total}%, {left:.0f} s left"
        end = "\n" if last or not self._live else ""
        print(f"\r{line:<60}" if self._live else line, end=end, file=sys.stderr, flush=True)


def _write_folder(directory: pathlib.Path, clips: _Clips) -> pathlib.Path:
    """Writes videos/<clip_id>.mp4 and clips.csv; returns the folder below `directory` that holds them."""
    directory = directory / "folder"  # mkdtemp makes `directory` unreadable to others, and the data is not
    (directory / "videos").mkdir(parents=True)
    with open(directory / "clips.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("video", "caption", "clip_id", "split", "attributes"))
        for split in clips.splits:
            for record in clips.records(split):
                video = f"videos/{record['clip_id']}.mp4"
                (directory / video).write_bytes(record["video"])
                table.writerow((video, record["caption"], record["clip_id"], split, record["attributes"]))
    return directory


def _write_tfds(directory: pathlib.Path, clips: _Clips) -> pathlib.Path:
    """Writes a TFDS dataset in ArrayRecord; returns the directory that holds dataset_info.json."""
    # Imported here so that the drawing processes, which load this package too, start faster.
    from data.moving_shapes import tfds_builder

    return tfds_builder.write(directory, clips.splits, clips.records)
