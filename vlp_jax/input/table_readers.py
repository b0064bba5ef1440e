"""CSV, TSV and JSON lines to Arrow texts, a block of rows at a time.

Arrow parses CSV and TSV; the standard library's reader, slow and exact, finds the line to quote when it refuses. JSON
lines are parsed by the standard library, which knows the line of every mistake.
"""

import codecs
import csv
import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv

from vlp_jax.text import encodable
from vlp_jax.types import UserError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*_DELIMITERS, ".jsonl")
_PARSED_BYTES = 2**24  # of a table at a time; the longest row that CSV and TSV may have
_PARSED_ROWS = 2**15  # of JSON lines at a time

Cells = dict[str, pa.StringArray]  # column -> a block of its cells, '' where there is none


class Replaced:
    """Counts the cells or lines that hold something else than UTF-8; each such byte becomes U+FFFD."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""  # file and line

    def add(self, file: str, line: Callable[[], int]) -> None:
        if not self.count:
            self.first = f"{file}, line {line()}"
        self.count += 1


def read(
    file: str,
    wanted: list[str],
    check: Callable[[list[str]], None],
    replaced: Replaced,
    lists: Collection[str] = (),
) -> Iterator[Cells]:
    """Yields the cells of the columns `wanted`, a block of rows at a time; lines without a character are no rows.

    Args:
      file: a path that ends in one of SUFFIXES. CSV and TSV have a header; in TSV a quotation mark is a character like
        any other.
      check: is given the header's columns, or the keys that the first block of JSON lines has, and raises where one of
        those wanted is not among them. Later lines may lack a key.
      replaced: counts into it.
      lists: columns that hold lists, whose cells are JSON: written so in CSV and TSV, and made so of JSON lines.

    Raises:
      UserError: a row whose number of cells is not the header's, a quotation mark that is never closed, a line that is
        no JSON object, a value that is no text, a column named twice, UTF-16.
    """
    _refuse_utf16(file)
    suffix = pathlib.Path(file).suffix.lower()
    if suffix in _DELIMITERS:
        return _read_delimited(file, wanted, check, _DELIMITERS[suffix], replaced)
    return _read_jsonl(file, wanted, check, replaced, lists)


def columns(file: str) -> list[str]:
    """Returns the header's columns, or the keys of the first thousand JSON lines; none of an empty file."""
    _refuse_utf16(file)
    suffix = pathlib.Path(file).suffix.lower()
    if suffix in _DELIMITERS:
        return _header(file, _DELIMITERS[suffix])
    with open(file, "rb") as f:
        rows = (_read_line(file, i, line, Replaced()) for i, line in enumerate(f, 1) if line.strip())
        return list(dict.fromkeys(key for row in itertools.islice(rows, 1000) for key in row))


def line_of(file: str, row: int) -> int:
    """Number of the line, from 1, where row `row`, from 0, begins; reads the file up to there."""
    suffix = pathlib.Path(file).suffix.lower()
    if suffix in _DELIMITERS:
        starts = (line for _, line in _python_rows(file, _DELIMITERS[suffix]))
        return next(itertools.islice(starts, row + 1, None))
    with open(file, "rb") as f:
        return next(itertools.islice((i for i, line in enumerate(f, 1) if line.strip()), row, None))


# --- CSV and TSV ------------------------------------------------------------------------------------------------------


def _read_delimited(
    file: str, wanted: list[str], check: Callable[[list[str]], None], delimiter: str, replaced: Replaced
) -> Iterator[Cells]:
    header = _header(file, delimiter)
    check(header)
    twice = [name for name in wanted if header.count(name) > 1]
    if twice:
        raise UserError(f"{file}: the header names the column {twice[0]!r} twice; rename one of the two")
    quoted = delimiter == ","
    # As bytes: Arrow's texts would refuse a whole file for one byte that is not UTF-8.
    convert = pyarrow.csv.ConvertOptions(
        include_columns=wanted, column_types={name: pa.binary() for name in wanted}, strings_can_be_null=False
    )
    parse = pyarrow.csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
    )
    options = pyarrow.csv.ReadOptions(use_threads=False, block_size=_PARSED_BYTES)
    row, last = 0, {}
    try:
        for batch in pyarrow.csv.open_csv(file, read_options=options, parse_options=parse, convert_options=convert):
            if len(batch):
                cells = {name: _to_text(file, row, batch[name], replaced) for name in wanted}
                last = {name: array[-1].as_py() for name, array in cells.items()}
                row += len(batch)
                yield cells
    except pa.ArrowInvalid as e:
        if header and not row and _is_header_alone(file):
            return
        raise UserError(_explain(file, delimiter, len(header), str(e))) from e
    if quoted and any("\n" in cell for cell in last.values()) and _count(file, b'"') % 2:
        raise UserError(
            f"{file}, line {line_of(file, row - 1)}: a quotation mark is opened and never closed, so that this row "
            "runs to the end of the file; write a quotation mark inside a quoted cell twice"
        )


def _refuse_utf16(file: str) -> None:
    with open(file, "rb") as f:
        start = f.read(4)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise UserError(f"{file} is in UTF-16: save it in UTF-8")


def _header(file: str, delimiter: str) -> list[str]:
    for cells, _ in _python_rows(file, delimiter):
        return cells
    return []


def _is_header_alone(file: str) -> bool:
    """Whether the file is one line without an end, which Arrow takes for no header."""
    return _count(file, b"\n") == 0 == _count(file, b"\r")


def _python_rows(file: str, delimiter: str) -> Iterator[tuple[list[str], int]]:
    """Yields the cells of each row, the header's first, and the number of its first line; slow, for messages."""
    limit = csv.field_size_limit(sys.maxsize)  # the default refuses a caption of a megabyte
    try:
        with open(file, encoding="utf-8-sig", errors="replace", newline="") as f:
            quoted = delimiter == ","
            reader = csv.reader(f, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
            line = 1
            for cells in reader:
                if cells:
                    yield cells, line
                line = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _explain(file: str, delimiter: str, width: int, reason: str) -> str:
    """What is wrong with a table that Arrow refuses."""
    for cells, line in _python_rows(file, delimiter):
        if len(cells) != width:
            compared = "fewer cells than" if len(cells) < width else "more cells than"
            shown = delimiter.join(cells)[:120]
            return (
                f"{file}, line {line}: {compared} the header, {len(cells)} and {width}: {shown!r}; "
                "fill the row up, or quote the cell that holds a separator"
            )
    return (
        f"{file} cannot be parsed: {reason}; rows may be up to {_PARSED_BYTES >> 20} MiB long, and a quotation mark "
        "that is opened and never closed makes one of all that follow"
    )


def _to_text(file: str, first: int, cells: pa.BinaryArray, replaced: Replaced) -> pa.StringArray:
    try:
        return cells.cast(pa.string())
    except pa.ArrowInvalid:
        texts = []
        for i, cell in enumerate(cells.to_pylist()):
            try:
                texts.append(cell.decode())
            except UnicodeDecodeError:
                texts.append(cell.decode(errors="replace"))
                replaced.add(file, functools.partial(line_of, file, first + i))
        return pa.array(texts, pa.string())


def _count(file: str, byte: bytes) -> int:
    with open(file, "rb") as f:
        return sum(block.count(byte) for block in iter(lambda: f.read(_PARSED_BYTES), b""))


# --- JSON lines -------------------------------------------------------------------------------------------------------


def _read_jsonl(
    file: str, wanted: list[str], check: Callable[[list[str]], None], replaced: Replaced, lists: Collection[str]
) -> Iterator[Cells]:
    with open(file, "rb") as f:
        numbered = ((i, line) for i, line in enumerate(f, 1) if line.strip())
        present: dict[str, None] = {}
        first = True
        while True:
            cells: dict[str, list[str]] = {name: [] for name in wanted}
            read = 0
            # Bounded in bytes as well: Arrow's texts of one block hold 2 GiB.
            for number, line in itertools.islice(numbered, _PARSED_ROWS):
                row = _read_line(file, number, line, replaced)
                if first:
                    present.update(dict.fromkeys(row))
                for name in wanted:
                    value = row.get(name)
                    if name in lists and isinstance(value, list):
                        value = json.dumps(value)  # ASCII: a surrogate on its own is met where the list is read
                    cells[name].append(_to_cell(file, number, name, value, replaced))
                read += len(line)
                if read > _PARSED_BYTES:
                    break
            if not read:
                return
            if first:
                check(list(present))
                first = False
            yield {name: pa.array(column, pa.string()) for name, column in cells.items()}


def _read_line(file: str, number: int, line: bytes, replaced: Replaced) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        text = line.decode(errors="replace")
        replaced.add(file, lambda: number)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file}, line {number}: no JSON ({e}): {text[:80]!r}; expected an object a line") from e
    if not isinstance(row, dict):
        raise UserError(f"{file}, line {number}: {text[:80]!r} is no JSON object; expected an object a line")
    return row


def _to_cell(file: str, number: int, name: str, value: Any, replaced: Replaced) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        text = encodable(value)
        if text != value:
            replaced.add(file, lambda: number)
        return text
    if isinstance(value, (int, float)):
        return json.dumps(value)
    raise UserError(
        f"{file}, line {number}: the value of {name!r} is {json.dumps(value)[:80]}: expected a string, a number or "
        "null; where a clip has several captions, write a line for each"
    )
