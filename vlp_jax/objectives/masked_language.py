"""Masked language modelling (MLM)."""

import jax.numpy as jnp

from vlp_jax.objectives.log_probability import log_probability


def mlm(logits_BxLxV, ids_BxL, chosen_BxL):
    """Cross-entropy of the true words at the chosen positions.

    Args:
      logits_BxLxV: float32.
      ids_BxL: the true ids.
      chosen_BxL: bool, positions that count (already without padding and invalid examples).

    Returns:
      `((loss sum, count), (correct sum, count))`.
    """
    loss_BxL = -log_probability(logits_BxLxV, ids_BxL)
    correct_BxL = jnp.argmax(logits_BxLxV, axis=-1) == ids_BxL
    count = chosen_BxL.sum().astype(jnp.float32)
    return (
        (jnp.where(chosen_BxL, loss_BxL, 0.0).sum(), count),
        ((correct_BxL & chosen_BxL).sum().astype(jnp.float32), count),
    )
