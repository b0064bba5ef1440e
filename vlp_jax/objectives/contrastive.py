"""Video-text contrastive learning (VTC)."""

import functools

import jax
import jax.numpy as jnp


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


def same_id(positive_id_B, valid_B):
    """bool `[B, B]`: which pairs are positives; never with an invalid row."""
    return (positive_id_B[:, None] == positive_id_B[None, :]) & valid_B[:, None] & valid_B[None, :]


def vtc(logits_BxB, positives_BxB, valid_B):
    """Symmetric cross-entropy with soft targets: positives share the target mass equally (ALBEF, Singularity).

    L = 1/2 mean_i CE(row i) + 1/2 mean_i CE(column i). Invalid rows are neither anchors nor negatives.

    Returns:
      `(sum, count)` over the valid examples.
    """

    def direction(logits, positives):
        logits = jnp.where(valid_B[None, :], logits, -1e30)
        target = positives / jnp.maximum(positives.sum(-1, keepdims=True), 1)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        return -jnp.where(positives, target * log_p, 0.0).sum(-1)

    each_B = (direction(logits_BxB, positives_BxB) + direction(logits_BxB.T, positives_BxB.T)) / 2
    return jnp.where(valid_B, each_B, 0.0).sum(), valid_B.sum().astype(jnp.float32)


def recall_at_1(logits_BxB, positives_BxB, valid_B):
    """Share of the valid videos whose best text of the batch is a positive, as `(sum, count)`."""
    best_B = jnp.argmax(jnp.where(valid_B[None, :], logits_BxB, -jnp.inf), axis=1)
    hit_B = jnp.take_along_axis(positives_BxB, best_B[:, None], axis=1)[:, 0]
    return (hit_B & valid_B).sum().astype(jnp.float32), valid_B.sum().astype(jnp.float32)
