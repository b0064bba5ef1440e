"""SMAUG: sparse masked autoencoder for video-language pre-training (arXiv 2211.11446, ICCV 2023).

From the paper: masked autoencoders on video and text, pixels rebuilt on the hidden patches (MVM, figure 2a); visual
token sparsification inside the video encoder (2b); a text-guided frame selector (2c); order mask, encode visible with
pruning inside, select frames, fuse.

Inferred, as the paper has no public code: the objectives VTC + VTM with hard negatives + MLM and the split into text
and fusion layers follow Singularity, on which it most likely stands; pruning is EViT's CLS-attention keep; the
selector's form, every ratio, rate and weight are options of the config (configs/smaug.py says which of their values
were measured, and on what). Towers are pre-norm ViT and BERT-like stacks.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax import masking
from vlp_jax.models import fusion, layers, sparsify
from vlp_jax.models.decoder import PixelDecoder
from vlp_jax.models.text import TextEncoder, WordHead
from vlp_jax.models.vision import EncodedVideo, VideoEncoder, normalise_pixels, patchify
from vlp_jax.objectives import contrastive, masked_language, masked_vision, matching
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


class Smaug(nnx.Module):
    """The recipe; with `masking.kind='none'`, no pruning, all frames and `loss.mvm=0` it is its dense opponent."""

    def __init__(self, config, tokenizer, *, rngs: nnx.Rngs):
        dtype = layers.compute_dtype(config.compute_dtype)
        self.config = config_lib.freeze(config)
        t = tokenizer
        self.vocab_size, self.mask_id = t.vocab_size, t.mask_id
        self.special_ids = (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id)
        self.words = (t.first_word_id, t.end_word_id)
        m, w = config.model, config.loss
        # As bytes, which are hashable and no array: the table belongs to the code of the step, not to its state.
        self.starts_word = np.asarray(t.starts_word, bool).tobytes() if m.text.whole_words else None
        self.vision = VideoEncoder(config, dtype=dtype, rngs=rngs)
        # Parts exist only where a loss term trains them.
        contrasts, fuses = bool(w.vtc or w.vtm), bool(w.vtm or w.mlm)
        texts = contrasts or fuses
        self.text: Any = TextEncoder(config, self.vocab_size, dtype=dtype, rngs=rngs) if texts else None
        project = lambda width: layers.dense(width, m.projection, ("embed", None), dtype=dtype, rngs=rngs)
        self.video_projection: Any = project(m.vision.width) if contrasts else None
        self.text_projection: Any = project(m.text.width) if contrasts else None
        self.temperature: Any = nnx.Param(jnp.asarray(m.temperature, jnp.float32)) if w.vtc else None
        self.fusion: Any = fusion.Fusion(config, dtype=dtype, rngs=rngs) if fuses else None
        selects = fuses and m.selection.frames
        self.selector: Any = (
            sparsify.FrameSelector(m.vision.width, m.text.width, m.projection, dtype=dtype, rngs=rngs)
            if selects
            else None
        )
        self.match_head: Any = fusion.MatchHead(m.text.width, rngs=rngs) if w.vtm else None
        self.word_head: Any = WordHead(m.text.width, self.vocab_size, dtype=dtype, rngs=rngs) if w.mlm else None
        self.decoder: Any = PixelDecoder(config, dtype=dtype, rngs=rngs) if w.mvm else None

    # -- Training ------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, key: jax.Array, masked: bool = True) -> Outputs:
        """The weighted sum of VTC, VTM, MLM and MVM on one batch; masks are drawn from (key, batch.index).

        With `masked` False the video is seen whole and there is no MVM: unmasked tuning closes the gap between
        training on visible patches and evaluating on whole clips (FLIP, arXiv 2212.00794, section 4.2; inferred here).
        """
        weights = self.config.loss
        keys_B = masking.example_keys(key, batch.index)
        key_of = lambda number: jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
        terms, measured = {}, {}

        # Sample the visible patches; encode them, pruning inside.
        mask = self._sample_mask(key_of(0), batch.video) if masked else None
        video = self.vision(batch.video, mask.visible if mask else None)

        # Encode the words, once whole and once masked.
        hidden_ids, chosen = self._mask_words(key_of(1), batch)
        words, masked_words = self._encode_texts(batch, hidden_ids)

        # Contrast.
        if weights.vtc or weights.vtm:
            v, w = self._project_video(video), self._project_text(words)
            logits = contrastive.similarities(v, w, self._temperature())
            positives = contrastive.same_id(batch.positive_id, batch.valid)
        if weights.vtc:
            terms["vtc"] = contrastive.vtc(logits, positives, batch.valid)
            measured["vtc_recall_at_1"] = contrastive.recall_at_1(logits, positives, batch.valid)
            measured["temperature"] = (self._temperature(), jnp.float32(1))

        # For each pair, score frames by the text and keep the best; fuse the kept tokens with the true, the
        # hard-negative and the masked words. Pairs of one clip lie side by side, so that they stay on its device.
        own = jnp.arange(batch.valid.shape[0], dtype=jnp.int32)
        pairs = []  # (text features, text mask, clip)
        if weights.vtm:
            text_of, has_text = matching.hard_negatives(key_of(2), logits, positives, batch.valid)
            clip_of, has_clip = matching.hard_negatives(key_of(3), logits.T, positives.T, batch.valid)
            negative_words, negative_mask = fusion.gather_rows((words, batch.text_mask), text_of)
            pairs += [
                (words, batch.text_mask, own),
                (negative_words, negative_mask, own),
                (words, batch.text_mask, clip_of),
            ]
        if weights.mlm:
            pairs += [(masked_words, batch.text_mask, own)]
        if pairs:
            fused_BxGxLxD = self._fuse(video, pairs, key_of(4))
        if weights.vtm:
            match = jnp.array([True, False, False])
            counted = jnp.stack([batch.valid, has_text, has_clip], axis=1)
            vtm_logits = self.match_head(fused_BxGxLxD[:, :3, 0].reshape(-1, fused_BxGxLxD.shape[-1]))
            terms["vtm"], measured["vtm_accuracy"] = matching.vtm(
                vtm_logits, jnp.broadcast_to(match, counted.shape).reshape(-1), counted.reshape(-1)
            )
        if weights.mlm:
            logits_V = self.word_head(fused_BxGxLxD[:, -1], self.text.embedding[...])
            terms["mlm"], measured["mlm_accuracy"] = masked_language.mlm(
                logits_V, batch.text_ids, chosen & batch.valid[:, None]
            )

        # Decode the hidden patches.
        if weights.mvm and mask is not None:
            target = self._target(batch.video, mask.hidden)
            terms["mvm"] = masked_vision.mvm(self._decode(video, mask, batch.video), target, batch.valid)

        loss = sum(weights[name] * total / jnp.maximum(count, 1) for name, (total, count) in terms.items())
        return Outputs(loss=loss, terms=terms, measurements=measured)

    # -- Capabilities --------------------------------------------------------------------------------------------------

    def embed_video(self, video) -> jax.Array:
        """uint8 clips -> float32 `[B, E]` of unit length; nothing is masked, pruning stays on."""
        return self._project_video(self.vision(video))

    def embed_text(self, ids, mask) -> jax.Array:
        """int32 ids and mask `[B, L]` -> float32 `[B, E]` of unit length."""
        return self._project_text(self.text(ids, mask))

    def encode_clip(self, video) -> EncodedVideo:
        """uint8 clips -> what `match` needs of them; the tokens from before pruning are left out."""
        video = self.vision(video)
        return dataclasses.replace(video, early=video.early[:, :, :0])

    def encode_text(self, ids, mask) -> jax.Array:
        """int32 ids and mask `[B, L]` -> the word features `[B, L, D]` that `match` needs."""
        return self.text(ids, mask)

    def match(self, clips: EncodedVideo, clip_P, words_PxLxD, mask_PxL) -> jax.Array:
        """Scores P texts, each against the clip `clip_P` of `clips`: float32 logit of "belongs together", `[P]`."""
        frames, gate, _ = self._select(clips, words_PxLxD[:, 0], clip_P, None)
        fused = self.fusion(words_PxLxD, mask_PxL, clips.tokens, clip_P, frames, gate)
        logits = self.match_head(fused[:, 0])
        return logits[:, 1] - logits[:, 0]

    def reconstruct(self, batch: Batch, key: jax.Array) -> Reconstruction:
        """Masks, encodes and rebuilds a batch as training does, and reports every choice made on the way."""
        keys_B = masking.example_keys(key, batch.index)
        mask = self._sample_mask(jax.vmap(jax.random.fold_in, (0, None))(keys_B, 0), batch.video, share=1.0)
        video = self.vision(batch.video, mask.visible)
        own = jnp.arange(batch.valid.shape[0], dtype=jnp.int32)
        text_cls = None if self.selector is None else self.text(batch.text_ids, batch.text_mask)[:, 0]
        frames, _, scores = self._select(video, text_cls, own, None)
        # Under `frame` masking the encoder's slots are only the visible ones: give their numbers in the clip.
        slot_BxTv = mask.visible[:, :, 0] // config_lib.grid(self.config)[1]
        frames = jnp.take_along_axis(slot_BxTv, frames, axis=1)
        return Reconstruction(
            mask=mask, predicted=self._decode(video, mask, batch.video), kept=video.kept, frames=frames, scores=scores
        )

    # -- Steps ---------------------------------------------------------------------------------------------------------

    def _sample_mask(self, keys_B, clips, share: float | None = None):
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

    def _mask_words(self, keys_B, batch):
        text = self.config.model.text
        return masking.mask_words(
            keys_B,
            batch.text_ids,
            batch.text_mask,
            ratio=text.mask_ratio,
            policy=text.mask_policy,
            mask_id=self.mask_id,
            special_ids=self.special_ids,
            words=self.words,
            starts_word_V=None if self.starts_word is None else np.frombuffer(self.starts_word, bool),
        )

    def _encode_texts(self, batch, hidden_ids):
        """Features of the whole and of the masked words; both versions of a text side by side, on one device."""
        if self.text is None:
            return None, None
        if not self.config.loss.mlm:
            return self.text(batch.text_ids, batch.text_mask), None
        if not (self.config.loss.vtc or self.config.loss.vtm):
            return None, self.text(hidden_ids, batch.text_mask)
        b, length = batch.text_ids.shape
        ids = jnp.stack([batch.text_ids, hidden_ids], axis=1).reshape(2 * b, length)
        both = self.text(ids, jnp.repeat(batch.text_mask, 2, axis=0)).reshape(b, 2, length, -1)
        return both[:, 0], both[:, 1]

    def _project_video(self, video: EncodedVideo):
        patches = video.kept.shape[-1]
        pooled = video.cls if self.config.model.vision.pool == "cls" else video.tokens[:, :, 1 : 1 + patches].mean(2)
        return contrastive.unit(self.video_projection(pooled.mean(1)))

    def _project_text(self, words):
        return contrastive.unit(self.text_projection(words[:, 0]))

    def _temperature(self):
        if self.temperature is None:
            return jnp.float32(self.config.model.temperature)
        return contrastive.bounded(self.temperature[...], 0.001, 0.5)

    def _select(self, video, text_PxD, clip_P, keys_P):
        """Frames kept for each pair, the log gates of their tokens, and the scores; all frames without a selector."""
        slots = video.tokens.shape[1]
        if self.selector is None:
            frames = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (clip_P.shape[0], slots))
            return frames, jnp.zeros(frames.shape, jnp.float32), jnp.zeros(frames.shape, jnp.float32)
        keys = fusion.gather_rows(self.selector.keys(video.cls), clip_P)
        scores = self.selector.scores(keys, text_PxD)
        chosen = self.config.model.selection
        return (*sparsify.select_frames(scores, min(chosen.frames, slots), keys_P, chosen.noise), scores)

    def _fuse(self, video, pairs, keys_B):
        texts, masks, clips = (jnp.stack(parts, axis=1) for parts in zip(*pairs))
        b, groups, length, width = texts.shape
        texts, masks, clips = texts.reshape(-1, length, width), masks.reshape(-1, length), clips.reshape(-1)
        keys_P = jax.vmap(lambda key: jax.random.split(key, groups))(keys_B).reshape(-1)
        frames, gate, _ = self._select(video, texts[:, 0], clips, keys_P)
        fused = self.fusion(texts, masks, video.tokens, clips, frames, gate)
        return fused.reshape(b, groups, length, width)

    def _decode(self, video, mask, clips):
        slots, count = config_lib.grid(self.config, clips.shape[1])
        if self.config.model.decoder.source == "survivors":
            tokens, visible = video.tokens[:, :, 1 : 1 + video.kept.shape[-1]], video.kept
        else:
            tokens, visible = video.early, mask.visible
        return self.decoder(tokens, visible, mask.hidden, slots, count)

    def _target(self, video, hidden_BxTxM):
        """Per-patch normalised pixels of the hidden patches, float32 `[B, Th, M, P]`."""
        v = self.config.model.vision
        patches = patchify(video, v.patch_size, v.tubelet)
        patches = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        flat = hidden_BxTxM.reshape(patches.shape[0], -1)
        hidden = jnp.take_along_axis(patches, flat[..., None], axis=1).reshape(*hidden_BxTxM.shape, -1)
        return masked_vision.normalise_patches(normalise_pixels(hidden))
