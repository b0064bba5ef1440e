"""Where records come from: a TFDS directory in ArrayRecord, tables beside a folder of videos, or tar shards."""

import dataclasses
import difflib
import logging
import pathlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, cast

import ml_collections
import pyarrow as pa
import pyarrow.compute as pc

from vlp_jax.input import annotations, arrow_cache, splits
from vlp_jax.input.per_process import PerProcess
from vlp_jax.text import encodable
from vlp_jax.types import UserError

# Tasks of which no example has a question, and what they have instead.
_WITHOUT_QUESTION = {"pretrain": "captions are what it learns from", "classification": "it reads no text"}
_IDS = 2**12  # clip ids of a block, where they are read from records
_MANY = 20_000  # records whose reading takes long enough to be announced

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Record:
    """One captioned clip.

    Attributes:
      video: the encoded file's bytes, or its path.
      caption: the text; '' where there is none, which makes a captioned example a bad one. A question's text.
      clip_id: names the clip; records with the same name are captions of the same clip.
      span: (start, end) of the clip inside the file, seconds; the end may be infinite. None for all of it.
      question_id: names a question or choice; '' for captions.
      answer: of a question, its words; of a choice, the number of the true option as text; of a labelled clip, its
        class. '' where the row has none.
      options: texts of a multiple choice.
      type: of a question, by which accuracy is split; ''.
    """

    video: bytes | str
    caption: str
    clip_id: str
    span: tuple[float, float] | None = None
    question_id: str = ""
    answer: str = ""
    options: tuple[str, ...] = ()
    type: str = ""


def span_id(clip_id: str, span: tuple[float, float] | None) -> str:
    """Names a span of a clip as W3C Media Fragments do, `name#t=start,end`; the whole clip keeps its name."""
    return clip_id if span is None else f"{clip_id}#t={span[0]:.10g},{span[1]:.10g}"


class Source(Protocol):
    """Random access to records; picklable, and opened by each process when it first reads.

    Attributes:
      name: for messages: where the records come from.
      columns: what the rows hold besides the clip: of caption, question, options, answer, label, type, question_id.
    """

    name: str
    columns: frozenset[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def annotation(self, index: int) -> Record:
        """As `self[index]`, but `video` is b'': for texts alone, whose clip need not be read."""
        ...


class Annotated(Source, Protocol):
    """A source whose clip ids and answers can be read without its clips.

    Attributes:
      identity: JSON; everything that the rows depend on.
      lists_clips: whether the ids of the clips are known without reading the clips.
    """

    @property
    def identity(self) -> list[Any]: ...

    @property
    def lists_clips(self) -> bool: ...

    def column(self, name: str) -> Iterator[pa.Array]:
        """Yields, block by block, what all records have of video (the clip_id, without a span), answer or options."""
        ...


def shared_clips(one: Source, other: Source) -> list[str]:
    """Clips that two sources of one dataset both have rows about, sorted; [] where one does not list its clips."""
    if not all(getattr(source, "lists_clips", False) for source in (one, other)):
        return []
    blocks = [list(cast(Annotated, source).column("video")) for source in (one, other)]
    ids = [pc.unique(pa.chunked_array(own, pa.string())) for own in blocks]
    return sorted(ids[0].filter(pc.is_in(ids[0], value_set=ids[1])).to_pylist())


def has_text(source: Source) -> bool:
    """Whether each record has a caption or a question; an empty one is then a bad one."""
    return bool(source.columns & {"caption", "question"})


def check_task(source: Source, kind: str, input_config: ml_collections.ConfigDict) -> None:
    """Refuses records that are not those of a task, or lack what `input_config.ablate` takes away.

    Args:
      source: what `input_config` describes, of any split.
      kind: `config.task.kind`.

    Raises:
      UserError: naming the columns found, those needed, and what has them.
    """
    if not annotations.fits(source.columns, kind):
        found = ", ".join(sorted(source.columns)) or "none of a task"
        without = " and no options" if kind == "question_answering" else ""
        raise UserError(
            f"config.task.kind = {kind!r} needs rows with {' and '.join(annotations.TASK_COLUMNS[kind])}{without}; "
            f"{source.name} has {found}: {_where_to_find(source.columns, kind, input_config)}"
        )
    if input_config.ablate == "text" and (kind in _WITHOUT_QUESTION or "question" not in source.columns):
        why = _WITHOUT_QUESTION.get(kind, "its rows have options and no question")
        raise UserError(
            f"config.input.ablate = 'text' with config.task.kind = {kind!r} and {source.name}: {why}; "
            "expected '', 'video' or 'order'"
        )


def _where_to_find(columns: frozenset[str], kind: str, c: ml_collections.ConfigDict) -> str:
    """What has the rows that a source with `columns` lacks."""
    if c.kind == "shards":
        return "tar shards hold captions alone; use a table or a dataset (config.input.kind)"
    if c.kind == "table":
        knobs = {"question": "caption_column", "label": "answer_column"}
        absent = [name for name in annotations.TASK_COLUMNS[kind] if name not in columns]
        if not absent:
            return "set config.input.options_column=''"
        return "set " + " and ".join(f"config.input.{knobs.get(name, name + '_column')}" for name in absent)
    tables = annotations.annotation_tables(pathlib.Path(c.path), kind)
    if kind == "pretrain" and not tables and "clips" not in annotations.clip_lists(pathlib.Path(c.path)):
        return f"the splits of {c.path} themselves have captions; name one of them, not an annotation table"
    if not tables:
        return f"no annotation table of {c.path} has them; choose another config.input.path"
    return f"the tables {', '.join(tables)} of {c.path} have them; choose one as the split"


def open_source(input_config: ml_collections.ConfigDict, split: str | None = None) -> Source:
    """Opens the dataset that `config.input` describes.

    Args:
      input_config: `config.input`; see `vlp_jax/config.py`.
      split: instead of `input_config.split`. Kind tfds: a split's name, a TFDS slice such as `train[:10%]`, or the name
        of an annotation table beside it; kind table: `all`, or `column=value|value`; kind shards: `all`, or
        `shards=first..last`. Of kinds tfds and table, `[held_out]` behind it takes the clips that a hash of their ids
        sets apart, about 5%, and `[kept]` the others, for sets that have no validation split.

    Raises:
      UserError: a path, column, key, feature or split that does not exist (naming those that do), or no record.
    """
    split = input_config.split if split is None else split
    from vlp_jax.input import held_out  # imports this module

    whole, part = splits.parse(split)
    if part:
        if input_config.kind == "shards":
            raise UserError(
                f"split {split!r}: tar shards have no part [{part}]; expected 'all' or 'shards=first..last', or shards "
                "of their own for validation"
            )
        return held_out.Part(cast(Annotated, open_source(input_config, whole)), part)
    if input_config.kind == "tfds":
        return TfdsSource(input_config.path, split)
    if input_config.kind == "table":
        from vlp_jax.input.tables import TableSource  # imports this module

        return TableSource(
            input_config.path,
            split,
            video_root=input_config.video_root,
            video_column=input_config.video_column,
            caption_column=input_config.caption_column,
            start_column=input_config.start_column,
            end_column=input_config.end_column,
            answer_column=input_config.answer_column,
            options_column=input_config.options_column,
            type_column=input_config.type_column,
        )
    if input_config.kind == "shards":
        from vlp_jax.input.shards import ShardSource  # imports this module

        return ShardSource(input_config.path, split, caption_key=input_config.caption_key)
    raise UserError(f"config.input.kind = {input_config.kind!r}: expected one of tfds, table, shards")


class TfdsSource(PerProcess):
    """A split of a TFDS dataset written with file_format='array_record'; features video, caption and clip_id.

    An evaluation set holds every clip once, in the split `clips`, and its captions, questions, choices and classes in
    annotation tables beside dataset_info.json, see `annotations`. Where `split` is the name of such a table, a record
    is a row of it joined with its clip; spans become part of the clip_id as in `tables.TableSource`.

    Args:
      path: directory holding dataset_info.json.
      split: a split's name, a TFDS slice of one, or the name of an annotation table.

    Raises:
      UserError: no such directory, dataset, feature, split or table (naming those that exist), no record, or a row
        about a clip that is not there.
    """

    _data: Any
    _lock: threading.Lock

    def __init__(self, path: str, split: str):
        directory = pathlib.Path(path)
        if not directory.is_dir():
            raise UserError(
                f"config.input.path = {path!r}: no such directory; expected one holding dataset_info.json, as `python "
                "-m data.prepare NAME` writes of a corpus (data/README.md) and `python -m data.moving_shapes` of the "
                "embedded clips"
            )
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
        require(sorted(info.features), ("video", "caption", "clip_id"), f"config.input.path = {path!r}", "feature")
        self._rows: Any = None  # of the annotation table
        self.columns = frozenset({"caption"})
        tables = [] if split in info.splits else annotations.annotation_tables(directory)
        if split in tables:
            self._open_annotations(directory, split, info)
            return
        known = sorted(info.splits)
        try:
            self._length = info.splits[split].num_examples
        except (KeyError, ValueError) as e:
            if (directory / f"{split}.jsonl").is_file():
                annotations.refuse_other(directory / f"{split}.jsonl")
            more = f", or of the annotation tables {', '.join(tables)}" if tables else ""
            hint = near(split, known + tables)
            raise UserError(f"split {split!r} is not in {path}: expected one of {', '.join(known)}{more}{hint}") from e
        if not self._length:
            raise UserError(f"split {split!r} of {path} is empty: choose another of {', '.join(known)}")

    def _open_annotations(self, directory: pathlib.Path, table: str, info: Any) -> None:
        file, lists = directory / f"{table}.jsonl", annotations.clip_lists(directory)
        counts = {name: split.num_examples for name, split in info.splits.items()}
        self._rows = annotations.open_annotations(file, lists, counts)
        self._split = "+".join(lists)
        self._length = len(self._rows)
        self.columns = annotations.held(annotations.columns_of(file))

    def _fresh(self) -> dict[str, Any]:
        return {"_data": None, "_lock": threading.Lock()}

    def _builder(self):
        import tensorflow_datasets as tfds  # takes a second: only where records are read

        return tfds.builder_from_directory(self._path)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        if self._rows is None:
            row = self._stored(index)
            return Record(
                row["video"], row["caption"].decode(errors="replace"), row["clip_id"].decode(errors="replace")
            )
        annotation = self._rows[int(index)]
        row = self._stored(annotation["number"])
        clip_id = row["clip_id"].decode(errors="replace")
        if clip_id != annotation["video"]:
            raise UserError(
                f"the list of clips of {self._path} names {annotation['video']!r} where the records hold {clip_id!r}; "
                "prepare the dataset anew"
            )
        return _annotated(annotation, row["video"])

    def annotation(self, index: int) -> Record:
        """As `self[index]` with `video` b''. A row of an annotation table is read alone, a record of a split whole."""
        if self._rows is None:
            return dataclasses.replace(self[index], video=b"")
        return _annotated(self._rows[int(index)], b"")

    def _stored(self, index: int) -> dict[str, Any]:
        if self._data is None:
            with self._lock:
                if self._data is None:
                    self._data = self._builder().as_data_source(self._split)
        return self._data[int(index)]

    @property
    def identity(self) -> list[Any]:
        """As `Annotated`."""
        if self._rows is not None:
            return ["annotations", self._rows.digest]
        return ["tfds", arrow_cache.identity(pathlib.Path(self._path) / "dataset_info.json"), self._split]

    @property
    def lists_clips(self) -> bool:
        """As `Annotated`: an annotation table does, and a split with a list of its clips."""
        return self._rows is not None or self._split in annotations.clip_lists(pathlib.Path(self._path))

    def column(self, name: str) -> Iterator[pa.Array]:
        """As `Annotated`; the ids of a split that no list names are read from its records, clips and all."""
        if self._rows is not None:
            return self._rows.column(name)
        if name != "video":
            raise ValueError(f"{self.name} has no column {name!r}")
        listed = annotations.clip_lists(pathlib.Path(self._path)).get(self._split)
        if listed is not None:
            return iter([annotations.read_list(listed, self._split, {self._split: len(self)})])
        return self._ids_of_records()

    def _ids_of_records(self) -> Iterator[pa.Array]:
        if len(self) > _MANY:
            _log.warning("%s: all %d records are read once, for the ids of their clips", self.name, len(self))
        for start in range(0, len(self), _IDS):
            stop = min(start + _IDS, len(self))
            yield pa.array([encodable(self[i].clip_id) for i in range(start, stop)], pa.string())


def _annotated(row: dict[str, Any], video: bytes) -> Record:
    """A row of an annotation table, with its clip's bytes."""
    from vlp_jax.input.tables import read_span, read_task

    span = read_span(row)
    return Record(video, row["caption"], span_id(row["video"], span), span, **read_task(row))


def require(present: Iterable[str], wanted: tuple[str, ...], where: str, what: str, knob: str = "") -> None:
    """Raises UserError where one of `wanted` is not among those present, naming them and the nearest."""
    present = list(present)
    for name in wanted:
        if name not in present:
            fix = f"; set {knob}" if knob else ""
            listed = ", ".join(present) or "none"
            raise UserError(f"{where} has no {what} {name!r}, only {listed}{near(name, present)}{fix}")


def near(name: str, known: list[str]) -> str:
    """A hint for messages: the known name that is nearest, or nothing."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
