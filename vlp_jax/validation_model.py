"""Checks of how the knobs of the model fit together. Messages as in `validation`, which calls these."""

import ml_collections

from vlp_jax import config as config_lib
from vlp_jax import validation_features
from vlp_jax.types import UserError


def validate(c: ml_collections.ConfigDict) -> None:
    """Checks `config.model` and what it asks of the loss and the input; of `validation`.

    Raises:
      UserError: knobs that do not fit together.
    """
    m = c.model
    validation_features.check_model(c)
    for name in ("vision", "decoder", "text"):
        width, heads = m[name].width, m[name].heads
        if width % heads:
            raise UserError(f"config.model.{name}.width = {width} is not divisible by its heads = {heads}")
    for name in ("vision", "decoder"):
        if m[name].width % 4:
            raise UserError(
                f"config.model.{name}.width = {m[name].width} is not divisible by 4, which its two-dimensional "
                "sine-cosine positions need"
            )
    layers = tuple(m.pruning.layers)
    if list(layers) != sorted(set(layers)) or any(not 0 <= x < m.vision.layers for x in layers):
        raise UserError(
            f"config.model.pruning.layers = {layers}: expected increasing block numbers in "
            f"[0, {m.vision.layers - 1}] (the encoder has {m.vision.layers} blocks)"
        )
    slots, patches = config_lib.grid(c)
    visible_slots, visible = config_lib.visible_patches(c)
    if min(visible_slots, visible) < 1:
        raise UserError(
            f"config.model.masking.ratio = {m.masking.ratio} ({m.masking.kind}) leaves no visible patch of "
            f"{slots} x {patches}; lower the ratio or use more patches"
        )
    if c.loss.mvm and (visible_slots, visible) == (slots, patches):
        raise UserError(
            f"config.loss.mvm = {c.loss.mvm} needs hidden patches, but config.model.masking (kind "
            f"{m.masking.kind!r}, ratio {m.masking.ratio}) hides none; set loss.mvm=0 or raise the ratio"
        )
    for name in ("ratio", "unmasked_share"):
        if m.masking.kind == "none" and m.masking[name]:
            raise UserError(
                f"config.model.masking.{name} = {m.masking[name]} with config.model.masking.kind = 'none', which hides "
                f"nothing: set model.masking.{name}=0, or choose another kind"
            )
    if m.vision.time_slots and m.vision.time_positions != "sincos":
        raise UserError(
            f"config.model.vision.time_slots = {m.vision.time_slots} with time_positions = "
            f"{m.vision.time_positions!r}, which have no fixed table: set time_slots=0, or time_positions=sincos"
        )
    if m.temporal.embed and not m.temporal.layers:
        raise UserError(
            "config.model.temporal.embed = True with config.model.temporal.layers = 0: there are no layers over time "
            "whose output could be contrasted; set layers above 0, or embed=False"
        )
    if m.vision.positions == "relative" and m.vision.attention == "joint":
        raise UserError(
            "config.model.vision.positions = 'relative' with config.model.vision.attention = 'joint': the bias is "
            "defined inside a frame; set attention=frame, or positions=sincos"
        )
    if m.vision.positions == "relative" and m.pruning.fused_token:
        raise UserError(
            "config.model.vision.positions = 'relative' with config.model.pruning.fused_token: a token fused of many "
            "patches has no place; set fused_token=False, or positions=sincos"
        )
    over_time = m.vision.temporal_attention
    if over_time == "divided" and m.vision.attention == "joint":
        raise UserError(
            "config.model.vision.temporal_attention = 'divided' with config.model.vision.attention = 'joint': divided "
            "attention sees a frame at a time; set attention=frame, or temporal_attention=none"
        )
    if over_time != "none" and (m.masking.kind not in ("none", "tube") or m.pruning.layers):
        raise UserError(
            f"config.model.vision.temporal_attention = {over_time!r} with masking kind {m.masking.kind!r} and pruning "
            f"layers {tuple(m.pruning.layers)}: attention over time needs the same patches in every frame; set "
            "masking.kind to none or tube, and pruning.layers=()"
        )
    _validate_tokens(m)
    if m.decoder.from_file and not (m.vision.init_from and c.loss.mvm):
        raise UserError(
            f"config.model.decoder.from_file = True with config.model.vision.init_from = {m.vision.init_from!r} and "
            f"config.loss.mvm = {c.loss.mvm}: expected a ViT-MAE or VideoMAE to start from, and a weight above 0 for "
            "the decoder to exist; set these, or from_file=False"
        )
    towers = {"vision": m.vision.width, "text": m.text.width, "fusion": m.text.width}
    if not m.adapters.towers or not set(m.adapters.towers) <= set(towers):
        raise UserError(
            f"config.model.adapters.towers = {tuple(m.adapters.towers)}: expected some of {', '.join(towers)}; "
            "model.adapters.reduction=0 leaves all without adapters"
        )
    fuses = bool(c.loss.vtm or c.loss.mlm)
    blocks = {"vision": m.vision.layers, "text": m.text.layers, "fusion": m.fusion.layers * fuses}
    without = [tower for tower in m.adapters.towers if m.adapters.reduction and not blocks[tower]]
    if without:
        raise UserError(
            f"config.model.adapters.towers = {tuple(m.adapters.towers)}, but {without[0]} has no blocks here: leave it "
            "out, or set model.adapters.reduction=0"
        )
    for tower in m.adapters.towers:
        if m.adapters.reduction and towers[tower] % m.adapters.reduction:
            raise UserError(
                f"config.model.adapters.reduction = {m.adapters.reduction} does not divide the width {towers[tower]} "
                f"of the {tower} tower; expected a divisor of it, or 0 for no adapters"
            )
    if m.attention_kernel == "cudnn" and c.compute_dtype == "float32":
        raise UserError(
            "config.model.attention_kernel = 'cudnn' with config.compute_dtype = 'float32': cuDNN's attention takes "
            "16-bit activations; set compute_dtype=bfloat16, or the kernel to xla"
        )
    if m.masking.kind == "frame" and m.decoder.attention == "frame" and c.loss.mvm:
        raise UserError(
            "config.model.masking.kind = 'frame' hides whole frames, which per-frame decoding cannot see into: "
            "set config.model.decoder.attention=joint"
        )
    if m.selection.frames == 1:
        raise UserError(
            "config.model.selection.frames = 1: the selector learns from how attention weighs the kept frames against "
            "each other, so that one frame leaves it without a gradient; expected 0 (all) or 2 and more"
        )
    if c.loss.vtm and not c.loss.vtc:
        raise UserError(
            f"config.loss.vtm = {c.loss.vtm} with config.loss.vtc = 0: hard negatives are drawn from the similarities "
            "that the contrastive loss trains; set loss.vtc above 0, or loss.vtm to 0"
        )
    if c.loss.distill and (not c.optimizer.ema_decay or not c.loss.vtc or c.task.kind != "pretrain"):
        raise UserError(
            f"config.loss.distill = {c.loss.distill} with config.optimizer.ema_decay = {c.optimizer.ema_decay}, "
            f"config.loss.vtc = {c.loss.vtc} and config.task.kind = {c.task.kind!r}: the teacher is the moving "
            "average, and what it teaches the contrastive loss of task.kind pretrain; set ema_decay (ALBEF: 0.995) and "
            "loss.vtc above 0, or loss.distill=0"
        )
    for tower in ("text", "vision"):
        if m[tower].init_from and c.init_from:
            raise UserError(
                f"config.model.{tower}.init_from = {m[tower].init_from!r} with config.init_from = {c.init_from!r}: "
                f"that run's {tower} encoder is trained already; leave config.model.{tower}.init_from empty, or "
                "config.init_from"
            )
    micro = c.batch_size // c.accumulate_steps
    if c.loss.vtm_group == 1 or (c.loss.vtm_group and micro % c.loss.vtm_group):
        raise UserError(
            f"config.loss.vtm_group = {c.loss.vtm_group}: expected 0, or 2 and more that divide the {micro} examples "
            "of a micro-batch (batch_size / accumulate_steps)"
        )
    if m.selection.frames < 0 or m.selection.frames > visible_slots:
        raise UserError(
            f"config.model.selection.frames = {m.selection.frames}: expected 0 (all) to {visible_slots}, the "
            f"temporal slots that the encoder sees (frames {c.input.frames} / tubelet {m.vision.tubelet})"
        )
    if c.task.kind == "pretrain" and not any(config_lib.loss_weights(c).values()):
        raise UserError("every weight in config.loss is 0: there is nothing to train")


def _validate_tokens(m):
    """What needs a CLS, and what stands for a clip or a text."""
    v = m.vision
    needs = {
        f"config.model.pruning.layers = {tuple(m.pruning.layers)}": bool(m.pruning.layers),
        "config.model.vision.pool = 'cls'": v.pool == "cls",
        "config.model.vision.positions = 'relative'": v.positions == "relative",
        "config.model.vision.temporal_attention = 'divided'": v.temporal_attention == "divided",
        "config.model.decoder.cls = True": m.decoder.cls,
    }
    first = next((knob for knob, needed in needs.items() if needed), None)
    if not v.cls and first:
        raise UserError(
            f"{first} with config.model.vision.cls = False: it needs the CLS of each slot; set vision.cls=True, or "
            "pruning.layers=(), vision.pool=mean, and other vision.positions, vision.temporal_attention and decoder.cls"
        )
    if v.positions == "sequence" and v.time_positions != "none":
        raise UserError(
            f"config.model.vision.positions = 'sequence' with time_positions = {v.time_positions!r}: the former number "
            "the patches of all frames; set time_positions=none"
        )
    if m.text.causal and m.text.pool == "cls":
        raise UserError(
            "config.model.text.causal = True with config.model.text.pool = 'cls': the first piece sees no other; set "
            "text.pool=last"
        )
