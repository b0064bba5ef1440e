"""Writes moving_shapes to disk, as a TFDS dataset in ArrayRecord or as a folder of mp4 files with a CSV file."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Iterator, Sequence

from data import output
from data.moving_shapes import questions, render, scenes
from data.moving_shapes.scenes import SPLITS, Scene
from vlp_jax import processes
from vlp_jax.telemetry.counting import CountProgress
from vlp_jax.types import UserError

VERSION = "1.1.0"  # goes up with every change of the clips, captions or questions
SETTINGS_FILE = "moving_shapes.json"  # see data/output.py


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
    asked = dataclasses.asdict(settings)
    if output.found(out, SETTINGS_FILE, asked) is not None:
        return f"{out} already holds this data set ({sum(settings.counts().values())} clips): nothing done"
    plan = scenes.plan(settings.counts(), settings.seed)
    start = time.monotonic()
    with output.partial_directory(out) as partial:
        with processes.Pool(workers) if workers > 1 else contextlib.nullcontext() as executor:
            clips = _Clips(plan, executor)
            finished = (_write_tfds if settings.format == "tfds" else _write_folder)(partial, clips)
        questions.write(finished, plan)
        output.finish(finished, out, SETTINGS_FILE, asked)
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


class _Clips:
    """Draws the clips of a plan, in its order, and shows the progress."""

    def __init__(self, plan: Sequence[Scene], executor: concurrent.futures.Executor | None):
        self.scenes = {split: [scene for scene in plan if scene.split == split] for split in SPLITS}
        self.splits = [split for split in SPLITS if self.scenes[split]]
        self._executor = executor
        self._progress = CountProgress("moving_shapes", len(plan))

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
        if split == self.splits[-1]:
            self._progress.close()


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
    from data import array_record

    splits = {split: functools.partial(clips.records, split) for split in clips.splits}
    return array_record.write(directory, "moving_shapes", VERSION, splits, (*array_record.TEXTS, "attributes"))
