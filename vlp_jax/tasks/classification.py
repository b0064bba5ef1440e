"""Classification of clips: one affine map on the normalised mean of the frames' features, trained with or without the
encoder (fine-tuning, linear probe)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vlp_jax.models import layers
from vlp_jax.objectives import answering
from vlp_jax.recipes import recipe
from vlp_jax.types import Batch, Outputs


class Classification(nnx.Module):
    """A recipe that is a FeatureEncoder, and `head`, an affine map to the classes.

    A linear probe is `config.optimizer.trainable = ("head/.*",)`: as nothing of the recipe trains then, no gradient is
    computed for it.

    Args:
      model: the recipe.
      answers: C, the number of classes.
      frozen: nothing of the recipe trains.

    Raises:
      UserError: the recipe is no FeatureEncoder.
      ValueError: no classes.
    """

    def __init__(self, config, model: Any, tokenizer: Any, answers: int, *, frozen: bool, rngs: nnx.Rngs):
        del tokenizer
        recipe.require(model, recipe.FeatureEncoder, "classification")
        if answers < 1:
            raise ValueError(f"a classifier over {answers} classes: expected their number")
        v = config.model.vision
        self.recipe, self.frozen, self.pool = model, frozen, v.pool
        self.head = layers.dense(v.width, answers, ("embed", None), dtype=jnp.float32, rngs=rngs)

    def loss(self, batch: Batch, key: jax.Array, masked: bool = True) -> Outputs:
        """Cross-entropy over the classes; a clip of an unknown class (label -1) is no example. Nothing is drawn.

        `masked` is ignored: the clip is seen whole.
        """
        del key, masked
        term, right = answering.choice(self.classify(batch.video), batch.targets["label"], batch.valid)
        return Outputs(
            loss=term[0] / jnp.maximum(term[1], 1), terms={"class": term}, measurements={"class_accuracy": right}
        )

    def features(self, video):
        """uint8 clips -> float32 `[B, D]`: mean over the frames of `model.vision.pool`, then to mean 0 and variance 1
        over D (a norm without parameters, so that the probe is linear and its learning rate fits every encoder)."""
        x = self.recipe.encode_video(video).pooled(self.pool).astype(jnp.float32).mean(1)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
        return jax.lax.stop_gradient(x) if self.frozen else x

    def classify(self, video):
        """uint8 clips -> float32 logits `[B, C]`."""
        return self.head(self.features(video))
