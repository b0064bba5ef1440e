"""What a task asks of its records besides clip and text: labels, the tokens of answers and options, what is odd."""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, cast

import ml_collections
import numpy as np
import pyarrow.compute as pc

from vlp_jax.input.answers import AnswerList
from vlp_jax.input.sources import Annotated, Record, Source
from vlp_jax.input.tokenizer import Tokenizer
from vlp_jax.types import UserError

UNKNOWN = -1  # the label of an answer that the list lacks, of an odd example and of padding
_FIRST_ROWS = 1000  # that say how many options the questions of a data set have


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of a run, as one of its sources has it.

    Attributes:
      kind: `config.task.kind`.
      has_text: whether each record has a caption or a question; an empty one is then an odd one.
      options: multiple choice: O, how many options the data set's questions have; otherwise 0.
      answers: the list, for question answering and classification.
      max_answer_tokens: La.
      ablate: `config.input.ablate`.
    """

    kind: str
    has_text: bool
    options: int
    answers: AnswerList | None
    max_answer_tokens: int
    ablate: str = ""

    def problem(self, record: Record) -> str:
        """Why a record is no example of the task; '' where it is one."""
        if self.has_text and not record.caption.strip():
            return "empty caption" if self.kind == "pretrain" else "empty question"
        if self.kind == "multiple_choice":
            return self._problem_of_choice(record)
        if self.kind != "pretrain" and not record.answer.strip():
            return "empty class" if self.kind == "classification" else "empty answer"
        return ""

    def _problem_of_choice(self, record: Record) -> str:
        if len(record.options) != self.options:
            return f"{len(record.options)} options where the data set has {self.options}"
        empty = [number for number, text in enumerate(record.options) if not text.strip()]
        if empty:
            return f"empty option {empty[0]}"
        if _option(record) not in range(self.options):
            return f"the answer {record.answer[:40]!r} is none of the options 0 to {self.options - 1}"
        return ""

    def choices(self, record: Record) -> list[str]:
        """The O texts of a choice, each option after the question where there is one; an odd record is filled up."""
        texts = (*record.options, *[""] * self.options)[: self.options]
        asked = self.has_text and self.ablate != "text"
        return [f"{record.caption} {text}" if asked else text for text in texts]

    def targets(self, records: Sequence[Record], tokenizer: Tokenizer) -> tuple[dict[str, np.ndarray], int, int]:
        """The targets of a batch.

        An answer of the list is encoded as the list writes it, so that training and ranking see the same tokens.

        Args:
          records: B of them; padding has empty texts.

        Returns:
          `vlp_jax.types.Batch.targets`; how many options were cut to L; how many answers were cut to La.
        """
        if self.kind == "pretrain":
            return {}, 0, 0
        if self.kind == "multiple_choice":
            # An odd record has what it has of options: its row is not valid.
            texts = [self.choices(record) for record in records]
            ids, mask, cut = tokenizer.encode(list(itertools.chain.from_iterable(texts)))
            shape = (len(records), self.options, ids.shape[1])
            label = np.array([UNKNOWN if self.problem(r) else _option(r) for r in records], np.int32)
            return {"option_ids": ids.reshape(shape), "option_mask": mask.reshape(shape), "label": label}, cut, 0
        assert self.answers is not None
        numbers = [self.answers.number(record.answer) for record in records]
        out = {"label": np.array(numbers, np.int32)}
        if self.kind == "classification":
            return out, 0, 0
        words = [r.answer.strip() if n == UNKNOWN else self.answers.texts[n] for r, n in zip(records, numbers)]
        out["answer_ids"], out["answer_mask"], cut = tokenizer.encode(words, self.max_answer_tokens)
        return out, 0, cut


def _option(record: Record) -> int:
    """The number of the true option; UNKNOWN where the answer is no number."""
    text = record.answer.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else UNKNOWN


def open_task(config: ml_collections.ConfigDict, source: Source, answers: AnswerList | None) -> Task:
    """The task of `config.task.kind` on one source, whose rows `sources.check_task` has passed.

    Raises:
      UserError: the questions have fewer than two options.
      ValueError: the task needs a list of answers, and there is none.
    """
    kind = config.task.kind
    if kind in ("question_answering", "classification") and answers is None:
        raise ValueError(f"config.task.kind = {kind!r} needs `answers`: open them by `answers.open_answers`")
    has_text = "question" in source.columns if kind != "pretrain" else True
    options = count_options(source) if kind == "multiple_choice" else 0
    asks = has_text and kind != "classification"
    return Task(kind, asks, options, answers, config.task.max_answer_tokens, config.input.ablate)


def count_options(source: Source) -> int:
    """O, the number of options that most of the first rows have; of equals the one that is met first.

    Raises:
      UserError: it is below two.
    """
    counts: collections.Counter[Any] = collections.Counter()
    for block in cast(Annotated, source).column("options"):
        counts.update(pc.list_value_length(block[: _FIRST_ROWS - counts.total()]).to_pylist())
        if counts.total() == _FIRST_ROWS:
            break
    ((most, _),) = counts.most_common(1)
    if most < 2:
        raise UserError(
            f"{source.name}: most of its first {counts.total()} rows have {most} options; expected two or more to "
            "choose among"
        )
    return most
