"""What SMAUG, Singularity and VindLU share: a video encoder and a text encoder aligned by contrast, then fusion.

The line of ALBEF (arXiv 2107.07651): texts and clips are embedded apart and contrasted (VTC); fusion layers then let
the words look at the video, to tell matching pairs from hard negatives (VTM) and to fill in hidden words (MLM). A
recipe's `loss` calls these steps in its own order; nothing here calls them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax import masking, sharding
from vlp_jax.models import fusion, layers
from vlp_jax.models.precomputed import PrecomputedEncoder
from vlp_jax.models.text import TextEncoder, WordHead
from vlp_jax.models.text import pooled as pooled_text
from vlp_jax.models.vision import EncodedVideo, VideoEncoder
from vlp_jax.objectives import contrastive, masked_language, matching
from vlp_jax.types import Batch, Outputs, UserError


@dataclasses.dataclass
class Words:
    """A batch's texts, encoded.

    Attributes:
      whole: `[B, L, D]`, None where no term needs it.
      masked: `[B, L, D]`, of the texts with words hidden; None without MLM.
      chosen: bool `[B, L]`, the words that are hidden and to be named.
    """

    whole: Any
    masked: Any
    chosen: Any


@dataclasses.dataclass
class Losses:
    """Some of the terms of a loss and what was measured on the way, name -> `(sum, count)`."""

    terms: dict[str, Any] = dataclasses.field(default_factory=dict)
    measurements: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Contrast(Losses):
    """The contrastive term, and what hard negatives are drawn from.

    Attributes:
      pairs: similarities over the temperature, rows are videos.
    """

    pairs: contrastive.Similarities | None = None


class AlignAndFuse(nnx.Module):
    """The shared parts; they exist only where a loss term trains them."""

    # Knobs that a recipe has no use for, with the one value that says so; `recipe.build` refuses any other.
    FIXED: ClassVar[dict[str, Any]] = {}

    def __init__(self, config, tokenizer, *, rngs: nnx.Rngs):
        dtype = layers.compute_dtype(config.compute_dtype)
        self.config = config_lib.freeze(config)
        t = tokenizer
        self.vocab_size, self.mask_id = t.vocab_size, t.mask_id
        m, w = config.model, config.loss
        if w.mlm and t.mask_id is None:
            raise UserError(
                f"config.loss.mlm = {w.mlm}, but the tokenizer has no piece for [MASK] (CLIP's and GPT-2's have none): "
                "expected one that has, such as RoBERTa's; set config.loss.mlm=0, or another config.input.tokenizer"
            )
        self.special_ids = tuple(i for i in (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id) if i is not None)
        self.words = (t.first_word_id, t.end_word_id)
        # As bytes, which are hashable and no array: the table belongs to the code of the step, not to its state.
        self.starts_word = np.asarray(t.starts_word, bool).tobytes() if m.text.whole_words and w.mlm else None
        encoder = PrecomputedEncoder if config.input.features.width else VideoEncoder
        self.vision: Any = encoder(config, dtype=dtype, rngs=rngs)
        contrasts, fuses = bool(w.vtc or w.vtm), bool(w.vtm or w.mlm)
        texts = contrasts or fuses
        self.text: Any = TextEncoder(config, self.vocab_size, dtype=dtype, rngs=rngs) if texts else None
        project = lambda width: layers.dense(width, m.projection, ("embed", None), dtype=dtype, rngs=rngs)
        self.video_projection: Any = project(m.vision.width) if contrasts else None
        self.text_projection: Any = project(m.text.width) if contrasts else None
        self.temperature: Any = nnx.Param(jnp.asarray(m.temperature, jnp.float32)) if w.vtc else None
        self.fusion: Any = fusion.Fusion(config, dtype=dtype, rngs=rngs) if fuses else None
        self.match_head: Any = fusion.MatchHead(m.text.width, rngs=rngs) if w.vtm else None
        self.word_head: Any = WordHead(m.text, self.vocab_size, dtype=dtype, rngs=rngs) if w.mlm else None

    # -- Steps of a loss -----------------------------------------------------------------------------------------------

    def key_of(self, batch: Batch, key: jax.Array) -> Callable[[int], jax.Array]:
        """Returns number -> one random key per example, of (key, batch.index, number)."""
        keys_B = masking.example_keys(key, batch.index)
        return lambda number: jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)

    def read(self, batch: Batch, keys_B) -> Words:
        """Encodes the words, once whole and once masked; both versions of a text side by side, on one device."""
        w = self.config.loss
        if self.text is None:
            return Words(None, None, None)
        if not w.mlm:
            return Words(self.text(batch.text_ids, batch.text_mask), None, None)
        text = self.config.model.text
        hidden_ids, chosen = masking.mask_words(
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
        if not (w.vtc or w.vtm):
            return Words(None, self.text(hidden_ids, batch.text_mask), chosen)
        b, length = batch.text_ids.shape
        ids = jnp.stack([batch.text_ids, hidden_ids], axis=1).reshape(2 * b, length)
        both = self.text(ids, jnp.repeat(batch.text_mask, 2, axis=0)).reshape(b, 2, length, -1)
        return Words(both[:, 0], both[:, 1], chosen)

    def taught(self, teacher: Any, video: EncodedVideo, batch: Batch) -> contrastive.Similarities:
        """The teacher's similarities of the batch, for `contrast`; at this model's temperature, as in ALBEF's code.

        Args:
          teacher: this model with the moving average of its parameters.
          video: the batch's clips, encoded by the teacher.
        """
        words = teacher.text(batch.text_ids, batch.text_mask)
        return teacher._similarities(video, words, self._temperature(), batch)

    def contrast(
        self, video: EncodedVideo, words: Words, batch: Batch, taught: contrastive.Similarities | None = None
    ) -> Contrast:
        """VTC: the clips against the texts of the whole batch; `taught` has a share of the targets, `loss.distill`."""
        out, w = Contrast(), self.config.loss
        if not (w.vtc or w.vtm):
            return out
        temperature = self._temperature()
        out.pairs = self._similarities(video, words.whole, temperature, batch)
        if w.vtc:
            out.terms["vtc"] = contrastive.vtc(out.pairs, taught, w.distill)
            out.measurements["vtc_recall_at_1"] = contrastive.recall_at_1(out.pairs)
            out.measurements["temperature"] = (temperature, jnp.float32(1))
        return out

    def match_and_complete(self, video: EncodedVideo, words: Words, contrast: Contrast, batch: Batch, key_of) -> Losses:
        """VTM and MLM: fuses each clip with its true, its hard-negative and its masked text, and its text with a hard
        negative clip. Pairs of one clip lie side by side on its device, to which the negatives are sent, once."""
        w, out = self.config.loss, Losses()
        own = sharding.own_rows(batch.valid.shape[0])
        pairs = []  # (text features, text mask, clip)
        if w.vtm:
            assert contrast.pairs is not None  # `contrast` makes them for VTM, too
            text_of, has_text = matching.hard_negatives(key_of(2), contrast.pairs, w.vtm_group)
            clip_of, has_clip = matching.hard_negatives(key_of(3), contrast.pairs.T, w.vtm_group)
            negative_words, negative_mask = sharding.take_any((words.whole, batch.text_mask), text_of, w.vtm_group)
            video, clip_of = sharding.bring_behind(_for_fusion(video), clip_of, w.vtm_group)
            pairs += [
                (words.whole, batch.text_mask, own),
                (negative_words, negative_mask, own),
                (words.whole, batch.text_mask, clip_of),
            ]
        if w.mlm:
            pairs += [(words.masked, batch.text_mask, own)]
        if not pairs:
            return out
        texts, masks, clips = (jnp.stack(parts, axis=1) for parts in zip(*pairs))
        b, groups, length, width = texts.shape
        keys_P = jax.vmap(lambda key: jax.random.split(key, groups))(key_of(4)).reshape(-1)
        fused = self.fuse(
            video, clips.reshape(-1), texts.reshape(-1, length, width), masks.reshape(-1, length), keys_P
        ).reshape(b, groups, length, width)
        if w.vtm:
            match = jnp.array([True, False, False])
            counted = jnp.stack([batch.valid, has_text, has_clip], axis=1)
            out.terms["vtm"], out.measurements["vtm_accuracy"] = matching.vtm(
                self.match_head(fused[:, :3, 0].reshape(-1, width)),
                jnp.broadcast_to(match, counted.shape).reshape(-1),
                counted.reshape(-1),
            )
        if w.mlm:
            logits_V = self.word_head(fused[:, -1], self.text.embedding[...])
            out.terms["mlm"], out.measurements["mlm_accuracy"] = masked_language.mlm(
                logits_V, batch.text_ids, words.chosen & batch.valid[:, None]
            )
        return out

    def total(self, *parts: Losses) -> Outputs:
        """The weighted sum of the mean terms."""
        terms = {name: pair for part in parts for name, pair in part.terms.items()}
        measured = {name: pair for part in parts for name, pair in part.measurements.items()}
        weights = self.config.loss
        loss = sum(weights[name] * total / jnp.maximum(count, 1) for name, (total, count) in terms.items())
        return Outputs(loss=loss, terms=terms, measurements=measured)

    # -- Capabilities --------------------------------------------------------------------------------------------------

    def encode_video(self, video) -> EncodedVideo:
        """uint8 clips -> tokens of every frame; nothing is masked, pruning stays on."""
        return self.vision(video)

    def embed_video(self, video) -> jax.Array:
        """uint8 clips -> float32 `[B, E]` of unit length at most; dot products with `embed_text` are the similarity."""
        return self._embed(self.encode_video(video))

    def embed_clip(self, clips: EncodedVideo) -> jax.Array:
        """As `embed_video`, of clips that `encode_clip` has encoded."""
        return self._embed(clips)

    def embed_text(self, ids, mask) -> jax.Array:
        """int32 ids and mask `[B, L]` -> float32 `[B, E]` of unit length."""
        return self._embed_words(self.text(ids, mask), mask)

    def encode_clip(self, video) -> EncodedVideo:
        """uint8 clips -> what `fuse` needs of them; the tokens from before pruning are left out."""
        return _for_fusion(self.encode_video(video))

    def encode_text(self, ids, mask) -> jax.Array:
        """int32 ids and mask `[B, L]` -> the word features `[B, L, D]` that `fuse` needs."""
        return self.text(ids, mask)

    def fuse(self, clips: EncodedVideo, clip_P, words_PxLxD, mask_PxL, keys_P=None) -> jax.Array:
        """Fuses P texts, each with the clip `clip_P` of `clips`: `[P, L, D]`.

        Args:
          clip_P: int32, numbers among the clips of the text's own device (`sharding.bring` makes such numbers).
          keys_P: random keys for what is drawn in training; None at evaluation.
        """
        frames, gate, _ = self.select(clips, self.sentence(words_PxLxD, mask_PxL), clip_P, keys_P)
        return self.fusion(words_PxLxD, mask_PxL, clips.tokens, clip_P, frames, gate)

    def match(self, clips: EncodedVideo, clip_P, words_PxLxD, mask_PxL, keys_P=None) -> jax.Array:
        """Scores P texts, each against the clip `clip_P` of `clips`: float32 logit of "belongs together", `[P]`.

        Args:
          clip_P, keys_P: as in `fuse`.
        """
        logits = self.match_head(self.fuse(clips, clip_P, words_PxLxD, mask_PxL, keys_P)[:, 0])
        return logits[:, 1] - logits[:, 0]

    def sentence(self, words_BxLxD, mask_BxL) -> jax.Array:
        """`[B, D]`, what stands for a whole text, of what `encode_text` gives."""
        return pooled_text(words_BxLxD, mask_BxL, self.config.model.text.pool)

    def select(self, clips: EncodedVideo, text_PxD, clip_P, keys_P):
        """Frames for each pair, the log gates of their tokens, and the frames' scores: here all of them, ungated."""
        del text_PxD, keys_P
        slots = clips.tokens.shape[1]
        frames = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (clip_P.shape[0], slots))
        return frames, jnp.zeros(frames.shape, jnp.float32), jnp.zeros(frames.shape, jnp.float32)

    # -- Helpers -------------------------------------------------------------------------------------------------------

    def _similarities(self, video: EncodedVideo, words_BxLxD, temperature, batch: Batch) -> contrastive.Similarities:
        return contrastive.Similarities(
            self._embed(video),
            self._embed_words(words_BxLxD, batch.text_mask),
            temperature,
            batch.positive_id,
            batch.valid,
            self.config.similarity_rows,
        )

    def _embed(self, video: EncodedVideo):
        return self._project(video.pooled(self.config.model.vision.pool))

    def _project(self, pooled_BxTxD):
        if self.config.model.similarity == "frames":
            return contrastive.unit(self.video_projection(pooled_BxTxD)).mean(1)
        return contrastive.unit(self.video_projection(pooled_BxTxD.mean(1)))

    def _embed_words(self, words_BxLxD, mask_BxL):
        return contrastive.unit(self.text_projection(self.sentence(words_BxLxD, mask_BxL)))

    def _temperature(self):
        if self.temperature is None:
            return jnp.float32(self.config.model.temperature)
        return contrastive.bounded(self.temperature[...], 0.001, 0.5)


def _for_fusion(video: EncodedVideo) -> EncodedVideo:
    """Without the tokens from before pruning, and without what each pruning left."""
    return dataclasses.replace(video, early=video.early[:, :, :0], survivors=())
