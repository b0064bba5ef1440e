"""ViT-MAE (arXiv 2111.06377) as transformers stores it: a ViT whose file holds its fixed positions, and a decoder of
one image, which sees the CLS.

Where its targets are normalised patches (`norm_pix_loss`), they are of pixels of its own mean and deviation, ours of
pixels of mean and deviation 0.5: with ImageNet's the colours of a patch differ in scale by a few per cent. Where they
are pixels, its last map is changed to give ours. Its positions, fixed there, train here
(`optimizer.trainable` can leave them out); those of the decoder get ours over time, zero in the first frame.
"""

from vlp_jax.pretrained import vit
from vlp_jax.pretrained.family import Decoder, VisionFamily
from vlp_jax.pretrained.rules import GRID, LINEAR, VECTOR, Rule, layer_rules

_layer = layer_rules("decoder", "decoder.decoder_encoder.layer")

FAMILY = VisionFamily(
    model_type="vit_mae",
    prefixes=("vit.",),
    embedding=vit.FAMILY.embedding,
    layer=vit.FAMILY.layer,
    ignored=(),
    sizes=vit.SIZES,
    fixed={"qkv_bias": True},
    defaults={
        **vit.DEFAULTS,
        "decoder_hidden_size": 512,
        "decoder_num_attention_heads": 16,
        "decoder_num_hidden_layers": 8,
        "norm_pix_loss": False,
    },
    knobs=vit.FAMILY.knobs,
    others={"architectures": ["ViTMAEModel"], "num_channels": 3, "mask_ratio": 0.0},
    decoder=Decoder(
        rules=(
            Rule("decoder/embed/kernel", ("decoder.decoder_embed.weight",), LINEAR),
            Rule("decoder/embed/bias", ("decoder.decoder_embed.bias",)),
            Rule("decoder/mask_token", ("decoder.mask_token",), VECTOR),
            Rule("decoder/space", ("decoder.decoder_pos_embed",), GRID),
            *vit.layer(_layer),
            vit.qkv_bias(_layer),
            Rule("decoder/norm/scale", ("decoder.decoder_norm.weight",)),
            Rule("decoder/norm/bias", ("decoder.decoder_norm.bias",)),
            Rule("decoder/out/kernel", ("decoder.decoder_pred.weight",), LINEAR),
            Rule("decoder/out/bias", ("decoder.decoder_pred.bias",)),
        ),
        ignored=(r"decoder\..*",),
        knobs={
            "model.decoder.cls": True,
            "model.decoder.positions": "learned",
            "model.decoder.target": "patch",
        },
        pixels="own",
    ),
)
