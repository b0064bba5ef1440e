"""ViT (arXiv 2010.11929) as transformers stores it, DeiT's and DINO's of that form included."""

from vlp_jax.pretrained.family import VisionFamily
from vlp_jax.pretrained.rules import GRID, LINEAR, OUT, PATCHES, QKV, QKV_BIAS, VECTOR, Rule, layer_rules

layer_rule = layer_rules("vision", "encoder.layer")

# What ViT and BEiT have in common.
EMBEDDING = (
    Rule("vision/embed/kernel", ("embeddings.patch_embeddings.projection.weight",), PATCHES),
    Rule("vision/embed/bias", ("embeddings.patch_embeddings.projection.bias",)),
    Rule("vision/cls", ("embeddings.cls_token",), VECTOR),
)
LAYER = (
    layer_rule(
        "attention/qkv/kernel",
        *("attention.attention.query.weight", "attention.attention.key.weight", "attention.attention.value.weight"),
        how=QKV,
    ),
    layer_rule("attention/out/kernel", "attention.output.dense.weight", how=OUT),
    layer_rule("attention/out/bias", "attention.output.dense.bias"),
    layer_rule("norm_attention/scale", "layernorm_before.weight"),
    layer_rule("norm_attention/bias", "layernorm_before.bias"),
    layer_rule("norm_mlp/scale", "layernorm_after.weight"),
    layer_rule("norm_mlp/bias", "layernorm_after.bias"),
    layer_rule("mlp/up/kernel", "intermediate.dense.weight", how=LINEAR),
    layer_rule("mlp/up/bias", "intermediate.dense.bias"),
    layer_rule("mlp/down/kernel", "output.dense.weight", how=LINEAR),
    layer_rule("mlp/down/bias", "output.dense.bias"),
)
SIZES = {
    "hidden_size": "model.vision.width",
    "num_attention_heads": "model.vision.heads",
    "layer_norm_eps": "model.vision.norm_epsilon",
    "image_size": "input.image_size",
    "patch_size": "model.vision.patch_size",
}

FAMILY = VisionFamily(
    model_type="vit",
    prefixes=("vit.",),
    embedding=(
        *EMBEDDING,
        Rule("vision/space", ("embeddings.position_embeddings",), GRID),
        Rule("vision/norm/scale", ("layernorm.weight",)),
        Rule("vision/norm/bias", ("layernorm.bias",)),
    ),
    layer=(
        *LAYER,
        layer_rule(
            "attention/qkv/bias",
            *("attention.attention.query.bias", "attention.attention.key.bias", "attention.attention.value.bias"),
            how=QKV_BIAS,
        ),
    ),
    ignored=(r"embeddings\.mask_token", r"pooler\..*", r"classifier\..*"),
    sizes=SIZES,
    hidden="intermediate_size",
    layers="num_hidden_layers",
    fixed={"hidden_act": "gelu", "qkv_bias": True},
    knobs={"model.vision.positions": "learned", "model.vision.layer_scale": 0.0},
)
