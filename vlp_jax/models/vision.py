"""The video encoder: sees only the visible patches, and prunes tokens on its way up.

Tokens are laid out `[B, T, S, D]`: each temporal slot (a frame, or a tubelet of frames) has a CLS token and the same
number of patch tokens. `frame` attention stays inside a slot, `joint` attention spans the clip; the layout is the same.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlp_jax.config import grid, kept_after
from vlp_jax.masking import all_visible
from vlp_jax.models import layers, sparsify
from vlp_jax.models.blocks import VideoBlock
from vlp_jax.sharding import constrain_batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class EncodedVideo:
    """What the encoder hands on.

    Attributes:
      tokens: `[B, T, S, D]`, normalised: CLS if there is one, surviving patches, the fused token if there is one.
      kept: int32 `[B, T, K]`, which patches (`t * N + n`) the surviving tokens are.
      early: `[B, T, C + K0, D]`, normalised tokens before the first pruning: CLS if there is one, all visible patches.
      lead: C, 1 where a slot has a CLS, else 0.
      survivors: int32 `[B, T, K_i]` for each layer that prunes, which patches it leaves; the last is `kept`.
    """

    tokens: jax.Array
    kept: jax.Array
    early: jax.Array
    lead: int = dataclasses.field(default=1, metadata={"static": True})
    survivors: tuple[jax.Array, ...] = ()

    @property
    def patches(self):
        """`[B, T, K, D]`: the tokens of the surviving patches."""
        return self.tokens[:, :, self.lead : self.lead + self.kept.shape[-1]]

    @property
    def cls(self):
        """`[B, T, D]`: one summary of each slot, the mean of its patches where it has no CLS."""
        return self.tokens[:, :, 0] if self.lead else self.patches.mean(2)

    def pooled(self, how: str):
        """`[B, T, D]`: one feature of each slot, its CLS (`cls`) or the mean of its surviving patches (`mean`)."""
        return self.cls if how == "cls" else self.patches.mean(2)


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


class ClipEncoder(nnx.Module):
    """What encoders of clips share: positions over time, blocks over `[B, T, S, D]`, and the norm at their end.

    Args:
      config: the whole config; `model.vision` and the input's sizes are read.
      side: as `VideoBlock`'s.
    """

    def __init__(self, config, *, side: int, dtype, rngs: nnx.Rngs):
        v, slots = config.model.vision, grid(config)[0]
        self.width, self.attention_mode = v.width, v.attention
        self.layer_count, self.loop, self.dtype = v.layers, layers.loop(config, dtype), dtype
        self.trained_slots, self.time_kind = v.time_slots or slots, v.time_positions
        # From zeros, as in Frozen in Time: a run that starts from images begins where they ended.
        learned = v.time_positions == "learned"
        self.time: Any = nnx.Param(jnp.zeros((slots, v.width)), out_sharding=(None, "embed")) if learned else None
        extras: dict[str, Any] = {
            "side": side,
            "temporal": v.temporal_attention,
            "activation": v.activation,
            "epsilon": v.norm_epsilon,
            "scale": v.layer_scale,
            "adapter": layers.adapter_width(config, "vision"),
        }

        def make(r):
            kernel = config.model.attention_kernel
            return VideoBlock(v.width, v.heads, v.mlp_ratio, **extras, kernel=kernel, dtype=dtype, rngs=r)

        self.blocks: Any = layers.stack(make, v.layers, rngs) if v.layers else None
        self.norm = layers.norm(v.width, epsilon=v.norm_epsilon, dtype=dtype, rngs=rngs)

    def _time_positions(self, slots):
        if self.time_kind == "none":
            return jnp.zeros((slots, self.width))
        table = layers.time_positions(self.trained_slots, self.width) if self.time is None else self.time[...]
        return layers.interpolate_time(jnp.asarray(table), slots)

    def _run(self, graph, params, x_BxTxSxD, patches=None):
        body = lambda block, x: block.encode(x, self.attention_mode, patches)
        x = layers.scan_params(graph, params, body, x_BxTxSxD, self.loop)
        return constrain_batch(x)


class VideoEncoder(ClipEncoder):
    """ViT over the visible patches of a clip, with token pruning inside.

    Args:
      config: the whole config; `model.vision`, `model.pruning` and the input's sizes are read.
    """

    def __init__(self, config, *, dtype, rngs: nnx.Rngs):
        v, p = config.model.vision, config.model.pruning
        self.patch, self.tubelet = v.patch_size, v.tubelet
        self.prune_layers, self.keep_rate, self.fused_token = tuple(p.layers), p.keep_rate, p.fused_token
        self.embed = layers.dense(v.tubelet * v.patch_size**2 * 3, v.width, (None, "embed"), dtype=dtype, rngs=rngs)
        normal = lambda *shape: jax.random.normal(rngs.params(), shape) * 0.02
        self.cls: Any = nnx.Param(normal(v.width), out_sharding=("embed",)) if v.cls else None
        self.lead, self.cls_of_clip = int(v.cls), v.temporal_attention == "divided"
        count = grid(config)[1]
        self.side, self.positions = round(count**0.5), v.positions
        # With a row for the CLS, which goes unused where there is none.
        learned = v.positions == "learned"
        self.space: Any = nnx.Param(normal(1 + count, v.width), out_sharding=(None, "embed")) if learned else None
        self.norm_embedding: Any = (
            layers.norm(v.width, epsilon=v.norm_epsilon, dtype=dtype, rngs=rngs) if v.norm_embedding else None
        )
        side = self.side if v.positions == "relative" else 0
        super().__init__(config, side=side, dtype=dtype, rngs=rngs)

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
        x = x + (time_BxTxD[:, :, None] + self._space_positions(kept, slots, count)).astype(self.dtype)
        if self.lead:
            # That of a whole clip has no place in time.
            cls = self.cls[...] + (jnp.zeros_like(time_BxTxD) if self.cls_of_clip else time_BxTxD)
            cls = cls + self.space[...][0] if self.positions == "learned" else cls
            x = jnp.concatenate([cls[:, :, None].astype(self.dtype), x], axis=2)
        x = constrain_batch(x if self.norm_embedding is None else self.norm_embedding(x))

        graph, params = nnx.split(self.blocks)
        early, fused, survivors = None, False, []
        # Where nothing is hidden, all frames share one bias.
        patches = np.arange(count) if visible_BxTxK is None else kept % count
        for stop, segment in self._segments(params):
            if stop is None:
                x = self._run(graph, segment, x, patches)
                continue
            early = x if early is None else early
            x, kept = self._prune(graph, segment, x, kept, fused, patches)
            survivors.append(kept)
            patches = kept % count
            fused = self.fused_token
        early = x if early is None else early
        return EncodedVideo(
            tokens=self.norm(x), kept=kept, early=self.norm(early), lead=self.lead, survivors=tuple(survivors)
        )

    def _space_positions(self, kept_BxTxK, slots, count):
        """What is added to each patch for its place, `[B, T, K, D]`; 0 where the attention knows it."""
        if self.positions == "sincos":
            return jnp.asarray(layers.space_positions(self.side, self.width))[kept_BxTxK % count]
        if self.positions == "sequence":
            table = layers.sequence_positions(slots, count, self.width)
            return jnp.asarray(table.reshape(slots * count, self.width))[kept_BxTxK]
        return self.space[...][1 + kept_BxTxK % count] if self.positions == "learned" else 0.0

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

    def _prune(self, graph, segment, x_BxTxSxD, kept_BxTxK, fused, patches):
        def run(params, x):
            block = nnx.merge(graph, params)
            x, scores = block.attend_and_score(x, self.attention_mode, patches)
            x, index = sparsify.prune_tokens(
                x, scores, kept_after(kept_BxTxK.shape[-1], self.keep_rate), self.fused_token, fused
            )
            return block.feed_forward(x), index

        if self.loop.remat != "none":
            run = jax.checkpoint(run, policy=layers.REMAT_POLICIES[self.loop.remat])
        x, index = run(jax.tree.map(lambda leaf: leaf[0], self.loop.gathered(segment)), x_BxTxSxD)
        return constrain_batch(x), jnp.take_along_axis(kept_BxTxK, index, axis=-1)
