"""VideoMAE (arXiv 2203.12602) as transformers stores it: tubelets of two frames, joint attention, no CLS, fixed
positions over the patches of the clip in one row, keys without a bias, and a decoder.

Where it was fine-tuned with mean pooling it has no last norm over the tokens, and ours starts anew. transformers gives
the decoder's last norm an epsilon of 1e-5, the original code 1e-6; ours has that of the other norms.
"""

from vlp_jax.pretrained import vit
from vlp_jax.pretrained.family import Decoder, VisionFamily
from vlp_jax.pretrained.rules import LINEAR, QV_BIAS, TUBES_OF_2, VECTOR, Rule, layer_rules

_decoder_layer = layer_rules("decoder", "decoder.decoder_layers")


def _qv_bias(rule):
    return rule("attention/qkv/bias", "attention.attention.q_bias", "attention.attention.v_bias", how=QV_BIAS)


FAMILY = VisionFamily(
    model_type="videomae",
    prefixes=("videomae.",),
    embedding=(
        Rule("vision/embed/kernel", ("embeddings.patch_embeddings.projection.weight",), TUBES_OF_2),
        Rule("vision/embed/bias", ("embeddings.patch_embeddings.projection.bias",)),
    ),
    layer=(*vit.layer(vit.layer_rule), _qv_bias(vit.layer_rule)),
    optional=(
        Rule("vision/norm/scale", ("layernorm.weight",)),
        Rule("vision/norm/bias", ("layernorm.bias",)),
    ),
    ignored=(r"fc_norm\..*", r"classifier\..*"),
    sizes={**vit.SIZES, "image_size": "input.image_size"},  # no table could be interpolated
    fixed={"qv_bias": True, "tubelet_size": 2},
    defaults={
        **vit.DEFAULTS,
        "decoder_hidden_size": 384,
        "decoder_num_attention_heads": 6,
        "decoder_num_hidden_layers": 4,
        "norm_pix_loss": True,
    },
    knobs={
        **vit.KNOBS,
        "model.vision.cls": False,
        "model.vision.tubelet": 2,
        "model.vision.attention": "joint",
        "model.vision.positions": "sequence",
    },
    others={"architectures": ["VideoMAEModel"], "num_channels": 3, "use_mean_pooling": False},
    frames=2,
    decoder=Decoder(
        rules=(
            Rule("decoder/embed/kernel", ("encoder_to_decoder.weight",), LINEAR),
            Rule("decoder/mask_token", ("mask_token",), VECTOR),
            *vit.layer(_decoder_layer),
            _qv_bias(_decoder_layer),
            Rule("decoder/norm/scale", ("decoder.norm.weight",)),
            Rule("decoder/norm/bias", ("decoder.norm.bias",)),
            Rule("decoder/out/kernel", ("decoder.head.weight",), LINEAR),
            Rule("decoder/out/bias", ("decoder.head.bias",)),
        ),
        ignored=(r"decoder\..*", r"mask_token", r"encoder_to_decoder\.weight"),
        knobs={
            "model.decoder.attention": "joint",
            "model.decoder.cls": False,
            "model.decoder.positions": "sequence",
            "model.decoder.target": "channel",
        },
        pixels="unit",
    ),
)
