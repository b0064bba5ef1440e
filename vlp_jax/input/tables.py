"""Captions, questions and classes in tables (CSV, TSV, JSON lines) of any length, beside a folder of videos.

A table is parsed once, block by block, into a memory-mapped Arrow file (`arrow_cache`), so that neither the training
process nor its workers hold its rows.
"""

import bisect
import dataclasses
import glob
import itertools
import json
import logging
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlp_jax.input import arrow_cache, table_readers
from vlp_jax.input.sources import Record, require, span_id
from vlp_jax.text import encodable
from vlp_jax.types import UserError

_LATEST = 1e9  # seconds; beyond it, a cell holds something else than a time inside a video
_LARGE = 2**28  # bytes of a table whose parsing takes long enough to be announced
_SHOWN = 20  # values named in a message
_REMEMBERED = 10_000  # different values kept for that message

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns that are read; '' for none.

    Attributes:
      video: always there.
      caption: the text; of a question, its words.
      start, end: span of the video, seconds.
      answer: the answer, the number of the true option, or the class.
      options: texts to choose from, a JSON list.
      type: of a question.
      question_id: names a question.
      optional: JSON lines: only the video and the text need be among the keys of the first rows.
    """

    video: str
    caption: str = ""
    start: str = ""
    end: str = ""
    answer: str = ""
    options: str = ""
    type: str = ""
    question_id: str = ""
    optional: bool = False

    @property
    def schema(self) -> pa.Schema:
        """What is stored of the columns: always video, caption, start and end, and those of a task that are named."""
        task = {name: pa.string() for name in ("answer", "type", "question_id") if getattr(self, name)}
        if self.options:
            task["options"] = pa.list_(pa.string())
        return pa.schema([*_SCHEMA, *task.items()])


_SCHEMA = pa.schema([("video", pa.string()), ("caption", pa.string()), ("start", pa.float64()), ("end", pa.float64())])


class TableSource:
    """Rows of tables, each naming a video file and holding a text; the file's name is the clip_id.

    Tables are UTF-8. CSV and TSV have a header row; in CSV, cells may be quoted, in TSV a quotation mark is a character
    like any other. JSON lines hold an object a line; numbers are taken as their text. Blank rows are left out and
    counted; a row whose caption is empty, missing or null becomes a record with caption '', which the loader marks
    invalid; bytes that are not UTF-8 become U+FFFD, with one warning. Whether the videos exist shows when they are
    decoded: a missing one is a bad clip, counted by the ledger.

    Where rows name spans, each span is a clip: `#t=start,end` is appended to its clip_id (as W3C Media Fragments do).
    Of an empty start or end, the span is open there (0, infinity); of two, it is the whole file. Where tables of
    several folders hold relative paths, the folder goes before the clip_id.

    Args:
      path: a .csv, .tsv or .jsonl file, or a glob of several, read in sorted order.
      split: `all`, or `column=value|value` to keep the rows that have one of these values.
      video_root: folder that the video column is relative to; itself relative to each table's own folder.
      video_column, caption_column: names of the columns; the second holds captions or questions, '' for none.
      start_column, end_column: columns of the span inside the video, seconds; '' for whole files.
      answer_column: the answer, the number of the true option (from 0), or the class; '' for none.
      options_column: a JSON list of texts, in a cell or as such in JSON lines; '' for none.
      type_column: the question's type; '' for none.

    Raises:
      UserError: a file, column or split that does not exist (naming those that do), no row, a row whose number of cells
        is not the header's, a span that is no number, options that are no list, a line that is no JSON object, an
        unwritable cache.
    """

    def __init__(
        self,
        path: str,
        split: str = "all",
        *,
        video_root: str = "",
        video_column: str = "video",
        caption_column: str = "caption",
        start_column: str = "",
        end_column: str = "",
        answer_column: str = "",
        options_column: str = "",
        type_column: str = "",
    ):
        files = _find(path)
        columns = Columns(
            video_column, caption_column, start_column, end_column, answer_column, options_column, type_column
        )
        self.name = f"{path}:{split}"
        # The same column may hold captions or questions, and the same one answers or classes: the task tells.
        held = {"caption": caption_column, "question": caption_column, "answer": answer_column, "label": answer_column}
        held |= {"options": options_column, "type": type_column}
        self.columns = frozenset(name for name, column in held.items() if column)
        self._rows = open_table(files, columns, split)
        roots = [pathlib.Path(file).parent / video_root for file in files]
        self._roots = [str(root) for root in roots]
        self._prefixes = _prefixes(roots)
        self._ends = list(itertools.accumulate(self._rows.notes["rows"]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        row = self._rows[index]
        table = bisect.bisect_right(self._ends, index)
        span = read_span(row)
        if not row["video"]:
            return Record(b"", row["caption"], f"row {index} without a video", span, **read_task(row))
        clip_id = row["video"] if os.path.isabs(row["video"]) else self._prefixes[table] + row["video"]
        video = os.path.join(self._roots[table], row["video"])
        return Record(video, row["caption"], span_id(clip_id, span), span, **read_task(row))

    lists_clips = True

    def column(self, name: str) -> Iterator[pa.Array]:
        """As `sources.Annotated`."""
        return self._rows.column(name)

    @property
    def identity(self) -> list[Any]:
        """As `sources.Annotated`."""
        return ["table", self._rows.digest]

    def annotation(self, index: int) -> Record:
        """As `self[index]` with `video` b''; neither opens a video."""
        return dataclasses.replace(self[index], video=b"")


def read_span(row: dict[str, Any]) -> tuple[float, float] | None:
    """The span of a row of `open_table`; None where it has none."""
    start, end = row["start"], row["end"]
    if start is None and end is None:
        return None
    return 0.0 if start is None else start, math.inf if end is None else end


def read_task(row: dict[str, Any]) -> dict[str, Any]:
    """Fields of a Record that only a task's rows have."""
    task = {name: row[name] for name in ("question_id", "answer", "type") if name in row}
    return task | ({"options": tuple(row["options"])} if "options" in row else {})


def _find(path: str) -> list[str]:
    where = f"config.input.path = {path!r}"
    expected = f"expected a table ({', '.join(table_readers.SUFFIXES)}) or a glob of tables"
    files = [path] if os.path.isfile(path) else sorted(f for f in glob.glob(path, recursive=True) if os.path.isfile(f))
    if not files:
        what = "matches no file" if glob.has_magic(path) else "no such file"
        raise UserError(f"{where}: {what}; {expected}")
    for file in files:
        if pathlib.Path(file).suffix.lower() not in table_readers.SUFFIXES:
            raise UserError(f"{where}: {os.path.basename(file)!r} ends in none of the known suffixes; {expected}")
    return files


def _prefixes(roots: Sequence[pathlib.Path]) -> list[str]:
    """What tells the relative paths of different folders apart; empty for a single folder."""
    absolute = [os.path.abspath(root) for root in roots]
    if len(set(absolute)) == 1:
        return [""] * len(roots)
    common = os.path.commonpath(absolute)
    return ["" if root == common else os.path.relpath(root, common) + "/" for root in absolute]


# --- From tables to Arrow ---------------------------------------------------------------------------------------------


def open_table(files: Sequence[str | os.PathLike], columns: Columns, split: str = "all") -> arrow_cache.Rows:
    """Opens the rows of `files`, see `Columns.schema` (start and end None where there is none), through the cache.

    Its notes hold `rows`, the number of each file's rows. What is odd in the tables is logged, at each opening.

    Raises:
      UserError: as `TableSource`.
    """
    names = [str(file) for file in files]
    key = ["table", [arrow_cache.identity(name) for name in names], dataclasses.astuple(columns), split]
    return logged(arrow_cache.open_rows(key, columns.schema, lambda: blocks(names, columns, split)))


class _Notes:
    """What is counted while tables are parsed."""

    def __init__(self) -> None:
        self.rows: list[int] = []  # kept, of each file
        self.replaced = table_readers.Replaced()
        self.blank = 0
        self.empty_captions = 0
        self.empty_answers = 0
        self.no_video = 0
        self.values: set[str] = set()  # of the split's column

    def warnings(self, name: str, columns: Columns) -> list[str]:
        out = []
        if self.replaced.count:
            out.append(
                f"{name}: {self.replaced.count} cells or lines hold bytes that are not UTF-8, the first in "
                f"{self.replaced.first}; each such byte became U+FFFD"
            )
        total = sum(self.rows)
        text = "no text" if columns.answer else "no caption"
        counts = ((self.empty_captions, text), (self.empty_answers, "no answer"), (self.no_video, "no video"))
        for count, what in counts:
            if count:
                out.append(f"{name}: {count} of {total} rows have {what}; they are examples that count as bad clips")
        if self.blank:
            out.append(f"{name}: {self.blank} blank rows are left out")
        return out


def blocks(files: Sequence[str], columns: Columns, split: str) -> arrow_cache.Blocks:
    """The rows of tables as blocks of `columns.schema`; see `open_table`."""
    notes = _Notes()
    column, values = _parse_split(split)
    names = [value for value in dataclasses.astuple(columns) if isinstance(value, str)]
    wanted = [name for name in dict.fromkeys([*names, column]) if name]
    for file in files:
        if os.path.getsize(file) > _LARGE:
            _log.warning("%s: parsed once, into %s", file, arrow_cache.directory())
        check = lambda present, file=file: _check_columns(file, present, columns, split)
        parsed = kept = 0
        for cells in table_readers.read(file, wanted, check, notes.replaced, (columns.options,)):
            block = _to_block(file, parsed, cells, columns, column, values, notes)
            parsed += len(cells[columns.video])
            kept += len(block)
            yield block
        if not parsed:
            header = "" if file.lower().endswith(".jsonl") else "a header and "
            raise UserError(f"{file} has {header}no rows: expected one row for each clip")
        notes.rows.append(kept)
    name = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    if not sum(notes.rows):
        if not column:
            raise UserError(f"{name} has only blank rows: expected one row for each clip")
        present = sorted(notes.values)
        more = f", ... ({len(present)}{'+' if len(present) == _REMEMBERED else ''} values)"
        shown = ", ".join(present[:_SHOWN]) + (more if len(present) > _SHOWN else "")
        raise UserError(f"split {split!r} of {name} matches no row: column {column!r} holds {shown}")
    return {"rows": notes.rows, "warnings": notes.warnings(name, columns)}


def _parse_split(split: str) -> tuple[str, list[str]]:
    """Column and values; '' and none for `all`. What the columns are is said where the header is read."""
    column, equals, values = split.partition("=")
    return ("", []) if split == "all" or not equals else (column, values.split("|"))


def _check_columns(file: str, present: Sequence[str], columns: Columns, split: str) -> None:
    """Raises UserError where a configured column is not among those of a table."""
    where = f"config.input.path: {file}"
    what = "key" if file.lower().endswith(".jsonl") else "column"
    needed = ("video", "caption", "start", "end", "answer", "options", "type")
    for field in needed[:2] if columns.optional else needed:
        if getattr(columns, field):
            require(present, (getattr(columns, field),), where, what, f"config.input.{field}_column")
    column, _ = _parse_split(split)
    if column:
        require(present, (column,), f"split {split!r} of {file}", what)
    elif split != "all":
        raise UserError(
            f"split {split!r} of {file}: expected 'all' or 'column=value|value'; columns: {', '.join(present)}"
        )


def _to_block(
    file: str,
    first: int,
    cells: table_readers.Cells,
    columns: Columns,
    column: str,
    values: list[str],
    notes: _Notes,
) -> pa.RecordBatch:
    """Cells of the columns read, from row `first` of the file, to what is stored of them."""
    full = [pc.greater(pc.binary_length(array), 0) for array in cells.values()]
    kept = full[0]
    for other in full[1:]:
        kept = pc.or_(kept, other)
    notes.blank += pc.sum(pc.invert(kept)).as_py() or 0
    if column:
        if len(notes.values) < _REMEMBERED:
            new = pc.unique(cells[column].filter(kept)).to_pylist()
            notes.values.update(new[: _REMEMBERED - len(notes.values)])
        kept = pc.and_(kept, pc.is_in(cells[column], value_set=pa.array(values, pa.string())))
    arrays: dict[str, pa.Array] = {"video": cells[columns.video]}
    for field in ("caption", "answer"):
        if getattr(columns, field):
            text = cells[getattr(columns, field)]
            arrays[field] = pc.if_else(pc.equal(pc.binary_length(pc.utf8_trim_whitespace(text)), 0), "", text)
    arrays.setdefault("caption", pa.array([""] * len(kept), pa.string()))
    for field in ("start", "end"):
        name = getattr(columns, field)
        arrays[field] = _to_seconds(file, first, cells[name], kept) if name else pa.nulls(len(kept), pa.float64())
    for field in ("type", "question_id"):
        if getattr(columns, field):
            arrays[field] = cells[getattr(columns, field)]
    if columns.options:
        arrays["options"] = _to_options(file, first, cells[columns.options], kept)
    schema = columns.schema
    block = pa.record_batch([arrays[name] for name in schema.names], schema=schema).filter(kept)
    if columns.caption:
        notes.empty_captions += pc.sum(pc.equal(block["caption"], "")).as_py() or 0
    if columns.answer:
        notes.empty_answers += pc.sum(pc.equal(block["answer"], "")).as_py() or 0
    notes.no_video += pc.sum(pc.equal(block["video"], "")).as_py() or 0
    return block


def _to_options(file: str, first: int, cells: pa.StringArray, kept: pa.BooleanArray) -> pa.ListArray:
    """Lists of texts of a column of JSON lists; an empty one where the cell is empty or its row is left out."""
    out: list[list[str]] = []
    for i, (cell, is_kept) in enumerate(zip(cells.to_pylist(), kept.to_pylist())):
        options = _parse_options(cell) if is_kept and cell.strip() else []
        if options is None:
            line = table_readers.line_of(file, first + i)
            if '"clip_id"' in cell:
                raise UserError(
                    f"{file}, line {line}: the options are clips, as EgoMCQ's are: {cell[:80]!r}; expected a JSON list "
                    "of texts, for choosing among clips is not supported"
                )
            raise UserError(
                f"{file}, line {line}: the options are {cell[:80]!r}: expected a JSON list of texts, such as "
                '["a dog", "a cat"]'
            )
        out.append(options)
    return pa.array(out, pa.list_(pa.string()))


def _parse_options(cell: str) -> list[str] | None:
    """Texts of a JSON list, numbers as their text and '' for null; None where it is something else."""
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or any(isinstance(x, (list, dict)) for x in value):
        return None
    return ["" if x is None else encodable(x) if isinstance(x, str) else json.dumps(x) for x in value]


def _to_seconds(file: str, first: int, cells: pa.StringArray, kept: pa.BooleanArray) -> pa.DoubleArray:
    """Numbers of a span's column; null where a cell is empty or its row is left out."""
    text = pc.utf8_trim_whitespace(cells)
    text = pc.if_else(pc.and_(kept, pc.greater(pc.binary_length(text), 0)), text, pa.scalar(None, pa.string()))
    try:
        seconds = text.cast(pa.float64())
        if pc.all(pc.less_equal(pc.abs(seconds), _LATEST)).as_py() is not False:  # None: nothing but nulls
            return seconds
    except pa.ArrowInvalid:
        pass  # the offending cell is looked for below, as it is for nan and infinities
    for i, cell in enumerate(text.to_pylist()):
        if cell is not None and not _is_time(cell):
            raise UserError(
                f"{file}, line {table_readers.line_of(file, first + i)}: {cell!r} is no time in seconds, such as 12.5"
            )
    raise AssertionError("a cell that is no number was seen and not found")


def _is_time(text: str) -> bool:
    try:
        return abs(pa.scalar(text).cast(pa.float64()).as_py()) <= _LATEST
    except pa.ArrowInvalid:
        return False


def logged(rows: arrow_cache.Rows) -> arrow_cache.Rows:
    """Logs what is odd in the tables that `rows` were made of, and returns them."""
    for warning in rows.notes["warnings"]:
        _log.warning("%s", warning)
    return rows
