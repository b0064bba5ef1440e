"""Checks of a config with precomputed features: their form, and what does not go together with them.

Messages as in `validation`, which calls these.
"""

import ml_collections

from vlp_jax.types import UserError


def check_input(c: ml_collections.ConfigDict) -> None:
    """Checks `config.input.features` alone.

    Raises:
      UserError: a path without a width or the other way round, boxes without regions, another number of box numbers.
    """
    f = c.input.features
    if bool(f.path) != bool(f.width):
        fix = "set input.features.width to the numbers in a feature" if f.path else "set input.features.path"
        raise UserError(
            f"config.input.features.path = {f.path!r} with config.input.features.width = {f.width}: expected both (a "
            f"model of precomputed features) or neither (of videos); {fix}"
        )
    if f.boxes not in (0, 4, 6):
        raise UserError(
            f"config.input.features.boxes = {f.boxes}: expected 0, 4 or 6 numbers that say where a region is"
        )
    for name, needed in (("regions", "width"), ("boxes", "regions")):
        if f[name] and not f[needed]:
            raise UserError(
                f"config.input.features.{name} = {f[name]} with config.input.features.{needed} = 0: expected both or "
                f"neither; set input.features.{needed}, or input.features.{name}=0"
            )


def check_model(c: ml_collections.ConfigDict) -> None:
    """Checks the parts of the model that see clips.

    Raises:
      UserError: a part of a model of pixels beside features, or one of features without them.
    """
    v, f = c.model.vision, c.input.features
    if not f.width:
        for key, refused, why, fix in (
            ("layers", not v.layers, "patches need an encoder", "1 or more"),
            ("feature_projection", v.feature_projection != "linear", "there are none to project", "linear"),
        ):
            if refused:
                raise UserError(
                    f"config.model.vision.{key} = {v[key]!r} without precomputed features: {why}; set "
                    f"model.vision.{key}={fix}, or input.features"
                )
        return
    masking = "model.masking.kind=none, model.masking.ratio=0 and model.masking.unmasked_share=0"
    for key, value, fitting, why, fix in (
        ("loss.mvm", c.loss.mvm, 0, "there are no pixels to rebuild", "loss.mvm=0"),
        ("model.masking.kind", c.model.masking.kind, "none", "there are no patches to hide", masking),
        (
            *("model.pruning.layers", tuple(c.model.pruning.layers), ()),
            *("there are no patches to drop", "model.pruning.layers=()"),
        ),
        ("model.vision.positions", v.positions, "none", "they lie on no grid", "model.vision.positions=none"),
        ("model.vision.tubelet", v.tubelet, 1, "each slot has its own", "model.vision.tubelet=1"),
        ("model.vision.cls", v.cls, True, "their form decides", "model.vision.cls=True"),
        ("model.vision.norm_embedding", v.norm_embedding, False, "there is none", "model.vision.norm_embedding=False"),
        ("model.vision.init_from", v.init_from, "", "published encoders take pixels", "model.vision.init_from=''"),
    ):
        if value != fitting:
            raise UserError(f"config.{key} = {value!r} with precomputed features ({f.path}): {why}; set {fix}")
    if v.temporal_attention == "divided":
        raise UserError(
            f"config.model.vision.temporal_attention = 'divided' with precomputed features ({f.path}): it divides "
            "patches and CLS; set model.vision.temporal_attention=none, or zero_init"
        )
