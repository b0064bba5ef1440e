"""Multi-head attention behind one switch, and the CLS scores that pruning needs.

The scores are one extra row of `q K`, computed apart from the attention itself, so that any attention kernel can be
used underneath.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlp_jax.models import layers


def attend(q_BxSxAxDh, k_BxUxAxDh, v_BxUxAxDh, bias=None, *, kernel: str = "xla"):
    """Softmax attention; the softmax is taken in float32.

    Args:
      bias: float32, broadcastable to `[B, A, S, U]`, added to the scaled logits; None for none.
      kernel: `xla` | `cudnn` (NVIDIA GPU, 16-bit activations), the latter for attention without a bias, which the
        video encoder and the pixel decoder have; cuDNN takes none of the broadcast biases of text.

    Returns:
      `[B, S, A, Dh]`.
    """
    if kernel not in ("xla", "cudnn"):
        raise ValueError(f"attention kernel {kernel!r}: expected xla or cudnn")
    if kernel == "cudnn" and bias is None:
        return jax.nn.dot_product_attention(q_BxSxAxDh, k_BxUxAxDh, v_BxUxAxDh, implementation="cudnn")
    weights = weights_of(q_BxSxAxDh, k_BxUxAxDh, bias, v_BxUxAxDh.dtype)
    return jnp.einsum("basu,baud->basd", weights, _heads_first(v_BxUxAxDh)).swapaxes(1, 2)


def weights_of(q_BxSxAxDh, k_BxUxAxDh, bias, dtype):
    """What the XLA kernel of `attend` weighs the values by, `[B, A, S, U]`; rows sum to 1."""
    q = _heads_first(q_BxSxAxDh * q_BxSxAxDh.shape[-1] ** -0.5)
    logits = layers.einsum_to_float32("basd,baud->basu", q, _heads_first(k_BxUxAxDh))
    if bias is not None:
        logits = logits + bias
    return layers.softmax(logits, dtype)


def _heads_first(x_BxSxAxDh):
    """`[B, A, S, Dh]`, as products over B and A want it.

    Moved here, q, k and v are moved together; left to XLA, on GPUs each is on its own and some are twice: 8% of the
    bytes of a step of `base`.
    """
    return x_BxSxAxDh.swapaxes(1, 2)


def padding_bias(mask_BxU):
    """float32 `[B, 1, 1, U]`: 0 on tokens, a large negative number on padding."""
    return jnp.where(mask_BxU[:, None, None, :], 0.0, -1e9).astype(jnp.float32)


def causal_bias(length: int):
    """float32 `[1, 1, L, L]`: 0 on a token and those before it, a large negative number on those after it."""
    return jnp.asarray(np.where(np.tril(np.ones((length, length), bool)), 0.0, -1e9)[None, None], jnp.float32)


class SelfAttention(nnx.Module):
    """Self-attention over `[B, S, D]`."""

    def __init__(self, width: int, heads: int, *, kernel: str, dtype, rngs: nnx.Rngs):
        self.kernel = kernel
        shape = (3, heads, width // heads)
        self.qkv = layers.dense(width, shape, ("embed", None, "heads", None), dtype=dtype, rngs=rngs)
        self.out = layers.dense(shape[1:], width, ("heads", None, "embed"), dtype=dtype, rngs=rngs)

    def project(self, x_BxSxD):
        """Returns q, k, v, `[B, S, A, Dh]` each."""
        qkv = self.qkv(x_BxSxD)
        return qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]

    def __call__(self, x_BxSxD, bias=None):
        q, k, v = self.project(x_BxSxD)
        return self.out(attend(q, k, v, bias, kernel=self.kernel))

    def weights(self, x_BxSxD, bias=None):
        """What a call with the same arguments weighs the values by, `[B, A, S, S]`."""
        q, k, v = self.project(x_BxSxD)
        return weights_of(q, k, bias, v.dtype)


class CrossAttention(nnx.Module):
    """Attention of `[B, S, D]` to keys and values that were projected beforehand, by `keys_values`."""

    def __init__(self, width: int, other_width: int, heads: int, *, kernel: str, dtype, rngs: nnx.Rngs):
        self.kernel = kernel
        head = (heads, width // heads)
        self.query = layers.dense(width, head, ("embed", "heads", None), dtype=dtype, rngs=rngs)
        self.key_value = layers.dense(other_width, (2, *head), ("embed", None, "heads", None), dtype=dtype, rngs=rngs)
        self.out = layers.dense(head, width, ("heads", None, "embed"), dtype=dtype, rngs=rngs)

    def keys_values(self, other):
        """`[..., D']` -> `[..., 2, A, Dh]`: once for each clip, however many texts look at it."""
        return self.key_value(other)

    def __call__(self, x_BxSxD, kv_BxUx2xAxDh, bias=None):
        k, v = kv_BxUx2xAxDh[..., 0, :, :], kv_BxUx2xAxDh[..., 1, :, :]
        return self.out(attend(self.query(x_BxSxD), k, v, bias, kernel=self.kernel))

    def weights(self, x_BxSxD, kv_BxUx2xAxDh, bias=None):
        """What a call with the same arguments weighs the values by, `[B, A, S, U]`."""
        return weights_of(self.query(x_BxSxD), kv_BxUx2xAxDh[..., 0, :, :], bias, kv_BxUx2xAxDh.dtype)
