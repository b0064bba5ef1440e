"""Transformer blocks: a ViT's, and what encoders of clips add to it."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from vlp_jax.models import attention, layers, sparsify


class Block(nnx.Module):
    """A transformer block.

    Args:
      place: `pre` | `post`, where the norms stand, see `layers.residual`.
      epsilon: of the norms.
      scale: what a learned factor of each sublayer's output starts from (CaiT's layer scale, as in BEiT); 0 for none.
      activation: of the MLP, one of `layers.ACTIVATIONS`.
      adapter: width of a bottleneck adapter on each sublayer's output, behind that factor; 0 for none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        place: str = "pre",
        epsilon: float = 1e-6,
        scale: float = 0.0,
        activation: str = "gelu",
        adapter: int = 0,
        kernel: str,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.place = place
        factor = lambda: nnx.Param(jnp.full((width,), scale), out_sharding=("embed",)) if scale else None
        self.scale_attention: Any = factor()
        self.scale_mlp: Any = factor()
        bottleneck = lambda: layers.Adapter(width, adapter, dtype=dtype, rngs=rngs) if adapter else None
        self.adapter_attention: Any = bottleneck()
        self.adapter_mlp: Any = bottleneck()
        self.norm_attention = layers.norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.attention = attention.SelfAttention(width, heads, kernel=kernel, dtype=dtype, rngs=rngs)
        self.norm_mlp = layers.norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.mlp = layers.Mlp(width, mlp_ratio, activation=activation, dtype=dtype, rngs=rngs)

    def __call__(self, x_BxSxD, bias=None):
        attend = lambda x: self.after_attention(self.attention(x, bias))
        return self.feed_forward(layers.residual(x_BxSxD, self.norm_attention, attend, self.place))

    def after_attention(self, x):
        """What attention gives, as it is added to its residual."""
        return layers.adapted(self.adapter_attention, _scaled(self.scale_attention, x))

    def feed_forward(self, x):
        body = lambda x: layers.adapted(self.adapter_mlp, _scaled(self.scale_mlp, self.mlp(x)))
        return layers.residual(x, self.norm_mlp, body, self.place)


def _scaled(factor, x):
    return x if factor is None else x * factor[...].astype(x.dtype)


def sequences(x_BxTxSxD, mode: str):
    """The sequences that attend to themselves: `[B*T, S, D]` per frame, `[B, T*S, D]` joint."""
    b, t, s, d = x_BxTxSxD.shape
    return x_BxTxSxD.reshape((b * t, s, d) if mode == "frame" else (b, t * s, d))


class VideoBlock(Block):
    """A block over the clip layout `[B, T, S, D]`, with what systems add to a ViT's.

    Args:
      side: patches along a frame's side, for BEiT's relative position bias (arXiv 2106.08254, after Swin): one number
        for each head and offset between two patches, and three for what involves the CLS. 0 for none.
      temporal: attention over time at each location; images skip it, and it has no adapter.
        zero_init: after the block, x + s MHSA(LN x), s a scalar from zero, so that a network trained on images begins
        unchanged (VindLU, arXiv 2212.05051, and its code).
        divided: before the attention inside frames, x + W MHSA(LN x) of the patches alone; the CLS is one for the whole
        clip, its attention in each frame averaged (TimeSformer, arXiv 2102.05095, and its code). Each slot holds a copy
        of it. W starts from zero, as in that code's later layers, here in all.
        none: none.
    """

    def __init__(
        self,
        width,
        heads,
        mlp_ratio,
        *,
        side: int,
        temporal: str,
        activation: str,
        epsilon,
        scale,
        adapter: int = 0,
        kernel: str,
        dtype,
        rngs: nnx.Rngs,
    ):
        shared: dict[str, Any] = {"kernel": kernel, "dtype": dtype, "rngs": rngs}
        form: dict[str, Any] = {"epsilon": epsilon, "scale": scale, "activation": activation, "adapter": adapter}
        super().__init__(width, heads, mlp_ratio, **form, **shared)
        self.temporal = temporal
        self.side = side
        self.relative: Any = (
            nnx.Param(jnp.zeros(((2 * side - 1) ** 2 + 3, heads)), out_sharding=(None, "heads")) if side else None
        )
        over_time = temporal != "none"
        self.norm_time: Any = layers.norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs) if over_time else None
        self.time_attention: Any = attention.SelfAttention(width, heads, **shared) if over_time else None
        self.time_scale: Any = nnx.Param(jnp.zeros(())) if temporal == "zero_init" else None
        zeros = lambda: layers.dense(width, width, ("embed", None), zero=True, dtype=dtype, rngs=rngs)
        self.time_out: Any = zeros() if temporal == "divided" else None

    def encode(self, x_BxTxSxD, mode: str, patches=None):
        """The whole block.

        Args:
          patches: int `[.., K]`, the patches of a frame that the tokens after the CLS are, for the relative bias:
            `[K]` where all frames have the same, else `[B, T, K]`.
        """
        if self.temporal == "divided":
            return self._divided(x_BxTxSxD, self._bias(patches))
        x = super().__call__(sequences(x_BxTxSxD, mode), self._bias(patches)).reshape(x_BxTxSxD.shape)
        if self.temporal == "none" or x.shape[1] == 1:
            return x
        mixed = self._over_time(x)
        return x + self.time_scale[...].astype(mixed.dtype) * mixed

    def attend_and_score(self, x_BxTxSxD, mode: str, patches=None):
        """The attention half of a block that prunes, and the CLS scores of its tokens."""
        b, t, s, d = x_BxTxSxD.shape
        x = sequences(x_BxTxSxD, mode)
        q, k, v = self.attention.project(self.norm_attention(x))
        bias = self._bias(patches)
        mixed = self.attention.out(attention.attend(q, k, v, bias, kernel=self.attention.kernel))
        mixed = self.after_attention(mixed)
        q, k = (z.reshape(b, t, s, *z.shape[-2:]) for z in (q, k))
        if bias is not None:  # what it adds to the row of the CLS, for each frame or for all alike
            bias = bias[:, :, 0].reshape((b, t, -1, s) if len(bias) > 1 else (1, 1, -1, s))
        scores = sparsify.cls_scores(q[:, :, 0], k, own_frame_only=mode == "frame", bias=bias)
        return (x + mixed).reshape(b, t, s, d), scores

    def _over_time(self, x_BxTxSxD):
        """Attention over time at each location, `[B, T, S, D]`, without its residual."""
        b, t, s, d = x_BxTxSxD.shape
        x = x_BxTxSxD.swapaxes(1, 2).reshape(b * s, t, d)
        return self.time_attention(self.norm_time(x)).reshape(b, s, t, d).swapaxes(1, 2)

    def _divided(self, x_BxTxSxD, bias):
        cls, patches = x_BxTxSxD[:, :, :1], x_BxTxSxD[:, :, 1:]
        if patches.shape[1] > 1:
            patches = patches + self.time_out(self._over_time(patches))
        x = jnp.concatenate([cls, patches], axis=2)
        mixed = self.attention(sequences(self.norm_attention(x), "frame"), bias).reshape(x.shape)
        one = jnp.broadcast_to(mixed[:, :, :1].mean(1, keepdims=True), cls.shape)
        return self.feed_forward(x + self.after_attention(jnp.concatenate([one, mixed[:, :, 1:]], axis=2)))

    def _bias(self, patches):
        """float32 `[B * T or 1, A, S, S]`, None without a table."""
        if self.relative is None:
            return None
        index = relative_index(patches, self.side)
        index = index.reshape(-1, *index.shape[-2:])
        return jnp.moveaxis(self.relative[...][index], -1, 1)


def relative_index(patches_xK, side: int):
    """Row of BEiT's bias table for every pair of tokens: int32 `[.., 1 + K, 1 + K]`, the CLS first, queries then keys.

    Rows are numbered `(dy + side - 1) * (2 side - 1) + dx + side - 1` of the offset from key to query; the last three
    are CLS to patch, patch to CLS and CLS to CLS.
    """
    patches = jnp.asarray(patches_xK)
    y, x = patches // side, patches % side
    span, count = 2 * side - 1, (2 * side - 1) ** 2
    offset = lambda z: z[..., :, None] - z[..., None, :] + side - 1
    inner = offset(y) * span + offset(x)
    inner = jnp.pad(inner, [(0, 0)] * (inner.ndim - 2) + [(1, 0), (1, 0)])
    place = jnp.arange(inner.shape[-1])
    query_is_cls, key_is_cls = (place == 0)[:, None], (place == 0)[None, :]
    outer = jnp.where(query_is_cls, jnp.where(key_is_cls, count + 2, count), count + 1)
    return jnp.where(query_is_cls | key_is_cls, outer, inner).astype(jnp.int32)
