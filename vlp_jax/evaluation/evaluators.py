"""Which evaluator measures what, and the metrics by which a checkpoint can be chosen."""

import dataclasses
import importlib
from typing import Any

from vlp_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Kind:
    """An evaluator, imported when it is used.

    Attributes:
      module: of vlp_jax/evaluation; has `table` and `log_scalars`.
      evaluator: its class.
      selectable: metrics of its result, higher is better, dictionaries inside it by /.
    """

    module: str
    evaluator: str
    selectable: tuple[str, ...]


_RETRIEVAL = tuple(
    f"{direction}/{metric}"
    for direction in ("text_to_video", "video_to_text")
    for metric in ("R@1", "R@5", "R@10", "mean_recall")
)

KINDS = {
    "retrieval": Kind("retrieval", "Retrieval", _RETRIEVAL),
    "question_answering": Kind("question_answering", "QuestionAnswering", ("accuracy",)),
    "multiple_choice": Kind("multiple_choice", "MultipleChoice", ("accuracy",)),
    "classification": Kind("classification", "Classification", ("accuracy",)),
}


def kind_of(task_kind: str) -> str:
    """The evaluator's name for a `config.task.kind`: pre-training is measured by retrieval."""
    return "retrieval" if task_kind == "pretrain" else task_kind


def evaluator_for(kind: str) -> tuple[Any, type]:
    """The module and the class of an evaluator, by the name that `kind_of` gives."""
    module = importlib.import_module(f"vlp_jax.evaluation.{KINDS[kind].module}")
    return module, getattr(module, KINDS[kind].evaluator)


def make(kind: str, graph, abstract_params, config, source, tokenizer, mesh, answers=None) -> tuple[Any, Any]:
    """Builds an evaluator; returns its module, which has `table` and `log_scalars`, and the evaluator.

    Args:
      kind: as `kind_of` gives.
      answers: the answer list or the classes, for the evaluators that need one.
    """
    module, evaluator = evaluator_for(kind)
    more = {
        "retrieval": {"rerank": config.evaluation.rerank},
        "multiple_choice": {},
    }.get(kind, {"answers": answers})
    return module, evaluator(graph, abstract_params, config, source, tokenizer, mesh, **more)


def check_metric(kind: str, name: str) -> None:
    """Raises UserError, with the names that exist, where the evaluator `kind` has no such metric to choose by."""
    known = KINDS[kind].selectable
    if name not in known:
        raise UserError(
            f"config.evaluation.select_by = {name!r}: expected a metric of {kind}, higher being better: "
            f"{', '.join(known)}"
        )


def metric(result: dict[str, Any], name: str) -> float:
    """A metric of an evaluator's result, e.g. `text_to_video/R@1`."""
    value: Any = result
    for part in name.split("/"):
        value = value[part]
    return float(value)
