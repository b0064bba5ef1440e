"""Multiple choice: which of O texts belongs to the clip, by the matching head; nothing is added to the recipe."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vlp_jax import masking, sharding
from vlp_jax.objectives import answering
from vlp_jax.recipes import recipe
from vlp_jax.types import Batch, Outputs


class MultipleChoice(nnx.Module):
    """A recipe that is a Matcher; `head` is None: a retrieval checkpoint answers as it is (Singularity, MSRVTT-MC).

    Args:
      model: the recipe.

    Raises:
      UserError: the recipe is no Matcher.
    """

    def __init__(self, config, model: Any, tokenizer: Any, answers: int, *, frozen: bool, rngs: nnx.Rngs):
        del config, tokenizer, answers, frozen, rngs  # of the tasks that have a head
        recipe.require(model, recipe.Matcher, "multiple choice")
        self.recipe = model
        self.head: Any = None

    def loss(self, batch: Batch, key: jax.Array, masked: bool = True) -> Outputs:
        """Cross-entropy of the true option over the O matching logits (inferred; the published number is zero-shot).

        `masked` is ignored: the clip is seen whole.
        """
        del masked
        ids, mask = batch.targets["option_ids"], batch.targets["option_mask"]
        b, options, _ = ids.shape
        own = sharding.own_rows(b)
        keys_B = masking.example_keys(key, batch.index)
        keys_P = jax.vmap(lambda k: jax.random.split(k, options))(keys_B).reshape(-1)
        logits_BxO = choose(self.recipe, self.recipe.encode_clip(batch.video), own, ids, mask, keys_P)
        term, right = answering.choice(logits_BxO, batch.targets["label"], batch.valid)
        return Outputs(
            loss=term[0] / jnp.maximum(term[1], 1), terms={"choice": term}, measurements={"choice_accuracy": right}
        )


def choose(matcher: Any, clips, clip_P, ids_PxOxL, mask_PxOxL, keys_R=None):
    """Scores the options of P choices, each against the clip `clip_P` of `clips`: float32 matching logits `[P, O]`.

    Args:
      matcher: a recipe that is a Matcher.
      clip_P: as in `recipes.align_and_fuse.AlignAndFuse.fuse`.
      keys_R: random keys of the P * O pairs for what is drawn in training; None at evaluation.
    """
    p, options, length = ids_PxOxL.shape
    ids, mask = ids_PxOxL.reshape(-1, length), mask_PxOxL.reshape(-1, length)
    words = matcher.encode_text(ids, mask)
    return matcher.match(clips, jnp.repeat(clip_P, options), words, mask, keys_R).reshape(p, options)
