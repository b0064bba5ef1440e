"""Video-text matching (VTM): does this text belong to this clip?"""

import jax
import jax.numpy as jnp

from vlp_jax.objectives.contrastive import Similarities


def hard_negatives(keys_B, pairs: Similarities, group: int = 0):
    """Draws one negative of each row from the softmax over its similarities, positives and invalid columns excluded.

    Args:
      keys_B: one random key per example.
      pairs: no gradient flows through the choice.
      group: consecutive examples among which a negative is drawn; 0 for the whole batch.

    Returns:
      `(index_B, exists_B)`: the chosen columns, and whether the row has any negative at all.
    """

    def draw(logits, positives, valid_B, keys, valid_R, number_R):
        allowed = ~positives & valid_B[None, :] & valid_R[:, None]
        if group:
            allowed &= number_R[:, None] // group == jnp.arange(logits.shape[1]) // group
        logits = jnp.where(allowed, jax.lax.stop_gradient(logits), -jnp.inf)
        exists_R = allowed.any(-1)
        # A row without a negative gets finite logits, so that its (unused) draw is defined.
        logits = jnp.where(exists_R[:, None], logits, 0.0)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32), exists_R

    return pairs.each_row(draw, keys_B, pairs.valid_B, jnp.arange(len(pairs.valid_B)))


def vtm(logits_Px2, match_P, counted_P):
    """Binary cross-entropy over pairs.

    Args:
      logits_Px2: float32, (no, yes).
      match_P: bool, the truth.
      counted_P: bool, pairs that take part.

    Returns:
      `((loss sum, count), (correct sum, count))`.
    """
    log_p = jax.nn.log_softmax(logits_Px2, axis=-1)
    loss_P = -jnp.where(match_P, log_p[:, 1], log_p[:, 0])
    correct_P = (logits_Px2[:, 1] > logits_Px2[:, 0]) == match_P
    count = counted_P.sum().astype(jnp.float32)
    return (jnp.where(counted_P, loss_P, 0.0).sum(), count), ((correct_P & counted_P).sum().astype(jnp.float32), count)
