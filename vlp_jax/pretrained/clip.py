"""CLIP (arXiv 2103.00020) as transformers stores it, each tower by itself: the image encoder with the map into the
shared space and the temperature, the text encoder with its map.

Its patches and maps have no biases; ours start from zero. Its text encoder sees the words before each word alone, and
the last one stands for the text; its layers beyond `model.text.layers` are the fusion's, as of BERT.
"""

from vlp_jax.pretrained.family import TextFamily, VisionFamily
from vlp_jax.pretrained.rules import LINEAR, LOG_SCALE, OUT, PATCHES, QKV, QKV_BIAS, Rule, layer_rules, positions

_DEFAULTS = {
    "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072,
    "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu",
}  # fmt: skip


def _layer(tower: str) -> tuple[Rule, ...]:
    rule, attention = layer_rules(tower, "encoder.layers"), "self_attn"
    heads = ("q_proj", "k_proj", "v_proj")
    return (
        rule("attention/qkv/kernel", *(f"{attention}.{x}.weight" for x in heads), how=QKV),
        rule("attention/qkv/bias", *(f"{attention}.{x}.bias" for x in heads), how=QKV_BIAS),
        rule("attention/out/kernel", f"{attention}.out_proj.weight", how=OUT),
        rule("attention/out/bias", f"{attention}.out_proj.bias"),
        rule("norm_attention/scale", "layer_norm1.weight"),
        rule("norm_attention/bias", "layer_norm1.bias"),
        rule("norm_mlp/scale", "layer_norm2.weight"),
        rule("norm_mlp/bias", "layer_norm2.bias"),
        rule("mlp/up/kernel", "mlp.fc1.weight", how=LINEAR),
        rule("mlp/up/bias", "mlp.fc1.bias"),
        rule("mlp/down/kernel", "mlp.fc2.weight", how=LINEAR),
        rule("mlp/down/bias", "mlp.fc2.bias"),
    )


def _sizes(tower: str) -> dict[str, str]:
    return {
        "hidden_size": f"model.{tower}.width",
        "num_attention_heads": f"model.{tower}.heads",
        "layer_norm_eps": f"model.{tower}.norm_epsilon",
        "hidden_act": f"model.{tower}.activation",
    }


VISION = VisionFamily(
    model_type="clip",
    aliases=("clip_vision_model",),
    section="vision_config",
    prefixes=("vision_model.",),
    embedding=(
        Rule("vision/embed/kernel", ("embeddings.patch_embedding.weight",), PATCHES),
        Rule("vision/cls", ("embeddings.class_embedding",)),
        Rule("vision/space", ("embeddings.position_embedding.weight",)),
        Rule("vision/norm_embedding/scale", ("pre_layrnorm.weight",)),
        Rule("vision/norm_embedding/bias", ("pre_layrnorm.bias",)),
        Rule("vision/norm/scale", ("post_layernorm.weight",)),
        Rule("vision/norm/bias", ("post_layernorm.bias",)),
    ),
    layer=_layer("vision"),
    optional=(
        Rule("video_projection/kernel", ("visual_projection.weight",), LINEAR),
        Rule("temperature", ("logit_scale",), LOG_SCALE),
    ),
    ignored=(r"embeddings\.position_ids", r"text_model\..*", r"text_projection\.weight"),
    sizes={**_sizes("vision"), "patch_size": "model.vision.patch_size"},
    defaults={**_DEFAULTS, "image_size": 224, "patch_size": 32},
    others={"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"], "num_channels": 3},
    knobs={
        "model.vision.cls": True,
        "model.vision.norm_embedding": True,
        "model.vision.positions": "learned",
        "model.vision.layer_scale": 0.0,
    },
)

TEXT = TextFamily(
    model_type="clip",
    aliases=("clip_text_model",),
    section="text_config",
    prefixes=("text_model.",),
    embedding=(
        Rule("text/embedding", ("embeddings.token_embedding.weight",)),
        Rule("text/position", ("embeddings.position_embedding.weight",), positions()),
        Rule("text/norm/scale", ("final_layer_norm.weight",)),
        Rule("text/norm/bias", ("final_layer_norm.bias",)),
    ),
    layer=_layer("text"),
    optional=(Rule("text_projection/kernel", ("text_projection.weight",), LINEAR),),
    ignored=(r"embeddings\.position_ids", r"vision_model\..*", r"visual_projection\.weight", r"logit_scale"),
    sizes=_sizes("text"),
    defaults={**_DEFAULTS, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
    others={"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]},
    knobs={
        "model.text.norm": "pre",
        "model.text.norm_embedding": False,
        "model.text.causal": True,
        "model.text.pool": "last",
    },
)
