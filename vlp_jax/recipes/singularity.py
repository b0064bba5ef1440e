"""Singularity: single-frame training, multi-frame ensembles at test (Lei et al., ACL 2023, arXiv 2206.03428).

From the paper and its released code: a BEiT-style ViT over each frame by itself (relative position bias, mean over the
patches, one LayerNorm more); BERT's first 9 layers over the text, its last 3 with cross-attention to the frames; VTC as
the mean over the frames of cosines, VTM with hard negatives, MLM of half of the words, all of weight 1; one random
frame in pre-training, then 4 in a second stage, in the temporal variant with 2 layers over time at each location; at
test, frames are concatenated before fusion, or their scores are averaged, maximised or log-sum-exped after it.

From the code, too: the layers over time have a table of positions that starts from zero, are skipped for one frame, and
what is contrasted are the frames before them, unless `model.temporal.embed` is set (`update_pooler_embed` there).

Different here: the layers over time are pre-norm, and by default the text tower is, too, and the encoder has no layer
scale (`model.text.norm=post` and `model.vision.layer_scale` are BERT's and BEiT's); no dropout; contrast is over the
global batch, and so are hard negatives unless `loss.vtm_group` is set (the code's are each GPU's own); a pair, and in
late ensembles a frame, is scored by the difference of VTM's two logits, not by the second; with `model.temporal.embed`
the mean over the patches is contrasted, not the CLS token; the last LayerNorm comes before that mean, not after it; the
table of positions is interpolated for fewer frames, not cut.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vlp_jax.models import layers
from vlp_jax.models.temporal import TemporalEncoder
from vlp_jax.models.vision import EncodedVideo
from vlp_jax.recipes.align_and_fuse import AlignAndFuse
from vlp_jax.types import Batch, Outputs


class Singularity(AlignAndFuse):
    """The recipe; how many frames it sees is the config's `input.frames` and `evaluation.frames`."""

    FIXED: ClassVar[dict[str, Any]] = {
        "model.vision.attention": "frame",
        "model.vision.pool": "mean",
        "model.vision.temporal_attention": "none",
        "model.masking.kind": "none",
        "model.pruning.layers": (),
        "model.selection.frames": 0,
        "loss.mvm": 0.0,
    }

    def __init__(self, config, tokenizer, *, rngs: nnx.Rngs):
        super().__init__(config, tokenizer, rngs=rngs)
        dtype = layers.compute_dtype(config.compute_dtype)
        self.temporal: Any = TemporalEncoder(config, dtype=dtype, rngs=rngs) if config.model.temporal.layers else None

    def loss(self, batch: Batch, key: jax.Array, masked: bool = True, teacher: Any = None) -> Outputs:
        """The weighted sum of VTC, VTM and MLM on one batch; the video is never masked."""
        del masked
        key_of = self.key_of(batch, key)

        # Encode the frames, each by itself; then look over time, where the variant does.
        video = self.encode_video(batch.video)

        # Encode the words, once whole and once masked; contrast, towards what a teacher sees where there is one.
        words = self.read(batch, key_of(1))
        taught = None if teacher is None else self.taught(teacher, teacher.encode_video(batch.video), batch)
        contrast = self.contrast(video, words, batch, taught)

        # Fuse all frames with the true, the hard-negative and the masked words.
        fused = self.match_and_complete(video, words, contrast, batch, key_of)
        return self.total(contrast, fused)

    def encode_video(self, video) -> EncodedVideo:
        """uint8 clips -> tokens of every frame."""
        encoded = self.vision(video)
        return encoded if self.temporal is None else self.temporal(encoded)

    def encode_clip(self, video) -> EncodedVideo:
        """As `AlignAndFuse.encode_clip`, with one feature of each frame from before the layers over time."""
        encoded = self.encode_video(video)
        cls, patches = encoded.early[:, :, : encoded.lead], encoded.early[:, :, encoded.lead :]
        return dataclasses.replace(encoded, early=jnp.concatenate([cls, patches.mean(2, keepdims=True)], axis=2))

    def match(self, clips: EncodedVideo, clip_P, words_PxLxD, mask_PxL, keys_P=None) -> jax.Array:
        """As `AlignAndFuse.match`; `evaluation.ensemble` says how the frames of a clip come together.

        `concat`: one fusion over the tokens of all frames (early fusion). `mean`, `max`, `lse`: a logit for each frame,
        then their mean, maximum or log-sum-exp (late fusion; section 3.3 of the paper).
        """
        ensemble, (b, t) = self.config.evaluation.ensemble, clips.tokens.shape[:2]
        if ensemble == "concat":
            return super().match(clips, clip_P, words_PxLxD, mask_PxL, keys_P)
        # Each frame as a clip of its own, paired with the text of its clip.
        apart = jax.tree.map(lambda x: x.reshape(b * t, 1, *x.shape[2:]), clips)
        frame_PT = (clip_P[:, None] * t + jnp.arange(t, dtype=clip_P.dtype)).reshape(-1)
        words, mask = jnp.repeat(words_PxLxD, t, axis=0), jnp.repeat(mask_PxL, t, axis=0)
        logits_PxT = super().match(apart, frame_PT, words, mask).reshape(-1, t)
        together: dict[str, Any] = {"mean": jnp.mean, "max": jnp.max, "lse": jax.nn.logsumexp}
        return together[ensemble](logits_PxT, axis=1)

    def _embed(self, video: EncodedVideo):
        if self.temporal is None or self.config.model.temporal.embed:
            return super()._embed(video)
        return self._project(video.early[:, :, video.lead :].mean(2))
