"""The checkpoint that a metric of the validation split chooses (`config.evaluation.select_by`): WORKDIR/best."""

import json
import math
import pathlib
from typing import Any

from vlp_jax import checkpoint, workdir
from vlp_jax import config as config_lib
from vlp_jax.input import splits
from vlp_jax.types import UserError

_CONDITIONS = ("select_by", "validation_split", "frames", "ensemble", "rerank")  # of config.evaluation


class Best:
    """Keeps the state with the highest value of one metric, the earliest of equals.

    The value in WORKDIR/best is the truth: whatever moment a run was killed at, the continued one compares with it. A
    continued run may stand at a step before that of the best state; it then meets the same values again, none of which
    is strictly better, and changes nothing. On accelerators whose sums are not repeatable a better value may turn up at
    such an earlier step and is taken as well: the folders of WORKDIR/best count improvements, 1, 2, 3 ...; the step is
    in the metadata.

    Args:
      directory: the workdir.
      config: the run's; `evaluation.select_by` names the metric.
      shared: as of `checkpoint.Checkpointer`.

    Raises:
      UserError: WORKDIR/best was chosen by another metric, on another split or in another way of evaluating.
    """

    def __init__(self, directory: pathlib.Path, config: Any, shared: bool = True):
        self._conditions = {name: config.evaluation[name] for name in _CONDITIONS}
        self._path = directory / workdir.BEST
        self._checkpoints = checkpoint.Checkpointer(self._path, keep=1, asynchronous=False, shared=shared)
        self.value: float = -math.inf
        self.metadata: dict[str, Any] = {}  # of the best state; {} before there is one
        self._count = self._checkpoints.latest() or 0
        if not self._count:
            return
        self.metadata = self._checkpoints.read_metadata()
        self.value = self.metadata["selected"]["value"]
        for name, value in self._conditions.items():
            before = self.metadata["selected"][name]
            if before != value:
                self.close()
                raise UserError(
                    f"{self._path} was chosen with config.evaluation.{name} = {before!r}, this command says {value!r}, "
                    f"whose values do not compare; use the former, or move {self._path} away to choose anew"
                )

    def offer(self, step: int, value: float, state: Any, metadata: dict[str, Any]) -> bool:
        """Saves `state` where `value` is strictly above every one before; nan never is. Returns whether it was saved.

        Args:
          metadata: as of a normal checkpoint; `step` and `selected` (value and how it came about) are added.
        """
        if not value > self.value:
            return False
        selected = {**self._conditions, "value": value}
        self._count += 1
        self.value, self.metadata = value, {**metadata, "step": step, "selected": selected}
        self._checkpoints.save(self._count, state, self.metadata)
        return True

    def close(self) -> None:
        """Frees what the checkpoints hold; may be called twice."""
        self._checkpoints.close()


def describe(metadata: dict[str, Any]) -> str:
    """How the checkpoint with this metadata was chosen, for titles."""
    selected = metadata["selected"]
    text = f"best {selected['select_by']} = {selected['value']:.4g} of {selected['validation_split']}"
    if splits.held_out_of_training(config_lib.from_json(json.dumps(metadata["config"])), selected["validation_split"]):
        text += ", a part of the training split"
    return text
