"""What SMAUG throws away besides the masked patches: tokens that the CLS ignores, frames that the text ignores.

Both keep a static number of tokens, chosen by `top_k`, and gather them.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vlp_jax.masking import gather_tokens
from vlp_jax.models import layers


def cls_scores(q_cls_BxTxAxDh, k_BxTxSxAxDh, own_frame_only: bool, bias=None):
    """How much the CLS token of each frame attends to that frame's tokens (EViT, section 3.2).

    a_s = mean over heads of softmax(q_cls K / sqrt(Dh))_s.

    Args:
      k_BxTxSxAxDh: keys of every token of each frame, the CLS itself first.
      own_frame_only: normalise over the frame's own tokens (per-frame attention), else over the whole clip (joint).
      bias: float32, broadcastable to `[B, T, A, S]`, what the attention adds to the CLS's logits (`own_frame_only`);
        None for nothing.

    Returns:
      float32 `[B, T, S]`; no gradient flows through it.
    """
    q, k = jax.lax.stop_gradient((q_cls_BxTxAxDh, k_BxTxSxAxDh))
    q = q * q.shape[-1] ** -0.5
    if own_frame_only:
        logits = jnp.einsum("btad,btsad->btas", q, k, preferred_element_type=jnp.float32)
        if bias is not None:
            logits = logits + jax.lax.stop_gradient(bias)
        return jax.nn.softmax(logits, axis=-1).mean(2)
    logits = jnp.einsum("btad,busad->btaus", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits.reshape(*logits.shape[:3], -1), axis=-1).reshape(logits.shape).mean(2)
    return jnp.einsum("btts->bts", weights)


def prune_tokens(x_BxTxSxD, scores_BxTxS, kept: int, fused: bool, had_fused: bool):
    """Keeps the CLS and the `kept` patch tokens of highest score in each frame, in their order.

    Args:
      x_BxTxSxD: `[CLS, patches..., fused token if had_fused]` of each frame.
      scores_BxTxS: from `cls_scores`, of the same tokens.
      kept: patch tokens that survive.
      fused: append one token, the mean of the dropped ones weighted by their scores (after EViT, whose fused
        token is the plain weighted sum, not normalised; a fused token
        that was there before counts among the dropped, so that there is never more than one).
      had_fused: whether the last token is a fused one.

    Returns:
      `(x_BxTxS'xD, index_BxTxK)`: the tokens, and which of the patch tokens survive.
    """
    patches = slice(1, -1 if had_fused else None)
    _, index = jax.lax.top_k(scores_BxTxS[..., patches], kept)
    index = jnp.sort(index, axis=-1)
    survivors = gather_tokens(x_BxTxSxD[..., patches, :], index)
    parts = [x_BxTxSxD[..., :1, :], survivors]
    if fused:
        # Weights of everything but the CLS, with zeros where a token survives.
        weight = scores_BxTxS[..., 1:]
        alive = (index[..., None, :] == jnp.arange(weight.shape[-1])[:, None]).any(-1)
        weight = jnp.where(alive, 0.0, weight)
        weight = weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-30)  # 0 where nothing is dropped
        parts.append(jnp.einsum("bts,btsd->btd", weight.astype(x_BxTxSxD.dtype), x_BxTxSxD[..., 1:, :])[..., None, :])
    return jnp.concatenate(parts, axis=-2), index


class FrameSelector(nnx.Module):
    """Text-guided temporal selection: scores each frame against a text and keeps the best few (SMAUG, figure 2c).

    The paper's form of the scorer is not public; here it is a scaled dot product between a projection of the text's
    CLS and one of each frame's CLS. `top_k` has no gradient, so the choice is made soft where the kept frames are
    used: log p of each kept frame, p the softmax of the scores over the kept ones, is added to the logits of the
    cross-attention to its tokens. The gradient to the scorer is then the exact gradient of that attention: frames that
    help are attended more and score higher. In training, Gumbel noise on the scores lets every frame be tried, which
    makes the choice a sample without replacement from the softmax.
    """

    def __init__(self, frame_width: int, text_width: int, width: int, *, dtype, rngs: nnx.Rngs):
        self.frame = layers.dense(frame_width, width, ("embed", None), dtype=dtype, rngs=rngs)
        self.text = layers.dense(text_width, width, ("embed", None), dtype=dtype, rngs=rngs)

    def keys(self, cls_BxTxD):
        """Frame side of the score, once for each clip: `[B, T, width]`."""
        return self.frame(cls_BxTxD)

    def scores(self, keys_PxTxE, text_PxD):
        """Scores of frames for (clip, text) pairs, float32 `[P, T]`."""
        query_PxE = self.text(text_PxD) * keys_PxTxE.shape[-1] ** -0.5
        return layers.einsum_to_float32("pte,pe->pt", keys_PxTxE, query_PxE)


def select_frames(scores_PxT, kept: int, keys_P=None, noise: float = 0.0):
    """Keeps the `kept` frames of highest score, in temporal order.

    Args:
      scores_PxT: float32, from `FrameSelector.scores`.
      keys_P: one random key per pair, for Gumbel noise of scale `noise`; None takes the best.

    Returns:
      `(frames_PxKt, log_gate_PxKt)`: indices of the kept frames and log softmax of their scores.
    """
    choose = jax.lax.stop_gradient(scores_PxT)
    if keys_P is not None and noise:
        choose = choose + noise * jax.vmap(lambda key: jax.random.gumbel(key, choose.shape[1:]))(keys_P)
    _, frames_PxKt = jax.lax.top_k(choose, kept)
    frames_PxKt = jnp.sort(frames_PxKt, axis=-1)
    one_hot_PxKtxT = frames_PxKt[..., None] == jnp.arange(scores_PxT.shape[-1])
    kept_scores = jnp.einsum("pkt,pt->pk", one_hot_PxKtxT.astype(scores_PxT.dtype), scores_PxT)
    return frames_PxKt, jax.nn.log_softmax(kept_scores, axis=-1)
