"""The encoder of clips that come as precomputed features: of whole frames or windows (S3D, CLIP), or of regions.

Tokens are laid out as the video encoder's, `[B, T, S, D]`. The CLS of a slot begins as the mean of its projected
features, as in CLIP's attention pooling, so that it says something even without a block: S = 1 + R. A slot of one
feature has no CLS, S = 1.
"""

import jax.numpy as jnp
from flax import nnx

from vlp_jax.masking import all_visible
from vlp_jax.models import layers
from vlp_jax.models.vision import ClipEncoder, EncodedVideo
from vlp_jax.sharding import constrain_batch


class TwoLayerProjection(nnx.Module):
    """Affine map, GELU, norm, affine map: `[.., inputs] -> [.., D]` (VLM, arXiv 2105.09996)."""

    def __init__(self, inputs: int, width: int, *, epsilon: float, dtype, rngs: nnx.Rngs):
        self.up = layers.dense(inputs, width, (None, "mlp"), dtype=dtype, rngs=rngs)
        self.norm = layers.norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.down = layers.dense(width, width, ("mlp", "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.down(self.norm(layers.gelu(self.up(x))))


class PrecomputedEncoder(ClipEncoder):
    """Projection of features, positions over time, and `model.vision.layers` blocks, none of them where that is 0.

    Where regions have boxes, an affine map of these is added to that of the feature, as DemoVLP has it. The numbers are
    taken as they are stored, in bfloat16 where the model computes in it: best as shares of the picture's size.

    Args:
      config: the whole config; `model.vision` and `input.features` are read.
    """

    def __init__(self, config, *, dtype, rngs: nnx.Rngs):
        v, f = config.model.vision, config.input.features
        self.feature_width, self.has_regions = f.width, bool(f.regions)
        self.embed = (
            TwoLayerProjection(f.width, v.width, epsilon=v.norm_epsilon, dtype=dtype, rngs=rngs)
            if v.feature_projection == "mlp"
            else layers.dense(f.width, v.width, (None, "embed"), dtype=dtype, rngs=rngs)
        )
        self.embed_boxes = layers.dense(f.boxes, v.width, (None, "embed"), dtype=dtype, rngs=rngs) if f.boxes else None
        super().__init__(config, side=0, dtype=dtype, rngs=rngs)

    def __call__(self, features_BxTxRxE, visible=None) -> EncodedVideo:
        """Encodes clips; nothing is hidden and nothing is pruned.

        Args:
          features_BxTxRxE: float32, E = `input.features.width` numbers of each feature, then those of its box.
          visible: None, as nothing of features is masked.

        Raises:
          ValueError: something is masked.
        """
        if visible is not None:
            raise ValueError("features are not masked: expected visible=None")
        b, slots, regions, _ = features_BxTxRxE.shape
        x = self.embed(features_BxTxRxE[..., : self.feature_width].astype(self.dtype))
        if self.embed_boxes is not None:
            x = x + self.embed_boxes(features_BxTxRxE[..., self.feature_width :].astype(self.dtype))
        if self.has_regions:
            x = jnp.concatenate([x.mean(2, keepdims=True), x], axis=2)
        x = constrain_batch(x + self._time_positions(slots)[:, None].astype(self.dtype))
        if self.blocks is not None:
            x = self._run(*nnx.split(self.blocks), x)
        tokens = self.norm(x)
        return EncodedVideo(
            tokens=tokens, kept=all_visible(b, slots, regions), early=tokens, lead=int(self.has_regions)
        )
