"""Classification of clips: accuracy of the best class, after fine-tuning or a linear probe."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from vlp_jax import sharding
from vlp_jax.evaluation import by_clip
from vlp_jax.evaluation.by_clip import log_scalars
from vlp_jax.tasks.classification import Classification as Model
from vlp_jax.types import UserError

__all__ = ["Classification", "log_scalars", "table"]


class Classification(by_clip.ByClip):
    """Classifies every clip of a source and counts the right ones; of equal scores the first class in the list.

    Args:
      graph: the model without parameters, a `tasks.classification.Classification`.
      answers: the list of classes that the run was trained with.

    Raises:
      UserError: another model, or another list of classes; as `ByClip`.
    """

    def __init__(
        self, graph: Any, abstract_params: Any, config: Any, source: Any, tokenizer: Any, mesh: Any, *, answers: Any
    ):
        model = nnx.merge(graph, abstract_params)
        if not isinstance(model, Model):
            raise UserError(
                f"classification needs a run with config.task.kind = 'classification', but {config.name} has "
                f"{config.task.kind!r}: fine-tune it first (configs/finetune/classification.py)"
            )
        super().__init__(config, source, tokenizer, mesh, kind="classification", answers=answers)
        by_clip.check_list(model.head.kernel.shape[-1], answers, "classes")
        self._classify = jax.jit(
            lambda params, video: by_clip.best(nnx.merge(graph, params).classify(video)),
            out_shardings=sharding.replicated(mesh),
        )

    def run(self, params: Any) -> dict[str, Any]:
        """Returns `{accuracy, intervals, questions, ..., classes, outside_answers, upper_bound, per_query}`; a question
        is a labelled clip."""
        questions, classes = self.read(), self.answers
        number_Q = np.array([classes.number(record.answer) for record in questions.records])
        with sharding.use_mesh(self.mesh):
            said = self.ask(
                questions,
                lambda video: np.asarray(self._classify(params, video)),
                lambda class_B, clip_P, question_P: class_B[clip_P],
                rows=self.batch_size,
                fill=np.int32(-1),
            )
        return self.result(
            questions,
            said,
            [classes.texts[n] if n >= 0 else "" for n in said.answer_Q],
            (said.answer_Q == number_Q) & (number_Q >= 0),
            classes=len(classes),
            **by_clip.reachable(questions, number_Q),
        )


def table(result: dict[str, Any], title: str) -> str:
    """The result as text."""
    notes = [f"{result['classes']:,} classes"]
    if result["outside_answers"]:
        notes.append(
            f"{result['outside_answers']:,} clips ({result['outside_share']:.2f}%) are of a class outside the list: at "
            f"most {result['upper_bound']:.2f} can be reached"
        )
    return by_clip.table(result, title, notes)
