"""Several sources in one run: which of them each step trains on, and where each one has got to.

Every batch comes from one source, as in Singularity and VindLU, so that images and videos never share a batch and
every shape stays static: a source of images is a source of one-frame videos. The source of a step is a pure function
of (weights, step), and the record of an example one of (seed, source, step): resuming needs no state.
"""

import dataclasses
import math
import os

import ml_collections
import numpy as np

from vlp_jax import config as config_lib
from vlp_jax.input import sources
from vlp_jax.types import UserError


def schedule(weights: tuple[float, ...], steps: int) -> np.ndarray:
    """The source of each of the first `steps` steps, int64 `[steps]`.

    Step s goes to the source that is furthest behind its share, `weight * (s + 1) - batches so far`, the first of
    equals: two equal weights alternate.

    Args:
      weights: above 0; their sum does not matter.
    """
    share = [weight / math.fsum(weights) for weight in weights]
    given = [0] * len(share)
    out = np.zeros(steps, np.int64)
    # Plain floats: NumPy would take ten times as long over vectors of two or three.
    for step in range(steps if len(share) > 1 else 0):
        # Rounded, so that equal shares stay equal whatever the order of the additions.
        behind = [round(s * (step + 1) - n, 9) for s, n in zip(share, given)]
        out[step] = source = behind.index(max(behind))
        given[source] += 1
    return out


@dataclasses.dataclass(frozen=True)
class Part:
    """One source of a run.

    Attributes:
      name: its name in the config, '' where the run has a single, unnamed one.
      config: `config.input` with this source's own values.
      source: its records.
      weight: its share of the steps, relative to the others.
    """

    name: str
    config: ml_collections.ConfigDict
    source: sources.Source
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The sources of a run, by name."""

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        """Records of all sources together."""
        return sum(len(part.source) for part in self.parts)

    @property
    def name(self) -> str:
        """For messages: where the records come from."""
        return ", ".join(part.source.name for part in self.parts)

    def schedule(self, steps: int) -> np.ndarray:
        """As `schedule`, of this mixture's weights."""
        return schedule(tuple(part.weight for part in self.parts), steps)

    def examples(self, part_of: np.ndarray, batch_size: int) -> dict[str, int]:
        """Source name -> examples drawn from it in the steps of `part_of`, the beginning of a schedule."""
        batches = np.bincount(part_of, minlength=len(self.parts))
        return {part.name: int(n) * batch_size for part, n in zip(self.parts, batches) if part.name}


def check_validation(config: ml_collections.ConfigDict, mixture: Mixture) -> None:
    """Refuses to choose a checkpoint on clips that a source of the same dataset trains on, whatever the splits' names.

    Splits whose clips are not listed are not looked into; of these `validation.validate` compares the names.

    Raises:
      UserError: naming the source and clips.
    """
    if not config.evaluation.select_by:
        return
    split = config.evaluation.validation_split
    measured = sources.open_source(config.input, split)
    for part in mixture.parts:
        if os.path.realpath(part.config.path) != os.path.realpath(config.input.path):
            continue
        shared = sources.shared_clips(part.source, measured)
        if shared:
            key = f"mixture.{part.name}" if part.name else "input"
            raise UserError(
                f"config.evaluation.validation_split = {split!r} and config.{key}.split = {part.config.split!r} have "
                f"{len(shared)} clips in common, such as {', '.join(shared[:3])}: a checkpoint must not be chosen on "
                "clips that it trained on; set another validation_split, or [kept] and [held_out] of one split"
            )


def open_mixture(config: ml_collections.ConfigDict) -> Mixture:
    """Opens the training sources: those of `config.mixture`, or `config.input` alone where it names none.

    Raises:
      UserError: from opening one of them, or as its records are not those of `config.task.kind`, with its name.
    """
    if not config.mixture:
        source = sources.open_source(config.input)
        sources.check_task(source, config.task.kind, config.input)
        return Mixture((Part("", config.input, source),))
    parts = []
    for name in sorted(config.mixture):
        own = config_lib.source_input(config, name)
        with config_lib.errors_of_source(name):
            source = sources.open_source(own)
            sources.check_task(source, config.task.kind, own)
        parts.append(Part(name, own, source, config.mixture[name].weight))
    return Mixture(tuple(parts))
