"""BEiT (arXiv 2106.08254) as transformers stores it: layer scale, a relative position bias in each layer, keys without
a bias; where it normalises the mean of the patches, and not the tokens (`use_mean_pooling`), our last norm starts
anew."""

from vlp_jax.pretrained import vit
from vlp_jax.pretrained.family import VisionFamily
from vlp_jax.pretrained.rules import QV_BIAS, Rule

FAMILY = VisionFamily(
    model_type="beit",
    prefixes=("beit.",),
    embedding=vit.EMBEDDING,
    layer=(
        *vit.layer(vit.layer_rule),
        vit.layer_rule(
            "attention/qkv/bias", "attention.attention.query.bias", "attention.attention.value.bias", how=QV_BIAS
        ),
        vit.layer_rule("relative", "attention.attention.relative_position_bias.relative_position_bias_table"),
        vit.layer_rule("scale_attention", "lambda_1"),
        vit.layer_rule("scale_mlp", "lambda_2"),
    ),
    optional=(Rule("vision/norm/scale", ("layernorm.weight",)), Rule("vision/norm/bias", ("layernorm.bias",))),
    ignored=(
        r"embeddings\.mask_token",
        r"encoder\.layer\.\d+\.attention\.attention\.relative_position_bias\.relative_position_index",
        r"pooler\..*",
        r"classifier\..*",
        r"lm_head\..*",
    ),
    sizes={**vit.SIZES, "layer_scale_init_value": "model.vision.layer_scale"},
    defaults={**vit.DEFAULTS, "layer_scale_init_value": 0.1, "use_relative_position_bias": False},
    fixed={
        "use_relative_position_bias": True,
        "use_shared_relative_position_bias": False,
        "use_absolute_position_embeddings": False,
    },
    knobs={
        "model.vision.cls": True,
        "model.vision.norm_embedding": False,
        "model.vision.positions": "relative",
    },
    others={"architectures": ["BeitModel"], "num_channels": 3, "use_mean_pooling": False},
)
