"""The log-probability of one item among many, such as a word of a vocabulary."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def log_probability(logits_xV, ids_x):
    """log softmax(logits) at `ids`, of which a backward pass keeps the logits and two numbers for each row.

    By itself autodiff keeps the exponentials too, and adds the gradient at `ids` to an array of zeros of the logits'
    shape: with a vocabulary of 30,000 words these are the largest arrays of a step.

    Args:
      logits_xV: float32.
      ids_x: int32, in [0, V).

    Returns:
      float32, of the shape of `ids`.
    """
    return _forward(logits_xV, ids_x)[0]


def _forward(logits_xV, ids_x):
    top_x = logits_xV.max(-1)
    total_x = jnp.log(jnp.exp(logits_xV - top_x[..., None]).sum(-1))
    true_x = jnp.take_along_axis(logits_xV, ids_x[..., None], axis=-1)[..., 0]
    # The largest is taken out first: beside a sum of 1e9, log 2 would be lost.
    return true_x - top_x - total_x, (logits_xV, ids_x, top_x, total_x)


def _backward(kept, g_x):
    logits_xV, ids_x, top_x, total_x = kept
    is_true_xV = jnp.arange(logits_xV.shape[-1]) == ids_x[..., None]
    share_xV = jnp.exp(logits_xV - top_x[..., None] - total_x[..., None])
    return (is_true_xV - share_xV) * g_x[..., None], None


log_probability.defvjp(_forward, _backward)
