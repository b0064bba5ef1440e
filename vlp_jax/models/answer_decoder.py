"""The answer decoder: words of an answer, one after another, from a question that has seen its clip (ALBEF, section 4;
Singularity follows it).

Its blocks have the structure and the names of the fusion's, and start from them where the widths agree; the embeddings
and the word head start from the text encoder's and the MLM head's (`tasks.task.origins`).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vlp_jax import sharding
from vlp_jax.models import attention, fusion, layers
from vlp_jax.models.text import WordHead, final_norm, first_norm


class AnswerDecoder(nnx.Module):
    """Causal self-attention over the answer's tokens, cross-attention to the fused question, MLP, word head.

    Args:
      config: the whole config; `model.text`, `model.fusion` and `task.max_answer_tokens` are read.
      vocab_size: V, from the tokenizer.
    """

    def __init__(self, config, vocab_size: int, *, dtype, rngs: nnx.Rngs):
        t, m = config.model.text, config.model
        self.loop, self.dtype = layers.loop(config, dtype), dtype
        normal = lambda *shape: jax.random.normal(rngs.params(), shape) * 0.02
        self.embedding = nnx.Param(normal(vocab_size, t.width), out_sharding=("vocabulary", "embed"))
        self.position = nnx.Param(normal(config.task.max_answer_tokens, t.width), out_sharding=(None, "embed"))
        self.norm_embedding = first_norm(t, dtype=dtype, rngs=rngs)

        def make(r):
            # What is looked at are fused words, of the text's width, where the fusion looks at the video's tokens.
            return fusion.FusionBlock(t, t.width, kernel=m.attention_kernel, dtype=dtype, rngs=r)

        self.blocks = layers.stack(make, m.fusion.layers, rngs)
        self.norm = final_norm(t, dtype=dtype, rngs=rngs)
        self.word_head = WordHead(t, vocab_size, dtype=dtype, rngs=rngs)

    def __call__(self, ids_RxL, question_PxLqxD, mask_PxLq, question_R=None):
        """Scores the word after each token, given the tokens up to it.

        Args:
          ids_RxL: int32, R beginnings of answers, `[CLS]` first; L up to `task.max_answer_tokens`. What follows an
            answer's end has no influence on it.
          question_PxLqxD: fused features of P questions.
          mask_PxLq: bool, True on the questions' tokens.
          question_R: int32, the question that each answer belongs to, by its number among those of the answer's own
            device; None where R = P and each has its own.

        Returns:
          float32 logits `[R, L, V]`.
        """
        length = ids_RxL.shape[1]
        x = self.embedding[...][ids_RxL] + self.position[...][:length]
        x = sharding.constrain_batch(self.norm_embedding(x.astype(self.dtype)))
        causal_bias = attention.causal_bias(length)
        question_bias = _rows(attention.padding_bias(mask_PxLq), question_R)

        def body(block, x):
            # Projected once for each question, however many answers look at it.
            kv = _rows(block.cross_attention.keys_values(question_PxLqxD), question_R)
            return block(x, causal_bias, sharding.constrain_batch(kv), question_bias)

        x = layers.scan(self.blocks, body, x, self.loop)
        return self.word_head(self.norm(sharding.constrain_batch(x)), self.embedding[...])


class AnswerClassifier(nnx.Module):
    """Scores a fixed list of C answers from the fused CLS: affine to 2 D, GELU, norm, affine, as in UNITER and LXMERT.

    Args:
      answers: C.
    """

    def __init__(self, width: int, answers: int, *, dtype, rngs: nnx.Rngs):
        self.hidden = layers.dense(width, 2 * width, ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.norm_hidden = layers.norm(2 * width, dtype=dtype, rngs=rngs)
        self.out = layers.dense(2 * width, answers, ("mlp", None), dtype=jnp.float32, rngs=rngs)

    def __call__(self, cls_PxD):
        """`[P, D]` -> float32 logits `[P, C]`."""
        x = self.norm_hidden(layers.gelu(self.hidden(cls_PxD)))
        return self.out(x.astype(jnp.float32))


def _rows(x, index):
    return x if index is None else sharding.take_near(x, index)
