"""Attention over time after a per-frame encoder (Singularity-temporal)."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from vlp_jax.config import grid
from vlp_jax.models import layers
from vlp_jax.models.blocks import Block
from vlp_jax.models.vision import EncodedVideo
from vlp_jax.sharding import constrain_batch


class TemporalEncoder(nnx.Module):
    """Blocks over the frames at each spatial location, with a learned table of temporal positions.

    Args:
      config: the whole config; `model.temporal`, `model.vision` and the input's sizes are read.
    """

    def __init__(self, config, *, dtype, rngs: nnx.Rngs):
        v = config.model.vision
        self.loop, self.dtype = layers.loop(config, dtype), dtype
        # From zeros: which frame is which is learned, and clips of other lengths interpolate.
        self.time = nnx.Param(jnp.zeros((grid(config)[0], v.width)), out_sharding=(None, "embed"))

        def make(r):
            return Block(v.width, v.heads, v.mlp_ratio, kernel=config.model.attention_kernel, dtype=dtype, rngs=r)

        self.blocks = layers.stack(make, config.model.temporal.layers, rngs)
        self.norm = layers.norm(v.width, dtype=dtype, rngs=rngs)

    def __call__(self, video: EncodedVideo) -> EncodedVideo:
        """Lets the tokens of one location, the CLS being one, see each other over time: `[B, T, S, D]` as before.

        One frame has no time, and comes back as it is (Singularity's code).
        """
        b, t, s, d = video.tokens.shape
        if t == 1:
            return video
        x = video.tokens + layers.interpolate_time(self.time[...], t)[:, None].astype(self.dtype)
        x = x.swapaxes(1, 2).reshape(b * s, t, d)
        x = layers.scan(self.blocks, lambda block, x: block(x), x, self.loop)
        x = constrain_batch(x.reshape(b, s, t, d).swapaxes(1, 2))
        return dataclasses.replace(video, tokens=self.norm(x))
