"""BERT (arXiv 1810.04805) as transformers stores it, MiniLM's and others of its form included, and as Google's own
weights are named there (gamma and beta)."""

from vlp_jax.pretrained.family import TextFamily
from vlp_jax.pretrained.rules import LINEAR, OUT, QKV, QKV_BIAS, Rule, layer_rules, positions

_layer = layer_rules("text", "encoder.layer")

LAYER = (
    _layer(
        "attention/qkv/kernel",
        *("attention.self.query.weight", "attention.self.key.weight", "attention.self.value.weight"),
        how=QKV,
    ),
    _layer(
        "attention/qkv/bias",
        *("attention.self.query.bias", "attention.self.key.bias", "attention.self.value.bias"),
        how=QKV_BIAS,
    ),
    _layer("attention/out/kernel", "attention.output.dense.weight", how=OUT),
    _layer("attention/out/bias", "attention.output.dense.bias"),
    _layer("norm_attention/scale", "attention.output.LayerNorm.weight"),
    _layer("norm_attention/bias", "attention.output.LayerNorm.bias"),
    _layer("mlp/up/kernel", "intermediate.dense.weight", how=LINEAR),
    _layer("mlp/up/bias", "intermediate.dense.bias"),
    _layer("mlp/down/kernel", "output.dense.weight", how=LINEAR),
    _layer("mlp/down/bias", "output.dense.bias"),
    _layer("norm_mlp/scale", "output.LayerNorm.weight"),
    _layer("norm_mlp/bias", "output.LayerNorm.bias"),
)

FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "tie_word_embeddings": True}
DEFAULTS = {
    "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072,
    "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip
KNOBS = {"model.text.norm": "post", "model.text.norm_embedding": True, "model.text.causal": False}

FAMILY = TextFamily(
    model_type="bert",
    prefixes=("bert.",),
    embedding=(
        Rule("text/embedding", ("embeddings.word_embeddings.weight",)),
        Rule(
            "text/position",
            ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"),
            positions(types=2),
        ),
        Rule("text/norm_embedding/scale", ("embeddings.LayerNorm.weight",)),
        Rule("text/norm_embedding/bias", ("embeddings.LayerNorm.bias",)),
    ),
    layer=LAYER,
    optional=(
        Rule("word_head/transform/kernel", ("cls.predictions.transform.dense.weight",), LINEAR),
        Rule("word_head/transform/bias", ("cls.predictions.transform.dense.bias",)),
        Rule("word_head/norm/scale", ("cls.predictions.transform.LayerNorm.weight",)),
        Rule("word_head/norm/bias", ("cls.predictions.transform.LayerNorm.bias",)),
        Rule("word_head/bias", ("cls.predictions.bias",)),
    ),
    ignored=(
        r"embeddings\.position_ids",
        r"pooler\..*",
        r"cls\.seq_relationship\..*",
        r"cls\.predictions\.decoder\..*",  # tied to the embedding
    ),
    sizes={
        "hidden_size": "model.text.width",
        "num_attention_heads": "model.text.heads",
        "layer_norm_eps": "model.text.norm_epsilon",
        "hidden_act": "model.text.activation",
    },
    fixed=FIXED,
    defaults=DEFAULTS,
    knobs=KNOBS,
    others={"architectures": ["BertModel"], "type_vocab_size": 2, "pad_token_id": 0},
)
