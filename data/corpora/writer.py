"""Writes a corpus as a TFDS dataset in ArrayRecord, by processes of this machine."""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from data import array_record
from data.corpora.corpus import Clip, Corpus
from data.corpora.encoding import Encoding, stored
from vlp_jax.telemetry.counting import CountProgress
from vlp_jax.text import encodable
from vlp_jax.types import UserError

VERSION = "1.0.0"  # goes up with every change of what is stored


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
    records = {
        split: functools.partial(_records, split, clips, encoding, workers, failed)
        for split, clips in corpus.splits.items()
    }
    path = array_record.write(directory, corpus.name, VERSION, records)
    return Written(path, array_record.counts(path), failed)


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


def failure(split: str, number: int, clip: Clip, error: str) -> dict[str, Any]:
    """Returns a row of failed.jsonl."""
    path = encodable(str(clip.path))
    return {"split": split, "record": number, "clip_id": clip.clip_id, "path": path, "error": encodable(error)}


def _records(split, clips, encoding: Encoding, workers: int, failed: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    total = len(clips) if hasattr(clips, "__len__") else None
    progress = CountProgress(split, total)
    for number, (clip, video, error) in enumerate(stored(each(clips), encoding, workers)):
        if error:
            failed.append(failure(split, number, clip, error))
        yield {"video": video, "caption": clip.caption, "clip_id": clip.clip_id}
        progress.add()
    progress.close()
