"""The text encoder: word embeddings and a stack of blocks; and the head that names masked words."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vlp_jax.models import attention, layers
from vlp_jax.models.blocks import Block
from vlp_jax.sharding import constrain_batch


class TextEncoder(nnx.Module):
    """Embeds and encodes token ids; position 0 is the CLS.

    Args:
      config: the whole config; `model.text` and `input.max_text_tokens` are read.
      vocab_size: V, from the tokenizer.
    """

    def __init__(self, config, vocab_size: int, *, dtype, rngs: nnx.Rngs):
        t = config.model.text
        self.loop, self.dtype = layers.loop(config, dtype), dtype
        normal = lambda *shape: jax.random.normal(rngs.params(), shape) * 0.02
        self.embedding = nnx.Param(normal(vocab_size, t.width), out_sharding=("vocabulary", "embed"))
        self.position = nnx.Param(normal(config.input.max_text_tokens, t.width), out_sharding=(None, "embed"))
        self.norm_embedding = first_norm(t, dtype=dtype, rngs=rngs)
        self.causal = t.causal
        form: dict[str, Any] = {
            "place": t.norm,
            "epsilon": t.norm_epsilon,
            "activation": t.activation,
            "adapter": layers.adapter_width(config, "text"),
        }

        def make(r):
            kernel = config.model.attention_kernel
            return Block(t.width, t.heads, t.mlp_ratio, **form, kernel=kernel, dtype=dtype, rngs=r)

        self.blocks = layers.stack(make, t.layers, rngs)
        self.norm = final_norm(t, dtype=dtype, rngs=rngs)

    def __call__(self, ids_BxL, mask_BxL):
        """int32 ids and their mask -> normalised features `[B, L, D]`."""
        x = self.embedding[...][ids_BxL] + self.position[...][: ids_BxL.shape[1]]
        x = constrain_batch(self.norm_embedding(x.astype(self.dtype)))
        bias = attention.padding_bias(mask_BxL)
        bias = bias + attention.causal_bias(ids_BxL.shape[1]) if self.causal else bias
        x = layers.scan(self.blocks, lambda block, x: block(x, bias), x, self.loop)
        return self.norm(constrain_batch(x))


def pooled(words_BxLxD, mask_BxL, how: str):
    """`[B, D]`: what stands for a text, its first piece (`cls`) or its last one (`last`)."""
    if how == "cls":
        return words_BxLxD[:, 0]
    last_B = jnp.maximum(mask_BxL.sum(1) - 1, 0)
    return jnp.take_along_axis(words_BxLxD, last_B[:, None, None], axis=1)[:, 0]


def _as_it_is(x):
    return x


def first_norm(t, *, dtype, rngs: nnx.Rngs) -> Any:
    """The norm of the embeddings, where `config.model.text` (`t`) asks for one."""
    return layers.norm(t.width, epsilon=t.norm_epsilon, dtype=dtype, rngs=rngs) if t.norm_embedding else _as_it_is


def final_norm(t, *, dtype, rngs: nnx.Rngs) -> Any:
    """The norm after a stack of text blocks; what post-norm blocks give is normalised already.

    Args:
      t: `config.model.text`.
    """
    if t.norm == "post":
        return _as_it_is
    return layers.norm(t.width, epsilon=t.norm_epsilon, dtype=dtype, rngs=rngs)


class WordHead(nnx.Module):
    """BERT's masked-language head: affine, activation, norm, then the (tied) embedding matrix and a bias.

    Args:
      t: `config.model.text`.
      vocab_size: V.
    """

    def __init__(self, t, vocab_size: int, *, dtype, rngs: nnx.Rngs):
        self.activation = t.activation
        self.transform = layers.dense(t.width, t.width, ("embed", None), dtype=dtype, rngs=rngs)
        self.norm = layers.norm(t.width, epsilon=t.norm_epsilon, dtype=dtype, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((vocab_size,)), out_sharding=("vocabulary",))

    def __call__(self, x, embedding_VxD):
        """`[..., D]` -> float32 logits `[..., V]`."""
        x = self.norm(layers.ACTIVATIONS[self.activation](self.transform(x)))
        logits = layers.einsum_to_float32("...d,vd->...v", x, embedding_VxD.astype(x.dtype))
        return logits + self.bias[...]
