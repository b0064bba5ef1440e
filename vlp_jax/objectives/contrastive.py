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

    def each_row(self, fn: Callable, *own: Any) -> Any:
        """`fn(logits_RxB, positives_RxB, valid_B, *own_R)` of all rows, `[B, ...]`.

        Args:
          fn: of some rows R; what it returns for one does not depend on the others.
          own: arrays `[B, ...]`, of which `fn` gets the rows'.
        """

        def some(rows, columns, temperature):
            (x_RxE, id_R, valid_R), own = rows
            column_BxE, id_B, valid_B = columns
            positives = (id_R[:, None] == id_B[None, :]) & valid_R[:, None] & valid_B[None, :]
            return fn(similarities(x_RxE, column_BxE, temperature), positives, valid_B, *own)

        def a_few_at_a_time(rows, columns, temperature):
            count = rows[0][0].shape[0]
            parts = jax.tree.map(lambda x: x.reshape(count // self.at_once, self.at_once, *x.shape[1:]), rows)
            out = jax.lax.map(jax.checkpoint(lambda part: some(part, columns, temperature)), parts)
            return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), out)

        rows = (self.row_BxE, self.positive_id_B, self.valid_B), own
        columns = self.column_BxE, self.positive_id_B, self.valid_B
        if not self.at_once:
            return some(rows, columns, self.temperature)
        return sharding.by_device(a_few_at_a_time, rows, columns, self.temperature)


def vtc(pairs: Similarities):
    """Symmetric cross-entropy with soft targets: positives share the target mass equally (ALBEF, Singularity).

    L = 1/2 mean_i CE(row i) + 1/2 mean_i CE(column i). Invalid rows are neither anchors nor negatives.

    Returns:
      `(sum, count)` over the valid examples.
    """

    def cross_entropy(logits, positives, valid_B):
        logits = jnp.where(valid_B[None, :], logits, -1e30)
        target = positives / jnp.maximum(positives.sum(-1, keepdims=True), 1)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        return -jnp.where(positives, target * log_p, 0.0).sum(-1)

    each_B = (pairs.each_row(cross_entropy) + pairs.T.each_row(cross_entropy)) / 2
    return jnp.where(pairs.valid_B, each_B, 0.0).sum(), pairs.valid_B.sum().astype(jnp.float32)


def recall_at_1(pairs: Similarities):
    """Share of the valid rows whose best valid column is a positive, as `(sum, count)`."""

    def hit(logits, positives, valid_B):
        best_R = jnp.argmax(jnp.where(valid_B[None, :], logits, -jnp.inf), axis=1)
        return jnp.take_along_axis(positives, best_R[:, None], axis=1)[:, 0]

    hit_B = jax.lax.stop_gradient(pairs.each_row(hit))
    return (hit_B & pairs.valid_B).sum().astype(jnp.float32), pairs.valid_B.sum().astype(jnp.float32)
