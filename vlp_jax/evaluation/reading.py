"""Clips of a source for evaluation: each process decodes those of its own devices, and all know what became of each."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from vlp_jax import distributed, sharding
from vlp_jax.input import pipeline


@dataclasses.dataclass
class Clips:
    """A batch of clips, the same on every process.

    Attributes:
      video: global uint8 array `[B, T, H, W, 3]`.
      valid: bool `[B]`, False where a clip did not decode, and of padding.
      is_padding: bool `[B]`.
      bad: rows of clips that did not decode -> `{clip_id, origin, error}`.
    """

    video: jax.Array
    valid: np.ndarray
    is_padding: np.ndarray
    bad: dict[int, dict[str, str]]


def read(
    config: Any, source: Any, tokenizer: Any, mesh: Any, *, batch_size: int, records: np.ndarray, answers: Any = None
) -> Iterator[Clips]:
    """Yields the clips of some records in order, `batch_size` at a time.

    Args:
      batch_size: a multiple of the mesh's data-parallel devices.
      records, answers: as in `pipeline.evaluation_batches`.
    """
    rows = sharding.rows_of(mesh, batch_size)
    batches = pipeline.evaluation_batches(
        config,
        source,
        tokenizer,
        batch_size=batch_size,
        records=records,
        own=rows.own,
        answers=answers,
        clips_alone=True,
    )
    for number, item in enumerate(batches):
        is_padding = np.arange(number * batch_size, (number + 1) * batch_size) >= len(records)
        bad = {
            int(row): {"clip_id": item.clip_ids[i], "origin": item.origins[i], "error": item.errors[i]}
            for i, row in enumerate(rows.own)
            if item.errors[i]
        }
        bad = {int(row): clip for part in distributed.gather(bad) for row, clip in part.items()}
        valid = ~is_padding
        valid[list(bad)] = False
        yield Clips(sharding.to_global(item.batch.video, mesh, rows), valid, is_padding, dict(sorted(bad.items())))
