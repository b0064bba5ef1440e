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
from vlp_jax.models import attention, layers, sparsify
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
    """

    tokens: jax.Array
    kept: jax.Array
    early: jax.Array
    lead: int = dataclasses.field(default=1, metadata={"static": True})

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


class VideoEncoder(nnx.Module):
    """ViT over the visible patches of a clip, with token pruning inside.

    Args:
      config: the whole config; `model.vision`, `model.pruning` and the input's sizes are read.
    """

    def __init__(self, config, *, dtype, rngs: nnx.Rngs):
        v, p = config.model.vision, config.model.pruning
        self.patch, self.tubelet, self.attention_mode = v.patch_size, v.tubelet, v.attention
        self.prune_layers, self.keep_rate, self.fused_token = tuple(p.layers), p.keep_rate, p.fused_token
        self.layer_count, self.loop = v.layers, layers.loop(config, dtype)
        self.dtype, self.width, self.lead = dtype, v.width, int(v.cls)
        self.cls_of_clip = v.temporal_attention == "divided"
        self.embed = layers.dense(v.tubelet * v.patch_size**2 * 3, v.width, (None, "embed"), dtype=dtype, rngs=rngs)
        normal = lambda *shape: jax.random.normal(rngs.params(), shape) * 0.02
        self.cls: Any = nnx.Param(normal(v.width), out_sharding=("embed",)) if v.cls else None
        slots, count = grid(config)
        self.trained_slots = v.time_slots or slots
        self.side = round(count**0.5)
        self.positions, self.time_kind = v.positions, v.time_positions
        # With a row for the CLS, which goes unused where there is none.
        learned = v.positions == "learned"
        self.space: Any = nnx.Param(normal(1 + count, v.width), out_sharding=(None, "embed")) if learned else None
        # From zeros, as in Frozen in Time: a run that starts from images begins where they ended.
        learned = v.time_positions == "learned"
        self.time: Any = nnx.Param(jnp.zeros((slots, v.width)), out_sharding=(None, "embed")) if learned else None
        self.norm_embedding: Any = (
            layers.norm(v.width, epsilon=v.norm_epsilon, dtype=dtype, rngs=rngs) if v.norm_embedding else None
        )
        extras: dict[str, Any] = {
            "side": self.side if v.positions == "relative" else 0,
            "temporal": v.temporal_attention,
            "activation": v.activation,
            "epsilon": v.norm_epsilon,
            "scale": v.layer_scale,
            "adapter": layers.adapter_width(config, "vision"),
        }

        def make(r):
            kernel = config.model.attention_kernel
            return VideoBlock(v.width, v.heads, v.mlp_ratio, **extras, kernel=kernel, dtype=dtype, rngs=r)

        self.blocks = layers.stack(make, v.layers, rngs)
        self.norm = layers.norm(v.width, epsilon=v.norm_epsilon, dtype=dtype, rngs=rngs)

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
        early, fused = None, False
        # Where nothing is hidden, all frames share one bias.
        patches = np.arange(count) if visible_BxTxK is None else kept % count
        for stop, segment in self._segments(params):
            if stop is None:
                x = self._run(graph, segment, x, patches)
                continue
            early = x if early is None else early
            x, kept = self._prune(graph, segment, x, kept, fused, patches)
            patches = kept % count
            fused = self.fused_token
        early = x if early is None else early
        return EncodedVideo(tokens=self.norm(x), kept=kept, early=self.norm(early), lead=self.lead)

    def _space_positions(self, kept_BxTxK, slots, count):
        """What is added to each patch for its place, `[B, T, K, D]`; 0 where the attention knows it."""
        if self.positions == "sincos":
            return jnp.asarray(layers.space_positions(self.side, self.width))[kept_BxTxK % count]
        if self.positions == "sequence":
            table = layers.sequence_positions(slots, count, self.width)
            return jnp.asarray(table.reshape(slots * count, self.width))[kept_BxTxK]
        return self.space[...][1 + kept_BxTxK % count] if self.positions == "learned" else 0.0

    def _time_positions(self, slots):
        width = self.width
        if self.time_kind == "none":
            return jnp.zeros((slots, width))
        table = layers.time_positions(self.trained_slots, width) if self.time is None else self.time[...]
        return layers.interpolate_time(jnp.asarray(table), slots)

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

    def _run(self, graph, segment, x_BxTxSxD, patches):
        body = lambda block, x: block.encode(x, self.attention_mode, patches)
        x = layers.scan_params(graph, segment, body, x_BxTxSxD, self.loop)
        return constrain_batch(x)

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
