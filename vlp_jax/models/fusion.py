"""Fusion: text layers that also look at the video's kept tokens (ALBEF's and Singularity's one-way cross-attention).

Keys and values are projected once for each clip and layer, then the frames that each (clip, text) pair needs are
gathered: in training four texts look at one clip, and at evaluation a whole shortlist does.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vlp_jax import sharding
from vlp_jax.models import attention, layers
from vlp_jax.models.text import final_norm


class FusionBlock(nnx.Module):
    """Self-attention over the words, cross-attention to the video, MLP.

    Args:
      t: `config.model.text`: its sizes, and where its norms stand.
      other_width: of what is looked at.
      adapter: width of a bottleneck adapter on what each sublayer gives; 0 for none.
    """

    def __init__(self, t, other_width: int, *, adapter: int = 0, kernel: str, dtype, rngs: nnx.Rngs):
        self.place = t.norm
        norm = lambda: layers.norm(t.width, epsilon=t.norm_epsilon, dtype=dtype, rngs=rngs)
        self.norm_self = norm()
        self.self_attention = attention.SelfAttention(t.width, t.heads, kernel=kernel, dtype=dtype, rngs=rngs)
        self.norm_cross = norm()
        self.cross_attention = attention.CrossAttention(
            t.width, other_width, t.heads, kernel=kernel, dtype=dtype, rngs=rngs
        )
        self.norm_mlp = norm()
        self.mlp = layers.Mlp(t.width, t.mlp_ratio, activation=t.activation, dtype=dtype, rngs=rngs)
        bottleneck = lambda: layers.Adapter(t.width, adapter, dtype=dtype, rngs=rngs) if adapter else None
        self.adapter_self: Any = bottleneck()
        self.adapter_cross: Any = bottleneck()
        self.adapter_mlp: Any = bottleneck()

    def __call__(self, x_PxLxD, text_bias, kv_PxUx2xAxDh, video_bias):
        attend = lambda x: self.self_attention(x, text_bias)
        look = lambda x: self.cross_attention(x, kv_PxUx2xAxDh, video_bias)
        return self._add_up(x_PxLxD, attend, look)

    def observe(self, x_PxLxD, text_bias, kv_PxUx2xAxDh, video_bias):
        """As a call, with the weights of both attentions: `(x, (words [P, A, L, L], video [P, A, L, U]))`."""
        seen = {}

        def attend(x):
            seen["words"] = self.self_attention.weights(x, text_bias)
            return self.self_attention(x, text_bias)

        def look(x):
            seen["video"] = self.cross_attention.weights(x, kv_PxUx2xAxDh, video_bias)
            return self.cross_attention(x, kv_PxUx2xAxDh, video_bias)

        x = self._add_up(x_PxLxD, attend, look)
        return x, (seen["words"], seen["video"])

    def _add_up(self, x_PxLxD, attend, look):
        def add(x, norm, body, adapter):
            return layers.residual(x, norm, lambda x: layers.adapted(adapter, body(x)), self.place)

        x = add(x_PxLxD, self.norm_self, attend, self.adapter_self)
        x = add(x, self.norm_cross, look, self.adapter_cross)
        return add(x, self.norm_mlp, self.mlp, self.adapter_mlp)


class Fusion(nnx.Module):
    """A stack of `FusionBlock`s over (clip, text) pairs."""

    def __init__(self, config, *, dtype, rngs: nnx.Rngs):
        t, m = config.model.text, config.model
        self.loop = layers.loop(config, dtype)

        width = layers.adapter_width(config, "fusion")

        def make(r):
            return FusionBlock(t, m.vision.width, adapter=width, kernel=m.attention_kernel, dtype=dtype, rngs=r)

        self.blocks = layers.stack(make, m.fusion.layers, rngs)
        self.norm = final_norm(t, dtype=dtype, rngs=rngs)

    def __call__(self, text_PxLxD, text_mask_PxL, video_BxTxSxD, clip_P, frames_PxKt, log_gate_PxKt):
        """Fuses P texts with the frames chosen for them.

        Args:
          text_PxLxD: text features.
          video_BxTxSxD: tokens of B clips.
          clip_P: int32, the clip that each text is paired with, by its number among those of the text's own device.
          frames_PxKt: int32, the frames of that clip that are kept for this text.
          log_gate_PxKt: float32, added to the attention logits of all tokens of a kept frame.

        Returns:
          Normalised fused features, `[P, L, D]`.
        """
        sources = self._sources(text_mask_PxL, video_BxTxSxD, clip_P, frames_PxKt, log_gate_PxKt)
        x = layers.scan(self.blocks, lambda block, x: block(x, *sources(block)), text_PxLxD, self.loop)
        return self.norm(sharding.constrain_batch(x))

    def observe(self, text_PxLxD, text_mask_PxL, video_BxTxSxD, clip_P, frames_PxKt, log_gate_PxKt):
        """What a call with the same arguments weighs words and video by, in each of the F layers.

        Returns:
          `(words [F, P, A, L, L], video [F, P, A, L, Kt, S])`; rows sum to 1, over L and over Kt x S.
        """
        sources = self._sources(text_mask_PxL, video_BxTxSxD, clip_P, frames_PxKt, log_gate_PxKt)
        graph, params = nnx.split(self.blocks)

        def step(x, layer):
            block: Any = nnx.merge(graph, layer)
            return block.observe(x, *sources(block))

        _, (words, video) = jax.lax.scan(step, text_PxLxD, self.loop.gathered(params))
        return words, video.reshape(*video.shape[:-1], frames_PxKt.shape[1], video_BxTxSxD.shape[2])

    def _sources(self, text_mask_PxL, video_BxTxSxD, clip_P, frames_PxKt, log_gate_PxKt):
        """Returns block -> what it looks at: the words' bias, keys and values of the pairs' frames, their bias."""
        b, t, s, d = video_BxTxSxD.shape
        p, kept = frames_PxKt.shape
        rows = clip_P[:, None] * t + frames_PxKt
        video_bias = jnp.repeat(log_gate_PxKt, s, axis=1)[:, None, None, :]
        text_bias = attention.padding_bias(text_mask_PxL)
        video = video_BxTxSxD.reshape(b * t, s, d)

        def sources(block):
            kv = block.cross_attention.keys_values(video)
            kv = sharding.take_near(kv, rows.reshape(-1)).reshape(p, kept * s, *kv.shape[2:])
            return text_bias, sharding.constrain_batch(kv), video_bias

        return sources


class MatchHead(nnx.Module):
    """Logit that a clip and a text belong together, from the fused CLS: `[P, D] -> float32 [P, 2]` (no, yes)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.out = layers.dense(width, 2, ("embed", None), dtype=jnp.float32, rngs=rngs)

    def __call__(self, cls_PxD):
        return self.out(cls_PxD.astype(jnp.float32))
