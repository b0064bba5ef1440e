"""ViT (arXiv 2010.11929) as transformers stores it, DeiT's and DINO's of that form included."""

from collections.abc import Callable

from vlp_jax.pretrained.family import VisionFamily
from vlp_jax.pretrained.rules import GRID, LINEAR, OUT, PATCHES, QKV, QKV_BIAS, VECTOR, Rule, layer_rules

layer_rule = layer_rules("vision", "encoder.layer")

# What ViT and BEiT have in common.
EMBEDDING = (
    Rule("vision/embed/kernel", ("embeddings.patch_embeddings.projection.weight",), PATCHES),
    Rule("vision/embed/bias", ("embeddings.patch_embeddings.projection.bias",)),
    Rule("vision/cls", ("embeddings.cls_token",), VECTOR),
)


def layer(rule: Callable[..., Rule]) -> tuple[Rule, ...]:
    """The rules of one layer but those of the biases of queries, keys and values; `rule` is a `layer_rules`."""
    return (
        rule(
            "attention/qkv/kernel",
            *("attention.attention.query.weight", "attention.attention.key.weight", "attention.attention.value.weight"),
            how=QKV,
        ),
        rule("attention/out/kernel", "attention.output.dense.weight", how=OUT),
        rule("attention/out/bias", "attention.output.dense.bias"),
        rule("norm_attention/scale", "layernorm_before.weight"),
        rule("norm_attention/bias", "layernorm_before.bias"),
        rule("norm_mlp/scale", "layernorm_after.weight"),
        rule("norm_mlp/bias", "layernorm_after.bias"),
        rule("mlp/up/kernel", "intermediate.dense.weight", how=LINEAR),
        rule("mlp/up/bias", "intermediate.dense.bias"),
        rule("mlp/down/kernel", "output.dense.weight", how=LINEAR),
        rule("mlp/down/bias", "output.dense.bias"),
    )


def qkv_bias(rule: Callable[..., Rule]) -> Rule:
    """These biases, where there are all three."""
    part = "attention.attention"
    return rule("attention/qkv/bias", f"{part}.query.bias", f"{part}.key.bias", f"{part}.value.bias", how=QKV_BIAS)


SIZES = {
    "hidden_size": "model.vision.width",
    "num_attention_heads": "model.vision.heads",
    "layer_norm_eps": "model.vision.norm_epsilon",
    "hidden_act": "model.vision.activation",
    "patch_size": "model.vision.patch_size",
}
KNOBS = {"model.vision.cls": True, "model.vision.norm_embedding": False, "model.vision.layer_scale": 0.0}
DEFAULTS = {
    "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072,
    "layer_norm_eps": 1e-12, "hidden_act": "gelu", "image_size": 224, "patch_size": 16,
}  # fmt: skip

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
        *layer(layer_rule),
        qkv_bias(layer_rule),
    ),
    ignored=(r"embeddings\.mask_token", r"pooler\..*", r"classifier\..*"),
    sizes=SIZES,
    fixed={"qkv_bias": True},
    defaults=DEFAULTS,
    knobs={**KNOBS, "model.vision.positions": "learned"},
    others={"architectures": ["ViTModel"], "num_channels": 3},
)
