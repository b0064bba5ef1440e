"""What the evaluators of questions share: a clip is decoded and encoded once, and then asked all its questions.

A set may have many questions on few clips (MSRVTT-QA's test split has 72,821 on 2,990). Texts are read without their
clips; then clips come in batches, and the questions about a batch's clips in rows of one compiled shape.
"""

import collections
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from vlp_jax import config as config_lib
from vlp_jax.evaluation import reading, statistics
from vlp_jax.input import sources, targets
from vlp_jax.input.ledger import count_kinds
from vlp_jax.input.sources import Record
from vlp_jax.types import UserError


@dataclasses.dataclass
class Questions:
    """All examples of a source, without their clips.

    Attributes:
      records: Q of them; `video` is b''.
      problems: Q reasons why a record is no example of the task; '' for the well-formed.
      query_ids: Q different names: a question's own, or its clip's; the number of such a name follows where it has none
        of its own or where others have the same.
      clip_Q: int64, the clip of each, numbered by first appearance.
      clip_ids: C names.
    """

    records: list[Record]
    problems: list[str]
    query_ids: list[str]
    clip_Q: np.ndarray
    clip_ids: list[str]


@dataclasses.dataclass
class Asked:
    """What the model said.

    Attributes:
      answer_Q: the answers by question, `[Q, ...]`; `fill` for questions that were not asked.
      bad_clips: clips that did not decode, with their reasons.
      lost_Q: bool, well-formed questions about such clips.
    """

    answer_Q: Any
    bad_clips: list[dict[str, str]]
    lost_Q: np.ndarray


class ByClip:
    """Reads the questions of a source and asks them, clip by clip; the evaluators build on it.

    The denominator of every metric is all questions of the source: those about clips that do not decode and those that
    are malformed count as wrong, and are listed.

    Args:
      kind: the task that is measured, of `config.task.kind`; the run may have trained another.
      answers: the run's answer list, or None.

    Raises:
      UserError: records that are not those of the task.
    """

    def __init__(self, config: Any, source: Any, tokenizer: Any, mesh: Any, *, kind: str, answers: Any):
        self.config = config_lib.update(config.copy_and_resolve_references(), {"task.kind": kind})
        self.source, self.tokenizer, self.mesh, self.answers = source, tokenizer, mesh, answers
        sources.check_task(source, kind, self.config.input)
        self.task = targets.open_task(self.config, source, answers)
        self.batch_size = self.rows(config.evaluation.batch_size)

    def rows(self, wanted: int) -> int:
        """The next multiple of the mesh's data-parallel devices."""
        ways = self.mesh.size // self.mesh.shape["tensor"]
        return -(-max(1, wanted) // ways) * ways

    def read(self) -> Questions:
        """Reads all records without their clips."""
        records = [self.source.annotation(i) for i in range(len(self.source))]
        number: dict[str, int] = {}
        clip_Q = np.array([number.setdefault(record.clip_id, len(number)) for record in records], np.int64)
        seen: collections.Counter[str] = collections.Counter()
        own, query_ids = collections.Counter(record.question_id for record in records), []
        for record in records:
            name = record.question_id or record.clip_id
            single = record.question_id and own[record.question_id] == 1
            query_ids.append(name if single else f"{name}#{seen[name]}")
            seen[name] += 1
        return Questions(records, [self.task.problem(r) for r in records], query_ids, clip_Q, list(number))

    def ask(
        self,
        questions: Questions,
        encode: Callable[[Any], Any],
        answer: Callable[[Any, np.ndarray, np.ndarray], Any],
        *,
        rows: int,
        fill: Any,
    ) -> Asked:
        """Asks all well-formed questions about the clips that decode.

        Args:
          encode: global uint8 clips `[batch_size, T, H, W, 3]` -> what `answer` needs of them.
          answer: (encoded clips, int32 clip of each row among them, number of each row's question) -> `[rows, ...]`.
          rows: questions at a time; the last ones of a batch of clips are filled up with one of them.
        """
        fine = np.array([not problem for problem in questions.problems])
        # A well-formed record stands for its clip: what is wrong with another question must not take the clip away.
        clips, first = np.unique(questions.clip_Q[fine], return_index=True)
        records = np.flatnonzero(fine)[first]
        by_clip = np.flatnonzero(fine)[np.argsort(questions.clip_Q[fine], kind="stable")]
        found = Asked(np.array([]), [], np.zeros(len(fine), bool))
        results, at = [], 0
        if len(records):
            batches = reading.read(
                self.config,
                self.source,
                self.tokenizer,
                self.mesh,
                batch_size=self.batch_size,
                records=records,
                answers=self.answers,
            )
            for read in batches:
                here = clips[at : at + self.batch_size]
                at += len(here)
                good = read.valid[: len(here)]
                found.bad_clips += read.bad.values()
                about = by_clip[np.isin(questions.clip_Q[by_clip], here)]
                row_Q = np.searchsorted(here, questions.clip_Q[about]).astype(np.int32)
                found.lost_Q[about[~good[row_Q]]] = True
                about, row_Q = about[good[row_Q]], row_Q[good[row_Q]]
                if not len(about):
                    continue
                encoded = encode(read.video)
                for start in range(0, len(about), rows):
                    chunk = np.minimum(np.arange(start, start + rows), len(about) - 1)
                    said = np.asarray(answer(encoded, row_Q[chunk], about[chunk]))
                    real = about[start : start + rows]
                    results.append((real, said[: len(real)]))
        shape = results[0][1].shape[1:] if results else ()
        found.answer_Q = np.full((len(fine), *shape), fill)
        for where, said in results:
            found.answer_Q[where] = said
        return found

    def result(
        self, questions: Questions, asked: Asked, predicted: list[str], correct_Q: np.ndarray, **more: Any
    ) -> dict[str, Any]:
        """The result of an evaluator: accuracy in percent, over all and by type, what was counted, and every question.

        Args:
          predicted: Q texts, '' for questions that were not asked.
          correct_Q: bool.
          more: what else the task reports; goes before `per_query`.
        """
        types = [record.type for record in questions.records]
        every = self._accuracy(correct_Q, questions.clip_Q)
        by_type = {}
        for name in sorted(set(types)) if any(types) else []:
            chosen = np.array([t == name for t in types])
            by_type[name or "(none)"] = self._accuracy(correct_Q[chosen], questions.clip_Q[chosen])
        odd = [
            {"query_id": i, "clip_id": r.clip_id, "error": problem}
            for i, r, problem in zip(questions.query_ids, questions.records, questions.problems)
            if problem
        ]
        return {
            "task": self.config.task.kind,
            "accuracy": every["accuracy"],
            "intervals": {"accuracy": every["interval"]} if "interval" in every else {},
            "by_type": by_type,
            "questions": len(questions.records),
            "clips": len(questions.clip_ids),
            "undecodable": len(asked.bad_clips),
            "bad_clips": asked.bad_clips,
            "lost_questions": int(asked.lost_Q.sum()),
            "malformed": len(odd),
            "malformed_questions": odd,
            "ablate": self.config.input.ablate,
            "frames": config_lib.evaluated_input(self.config).frames,
            "bootstrap": self.config.evaluation.bootstrap,
            **more,
            "per_query": [
                {
                    "query_id": i,
                    "clip_id": record.clip_id,
                    "answer": record.answer,
                    "predicted": said,
                    "correct": int(correct),
                    "type": record.type,
                }
                for i, record, said, correct in zip(questions.query_ids, questions.records, predicted, correct_Q)
            ],
        }

    def _accuracy(self, correct_Q: np.ndarray, clip_Q: np.ndarray) -> dict[str, Any]:
        values, samples = 100.0 * correct_Q, self.config.evaluation.bootstrap
        out: dict[str, Any] = {"accuracy": float(values.mean()), "count": len(values)}
        if samples:
            # Questions about one clip are no independent draws.
            low, high = statistics.interval(values, np.mean, groups_Q=clip_Q, samples=samples, seed=self.config.seed)
            out["interval"] = [float(low), float(high)]
        return out


def best(scores_PxC):
    """The number of the highest score, int32 `[P]`: of equal ones the lowest number, -1 where none is a number."""
    scores = jnp.where(jnp.isnan(scores_PxC), -jnp.inf, scores_PxC)
    return jnp.where((scores > -jnp.inf).any(-1), jnp.argmax(scores, axis=-1), -1).astype(jnp.int32)


def reachable(questions: Questions, number_Q: np.ndarray) -> dict[str, float]:
    """How many true answers are outside the list (number -1), and the accuracy that can be reached at most, percent.

    What is malformed can be right no more than they, and is not counted among them.
    """
    fine = np.array([not problem for problem in questions.problems])
    outside = int((fine & (number_Q < 0)).sum())
    return {
        "outside_answers": outside,
        "outside_share": 100 * outside / len(fine),
        "upper_bound": 100 * float((fine & (number_Q >= 0)).mean()),
    }


def check_list(outputs: int, answers: Any, what: str) -> None:
    """Raises UserError where a list of answers is not the one that a head was built for."""
    if outputs != len(answers):
        raise UserError(
            f"the list holds {len(answers)} {what}, but the run's head scores {outputs}: evaluate with the list that "
            "the run was trained with, answers.json in its workdir"
        )


def table(result: dict[str, Any], title: str, notes: list[str]) -> str:
    """The result as text: accuracy over all and by type, then what was counted.

    Args:
      notes: of the task, after those that all tasks have.
    """
    every = {"accuracy": result["accuracy"], "count": result["questions"]}
    if result["intervals"]:
        every["interval"] = result["intervals"]["accuracy"]
    width = max(12, *(len(name) + 2 for name in result["by_type"])) if result["by_type"] else 12
    lines = [title, f"{'':{width}}{'accuracy':>10}{'95% interval':>18}{'questions':>11}"]
    for name, row in {"all": every, **result["by_type"]}.items():
        interval = "{:.2f} - {:.2f}".format(*row["interval"]) if "interval" in row else ""
        lines.append(f"{name:{width}}{row['accuracy']:10.2f}{interval:>18}{row['count']:11,}")
    said = [f"{result['questions']:,} questions, {result['clips']:,} clips"]
    if result["undecodable"]:
        why = count_kinds((clip["error"], 1) for clip in result["bad_clips"])
        said.append(
            f"{result['undecodable']:,} clips did not decode, their {result['lost_questions']:,} questions count as "
            f"wrong: {why}"
        )
    if result["malformed"]:
        why = count_kinds((odd["error"], 1) for odd in result["malformed_questions"])
        said.append(f"{result['malformed']:,} malformed questions count as wrong: {why}")
    if result["ablate"]:
        said.append(f"input.ablate={result['ablate']}")
    return "\n".join([*lines, "; ".join([*said, *notes])])


def log_scalars(result: dict[str, Any], prefix: str) -> dict[str, float]:
    """The accuracies as flat scalars for the metrics file."""
    plain = lambda name: re.sub(r"\W+", "_", name)
    by_type = {f"{prefix}/accuracy_{plain(name)}": row["accuracy"] for name, row in result["by_type"].items()}
    return {f"{prefix}/accuracy": result["accuracy"], **by_type}
