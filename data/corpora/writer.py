"""Writes a corpus as a TFDS dataset in ArrayRecord, by processes of this machine; no TensorFlow is needed."""

import collections
import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.corpora.corpus import Clip, Corpus
from data.corpora.encoding import Encoding, stored
from vlp_jax.types import UserError

VERSION = "1.0.0"  # goes up with every change of what is stored
_SHARD_BYTES = 2**29  # aim; TFDS itself makes shards of 64 MiB to 1 GiB
_BATCH_BYTES = 2**26  # videos handed to TFDS at a time, which writes the metadata anew each time

Records = Callable[[], Iterable[dict[str, Any]]]


@dataclasses.dataclass
class Written:
    """What `write` did.

    Attributes:
      path: the folder that holds dataset_info.json, below the directory given.
      counts: split -> records.
      failed: clips whose bytes are not as asked: split, record (its number), clip_id, path, error.
    """

    path: pathlib.Path
    counts: dict[str, int]
    failed: list[dict[str, Any]]


def write(directory: pathlib.Path, corpus: Corpus, encoding: Encoding = Encoding(), *, workers: int = 1) -> Written:
    """Writes the records of `corpus` (video, caption, clip_id) somewhere below `directory`, in the order of its splits.

    The records do not depend on `workers`. A clip that cannot be re-encoded keeps its original bytes, one that cannot
    be read, or is too large for a record, gets none: training meets it, counts it and names it.

    Args:
      directory: exists.
      corpus: what to write, see `check`; its annotations go beside the dataset by `write_annotations`.
      encoding: how clips are stored.
      workers: processes that re-encode, or threads that read.
    """
    failed: list[dict[str, Any]] = []
    records: dict[str, Records] = {
        split: functools.partial(_records, split, clips, encoding, workers, failed)
        for split, clips in corpus.splits.items()
    }
    path = write_records(directory, corpus.name, records)
    return Written(path, counts_of(path), failed)


def check(corpus: Corpus) -> None:
    """Checks what would otherwise show after hours of writing.

    Raises:
      UserError: no split, an empty one, a clip id twice in an evaluation set, or annotations of a clip that it lacks.
    """
    if not corpus.splits:
        raise UserError(f"{corpus.name}: no split; expected at least one clip")
    for split, clips in corpus.splits.items():
        if isinstance(clips, Sequence) and not clips:
            raise UserError(f"{corpus.name}: the split {split!r} has no clip; check --root")
    if not corpus.annotations:
        return
    ids = [clip.clip_id for clip in each(corpus.splits["clips"])]
    twice = [clip_id for clip_id, count in collections.Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f"{corpus.name}: {len(twice)} clip ids occur more than once: {', '.join(twice[:5])}")
    known = set(ids)
    for name, rows in corpus.annotations.items():
        unknown = sorted({str(row["clip_id"]) for row in rows if "clip_id" in row} - known)
        if unknown:
            raise UserError(f"{corpus.name}: {len(unknown)} clip ids of {name} have no clip: {', '.join(unknown[:5])}")


def write_annotations(path: pathlib.Path, corpus: Corpus, failed: Sequence[dict[str, Any]]) -> None:
    """Writes `<name>.jsonl` and `clips.txt` of an evaluation set, `missing.jsonl` and `failed.jsonl` where needed."""
    for name, rows in corpus.annotations.items():
        _write_lines(path / f"{name}.jsonl", rows)
    if "clips" in corpus.splits:
        text = "".join(f"{clip.clip_id}\n" for clip in each(corpus.splits["clips"]))
        (path / "clips.txt").write_text(text, encoding="utf-8")
    if corpus.missing:
        _write_lines(path / "missing.jsonl", [{"clip_id": clip_id} for clip_id in corpus.missing])
    if failed:
        _write_lines(path / "failed.jsonl", failed)


def _write_lines(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def each(clips: Sequence[Clip] | Callable[[], Iterable[Clip]]) -> Iterable[Clip]:
    """Returns the clips of a split, whichever of its two forms it has."""
    return clips() if callable(clips) else clips


# --- The dataset -----------------------------------------------------------------------------------------------------


class Builder(tfds.core.GeneratorBasedBuilder):
    """Features video (encoded bytes), caption and clip_id, in the order of the clips."""

    VERSION = tfds.core.Version(VERSION)
    # Nothing is downloaded. TFDS would look for checksums next to this file, which in 4.9.10 fails unless the package
    # importlib_resources happens to be installed: TFDS does not ask for it.
    url_infos = None

    def __init__(self, name: str, directory: pathlib.Path, splits: Mapping[str, Any] | None = None):
        """`splits` is what TFDS takes as generators."""
        self.name = name
        self._splits = splits or {}
        super().__init__(data_dir=directory, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name}: encoded videos or images, written by `python -m data.prepare`.",
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Scalar(np.object_),
                    "caption": tfds.features.Text(),
                    "clip_id": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,  # record i of a split is clip i
        )

    def _split_generators(self, dl_manager) -> dict[str, Any]:
        return dict(self._splits)

    def _generate_examples(self):
        raise NotImplementedError("the generators are given to the constructor")


def write_records(directory: pathlib.Path, name: str, splits: Mapping[str, Records]) -> pathlib.Path:
    """Writes records with video, caption and clip_id as the dataset `name`, holding a few of them at a time.

    Returns:
      The folder below `directory` that holds dataset_info.json.

    Raises:
      UserError: a split has no record.
    """
    builder = Builder(name, directory)
    path = pathlib.Path(builder.data_path)
    path.mkdir(parents=True)
    # Not download_and_prepare: without shuffling it keeps a whole split in memory, and beyond 1 GB asks for TensorFlow.
    writer: tfds.core.SequentialWriter | None = None
    for split, records in splits.items():
        empty = True
        for batch in _batches(records()):
            if writer is None:
                mean = sum(len(record["video"]) for record in batch) / len(batch)
                shard = max(1, int(_SHARD_BYTES / (mean + 1024)))
                writer = tfds.core.SequentialWriter(builder.info, shard, file_format="array_record")
            if empty:
                writer.initialize_splits([split])
            writer.add_examples({split: batch})
            empty = False
        if empty or writer is None:
            raise UserError(f"{name}: the split {split!r} has no record")
        writer.close_splits([split])
    return path


def _batches(records: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record["video"])
        if size >= _BATCH_BYTES or len(batch) == 64:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def counts_of(path: pathlib.Path) -> dict[str, int]:
    """Returns split -> number of records of the dataset in `path`."""
    return {name: split.num_examples for name, split in tfds.builder_from_directory(path).info.splits.items()}


def failure(split: str, number: int, clip: Clip, error: str) -> dict[str, Any]:
    """Returns a row of failed.jsonl."""
    return {"split": split, "record": number, "clip_id": clip.clip_id, "path": str(clip.path), "error": error}


def _records(split, clips, encoding: Encoding, workers: int, failed: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    total = len(clips) if hasattr(clips, "__len__") else None
    progress = Progress(split, total)
    for number, (clip, video, error) in enumerate(stored(each(clips), encoding, workers)):
        if error:
            failed.append(failure(split, number, clip, error))
        yield {"video": video, "caption": clip.caption, "clip_id": clip.clip_id}
        progress.add()
    progress.close()


# --- Progress --------------------------------------------------------------------------------------------------------


class Progress:
    """A line on stderr with the time left: rewritten on a terminal, a new one every 5 seconds elsewhere.

    Args:
      label: what is counted, in front of the line.
      total: how many there will be; None where nobody knows, and then no time left is shown.
    """

    def __init__(self, label: str, total: int | None):
        self._label, self._total, self._done = label, total, 0
        self._live = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    def add(self) -> None:
        """Counts one more."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._live else 5.0):
            self._shown = now
            self._print("")

    def close(self) -> None:
        """Shows the last line."""
        self._print("\n")

    def _print(self, end: str) -> None:
        seconds = time.monotonic() - self._start
        line = f"{self._label}: {self._done}"
        if self._total:
            left = seconds / max(1, self._done) * max(0, self._total - self._done)
            line += f"/{self._total} clips, {100 * self._done // self._total}%, {left:.0f} s left"
        else:
            line += f" clips, {self._done / max(seconds, 1e-9):.0f} a second"
        print(f"\r{line:<70}" if self._live else line, end=end if self._live else "\n", file=sys.stderr, flush=True)
