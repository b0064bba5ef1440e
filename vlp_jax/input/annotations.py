"""Annotation tables of a TFDS dataset: what each row says about which of its clips.

They lie beside dataset_info.json: `<name>.jsonl`, a line an annotation, with clip_id and

    caption                       retrieval, and perhaps start and end (seconds)
    question, answer              question answering, and perhaps question_id and type
    options, answer               multiple choice: texts, and the number of the true one; perhaps a question
    label                         classification

Lists of clip ids, one a line in the order of the records, say where the clips are: `clips.txt` those of the split
`clips`, `clips_<split>.txt` those of another split.
"""

import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlp_jax.input import arrow_cache
from vlp_jax.types import UserError

# config.task.kind -> columns that its rows have.
TASK_COLUMNS = {
    "pretrain": ("caption",),
    "question_answering": ("question", "answer"),
    "multiple_choice": ("options", "answer"),
    "classification": ("label",),
}
_UNKNOWN_SHOWN = 5
_COLUMNS = ("caption", "question", "options", "answer", "label", "type", "question_id")


def fits(columns: Collection[str], kind: str) -> bool:
    """Whether rows with these columns are those of the task `kind`; a question with options is no open one."""
    return set(TASK_COLUMNS[kind]) <= set(columns) and not (kind == "question_answering" and "options" in columns)


def columns_of(table: pathlib.Path) -> frozenset[str]:
    """Keys of a table's first row; none where it is no JSON object."""
    try:
        with table.open("rb") as f:
            row = json.loads(f.readline())
    except (OSError, ValueError):  # lists of other things, and whoever wrote them knows their form
        return frozenset()
    return frozenset(row) if isinstance(row, dict) else frozenset()


def clip_lists(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Split -> the file that lists its clip ids, by the splits' names; empty where there is none."""
    found = {path.stem.removeprefix("clips_"): path for path in directory.glob("clips_*.txt")}
    if (directory / "clips.txt").is_file():
        found["clips"] = directory / "clips.txt"
    return dict(sorted(found.items()))


def annotation_tables(directory: pathlib.Path, kind: str = "") -> list[str]:
    """Names of the annotation tables of a dataset: those with rows for the task `kind`, or all.

    Args:
      kind: of TASK_COLUMNS, or ''.
    """
    if not clip_lists(directory):
        return []
    kinds = [kind] if kind else list(TASK_COLUMNS)
    names = []
    for file in sorted(directory.glob("*.jsonl")):
        columns = columns_of(file)
        if "clip_id" in columns and any(fits(columns, k) for k in kinds):
            names.append(file.stem)
    return names


def refuse_other(table: pathlib.Path) -> None:
    """Raises UserError: a file beside a dataset was asked for that is none of its annotation tables."""
    columns = columns_of(table)
    if "options" in columns and "clip_id" not in columns:
        raise UserError(
            f"{table} asks which of several clips fits a text, as EgoMCQ does: choosing among clips is not supported; "
            "expected rows with clip_id and options that are texts"
        )
    wanted = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in TASK_COLUMNS.items())
    has = f"its rows have {', '.join(sorted(columns))}" if columns else "its first line is no JSON object with keys"
    raise UserError(
        f"{table} is no annotation table: {has}; expected clip_id and the columns of a task ({wanted}), and beside it "
        "clips.txt"
    )


def held(columns: Collection[str]) -> frozenset[str]:
    """Of the keys of a table's rows those that become fields of records; see `sources.Source.columns`."""
    return frozenset(columns) & frozenset(_COLUMNS)


def open_annotations(
    table: pathlib.Path, lists: Mapping[str, pathlib.Path], counts: Mapping[str, int]
) -> arrow_cache.Rows:
    """Opens the rows of an annotation table.

    Args:
      table: the file.
      lists: split -> list of clip ids, see `clip_lists`.
      counts: split -> number of its records.

    Returns:
      Rows of `tables.Columns.schema`, the clip_id being the video, and number: that of the clip's record, counted over
      the splits of `lists` in their order.

    Raises:
      UserError: as `tables.TableSource`; a row about a clip that is not listed; a list of another length, of a split
        that is not there, or with an id that occurs twice.
    """
    from vlp_jax.input import tables  # imports this module

    keys = columns_of(table)
    columns = tables.Columns(
        "clip_id",
        "question" if "question" in keys else "caption" if "caption" in keys else "",
        "start",
        "end",
        answer="answer" if "answer" in keys else "label" if "label" in keys else "",
        options="options" if "options" in keys else "",
        type="type" if "type" in keys else "",
        question_id="question_id" if "question_id" in keys else "",
        optional=True,
    )
    schema = pa.schema([*columns.schema, ("number", pa.int64())])

    def build() -> arrow_cache.Blocks:
        ids = pa.concat_arrays([read_list(path, split, counts) for split, path in lists.items()])
        if len(pc.unique(ids)) < len(ids):
            names = " or ".join(path.name for path in lists.values())
            raise UserError(f"{table.parent}: {names} lists a clip twice; prepare the dataset anew")
        blocks = tables.blocks([str(table)], columns, "all")
        unknown: dict[str, None] = {}
        rows = 0
        while True:
            try:
                block = next(blocks)
            except StopIteration as stop:
                notes = stop.value
                break
            number = pc.index_in(block["video"], value_set=ids)
            missing = block["video"].filter(pc.is_null(number))
            rows += len(missing)
            unknown.update(dict.fromkeys(missing[:_UNKNOWN_SHOWN].to_pylist()))
            yield pa.record_batch([*block.columns, number.cast(pa.int64())], schema=schema)
        if rows:
            first = ", ".join(map(repr, list(unknown)[:_UNKNOWN_SHOWN]))
            names = " and ".join(path.name for path in lists.values())
            verb = "does" if len(lists) == 1 else "do"
            raise UserError(
                f"{table}: {rows} rows are about clips that {names} {verb} not list, the first {first}; "
                "prepare the dataset anew, or remove these rows"
            )
        return notes

    key: list[Any] = ["annotations", arrow_cache.identity(table)]
    key += [[split, arrow_cache.identity(path), counts.get(split)] for split, path in lists.items()]
    return tables.logged(arrow_cache.open_rows(key, schema, build))


def read_list(path: pathlib.Path, split: str, counts: Mapping[str, int]) -> pa.StringArray:
    """The clip ids of a list, in its order.

    Args:
      split: whose clips it lists.
      counts: split -> number of its records.

    Raises:
      UserError: the split is not there, or holds another number of records.
    """
    if split not in counts:
        raise UserError(
            f"{path} lists the clips of the split {split!r}, which is not among {', '.join(sorted(counts))}; "
            "prepare the dataset anew"
        )
    ids = pa.array(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), pa.string())
    if len(ids) != counts[split]:
        raise UserError(
            f"{path} lists {len(ids)} clips where the split `{split}` holds {counts[split]} records; "
            "prepare the dataset anew"
        )
    return ids
