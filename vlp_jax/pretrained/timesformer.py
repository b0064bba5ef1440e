"""TimeSformer (arXiv 2102.05095) as transformers stores it: attention over time before that inside each frame, and
one CLS for the clip."""

from vlp_jax.pretrained import vit
from vlp_jax.pretrained.family import VisionFamily
from vlp_jax.pretrained.rules import GRID, LINEAR, OUT, QKV, QKV_BIAS, Rule, fused

_rule = vit.layer_rule


def _attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        _rule(f"{ours}/qkv/kernel", f"{theirs}.attention.qkv.weight", how=fused(QKV)),
        _rule(f"{ours}/qkv/bias", f"{theirs}.attention.qkv.bias", how=fused(QKV_BIAS)),
        _rule(f"{ours}/out/kernel", f"{theirs}.output.dense.weight", how=OUT),
        _rule(f"{ours}/out/bias", f"{theirs}.output.dense.bias"),
    )


FAMILY = VisionFamily(
    model_type="timesformer",
    prefixes=("timesformer.",),
    embedding=(
        *vit.FAMILY.embedding,
        Rule("vision/time", ("embeddings.time_embeddings",), GRID),
    ),
    layer=(
        *_attention("attention", "attention"),
        *_attention("time_attention", "temporal_attention"),
        *(rule for rule in vit.layer(_rule) if "/attention/" not in rule.ours),
        _rule("norm_time/scale", "temporal_layernorm.weight"),
        _rule("norm_time/bias", "temporal_layernorm.bias"),
        _rule("time_out/kernel", "temporal_dense.weight", how=LINEAR),
        _rule("time_out/bias", "temporal_dense.bias"),
    ),
    ignored=(r"classifier\..*",),
    sizes=vit.SIZES,
    defaults={**vit.DEFAULTS, "layer_norm_eps": 1e-6},
    fixed={"qkv_bias": True, "attention_type": "divided_space_time"},
    others={"architectures": ["TimesformerModel"], "num_channels": 3},
    knobs={
        **vit.FAMILY.knobs,
        "model.vision.attention": "frame",
        "model.vision.temporal_attention": "divided",
        "model.vision.time_positions": "learned",
    },
)
