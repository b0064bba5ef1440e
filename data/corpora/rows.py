"""What the readers of evaluation sets share: rows and videos brought together, ids and answers checked."""

import collections
import json
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from data.corpora import corpus
from vlp_jax.text import encodable_json
from vlp_jax.types import UserError

Row = dict[str, Any]

# Share of a file's lines that may be malformed before the file itself is refused.
_MAX_MALFORMED = 0.01


# --- Files ------------------------------------------------------------------------------------------------------------


def find(root: pathlib.Path, folders: Sequence[str], *names: str) -> pathlib.Path | None:
    """The first of `names` in the root, or else in one of `folders` below it; None where none is there."""
    return corpus.find_file(root, [*names, *(f"{folder}/{name}" for folder in folders for name in names)])


def require(root: pathlib.Path, folders: Sequence[str], *names: str, where_from: str) -> pathlib.Path:
    """As `find`.

    Raises:
      UserError: none of the files is there; the message names them, what the root holds, and where to get them.
    """
    return find(root, folders, *names) or corpus.require_file(root, names, where_from)


def video_folder(root: pathlib.Path) -> pathlib.Path:
    """`ROOT/videos` where there is one, so that other copies below the root do not count twice; otherwise the root."""
    return root / "videos" if (root / "videos").is_dir() else root


def stem(name: str) -> str:
    """File name without folders and extension: the clip id of sets that list files."""
    return os.path.splitext(os.path.basename(name))[0]


def lines(path: pathlib.Path) -> list[str]:
    """The lines of a text file that are not blank, stripped.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: expected text in UTF-8, but {e}; fetch the file again") from e
    # Not splitlines: captions may hold the other line separators that it splits at.
    return [line.strip() for line in text.split("\n") if line.strip()]


def json_rows(path: pathlib.Path, fields: Sequence[str]) -> list[Row]:
    """Reads a JSON list of objects that all have `fields`.

    Raises:
      UserError: it is no such list.
    """
    return check_fields(corpus.read_json(path), fields, path)


def json_lines(path: pathlib.Path, fields: Sequence[str]) -> list[Row]:
    """Reads one JSON object a line, each with `fields`; lone surrogates in texts become U+FFFD.

    Raises:
      UserError: a line is no such object.
    """
    rows = []
    for number, line in enumerate(lines(path), 1):
        try:
            rows.append(encodable_json(json.loads(line)))
        except ValueError as e:
            raise UserError(f"{path}, entry {number}: expected a JSON object, got {line[:80]!r} ({e})") from e
    return check_fields(rows, fields, path)


def check_fields(rows: Any, fields: Sequence[str], where: Any) -> list[Row]:
    """Returns `rows`, a list of objects that all have `fields`; UserError otherwise."""
    if not isinstance(rows, list):
        raise UserError(f"{where}: expected a list of objects with {', '.join(fields)}; got {_short(rows)}")
    for number, row in enumerate(rows, 1):
        absent = [f for f in fields if not isinstance(row, dict) or f not in row]
        if absent:
            raise UserError(f"{where}, entry {number}: expected an object with {', '.join(absent)}; got {_short(row)}")
    return rows


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


# --- Checks -----------------------------------------------------------------------------------------------------------


def check_distinct(ids: Iterable[str], where: Any) -> None:
    """Raises UserError where an id occurs twice; quotes the first few."""
    twice = [i for i, count in collections.Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f"{where}: {len(twice)} ids occur more than once, {_some(twice)}; fetch the file again")


def check_known(ids: Iterable[str], known: Collection[str], where: Any, source: Any) -> None:
    """Raises UserError where an id of the file `where` is not among `known`, those of the file `source`."""
    ids = list(ids)
    unknown = [i for i in dict.fromkeys(ids) if i not in known]
    if unknown:
        raise UserError(
            f"{where}: {len(unknown)} of {len(set(ids))} ids are not in {source}, {_some(unknown)}; "
            "take both files from the same release"
        )


def check_questions(rows: Sequence[Row], where: Any) -> list[Row]:
    """Returns question-answering rows whose ids are distinct and whose answers are words; UserError otherwise."""
    check_distinct((row["question_id"] for row in rows), where)
    for row in rows:
        if not isinstance(row["answer"], str) or not row["answer"].strip():
            raise UserError(
                f"{where}: question {row['question_id']!r} has the answer {row['answer']!r}, expected words"
            )
    return list(rows)


def check_choices(rows: Sequence[Row], count: int, where: Any) -> list[Row]:
    """Returns multiple-choice rows with distinct ids, `count` options each and an answer among them, else UserError."""
    check_distinct((row["question_id"] for row in rows), where)
    for row in rows:
        options, answer = row["options"], row["answer"]
        if not isinstance(options, list) or len(options) != count:
            raise UserError(f"{where}: question {row['question_id']!r} has the options {_short(options)}, not {count}")
        if type(answer) is not int or not 0 <= answer < count:
            raise UserError(
                f"{where}: question {row['question_id']!r} has the answer {answer!r}, expected 0 to {count - 1}"
            )
    return list(rows)


def report_malformed(malformed: Sequence[str], total: int, where: Any, notes: list[str]) -> None:
    """Notes how many of `total` lines were left out; `malformed` describes each.

    Raises:
      UserError: they are more than 1% of the lines, so that the file is damaged or of another layout.
    """
    if not malformed:
        return
    if len(malformed) > _MAX_MALFORMED * total:
        raise UserError(
            f"{where}: {len(malformed)} of {total} lines are malformed, the first: {malformed[0]}; fetch the file again"
        )
    notes.append(f"{where}: {len(malformed)} of {total} lines are malformed and left out, the first: {malformed[0]}.")


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:5])) + (", ..." if len(ids) > 5 else "")


# --- Questions and answers --------------------------------------------------------------------------------------------

ANSWER_LISTS = ("answer_list.json", "train_ans2label.json", "vocab.json")
_QUESTION_FILES = {"qa_train": "train_qa.json", "qa_validation": "val_qa.json", "qa_test": "test_qa.json"}
_QUESTION_WORDS = ("what", "who", "how", "when", "where")


def generated_questions(
    root: pathlib.Path,
    folders: Sequence[str],
    name_clips: Callable[[list[Row], pathlib.Path], list[str]],
    notes: list[str],
) -> dict[str, list[Row]]:
    """MSRVTT-QA and MSVD-QA, whose questions were generated from captions (Xu et al., ACM MM 2017).

    Args:
      root: the set.
      folders: below it, where train_qa.json, val_qa.json and test_qa.json may lie.
      name_clips: the clips of a file's rows, which have `video_id`, a number, and of the file, for messages.
      notes: gets a line for each file that is absent.

    Returns:
      qa_train, qa_validation, qa_test and, where training questions are there, qa_answers. `type` is the question's
      word, what, who, how, when or where, by which the paper reports accuracies, or 'other'.

    Raises:
      UserError: a file has another layout, or ids do not fit together.
    """
    annotations: dict[str, list[Row]] = {}
    for part, name in _QUESTION_FILES.items():
        path = find(root, folders, name)
        if path is None:
            notes.append(absent(part, [name], root))
            continue
        listed = json_rows(path, ["answer", "id", "question", "video_id"])
        questions = [
            {
                "question_id": str(row["id"]),
                "clip_id": clip,
                "question": row["question"],
                "answer": row["answer"],
                "type": _question_word(row["question"]),
            }
            for row, clip in zip(listed, name_clips(listed, path))
        ]
        annotations[part] = check_questions(questions, path)
    if "qa_train" in annotations:
        path = find(root, folders, *ANSWER_LISTS)
        annotations["qa_answers"] = answer_rows(path, annotations["qa_train"], notes)
    return annotations


def _question_word(question: str) -> str:
    found = re.match(r"\s*([a-z]+)", question.lower())
    return found[1] if found and found[1] in _QUESTION_WORDS else "other"


def answer_rows(path: pathlib.Path | None, train: Sequence[Row], notes: list[str]) -> list[Row]:
    """The closed list of answers that open-ended questions are scored against.

    Args:
      path: the list as published: `["yes", ...]` (answer_list.json), or `{"yes": 0, ...}` with the labels 0, 1, ...
        (train_ans2label.json, vocab.json); None where the disk holds none.
      train: training questions.
      notes: gets a line where there is no published list.

    Returns:
      Rows with answer and count (training questions that have it), in the list's order; without a list every answer
      of the training questions, most frequent first.

    Raises:
      UserError: the file has neither form, or an answer twice.
    """
    counts = collections.Counter(row["answer"] for row in train)
    if path is None:
        answers = sorted(counts, key=lambda a: (-counts[a], a))
        notes.append(
            f"No answer list ({', '.join(ANSWER_LISTS)}) was found: the {len(answers)} answers of the training "
            "questions are taken."
        )
    else:
        answers = _answer_list(corpus.read_json(path), path)
    return [{"answer": a, "count": counts[a]} for a in answers]


def _answer_list(value: Any, path: pathlib.Path) -> list[str]:
    if isinstance(value, dict) and sorted(value.values(), key=str) == sorted(range(len(value)), key=str):
        return sorted(value, key=lambda a: value[a])
    if isinstance(value, list) and all(isinstance(a, str) for a in value):
        check_distinct(value, path)
        return value
    raise UserError(
        f"{path}: expected a list of answers, or an object from answers to the labels 0, 1, ...; got {_short(value)}"
    )


# --- Putting a set together -------------------------------------------------------------------------------------------


def clip_ids(annotations: Mapping[str, Sequence[Row]]) -> list[str]:
    """Every clip that rows or their options name, once, in order of appearance."""
    return list(dict.fromkeys(i for rows in annotations.values() for row in rows for i in _clips_of(row)))


def _clips_of(row: Row) -> list[str]:
    if "clip_id" in row:
        return [row["clip_id"]]
    # EgoMCQ chooses among clips; rows of an answer list name none.
    return [option["clip_id"] for option in row.get("options", ())]


def absent(part: str, names: Sequence[str], root: pathlib.Path) -> str:
    """The note on a part that is left out because its file is absent."""
    return f"{part} left out: no {' or '.join(names)} below {root}."


def assemble(
    name: str,
    annotations: dict[str, list[Row]],
    paths: Mapping[str, pathlib.Path],
    *,
    expected: str,
    where_from: str,
    official: Mapping[str, tuple[int | None, int | None]],
    notes: Sequence[str] = (),
    allow_share: float = 0.0,
) -> corpus.Corpus:
    """Joins annotations and videos: one split `clips`, rows of absent videos left out and counted.

    Args:
      name: the set.
      annotations: name -> rows, as `Corpus.annotations`.
      paths: clip id -> video, from `find_videos`.
      expected: where a video would lie, for the message on missing ones.
      where_from: the module's WHERE_FROM.
      official: annotation -> (clips, rows) of the full set, None where not known. A difference is noted.
      notes: lines of the reader.
      allow_share: share of the videos that may be absent.

    Raises:
      UserError: more videos are absent than allowed.
    """
    ids = clip_ids(annotations)
    missing = corpus.report_missing(
        name,
        [i for i in ids if i not in paths],
        expected,
        where_from,
        listed=len(ids),
        allow_share=allow_share,
    )
    said = list(notes)
    kept = {}
    for part, rows in annotations.items():
        said += _deviation(part, rows, official.get(part, (None, None)))
        empty = sum("caption" in row and not row["caption"].strip() for row in rows)
        if empty:
            said.append(f"{part}: {empty} of {len(rows)} captions are empty; they are kept, and fail when read.")
        kept[part] = [row for row in rows if all(i in paths for i in _clips_of(row))]
        if len(kept[part]) < len(rows):
            said.append(
                f"{part}: {len(rows) - len(kept[part])} of {len(rows)} rows left out, their videos are missing."
            )
    clips = [corpus.Clip(i, paths[i]) for i in ids if i in paths]
    return corpus.Corpus(name, {"clips": clips}, kept, missing, "\n".join(said))


def _deviation(part: str, rows: Sequence[Row], official: tuple[int | None, int | None]) -> list[str]:
    found = (len(clip_ids({part: rows})), len(rows))
    differs = [
        f"{have:,} {what} where the full set has {want:,}"
        for have, want, what in zip(found, official, ("clips", "rows"))
        if want is not None and have != want
    ]
    return [f"Warning: {part} lists {' and '.join(differs)}."] if differs else []
