"""Where records come from: a TFDS directory in ArrayRecord, or a CSV file beside a folder of videos."""

import csv
import dataclasses
import difflib
import pathlib
import threading
from collections.abc import Iterable
from typing import Any, Protocol

import ml_collections

from vlp_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One captioned clip.

    Attributes:
      video: the encoded file's bytes, or its path.
      caption: the text.
      clip_id: names the clip; records with the same name are captions of the same clip.
    """

    video: bytes | str
    caption: str
    clip_id: str


class Source(Protocol):
    """Random access to records; picklable, and opened by each process when it first reads."""

    name: str  # for messages: where the records come from

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def open_source(input_config: ml_collections.ConfigDict, split: str | None = None) -> Source:
    """Opens the dataset that `config.input` describes.

    Args:
      input_config: `config.input`; see `vlp_jax/config.py`.
      split: instead of `input_config.split`. For kind tfds a split's name, or a TFDS slice such as `train[:10%]`; for
        kind csv `all`, or `column=value|value`.

    Raises:
      UserError: a path, column, feature or split that does not exist (naming those that do), or no record.
    """
    split = input_config.split if split is None else split
    if input_config.kind == "tfds":
        return TfdsSource(input_config.path, split)
    if input_config.kind == "csv":
        return CsvSource(
            input_config.path,
            split,
            video_root=input_config.video_root,
            video_column=input_config.video_column,
            caption_column=input_config.caption_column,
        )
    raise UserError(f"config.input.kind = {input_config.kind!r}: expected one of tfds, csv")


class TfdsSource:
    """A split of a TFDS dataset written with file_format='array_record'; features video, caption and clip_id.

    Args:
      path: directory holding dataset_info.json.
      split: a split's name or a TFDS slice of one.
    """

    def __init__(self, path: str, split: str):
        directory = pathlib.Path(path)
        if not directory.is_dir():
            raise UserError(f"config.input.path = {path!r}: no such directory; expected one holding dataset_info.json")
        if not (directory / "dataset_info.json").is_file():
            inside = sorted(p.parent for p in directory.glob("*/*/dataset_info.json"))
            inside += sorted(p.parent for p in directory.glob("*/dataset_info.json"))
            hint = f"; did you mean {str(inside[0])!r}?" if inside else "; expected the directory a TFDS builder wrote"
            raise UserError(f"config.input.path = {path!r} holds no dataset_info.json{hint}")
        self.name = f"{path}:{split}"
        self._path = path
        self._split = split
        self._forget()
        info = self._builder().info
        if info.file_format is None or info.file_format.value != "array_record":
            raise UserError(
                f"config.input.path = {path!r} is stored as {getattr(info.file_format, 'value', None)}: expected "
                "array_record, which can be read in any order; prepare it with file_format='array_record'"
            )
        _require(sorted(info.features), ("video", "caption", "clip_id"), f"config.input.path = {path!r}", "feature")
        known = sorted(info.splits)
        try:
            self._length = info.splits[split].num_examples
        except (KeyError, ValueError) as e:
            raise UserError(
                f"split {split!r} is not in {path}: expected one of {', '.join(known)}{_near(split, known)}"
            ) from e
        if not self._length:
            raise UserError(f"split {split!r} of {path} is empty: choose another of {', '.join(known)}")

    def _forget(self) -> None:
        self._data: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_data", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _builder(self):
        import tensorflow_datasets as tfds  # takes a second: only where records are read

        return tfds.builder_from_directory(self._path)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        if self._data is None:
            with self._lock:
                if self._data is None:
                    self._data = self._builder().as_data_source(self._split)
        row = self._data[int(index)]
        return Record(row["video"], row["caption"].decode(), row["clip_id"].decode())


class CsvSource:
    """Rows of a CSV file, each naming a video file and holding a caption; the file's name is the clip_id.

    Whether the videos exist shows when they are decoded: a missing one is a bad clip, counted by the ledger.

    Args:
      path: the CSV file, UTF-8, with a header row.
      split: `all`, or `column=value|value` to keep the rows that have one of these values.
      video_root: folder that the video column is relative to; itself relative to the CSV file's own folder.
      video_column, caption_column: names of the columns.
    """

    def __init__(
        self,
        path: str,
        split: str = "all",
        *,
        video_root: str = "",
        video_column: str = "video",
        caption_column: str = "caption",
    ):
        file = pathlib.Path(path)
        if not file.is_file():
            raise UserError(f"config.input.path = {path!r}: no such file; expected a CSV file with a header row")
        self.name = f"{path}:{split}"
        self._root = file.parent / video_root
        with file.open(newline="", encoding="utf-8-sig") as f:
            try:
                reader = csv.DictReader(f)
                columns = list(reader.fieldnames or ())
                where = f"config.input.path = {path!r}"
                _require(columns, (video_column,), where, "column", "config.input.video_column")
                _require(columns, (caption_column,), where, "column", "config.input.caption_column")
                rows = [row for row in reader if any(row.values())]
            except (UnicodeDecodeError, csv.Error) as e:
                raise UserError(f"{path} is not a CSV file in UTF-8: {e}") from e
        if not rows:
            raise UserError(f"{path} has a header and no rows: expected one row for each clip")
        rows = _filter(rows, columns, split, path)
        for row in rows:
            if row[video_column] is None or row[caption_column] is None:
                raise UserError(f"{path}: the row {row} has fewer cells than the header")
        self._rows = [(row[video_column], row[caption_column]) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        video, caption = self._rows[index]
        return Record(str(self._root / video), caption, video)


def _filter(rows: list[dict[str, str]], columns: list[str], split: str, path: str) -> list[dict[str, str]]:
    if split == "all":
        return rows
    column, equals, values = split.partition("=")
    if not equals:
        raise UserError(
            f"split {split!r} of {path}: expected 'all' or 'column=value|value'; columns: {', '.join(columns)}"
        )
    _require(columns, (column,), f"split {split!r} of {path}", "column")
    kept = [row for row in rows if row[column] in values.split("|")]
    if not kept:
        present = sorted({str(row[column]) for row in rows})
        shown = ", ".join(present[:20]) + (f", ... ({len(present)} values)" if len(present) > 20 else "")
        raise UserError(f"split {split!r} of {path} matches no row: column {column!r} holds {shown}")
    return kept


def _require(present: Iterable[str], wanted: tuple[str, ...], where: str, what: str, knob: str = "") -> None:
    present = list(present)
    for name in wanted:
        if name not in present:
            fix = f"; set {knob}" if knob else ""
            listed = ", ".join(present) or "none"
            raise UserError(f"{where} has no {what} {name!r}, only {listed}{_near(name, present)}{fix}")


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
