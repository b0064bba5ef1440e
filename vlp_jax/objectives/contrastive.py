"""Video-text contrastive learning (VTC)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vlp_jax import sharding


def unit(x, epsilon: float = 1e-6):
    """Scales the last axis to length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), epsilon**2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def bounded(x, low: float, high: float):
    """Clamps a learned scalar; at a bound only the gradient that would lead back inside passes.

    A plain clip has no gradient outside its bounds, so a parameter that overshoots would stay there for good.
    """
    return jnp.clip(x, low, high)


def _bounded_forward(x, low, high):
    return jnp.clip(x, low, high), x


def _bounded_backward(low, high, x, g):
    # Descent moves against g: at the lower bound g < 0 raises x, at the upper one g > 0 lowers it.
    return (jnp.where((x <= low) & (g > 0) | (x >= high) & (g < 0), 0.0, g),)


bounded.defvjp(_bounded_forward, _bounded_backward)


def similarities(video_BxE, text_BxE, temperature):
    """Cosines over the temperature, float32 `[B, B]`: rows are videos, columns texts. Inputs have unit length."""
    return jnp.einsum("ie,je->ij", video_BxE, text_BxE, preferred_element_type=jnp.float32) / temperature


@dataclasses.dataclass(frozen=True)
class Similarities:
    """The similarities of a batch's clips and texts, B x B, in rows of one of the two; `T` has those of the other.

    Attributes:
      row_BxE, column_BxE: embeddings of unit length.
      temperature: float32 scalar.
      positive_id_B, valid_B: as in `types.Batch`.
      at_once: rows that a device holds at a time, forward and backward, each computed anew for every use; it divides
        the rows of a device. 0 computes all B x B once.
    """

    row_BxE: Any
    column_BxE: Any
    temperature: Any
    positive_id_B: Any
    valid_B: Any
    at_once: int = 0

    @property
    def T(self) -> "Similarities":
        return dataclasses.replace(self, row_BxE=self.column_BxE, column_BxE=self.row_BxE)

    def each_row(self, fn: Callable, *own: Any, beside: "Similarities | None" = None) -> Any:
        """`fn(logits_RxB, positives_RxB, valid_B, *own_R)` of all rows, `[B, ...]`.

        Args:
          fn: of some rows R; what it returns for one does not depend on the others.
          own: arrays `[B, ...]`, of which `fn` gets the rows'.
          beside: of the same clips and texts by another model; `fn` gets its logits of these rows, too, before `own`.
        """

        def some(rows, columns, temperatures):
            (x_RxE, id_R, valid_R), other_RxE, own = rows
            (column_BxE, id_B, valid_B), other_BxE = columns
            temperature, other = temperatures
            positives = (id_R[:, None] == id_B[None, :]) & valid_R[:, None] & valid_B[None, :]
            if beside is not None:
                own = (similarities(other_RxE, other_BxE, other), *own)
            return fn(similarities(x_RxE, column_BxE, temperature), positives, valid_B, *own)

        def a_few_at_a_time(rows, columns, temperatures):
            count = rows[0][0].shape[0]
            parts = jax.tree.map(lambda x: x.reshape(count // self.at_once, self.at_once, *x.shape[1:]), rows)
            out = jax.lax.map(jax.checkpoint(lambda part: some(part, columns, temperatures)), parts)
            return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), out)

        of_other = lambda name: None if beside is None else getattr(beside, name)
        rows = (self.row_BxE, self.positive_id_B, self.valid_B), of_other("row_BxE"), own
        columns = (self.column_BxE, self.positive_id_B, self.valid_B), of_other("column_BxE")
        temperatures = self.temperature, of_other("temperature")
        if not self.at_once:
            return some(rows, columns, temperatures)
        return sharding.by_device(a_few_at_a_time, rows, columns, temperatures)


def vtc(pairs: Similarities, taught: Similarities | None = None, distill: float = 0.0):
    """Symmetric cross-entropy with soft targets: positives share the target mass equally (ALBEF, Singularity).

    L = 1/2 mean_i CE(row i) + 1/2 mean_i CE(column i). Invalid rows are neither anchors nor negatives.

    With a teacher the targets are ALBEF's of momentum distillation (arXiv 2107.07651, eq. 6, as cross-entropy like its
    code, which differs by a constant): `distill` times the softmax of the teacher's similarities plus 1 - `distill`
    times those above. Different here: there is no queue, and both models compare their own clips and texts of the
    batch, where ALBEF's student compares its own with those of the teacher and the queue; alpha does not rise from 0.

    Args:
      taught: the teacher's similarities of the same clips and texts; no gradient flows into them.
      distill: alpha, the teacher's share of the targets, in [0, 1].

    Returns:
      `(sum, count)` over the valid examples.
    """

    def cross_entropy(logits, positives, valid_B, *taught):
        among_valid = lambda logits: jnp.where(valid_B[None, :], logits, -1e30)
        logits = among_valid(logits)
        target, aimed = positives / jnp.maximum(positives.sum(-1, keepdims=True), 1), positives
        for teacher in taught:
            soft = jax.nn.softmax(among_valid(jax.lax.stop_gradient(teacher)), axis=-1)
            target, aimed = distill * soft + (1 - distill) * target, valid_B[None, :]
        log_p = jax.nn.log_softmax(logits, axis=-1)
        return -jnp.where(aimed, target * log_p, 0.0).sum(-1)

    rows = pairs.each_row(cross_entropy, beside=taught)
    columns = pairs.T.each_row(cross_entropy, beside=taught and taught.T)
    each_B = (rows + columns) / 2
    return jnp.where(pairs.valid_B, each_B, 0.0).sum(), pairs.valid_B.sum().astype(jnp.float32)


def recall_at_1(pairs: Similarities):
    """Share of the valid rows whose best valid column is a positive, as `(sum, count)`."""

    def hit(logits, positives, valid_B):
        best_R = jnp.argmax(jnp.where(valid_B[None, :], logits, -jnp.inf), axis=1)
        return jnp.take_along_axis(positives, best_R[:, None], axis=1)[:, 0]

    hit_B = jax.lax.stop_gradient(pairs.each_row(hit))
    return (hit_B & pairs.valid_B).sum().astype(jnp.float32), pairs.valid_B.sum().astype(jnp.float32)
