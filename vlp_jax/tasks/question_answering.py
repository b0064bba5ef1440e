"""Question answering: the question is fused with its clip; a decoder spells the answer, or a classifier picks it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vlp_jax import masking, sharding
from vlp_jax.models import layers
from vlp_jax.models.answer_decoder import AnswerClassifier, AnswerDecoder
from vlp_jax.objectives import answering
from vlp_jax.recipes import recipe
from vlp_jax.types import Batch, Outputs

_CHUNK_BYTES = 2**28  # memory that ranking takes for the answers it scores at once


class QuestionAnswering(nnx.Module):
    """A recipe that is a Fuser, and `head`: the decoder (ALBEF, Singularity) or the classifier.

    Args:
      model: the recipe.
      answers: C, length of the answer list; the classifier's.
      frozen: nothing of the recipe trains, so that no gradient is computed for it.

    Raises:
      UserError: the recipe is no Fuser.
      ValueError: a classifier over no answers.
    """

    def __init__(self, config, model: Any, tokenizer: Any, answers: int, *, frozen: bool, rngs: nnx.Rngs):
        recipe.require(model, recipe.Fuser, "question answering")
        dtype, width = layers.compute_dtype(config.compute_dtype), config.model.text.width
        self.recipe, self.frozen, self.shortlist = model, frozen, config.task.shortlist
        self.decodes = config.task.head == "decoder"
        if not self.decodes and answers < 1:
            raise ValueError(f"a classifier over {answers} answers: expected the length of the answer list")
        self.head: Any = (
            AnswerDecoder(config, tokenizer.vocab_size, dtype=dtype, rngs=rngs)
            if self.decodes
            else AnswerClassifier(width, answers, dtype=dtype, rngs=rngs)
        )

    def loss(self, batch: Batch, key: jax.Array, masked: bool = True) -> Outputs:
        """Cross-entropy of the answer: the sum over its tokens (decoder), or over the list (classifier).

        An answer outside the list (label -1) trains the decoder, and is no example for the classifier. `masked` is
        ignored: the clip is seen whole.
        """
        del masked
        own = sharding.own_rows(batch.valid.shape[0])
        clips = self.recipe.encode_clip(batch.video)
        keys_B = masking.example_keys(key, batch.index)
        fused = self.fuse(clips, own, batch.text_ids, batch.text_mask, keys_B)
        if self.decodes:
            ids, mask = batch.targets["answer_ids"], batch.targets["answer_mask"]
            logits = self.head(ids[:, :-1], fused, batch.text_mask)
            term, right = answering.generation(logits, ids, mask, batch.valid)
            measured = {"answer_token_accuracy": right}
        else:
            term, right = answering.choice(self.head(fused[:, 0]), batch.targets["label"], batch.valid)
            measured = {"answer_accuracy": right}
        return Outputs(loss=term[0] / jnp.maximum(term[1], 1), terms={"answer": term}, measurements=measured)

    def fuse(self, clips, clip_P, ids_PxL, mask_PxL, keys_P=None):
        """Fuses P questions, each with the clip `clip_P` of `clips`: `[P, L, D]`."""
        fused = self.recipe.fuse(clips, clip_P, self.recipe.encode_text(ids_PxL, mask_PxL), mask_PxL, keys_P)
        return jax.lax.stop_gradient(fused) if self.frozen else fused

    def answer(self, clips, clip_P, ids_PxL, mask_PxL, answer_ids_CxLa, answer_mask_CxLa):
        """Scores the answers of the list for P questions, float32 `[P, C]`; see `rank` for the decoder's."""
        fused = self.fuse(clips, clip_P, ids_PxL, mask_PxL)
        if self.decodes:
            return rank(self.head, fused, mask_PxL, answer_ids_CxLa, answer_mask_CxLa, self.shortlist)
        return self.head(fused[:, 0])


def rank(decoder: AnswerDecoder, question_PxLqxD, mask_PxLq, ids_CxLa, mask_CxLa, shortlist: int):
    """Ranks C answers by likelihood (ALBEF, section 4; Singularity's 128).

    The `shortlist` answers whose first token is the likeliest (of equal ones the first in the list) are scored by the
    log-likelihood of all their tokens and [SEP]. They are scored in chunks: logits of all answers are never held.

    Args:
      question_PxLqxD: fused features of the questions.
      ids_CxLa: int32, `[CLS] answer [SEP]` and padding; mask_CxLa is True on tokens.

    Returns:
      float32 `[P, C]`, -inf outside the shortlist.
    """
    ids_CxLa, mask_CxLa = jnp.asarray(ids_CxLa), jnp.asarray(mask_CxLa)
    questions, (count, length) = question_PxLqxD.shape[0], ids_CxLa.shape
    kept = min(shortlist, count)
    start_Px1 = jnp.broadcast_to(ids_CxLa[:1, :1], (questions, 1))  # every answer begins with [CLS]
    logits_PxV = decoder(start_Px1, question_PxLqxD, mask_PxLq)[:, 0]
    _, short_PxK = jax.lax.top_k(jax.nn.log_softmax(logits_PxV, axis=-1)[:, ids_CxLa[:, 1]], kept)

    _, words, width = question_PxLqxD.shape
    bytes_of_one = 4 * questions * ((length - 1) * logits_PxV.shape[-1] + 2 * words * width)
    chunks = -(-kept // max(1, _CHUNK_BYTES // bytes_of_one))
    size = -(-kept // chunks)
    # The last chunk is filled up with answer 0, and what it says is cut off again.
    padded = jnp.pad(short_PxK, ((0, 0), (0, chunks * size - kept)))
    question_R = jnp.repeat(sharding.own_rows(questions), size)

    def score(short_Pxk):
        row = sharding.constrain_batch(short_Pxk.reshape(-1))
        ids, mask = (jnp.take(x, row, axis=0) for x in (ids_CxLa, mask_CxLa))
        logits = decoder(ids[:, :-1], question_PxLqxD, mask_PxLq, question_R)
        return answering.log_likelihood(logits, ids, mask).reshape(questions, size)

    found = jax.lax.map(score, padded.reshape(questions, chunks, size).swapaxes(0, 1))
    found_PxK = found.swapaxes(0, 1).reshape(questions, -1)[:, :kept]
    scores = jnp.full((questions, count), -jnp.inf, jnp.float32)
    return scores.at[jnp.arange(questions)[:, None], short_PxK].set(found_PxK, unique_indices=True)
