"""DistilBERT (arXiv 1910.01108) as transformers stores it: BERT without token types."""

from vlp_jax.pretrained import bert
from vlp_jax.pretrained.family import TextFamily
from vlp_jax.pretrained.rules import LINEAR, OUT, QKV, QKV_BIAS, Rule, layer_rules, positions

_layer = layer_rules("text", "transformer.layer")

FAMILY = TextFamily(
    model_type="distilbert",
    prefixes=("distilbert.",),
    embedding=(
        Rule("text/embedding", ("embeddings.word_embeddings.weight",)),
        Rule("text/position", ("embeddings.position_embeddings.weight",), positions()),
        Rule("text/norm_embedding/scale", ("embeddings.LayerNorm.weight",)),
        Rule("text/norm_embedding/bias", ("embeddings.LayerNorm.bias",)),
    ),
    layer=(
        _layer(
            "attention/qkv/kernel",
            *("attention.q_lin.weight", "attention.k_lin.weight", "attention.v_lin.weight"),
            how=QKV,
        ),
        _layer(
            "attention/qkv/bias",
            *("attention.q_lin.bias", "attention.k_lin.bias", "attention.v_lin.bias"),
            how=QKV_BIAS,
        ),
        _layer("attention/out/kernel", "attention.out_lin.weight", how=OUT),
        _layer("attention/out/bias", "attention.out_lin.bias"),
        _layer("norm_attention/scale", "sa_layer_norm.weight"),
        _layer("norm_attention/bias", "sa_layer_norm.bias"),
        _layer("mlp/up/kernel", "ffn.lin1.weight", how=LINEAR),
        _layer("mlp/up/bias", "ffn.lin1.bias"),
        _layer("mlp/down/kernel", "ffn.lin2.weight", how=LINEAR),
        _layer("mlp/down/bias", "ffn.lin2.bias"),
        _layer("norm_mlp/scale", "output_layer_norm.weight"),
        _layer("norm_mlp/bias", "output_layer_norm.bias"),
    ),
    optional=(
        Rule("word_head/transform/kernel", ("vocab_transform.weight",), LINEAR),
        Rule("word_head/transform/bias", ("vocab_transform.bias",)),
        Rule("word_head/norm/scale", ("vocab_layer_norm.weight",)),
        Rule("word_head/norm/bias", ("vocab_layer_norm.bias",)),
        Rule("word_head/bias", ("vocab_projector.bias",)),
    ),
    ignored=(r"vocab_projector\.weight",),  # tied to the embedding
    sizes={"dim": "model.text.width", "n_heads": "model.text.heads", "activation": "model.text.activation"},
    hidden="hidden_dim",
    layers="n_layers",
    fixed={"tie_word_embeddings": True},
    defaults={"dim": 768, "n_heads": 12, "n_layers": 6, "hidden_dim": 3072, "activation": "gelu"},
    knobs={**bert.KNOBS, "model.text.norm_epsilon": 1e-12},
    others={"architectures": ["DistilBertModel"], "pad_token_id": 0},
)
