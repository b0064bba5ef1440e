"""Open-ended question answering: accuracy of the best answer of a closed list, exact after normalisation."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from vlp_jax import sharding
from vlp_jax.evaluation import by_clip
from vlp_jax.evaluation.by_clip import log_scalars
from vlp_jax.tasks.question_answering import QuestionAnswering as Model
from vlp_jax.types import UserError

__all__ = ["QuestionAnswering", "log_scalars", "table"]


class QuestionAnswering(by_clip.ByClip):
    """Answers every question of a source with one of the list, and counts the right ones.

    The answer is the list's best: of equal scores the first in the list, none where no score is a number. True answers
    outside the list stay in the denominator and cannot be right.

    Args:
      graph: the model without parameters, a `tasks.question_answering.QuestionAnswering`.
      answers: the list that the run was trained with.

    Raises:
      UserError: another model, another list than the classifier's; as `ByClip`.
    """

    def __init__(
        self, graph: Any, abstract_params: Any, config: Any, source: Any, tokenizer: Any, mesh: Any, *, answers: Any
    ):
        model = nnx.merge(graph, abstract_params)
        if not isinstance(model, Model):
            raise UserError(
                f"question answering needs a run with config.task.kind = 'question_answering', but {config.name} has "
                f"{config.task.kind!r}: fine-tune it first (configs/finetune/question_answering.py)"
            )
        super().__init__(config, source, tokenizer, mesh, kind="question_answering", answers=answers)
        if not model.decodes:
            by_clip.check_list(model.head.out.kernel.shape[-1], answers, "answers")
        self.decodes = model.decodes
        spread, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
        merge = lambda params: nnx.merge(graph, params)
        self._encode = jax.jit(lambda params, video: merge(params).recipe.encode_clip(video), out_shardings=spread)
        self._answer = jax.jit(
            lambda params, clips, clip_P, *args: by_clip.best(
                merge(params).answer(*sharding.bring(clips, clip_P), *args)
            ),
            out_shardings=everywhere,
        )

    def run(self, params: Any) -> dict[str, Any]:
        """Returns `{accuracy, intervals, by_type, questions, ..., outside_answers, upper_bound, per_query}`."""
        questions, answers = self.read(), self.answers
        asked_text = lambda record: "" if self.config.input.ablate == "text" else record.caption
        ids, mask, cut = self.tokenizer.encode([asked_text(record) for record in questions.records])
        answer_ids, answer_mask, cut_answers = self.tokenizer.encode(
            list(answers.texts), self.config.task.max_answer_tokens
        )
        number_Q = np.array([answers.number(record.answer) for record in questions.records])
        with sharding.use_mesh(self.mesh):
            listed = jax.device_put((answer_ids, answer_mask), sharding.replicated(self.mesh))

            def answer(clips, clip_P, question_P):
                rows = sharding.to_global((clip_P, ids[question_P], mask[question_P]), self.mesh)
                return self._answer(params, clips, *rows, *listed)

            said = self.ask(
                questions, lambda video: self._encode(params, video), answer, rows=self.batch_size, fill=np.int32(-1)
            )
        predicted = said.answer_Q
        return self.result(
            questions,
            said,
            [answers.texts[n] if n >= 0 else "" for n in predicted],
            (predicted == number_Q) & (number_Q >= 0),
            answers=len(answers),
            shortlist=min(self.config.task.shortlist, len(answers)) if self.decodes else 0,
            **by_clip.reachable(questions, number_Q),
            cut_questions=cut,
            cut_answers=cut_answers,
            same_answers=len(answers) - len(np.unique(answer_ids, axis=0)),
        )


def table(result: dict[str, Any], title: str) -> str:
    """The result as text."""
    notes = [f"{result['answers']:,} answers in the list"]
    if result["shortlist"]:
        notes[0] += f", the best {result['shortlist']:,} by first token scored in full"
    if result["outside_answers"]:
        notes.append(
            f"{result['outside_answers']:,} true answers ({result['outside_share']:.2f}%) are outside the list: at "
            f"most {result['upper_bound']:.2f} can be reached"
        )
    if result["cut_questions"]:
        notes.append(f"{result['cut_questions']:,} questions were cut to the model's length")
    if result["shortlist"] and result["same_answers"]:
        notes.append(
            f"{result['same_answers']:,} answers of the list have the tokens of another, and the first one is said "
            f"({result['cut_answers']:,} were cut to task.max_answer_tokens)"
        )
    return by_clip.table(result, title, notes)
