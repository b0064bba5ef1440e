"""The pixel decoder of masked video modelling: visible tokens and mask tokens in, pixels of the hidden patches out."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vlp_jax.config import grid
from vlp_jax.models import layers
from vlp_jax.models.blocks import Block, sequences
from vlp_jax.sharding import constrain_batch


class PixelDecoder(nnx.Module):
    """MAE's light decoder (He et al. 2021, section 3; VideoMAE's widths by default).

    Args:
      config: the whole config; `model.decoder` and the sizes of the encoder are read.
    """

    def __init__(self, config, *, dtype, rngs: nnx.Rngs):
        d, v = config.model.decoder, config.model.vision
        self.attention_mode, self.dtype = d.attention, dtype
        self.loop = layers.loop(config, dtype)
        self.embed = layers.dense(v.width, d.width, ("embed", None), dtype=dtype, rngs=rngs)
        self.mask_token = nnx.Param(jax.random.normal(rngs.params(), (d.width,)) * 0.02)
        self.uses_cls, self.positions = d.cls, d.positions
        learned, rows = d.positions == "learned", 1 + grid(config)[1]
        self.space: Any = nnx.Param(jax.random.normal(rngs.params(), (rows, d.width)) * 0.02) if learned else None

        def make(r):
            kernel = config.model.attention_kernel
            return Block(d.width, d.heads, 4.0, epsilon=d.norm_epsilon, kernel=kernel, dtype=dtype, rngs=r)

        self.blocks = layers.stack(make, d.layers, rngs)
        self.norm = layers.norm(d.width, epsilon=d.norm_epsilon, dtype=dtype, rngs=rngs)
        self.out = layers.dense(d.width, v.tubelet * v.patch_size**2 * 3, ("embed", None), dtype=dtype, rngs=rngs)

    def __call__(self, tokens_BxTxSxD, visible_BxTxK, hidden_BxThxM, slots: int, count: int):
        """Predicts the hidden patches.

        Args:
          tokens_BxTxSxD: encoded tokens of the patches `visible_BxTxK`, after the CLS of their slot if there is one.
          hidden_BxThxM: the patches to predict; `Th` equals `T` where attention stays inside a frame.
          slots, count: T and N of the whole clip.

        Returns:
          float32 `[B, Th, M, P]`.
        """
        positions = self._positions(slots, count)
        seen = self.embed(tokens_BxTxSxD[:, :, -visible_BxTxK.shape[2] :]) + positions[visible_BxTxK]
        if self.uses_cls:
            cls = self.embed(tokens_BxTxSxD[:, :, :1])
            cls = cls if self.space is None else cls + self.space[...][0].astype(self.dtype)
            seen = jnp.concatenate([cls, seen], axis=2)
        asked = self.mask_token[...].astype(self.dtype) + positions[hidden_BxThxM]
        if self.attention_mode == "frame":
            x = sequences(jnp.concatenate([seen, asked], axis=2), "frame")
        else:
            x = jnp.concatenate([sequences(seen, "joint"), sequences(asked, "joint")], axis=1)
        x = layers.scan(self.blocks, lambda block, x: block(x), x, self.loop)
        asked = x[:, -hidden_BxThxM.shape[2] :] if self.attention_mode == "frame" else x[:, -asked[0, :, :, 0].size :]
        return constrain_batch(self.out(self.norm(asked)).reshape(*hidden_BxThxM.shape, -1)).astype(jnp.float32)

    def _positions(self, slots: int, count: int):
        """Of every patch of the clip, `[T N, D]`."""
        width = self.mask_token.shape[0]
        if self.positions == "sequence":
            table: Any = layers.sequence_positions(slots, count, width)
        elif self.space is None:
            table = layers.space_time_positions(slots, round(count**0.5), width)
        else:
            table = self.space[...][None, 1:] + layers.time_positions(slots, width)[:, None]
        return jnp.asarray(table.reshape(slots * count, width), self.dtype)
