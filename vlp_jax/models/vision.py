"""The video encoder: sees only the visible patches, and prunes tokens on its way up.

Tokens are laid out `[B, T, S, D]`: each temporal slot (a frame, or a tubelet of frames) has a CLS token and the same
number of patch tokens. `frame` attention stays inside a slot, `joint` attention spans the clip; the layout is the same.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vlp_jax.config import grid, kept_after
from vlp_jax.masking import all_visible
from vlp_jax.models import attention, layers, sparsify
from vlp_jax.sharding import constrain_batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class EncodedVideo:
    """What the encoder hands on.

    Attributes:
      tokens: `[B, T, S, D]`, normalised: CLS, surviving patches, the fused token if there is one.
      kept: int32 `[B, T, K]`, which patches (`t * N + n`) the surviving tokens are.
      early: `[B, T, K0, D]`, normalised tokens of all visible patches before the first pruning.
    """

    tokens: jax.Array
    kept: jax.Array
    early: jax.Array

    @property
    def cls(self):
        """`[B, T, D]`: one summary of each slot."""
        return self.tokens[:, :, 0]

    def pooled(self, how: str):
        """`[B, T, D]`: one feature of each slot, its CLS (`cls`) or the mean of its surviving patches (`mean`)."""
        return self.cls if how == "cls" else self.tokens[:, :, 1 : 1 + self.kept.shape[-1]].mean(2)


def patchify(video_BxFxHxWx3, patch: int, tubelet: int):
    """Cuts a clip into patches, `[B, T, N, P]` with `P = tubelet * patch * patch * 3`; keeps the dtype."""
    b, f, h, w, c = video_BxFxHxWx3.shape
    x = video_BxFxHxWx3.reshape(b, f // tubelet, tubelet, h // patch, patch, w // patch, patch, c)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, f // tubelet, (h // patch) * (w // patch), tubelet * patch * patch * c)


def unpatchify(patches_BxTxNxP, patch: int, tubelet: int):
    """Inverse of `patchify` for square frames: `[B, T, N, P] -> [B, F, H, W, 3]`."""
    b, t, n, _ = patches_BxTxNxP.shape
    side = round(n**0.5)
    x = patches_BxTxNxP.reshape(b, t, side, side, tubelet, patch, patch, 3)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t * tubelet, side * patch, side * patch, 3)


def normalise_pixels(pixels):
    """uint8 0..255 -> float32 -1..1 (mean and deviation 0.5, as Singularity and BEiT)."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, kernel: str, dtype, rngs: nnx.Rngs):
        self.norm_attention = layers.norm(width, dtype=dtype, rngs=rngs)
        self.attention = attention.SelfAttention(width, heads, kernel=kernel, dtype=dtype, rngs=rngs)
        self.norm_mlp = layers.norm(width, dtype=dtype, rngs=rngs)
        self.mlp = layers.Mlp(width, mlp_ratio, dtype=dtype, rngs=rngs)

    def __call__(self, x_BxSxD, bias=None):
        x_BxSxD = x_BxSxD + self.attention(self.norm_attention(x_BxSxD), bias)
        return self.feed_forward(x_BxSxD)

    def attend_and_score(self, x_BxTxSxD, mode: str):
        """The attention half of the block over the clip layout, and the CLS scores of its tokens."""
        b, t, s, d = x_BxTxSxD.shape
        x = sequences(x_BxTxSxD, mode)
        q, k, v = self.attention.project(self.norm_attention(x))
        mixed = self.attention.out(attention.attend(q, k, v, kernel=self.attention.kernel))
        q, k = (z.reshape(b, t, s, *z.shape[-2:]) for z in (q, k))
        scores = sparsify.cls_scores(q[:, :, 0], k, own_frame_only=mode == "frame")
        return (x + mixed).reshape(b, t, s, d), scores

    def feed_forward(self, x):
        return x + self.mlp(self.norm_mlp(x))


def sequences(x_BxTxSxD, mode: str):
    """The sequences that attend to themselves: `[B*T, S, D]` per frame, `[B, T*S, D]` joint."""
    b, t, s, d = x_BxTxSxD.shape
    return x_BxTxSxD.reshape((b * t, s, d) if mode == "frame" else (b, t * s, d))


class VideoEncoder(nnx.Module):
    """ViT over the visible patches of a clip, with token pruning inside.

    Args:
      config: the whole config; `model.vision`, `model.pruning` and the input's sizes are read.
    """

    def __init__(self, config, *, dtype, rngs: nnx.Rngs):
        v, p = config.model.vision, config.model.pruning
        self.patch, self.tubelet, self.attention_mode = v.patch_size, v.tubelet, v.attention
        self.prune_layers, self.keep_rate, self.fused_token = tuple(p.layers), p.keep_rate, p.fused_token
        self.layer_count, self.remat, self.unroll = v.layers, config.model.remat, config.model.unroll
        self.dtype = dtype
        self.embed = layers.dense(v.tubelet * v.patch_size**2 * 3, v.width, (None, "embed"), dtype=dtype, rngs=rngs)
        self.cls = nnx.Param(jax.random.normal(rngs.params(), (v.width,)) * 0.02, out_sharding=("embed",))
        # From zeros, as in Frozen in Time: a run that starts from images begins where they ended.
        learned = v.time_positions == "learned"
        self.time: Any = (
            nnx.Param(jnp.zeros((grid(config)[0], v.width)), out_sharding=(None, "embed")) if learned else None
        )

        def make(r):
            return Block(v.width, v.heads, v.mlp_ratio, kernel=config.model.attention_kernel, dtype=dtype, rngs=r)

        self.blocks = layers.stack(make, v.layers, rngs)
        self.norm = layers.norm(v.width, dtype=dtype, rngs=rngs)

    def __call__(self, video_BxFxHxWx3, visible_BxTxK=None) -> EncodedVideo:
        """Encodes uint8 clips.

        Args:
          video_BxFxHxWx3: uint8 RGB.
          visible_BxTxK: patches to see, `t * N + n`, each row within one slot; None sees all.
        """
        patches = patchify(video_BxFxHxWx3, self.patch, self.tubelet)
        b, slots, count, size = patches.shape
        if visible_BxTxK is None:
            kept = all_visible(b, slots, count)
        else:
            kept = visible_BxTxK
            flat = kept.reshape(b, -1)
            # Gathered as bytes, before anything is computed: hidden patches cost nothing further.
            patches = jnp.take_along_axis(patches.reshape(b, -1, size), flat[..., None], axis=1)
            patches = patches.reshape(*kept.shape, size)
        x = self.embed(normalise_pixels(patches).astype(self.dtype))
        # Looked up for each slot, not for each patch: learned ones get their gradient from far fewer rows.
        time_BxTxD = self._time_positions(slots)[kept[:, :, 0] // count]
        space_NxD = jnp.asarray(layers.space_positions(round(count**0.5), self.cls.shape[0]))
        x = x + (space_NxD[kept % count] + time_BxTxD[:, :, None]).astype(self.dtype)
        cls = self.cls[...] + time_BxTxD
        x = constrain_batch(jnp.concatenate([cls[:, :, None].astype(self.dtype), x], axis=2))

        graph, params = nnx.split(self.blocks)
        early, fused = None, False
        for stop, segment in self._segments(params):
            if stop is None:
                x = self._run(graph, segment, x)
                continue
            early = x[:, :, 1:] if early is None else early
            x, kept = self._prune(graph, segment, x, kept, fused)
            fused = self.fused_token
        early = x[:, :, 1:] if early is None else early
        return EncodedVideo(tokens=self.norm(x), kept=kept, early=self.norm(early))

    def _time_positions(self, slots):
        if self.time is None:
            return jnp.asarray(layers.time_positions(slots, self.cls.shape[0]))
        return layers.interpolate_time(self.time[...], slots)

    def _segments(self, params):
        """Cuts the stack where tokens are pruned: (None, several layers) or (layer number, that one layer)."""
        sizes: list[int] = []
        stops: list[int | None] = []
        at = 0
        for layer in self.prune_layers:
            if layer > at:
                sizes.append(layer - at)
                stops.append(None)
            sizes.append(1)
            stops.append(layer)
            at = layer + 1
        if at < self.layer_count:
            sizes.append(self.layer_count - at)
            stops.append(None)
        return zip(stops, layers.split_layers(params, sizes))

    def _run(self, graph, segment, x_BxTxSxD):
        shape = x_BxTxSxD.shape
        x = sequences(x_BxTxSxD, self.attention_mode)
        x = layers.scan_params(graph, segment, lambda block, x: block(x), x, remat=self.remat, unroll=self.unroll)
        return constrain_batch(x.reshape(shape))

    def _prune(self, graph, segment, x_BxTxSxD, kept_BxTxK, fused):
        def run(params, x):
            block = nnx.merge(graph, params)
            x, scores = block.attend_and_score(x, self.attention_mode)
            x, index = sparsify.prune_tokens(
                x, scores, kept_after(kept_BxTxK.shape[-1], self.keep_rate), self.fused_token, fused
            )
            return block.feed_forward(x), index

        if self.remat != "none":
            run = jax.checkpoint(run, policy=layers.REMAT_POLICIES[self.remat])
        x, index = run(jax.tree.map(lambda leaf: leaf[0], segment), x_BxTxSxD)
        return constrain_batch(x), jnp.take_along_axis(kept_BxTxK, index, axis=-1)
