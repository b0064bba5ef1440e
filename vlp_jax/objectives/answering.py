"""Answers to questions: the likelihood of an answer's tokens, and a choice among numbered ones."""

import jax
import jax.numpy as jnp

from vlp_jax.objectives.log_probability import log_probability


def log_likelihood(logits_RxLxV, ids_RxL1, mask_RxL1):
    """Log-likelihood of whole answers, the sum over their tokens: log p(a_1 ... a_n [SEP] | [CLS], question).

    Args:
      logits_RxLxV: float32; position i holds what is expected at token i + 1, so that L is one less than the tokens.
      ids_RxL1: int32 `[R, L + 1]`, `[CLS] answer [SEP]` and padding.
      mask_RxL1: bool `[R, L + 1]`, True on tokens.

    Returns:
      float32 `[R]`.
    """
    target_RxL, counted_RxL = ids_RxL1[:, 1:], mask_RxL1[:, 1:]
    return jnp.where(counted_RxL, log_probability(logits_RxLxV, target_RxL), 0.0).sum(-1)


def generation(logits_BxLxV, ids_BxL1, mask_BxL1, valid_B):
    """Teacher-forced cross-entropy of the answers: summed over an answer's tokens, then a mean over examples (ALBEF's
    question answering with one answer of weight 1).

    Returns:
      `((loss sum, examples), (tokens named right, tokens))`; arguments as in `log_likelihood`.
    """
    loss_B = -log_likelihood(logits_BxLxV, ids_BxL1, mask_BxL1)
    counted_BxL = mask_BxL1[:, 1:] & valid_B[:, None]
    right_BxL = (jnp.argmax(logits_BxLxV, axis=-1) == ids_BxL1[:, 1:]) & counted_BxL
    return (
        (jnp.where(valid_B, loss_B, 0.0).sum(), valid_B.sum().astype(jnp.float32)),
        (right_BxL.sum().astype(jnp.float32), counted_BxL.sum().astype(jnp.float32)),
    )


def choice(logits_BxC, label_B, counted_B):
    """Cross-entropy of one true item among C: an answer of a list, an option, a class.

    Args:
      logits_BxC: float32.
      label_B: int32, the true item; -1 where there is none, which takes part in nothing.
      counted_B: bool, examples that take part.

    Returns:
      `((loss sum, count), (right sum, count))`; right is an item above all others, a tie is not.
    """
    counted_B = counted_B & (label_B >= 0)
    label_B = jnp.maximum(label_B, 0)
    true_B = jnp.take_along_axis(logits_BxC, label_B[:, None], axis=-1)[:, 0]
    loss_B = jax.nn.logsumexp(logits_BxC, axis=-1) - true_B
    others_BxC = jnp.arange(logits_BxC.shape[-1]) != label_B[:, None]
    right_B = (~others_BxC | (true_B[:, None] > logits_BxC)).all(-1)
    count = counted_B.sum().astype(jnp.float32)
    return (
        (jnp.where(counted_B, loss_B, 0.0).sum(), count),
        ((right_B & counted_B).sum().astype(jnp.float32), count),
    )
