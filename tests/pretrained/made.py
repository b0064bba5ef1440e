"""Made-up weights of published families, of any size."""

import json

import numpy as np
from safetensors import numpy as safetensors_numpy

from vlp_jax.pretrained import importing
from vlp_jax.pretrained.rules import give

OF_BERTS_FORM = ("bert", "roberta", "distilbert")


def shapes_of(layers, width=16, heads=2, hidden=32, vocabulary=64, length=6):
    """Shapes of our text parameters with so many layers; by default those of the tiny config."""
    d = width
    block = {
        "attention/qkv/kernel": (d, 3, heads, d // heads), "attention/qkv/bias": (3, heads, d // heads),
        "attention/out/kernel": (heads, d // heads, d), "attention/out/bias": (d,),
        "norm_attention/scale": (d,), "norm_attention/bias": (d,), "norm_mlp/scale": (d,), "norm_mlp/bias": (d,),
        "mlp/up/kernel": (d, hidden), "mlp/up/bias": (hidden,), "mlp/down/kernel": (hidden, d), "mlp/down/bias": (d,),
    }  # fmt: skip
    head = {
        "transform/kernel": (d, d), "transform/bias": (d,), "norm/scale": (d,), "norm/bias": (d,),
        "bias": (vocabulary,),
    }  # fmt: skip
    return {
        "text/embedding": (vocabulary, d), "text/position": (length, d),
        "text/norm_embedding/scale": (d,), "text/norm_embedding/bias": (d,),
        **{f"text/blocks/{name}": (layers, *shape) for name, shape in block.items()},
        **{f"word_head/{name}": shape for name, shape in head.items()},
    }  # fmt: skip


def weights_of(family, layers, seed=0, **sizes):
    """Our parameters, and the same under the family's names."""
    rng = np.random.Generator(np.random.Philox(seed))
    ours = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes_of(layers, **sizes).items()}
    kind = importing.TEXT[family]
    return ours, give([*kind.embedding, *kind.layer, *kind.optional], ours)


def bert(path, layers, **sizes):
    """A Hugging Face folder of a BERT with a vocabulary of letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    _, theirs = weights_of("bert", layers, vocabulary=len(pieces), **sizes)
    made = folder(path, "bert", theirs, hidden_size=sizes["width"], intermediate_size=sizes["hidden"])
    (made / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    return made


def folder(path, family, theirs, **changes):
    """Writes a Hugging Face folder; `changes` are of its config.json."""
    path.mkdir()
    width = {"bert": "hidden_size", "roberta": "hidden_size", "distilbert": "dim"}[family]
    heads = "n_heads" if family == "distilbert" else "num_attention_heads"
    hidden = "hidden_dim" if family == "distilbert" else "intermediate_size"
    config = {"model_type": family, width: 16, heads: 2, hidden: 32, "layer_norm_eps": 1e-12, **changes}
    (path / "config.json").write_text(json.dumps(config))
    safetensors_numpy.save_file(theirs, path / "model.safetensors")
    return path
