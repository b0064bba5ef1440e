"""SMAUG: sparse masked autoencoder for video-language pre-training (arXiv 2211.11446, ICCV 2023).

From the paper: masked autoencoders on video and text, pixels rebuilt on the hidden patches (MVM, figure 2a); visual
token sparsification inside the video encoder (2b); a text-guided frame selector (2c); order mask, encode visible with
pruning inside, select frames, fuse.

Inferred, as the paper has no public code: the objectives VTC + VTM with hard negatives + MLM and the split into text
and fusion layers follow Singularity, on which it most likely stands; pruning is EViT's CLS-attention keep; the
selector's form, every ratio, rate and weight are options of the config (configs/smaug.py says which of their values
were measured, and on what). Towers are by default pre-norm ViT and BERT-like stacks.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax import masking, sharding
from vlp_jax.models import layers, sparsify
from vlp_jax.models.decoder import PixelDecoder
from vlp_jax.models.vision import EncodedVideo, normalise_pixels, patchify
from vlp_jax.objectives import masked_vision
from vlp_jax.recipes.align_and_fuse import AlignAndFuse, Losses
from vlp_jax.types import Batch, Outputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Reconstruction:
    """What `Smaug.reconstruct` returns, for pictures and analysis.

    Attributes:
      mask: which patches were visible and hidden.
      predicted: float32 `[B, Th, M, P]`, predicted pixels of the hidden patches, per-patch normalised.
      kept: int32 `[B, Tv, K]`, patches that survive pruning, numbered over the clip.
      frames: int32 `[B, Kt]`, temporal slots of the clip that the text keeps.
      scores: float32 `[B, Tv]`, the selector's scores of the visible slots.
    """

    mask: masking.PatchMask
    predicted: jax.Array
    kept: jax.Array
    frames: jax.Array
    scores: jax.Array


class Smaug(AlignAndFuse):
    """The recipe; with `masking.kind='none'`, no pruning, all frames and `loss.mvm=0` it is its dense opponent."""

    FIXED: ClassVar[dict[str, Any]] = {
        "model.temporal.layers": 0,
        "evaluation.ensemble": "concat",
    }

    def __init__(self, config, tokenizer, *, rngs: nnx.Rngs):
        super().__init__(config, tokenizer, rngs=rngs)
        dtype, m = layers.compute_dtype(config.compute_dtype), config.model
        selects = self.fusion is not None and m.selection.frames
        self.selector: Any = (
            sparsify.FrameSelector(m.vision.width, m.text.width, m.projection, dtype=dtype, rngs=rngs)
            if selects
            else None
        )
        self.decoder: Any = PixelDecoder(config, dtype=dtype, rngs=rngs) if config.loss.mvm else None

    def loss(self, batch: Batch, key: jax.Array, masked: bool = True, teacher: Any = None) -> Outputs:
        """The weighted sum of VTC, VTM, MLM and MVM on one batch; masks are drawn from (key, batch.index).

        With `masked` False the video is seen whole and there is no MVM: unmasked tuning closes the gap between
        training on visible patches and evaluating on whole clips (FLIP, arXiv 2212.00794, section 4.2; inferred here).
        """
        key_of = self.key_of(batch, key)

        # Sample the visible patches; encode them, pruning inside.
        mask = self.sample_mask(key_of(0), batch.video) if masked else None
        visible = mask.visible if mask else None
        video = self.vision(batch.video, visible)

        # Encode the words, once whole and once masked; contrast, towards what a teacher makes of the same visible
        # patches and whole words where there is one.
        words = self.read(batch, key_of(1))
        taught = None if teacher is None else self.taught(teacher, teacher.vision(batch.video, visible), batch)
        contrast = self.contrast(video, words, batch, taught)

        # For each pair, score frames by the text and keep the best (`select`); fuse the kept tokens with the true, the
        # hard-negative and the masked words.
        fused = self.match_and_complete(video, words, contrast, batch, key_of)

        # Decode the hidden patches.
        rebuilt = self._rebuild(video, mask, batch)
        return self.total(contrast, fused, rebuilt)

    def select(self, clips: EncodedVideo, text_PxD, clip_P, keys_P):
        """Frames kept for each pair, the log gates of their tokens, and the scores; all frames without a selector.

        Of longer clips than in training the same share is kept, rounded up; of shorter ones as many as there, or all.
        """
        if self.selector is None:
            return super().select(clips, text_PxD, clip_P, keys_P)
        keys = sharding.take_near(self.selector.keys(clips.cls), clip_P)
        scores = self.selector.scores(keys, text_PxD)
        chosen, slots = self.config.model.selection, clips.tokens.shape[1]
        trained = config_lib.grid(self.config)[0]
        kept = chosen.frames if slots <= trained else math.ceil(chosen.frames * slots / trained)
        return (*sparsify.select_frames(scores, min(kept, slots), keys_P, chosen.noise), scores)

    def reconstruct(self, batch: Batch, key: jax.Array) -> Reconstruction:
        """Masks, encodes and rebuilds a batch as training does, and reports every choice made on the way."""
        mask = self.sample_mask(self.key_of(batch, key)(0), batch.video, share=1.0)
        video = self.vision(batch.video, mask.visible)
        own = sharding.own_rows(batch.valid.shape[0])
        sentence = None
        if self.selector is not None:
            sentence = self.sentence(self.text(batch.text_ids, batch.text_mask), batch.text_mask)
        frames, _, scores = self.select(video, sentence, own, None)
        # Under `frame` masking the encoder's slots are only the visible ones: give their numbers in the clip.
        slot_BxTv = mask.visible[:, :, 0] // config_lib.grid(self.config)[1]
        frames = jnp.take_along_axis(slot_BxTv, frames, axis=1)
        return Reconstruction(
            mask=mask, predicted=self._decode(video, mask, batch.video), kept=video.kept, frames=frames, scores=scores
        )

    def sample_mask(self, keys_B, clips, share: float | None = None) -> Any:
        """Draws which patches of uint8 clips the encoder sees, by `config.model.masking`: a `masking.PatchMask`, or
        None where nothing is masked.

        Args:
          keys_B: one key for each clip.
          share: of the hidden patches, those to rebuild; `config.model.decoder.share` by default.
        """
        c = self.config
        if c.model.masking.kind == "none":
            return None
        slots, count = config_lib.grid(c, clips.shape[1])
        visible = config_lib.visible_patches(c, clips.shape[1])
        hidden = count if c.model.masking.kind == "frame" else count - visible[1]
        return masking.sample_patches(
            c.model.masking.kind,
            keys_B,
            slots=slots,
            patches=count,
            visible=visible,
            hidden=max(1, round(hidden * (c.model.decoder.share if share is None else share))),
        )

    def target(self, video, hidden_BxTxM):
        """Normalised pixels of the hidden patches, float32 `[B, Th, M, P]`."""
        v = self.config.model.vision
        patches = patchify(video, v.patch_size, v.tubelet)
        patches = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        flat = hidden_BxTxM.reshape(patches.shape[0], -1)
        hidden = jnp.take_along_axis(patches, flat[..., None], axis=1).reshape(*hidden_BxTxM.shape, -1)
        return masked_vision.TARGETS[self.config.model.decoder.target](normalise_pixels(hidden))

    # -- Steps ---------------------------------------------------------------------------------------------------------
    def _rebuild(self, video, mask, batch) -> Losses:
        """MVM: the pixels of the hidden patches."""
        if self.decoder is None or mask is None:
            return Losses()
        target = self.target(batch.video, mask.hidden)
        return Losses({"mvm": masked_vision.mvm(self._decode(video, mask, batch.video), target, batch.valid)})

    def _decode(self, video, mask, clips):
        slots, count = config_lib.grid(self.config, clips.shape[1])
        if self.config.model.decoder.source == "survivors":
            tokens, visible = video.tokens[:, :, : video.lead + video.kept.shape[-1]], video.kept
        else:
            tokens, visible = video.early, mask.visible
        return self.decoder(tokens, visible, mask.hidden, slots, count)
