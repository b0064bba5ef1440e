"""The closed list of answers, or of classes, that a model chooses among."""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable
from typing import cast

import ml_collections

from vlp_jax.input import annotations, table_readers
from vlp_jax.input.mixture import open_mixture
from vlp_jax.input.sources import Annotated, Source, near, require
from vlp_jax.text import encodable
from vlp_jax.types import UserError

FILE_NAME = "answers.json"  # what a workdir keeps the list under


@dataclasses.dataclass(frozen=True)
class AnswerList:
    """Answers by number; two texts are the same answer where they differ in case or in spaces around them alone.

    Attributes:
      texts: the answers, not empty and different from each other; the number of one is its place.
    """

    texts: tuple[str, ...]

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {normalised(text): number for number, text in enumerate(self.texts)}

    def number(self, text: str) -> int:
        """The number of an answer, -1 where it is not in the list."""
        return self._numbers.get(normalised(text), -1)

    def __len__(self) -> int:
        return len(self.texts)

    def serialized(self) -> bytes:
        """A JSON list in UTF-8; `parse` restores the list."""
        return json.dumps(self.texts, ensure_ascii=False, indent=1).encode()

    @classmethod
    def parse(cls, data: bytes, where: str = "the answer list") -> "AnswerList":
        """Reads a JSON list of texts; numbers count as their text.

        Args:
          data: UTF-8.
          where: for messages.

        Raises:
          UserError: it is no such list, it is empty, or an answer is empty or occurs twice.
        """
        try:
            value = json.loads(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as e:
            raise UserError(f"{where}: expected a JSON list of answers in UTF-8, but {e}") from e
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a JSON list of answers, got {_short(value)}")
        for number, item in enumerate(value, 1):
            if not isinstance(item, (str, int, float)) or isinstance(item, bool):
                raise UserError(f"{where}, entry {number}: expected an answer as text, got {_short(item)}")
        return cls.of([encodable(x) if isinstance(x, str) else json.dumps(x) for x in value], where)

    @classmethod
    def of(cls, texts: Iterable[str], where: str) -> "AnswerList":
        """Checks the answers that a file holds; raises as `parse`."""
        seen: dict[str, int] = {}
        kept = []
        for number, text in enumerate(texts, 1):
            key = normalised(text)
            if not key:
                raise UserError(f"{where}, entry {number}: the answer {text!r} is empty; remove it")
            if key in seen:
                raise UserError(
                    f"{where}: entries {seen[key]} and {number} are the same answer, {text!r}, but for case and spaces "
                    "around it; remove one of them"
                )
            seen[key] = number
            kept.append(text.strip())
        if not kept:
            raise UserError(f"{where} holds no answer: expected one or more")
        return cls(tuple(kept))


def normalised(text: str) -> str:
    """What is compared of an answer: lower case, without spaces around it."""
    return text.strip().lower()


def open_answers(config: ml_collections.ConfigDict, source: Source | None = None) -> AnswerList:
    """Opens the answers that `config.task.answers` names.

    Args:
      config: of the run; the list is of answers for `question_answering`, of class names for `classification`.
      source: training records whose answers are taken where the config names no list; the run's own by default.

    Returns:
      The list; without a file, the answers of the training records in lower case, most frequent first, and those
      equally frequent by the alphabet.

    Raises:
      UserError: no such file (naming the nearest), one that holds no such list, training records without answers.
    """
    if config.task.answers:
        return _read(_find(config))
    opened = [part.source for part in open_mixture(config).parts] if source is None else [source]
    taken = "config.task.answers = '' takes the answers of the training records"
    counts: collections.Counter[str] = collections.Counter()
    for one in opened:
        if not one.columns & {"answer", "label"}:
            raise UserError(f"{taken}, but {one.name} has none: expected a split with answers, or the name of a list")
        for block in cast(Annotated, one).column("answer"):
            for item in block.value_counts():
                counts[normalised(item["values"].as_py())] += item["counts"].as_py()
    counts.pop("", None)  # bad examples, which the loader counts
    if not counts:
        raise UserError(f"{taken}, but those of {', '.join(one.name for one in opened)} are all empty; fill them in")
    return AnswerList(tuple(sorted(counts, key=lambda text: (-counts[text], text))))


def _find(config: ml_collections.ConfigDict) -> pathlib.Path:
    """The file that `config.task.answers` names."""
    name, where = config.task.answers, f"config.task.answers = {config.task.answers!r}"
    dataset = pathlib.Path(config.input.path)
    beside = dataset if dataset.is_dir() else dataset.parent
    if name.endswith((".json", ".jsonl")):
        tried = [pathlib.Path(name)] if "/" in name else [beside / name, pathlib.Path(name)]
    elif "/" in name:
        raise UserError(f"{where}: expected a .json or a .jsonl file, or a name without a folder")
    else:
        tried = [beside / f"{name}.jsonl"]
    for file in tried:
        if file.is_file():
            return file
    lists = [file.stem for file in sorted(tried[0].parent.glob("*.jsonl")) if _is_list(file)]
    lists += [file.name for file in sorted(tried[0].parent.glob("*.json")) if file.read_bytes()[:1] == b"["]
    holds = f"the lists {', '.join(lists)}" if lists else "no list of answers"
    raise UserError(
        f"{where}: no file {' or '.join(map(str, tried))}; {tried[0].parent} holds {holds}"
        f"{near(pathlib.Path(name).name, lists)}"
    )


def _is_list(file: pathlib.Path) -> bool:
    columns = annotations.columns_of(file)
    return "answer" in columns and not columns & {"clip_id", "options"}


def _read(path: pathlib.Path) -> AnswerList:
    if path.suffix == ".json":
        return AnswerList.parse(path.read_bytes(), str(path))
    replaced = table_readers.Replaced()
    check = lambda present: require(present, ("answer",), str(path), "key")
    blocks = table_readers.read(str(path), ["answer"], check, replaced)
    texts = [text for cells in blocks for text in cells["answer"].to_pylist()]
    if replaced.count:
        raise UserError(f"{replaced.first}: expected answers in UTF-8; save the file in UTF-8")
    return AnswerList.of(texts, str(path))


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
