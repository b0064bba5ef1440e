"""ViT, DeiT, DINO, AugReg, the encoder of MAE, and BEiT by timm's names, which their authors' own files have, too.

The tables are those of transformers' names, renamed; query, key and value are one tensor. A timm folder's config.json
names an architecture, from which the sizes follow. BEiT's authors share one bias table over all layers in pre-training.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlp_jax.pretrained import beit, vit
from vlp_jax.pretrained.family import VisionFamily
from vlp_jax.pretrained.rules import Rule, Transform, fused
from vlp_jax.types import UserError

_NAMES = {  # a part of transformers' names -> timm's, replaced in this order
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "encoder.layer": "blocks",
    "attention.attention.relative_position_bias": "attn",
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layernorm": "norm",
    "lambda_": "gamma_",
}
_QKV = "blocks.{i}.attn.qkv"

_SIZES = {  # width, layers, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
_ARCHITECTURE = rf"(?:vit|deit|beit|beitv2)_({'|'.join(_SIZES)})_patch(\d+)_.*"
_EPSILON = 1e-6  # of all of them; no file says so

SHARED = Transform(
    lambda x, shape: np.broadcast_to(x[0], shape).copy(),
    lambda x: [x[0]],
    note="one table of all layers, copied into each",
)


def _renamed(rule: Rule) -> Rule:
    if len(rule.theirs) == 3:
        kind = rule.theirs[0].rsplit(".", 1)[-1]
        return dataclasses.replace(rule, theirs=(f"{_QKV}.{kind}",), how=fused(rule.how))
    names = []
    for name in rule.theirs:
        for theirs, timm in _NAMES.items():
            name = name.replace(theirs, timm)
        names.append(name)
    return dataclasses.replace(rule, theirs=tuple(names))


def _family(kind: VisionFamily, ignored: tuple[str, ...]) -> VisionFamily:
    return dataclasses.replace(
        kind,
        model_type=f"timm-{kind.model_type}",
        prefixes=("module.",),  # of a model that was trained on several GPUs
        embedding=tuple(map(_renamed, kind.embedding)),
        layer=tuple(map(_renamed, kind.layer)),
        optional=tuple(map(_renamed, kind.optional)),
        defaults={},
        ignored=(r"head\..*", r"mask_token", *ignored),
        knobs={**kind.knobs, "model.vision.norm_epsilon": _EPSILON, "model.vision.activation": "gelu"},
    )


VIT = _family(vit.FAMILY, (r"pre_logits\..*", r"decoder_.*"))  # MAE's decoder
BEIT = _family(
    beit.FAMILY,
    (r"fc_norm\..*", r"lm_head\..*", r"(blocks\.\d+\.attn|rel_pos_bias)\.relative_position_index"),
)
BEIT_SHARED = dataclasses.replace(
    BEIT,
    model_type="timm-beit-shared",
    embedding=(
        *BEIT.embedding,
        Rule("vision/blocks/relative", ("rel_pos_bias.relative_position_bias_table",), SHARED),
    ),
    layer=tuple(rule for rule in BEIT.layer if rule.ours != "vision/blocks/relative"),
)
FAMILIES = {kind.model_type: kind for kind in (VIT, BEIT, BEIT_SHARED)}


def wrote(theirs: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's."""
    return "architecture" in theirs and "model_type" not in theirs


def described(theirs: Mapping[str, Any], source: str) -> dict[str, Any]:
    """timm's config.json in the terms of transformers'.

    Raises:
      UserError: an architecture whose sizes are not known, or pictures that are no squares.
    """
    name, changes = theirs["architecture"], theirs.get("model_args") or {}
    found = re.fullmatch(_ARCHITECTURE, str(name))
    if not found:
        raise UserError(
            f"{source}: architecture = {name!r} in config.json; expected vit_, deit_ or beit_ of the sizes "
            f"{', '.join(_SIZES)}, such as vit_base_patch16_224"
        )
    pictures = theirs.get("pretrained_cfg", theirs).get("input_size", (3, 1, 1))
    if len(pictures) != 3 or pictures[1] != pictures[2]:
        raise UserError(f"{source}: input_size = {pictures} in config.json; expected [3, H, H], square pictures")
    width, layers, heads = _SIZES[found[1]]
    width = changes.get("embed_dim", theirs.get("num_features", width))
    return {
        "hidden_size": width,
        "num_hidden_layers": changes.get("depth", layers),
        "num_attention_heads": changes.get("num_heads", heads),
        "intermediate_size": int(width * changes.get("mlp_ratio", 4)),
        "patch_size": changes.get("patch_size", int(found[2])),
    }
