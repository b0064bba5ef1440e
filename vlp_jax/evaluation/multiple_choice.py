"""Multiple choice: which of O texts belongs to a clip, by the matching head (Singularity's MSRVTT-MC)."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from vlp_jax import sharding
from vlp_jax.evaluation import by_clip
from vlp_jax.evaluation.by_clip import log_scalars
from vlp_jax.recipes import recipe
from vlp_jax.tasks import multiple_choice, task
from vlp_jax.types import UserError

__all__ = ["MultipleChoice", "decide", "log_scalars", "table"]


class MultipleChoice(by_clip.ByClip):
    """Scores the options of every choice and counts where the true one stands above all others.

    A checkpoint of pre-training or retrieval is used as it is. A tie counts against the model, so that scores which do
    not tell options apart earn nothing, where chance would earn 1 / O. NaN is below every score.

    Args:
      graph: a recipe that is a Matcher, or a task's model on top of one, without parameters.
      answers: taken so that evaluators are made alike; choices need no list.

    Raises:
      UserError: a recipe without a matching head; as `ByClip`.
    """

    def __init__(
        self,
        graph: Any,
        abstract_params: Any,
        config: Any,
        source: Any,
        tokenizer: Any,
        mesh: Any,
        *,
        answers: Any = None,
    ):
        del answers
        recipe.require(task.recipe_of(nnx.merge(graph, abstract_params)), recipe.Matcher, "multiple choice")
        if not config.loss.vtm:
            raise UserError(
                f"multiple choice needs a matching head, but {config.name} has config.loss.vtm = 0: evaluate a run "
                "with loss.vtm above 0"
            )
        super().__init__(config, source, tokenizer, mesh, kind="multiple_choice", answers=None)
        spread, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
        of = lambda params: task.recipe_of(nnx.merge(graph, params))
        self._encode = jax.jit(lambda params, video: of(params).encode_clip(video), out_shardings=spread)
        self._choose = jax.jit(
            lambda params, clips, clip_P, *args: multiple_choice.choose(
                of(params), *sharding.bring(clips, clip_P), *args
            ),
            out_shardings=everywhere,
        )

    def run(self, params: Any) -> dict[str, Any]:
        """Returns `{accuracy, intervals, by_type, questions, ..., chance, ties, per_query}`; `answer` and `predicted`
        are numbers of options, as text."""
        questions, options = self.read(), self.task.options
        texts = [
            [""] * options if problem else self.task.choices(record)
            for record, problem in zip(questions.records, questions.problems)
        ]
        ids, mask, cut = self.tokenizer.encode([text for row in texts for text in row])
        ids, mask = (x.reshape(len(texts), options, -1) for x in (ids, mask))
        with sharding.use_mesh(self.mesh):

            def answer(clips, clip_P, question_P):
                rows = sharding.to_global((clip_P, ids[question_P], mask[question_P]), self.mesh)
                return self._choose(params, clips, *rows)

            said = self.ask(
                questions,
                lambda video: self._encode(params, video),
                answer,
                rows=self.rows(self.config.evaluation.batch_size // options),
                fill=np.float32(np.nan),
            )
        scores = said.answer_Q.reshape(len(texts), -1)
        label_Q = np.array([-1 if p else int(r.answer) for r, p in zip(questions.records, questions.problems)])
        predicted, tied = decide(scores, label_Q)
        return self.result(
            questions,
            said,
            ["" if n < 0 else str(n) for n in predicted],
            (predicted == label_Q) & (label_Q >= 0),
            options=options,
            chance=100 / options,
            ties=int(tied.sum()),
            cut_options=cut,
        )


def decide(scores_QxO: np.ndarray, label_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The option that is taken of each choice: the best; of equal ones a wrong one.

    Args:
      scores_QxO: float32; NaN is below every number.
      label_Q: int, the true option; -1 for none.

    Returns:
      int64 `[Q]`, -1 where no score is a number; and bool `[Q]`, where the true option is among several best ones.
    """
    scores = np.where(np.isnan(scores_QxO), -np.inf, scores_QxO)
    is_best = (scores == scores.max(1, keepdims=True)) & ~np.isnan(scores_QxO)
    is_true = np.arange(scores.shape[1]) == label_Q[:, None]
    wrong = is_best & ~is_true
    chosen = np.where(wrong.any(1), wrong.argmax(1), label_Q)
    return np.where(is_best.any(1), chosen, -1), wrong.any(1) & (is_best & is_true).any(1)


def table(result: dict[str, Any], title: str) -> str:
    """The result as text."""
    notes = [f"{result['options']} options, chance {result['chance']:.2f}"]
    if result["ties"]:
        notes.append(f"{result['ties']:,} ties of the true option with another count as wrong")
    if result["cut_options"]:
        notes.append(f"{result['cut_options']:,} options were cut to the model's length")
    return by_clip.table(result, title, notes)
