"""Published weights into a new run's parameters: `config.model.text.init_from` and `config.model.vision.init_from`."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from vlp_jax import checkpoint
from vlp_jax.pretrained import (
    beit,
    bert,
    clip,
    distilbert,
    roberta,
    timesformer,
    timm,
    video_mae,
    vit,
    vit_mae,
    weights,
)
from vlp_jax.pretrained.family import Family
from vlp_jax.pretrained.torch_zip import TorchZip
from vlp_jax.types import UserError
from vlp_jax.warm_start import RECIPE, Report

_TEXT = (bert.FAMILY, roberta.FAMILY, distilbert.FAMILY, clip.TEXT)
# ViT-MAE before ViT: where there is no config.json, a file is of the first that its names are of.
_VISION = (vit_mae.FAMILY, vit.FAMILY, beit.FAMILY, video_mae.FAMILY, timesformer.FAMILY, clip.VISION)
TEXT = {family.model_type: family for family in _TEXT}
VISION = {family.model_type: family for family in _VISION}
_KNOWN: dict[str, dict[str, Any]] = {"text": TEXT, "vision": {**VISION, **timm.FAMILIES}}


def towers(config: Any, params: Any) -> tuple[Any, dict[str, Report]]:
    """`params` with the towers whose `init_from` is set, and of each a report of what was done; as `tower`."""
    reports = {}
    for name in _KNOWN:
        if config.model[name].init_from:
            params, reports[name] = tower(name, config, params)
    return params, reports


def tower(name: str, config: Any, params: Any) -> tuple[Any, Report]:
    """`params` with the tower of `config.model.NAME.init_from`, and a report of what was done.

    Args:
      name: `text` | `vision`.
      params: the new run's parameters, placed on the mesh; the recipe's alone, or those of a task around it.

    Raises:
      UserError: nothing is there, it is of no family that is known, or it does not fit.
    """
    source = config.model[name].init_from
    here = checkpoint.by_path(params)
    shapes = {path.removeprefix(RECIPE): leaf.shape for path, leaf in here.items()}
    if not any(path.startswith(f"{name}/") for path in shapes):
        raise UserError(
            f"config.model.{name}.init_from = {source!r}, but {config.name} has no {name} encoder: every weight of the "
            f"loss that needs one is 0; leave config.model.{name}.init_from empty"
        )
    tensors, theirs = weights.open_weights(source)
    of_timm = name == "vision" and timm.wrote(theirs)
    family = _family(_KNOWN[name], name, tensors, {} if of_timm else theirs, source)
    family.check_config(config, timm.described(theirs, source) if of_timm else theirs, source)
    values, report = family.load(config, shapes, tensors, source)
    said = f"{source} ({family.model_type})"
    if isinstance(tensors, TorchZip) and tensors.inside:
        said += f", what lies under {'/'.join(tensors.inside)!r}"
    if not theirs:
        said += f", whose heads no config.json says: {config.model[name].heads} taken"
    if name == "vision":
        said += _fold_normalisation(values, source, theirs)
    new = {
        path: _place(values[path.removeprefix(RECIPE)], leaf) if path.removeprefix(RECIPE) in values else leaf
        for path, leaf in here.items()
    }
    report = dataclasses.replace(report, source=said)
    return jax.tree.unflatten(jax.tree.structure(params), list(new.values())), report


def _fold_normalisation(values: dict[str, np.ndarray], source: str, theirs: dict[str, Any]) -> str:
    """Lets the patch embedding take pixels of mean and deviation 0.5, as ours are, where the model was trained on
    others; an affine map of its inputs goes into its weights exactly. Returns a note.

    They are those of preprocessor_config.json beside the weights, or of timm's config.json.
    """
    place = pathlib.Path(source)
    folder = place if place.is_dir() else place.parent
    file, of_timm = folder / "preprocessor_config.json", theirs.get("pretrained_cfg", theirs)
    try:
        if file.is_file():
            found, keys = json.loads(file.read_bytes()), ("image_mean", "image_std")
        elif "mean" in of_timm or "std" in of_timm:
            file, found, keys = folder / "config.json", of_timm, ("mean", "std")
        else:
            return f", no {file.name} beside it: pixels of mean and deviation 0.5 expected"
        mean, deviation = (np.asarray(found.get(key, [0.5] * 3), np.float64) for key in keys)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read ({error}); fetch it anew") from error
    if mean.shape != (3,) or deviation.shape != (3,) or not (deviation > 0).all():
        raise UserError(f"{file}: {keys[0]} {mean} and {keys[1]} {deviation}: expected three numbers, the latter > 0")
    if (mean == 0.5).all() and (deviation == 0.5).all():
        return ""
    width = values["vision/embed/kernel"].shape[-1]
    kernel = values["vision/embed/kernel"].reshape(-1, 3, width).astype(np.float64)
    shift = ((0.5 - mean) / deviation)[:, None]
    bias = values.get("vision/embed/bias", np.zeros(width))  # CLIP's has none
    values["vision/embed/bias"] = bias + (kernel * shift).sum((0, 1))
    values["vision/embed/kernel"] = (kernel * (0.5 / deviation)[:, None]).reshape(values["vision/embed/kernel"].shape)
    return f", its pixels' mean {mean.tolist()} and deviation {deviation.tolist()} folded into the patch embedding"


def _place(value: np.ndarray, leaf: jax.Array) -> jax.Array:
    return jax.device_put(value.astype(leaf.dtype), leaf.sharding)


def _family(
    families: dict[str, Family], name: str, tensors: weights.Tensors, theirs: dict[str, Any], source: str
) -> Family:
    """By config.json, or by names where there is none."""
    known = ", ".join(families)
    if theirs:
        kind = theirs.get("model_type")
        found = [family for family in families.values() if kind in (family.model_type, *family.aliases)]
        if not found:
            raise UserError(f"{source} is a model of model_type {kind!r}; a {name} tower can start from {known}")
        return found[0]
    names = set(tensors.names())
    for family in families.values():
        # One name of a layer that no other family has would do; a file with a tensor missing is still recognised.
        own = family.names_of_layer(0)
        others = {x for other in families.values() if other is not family for x in other.names_of_layer(0)}
        there = set(map(family.rename, names))
        if any(x in there for x in own if x not in others) or (not set(own) - others and set(own) <= there):
            return family
    raise UserError(
        f"{source} has no config.json, and its names, such as {', '.join(sorted(names)[:3])}, are of no {name} encoder "
        f"that is known; expected one of {known}"
    )
