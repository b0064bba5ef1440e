"""Published weights into a new run's parameters: `config.model.text.init_from` and `config.model.vision.init_from`."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from vlp_jax import trees
from vlp_jax.pretrained import (
    beit,
    bert,
    clip,
    distilbert,
    pixels,
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
    here = trees.by_path(params)
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
        said += pixels.fold(values, config, family, source, theirs)
        if (bias := "vision/embed/bias") in values and report.taken[bias].how == "created":
            made = dataclasses.replace(report.taken[bias], note="is made from its pixels' mean and deviation")
            report.taken[bias] = made
        if config.model.decoder.from_file and config.model.pruning.layers:
            said += (
                f", whose decoder sees tokens from before block {config.model.pruning.layers[0]} prunes, where it was "
                "trained on the encoder's last"
            )
        trained = family.completed(theirs).get("num_frames")
        if config.model.vision.positions == "sequence" and trained not in (None, config.input.frames):
            said += f", of {trained} frames: clips of {config.input.frames} have its first positions, or go on"
    else:
        _check_case(config, source)
    new = {
        path: _place(values[path.removeprefix(RECIPE)], leaf) if path.removeprefix(RECIPE) in values else leaf
        for path, leaf in here.items()
    }
    report = dataclasses.replace(report, source=said)
    return jax.tree.unflatten(jax.tree.structure(params), list(new.values())), report


def _check_case(config: Any, source: str) -> None:
    """Refuses to lower-case texts where the model's own tokenizer does not, or the other way round."""
    file = pathlib.Path(source) / "tokenizer_config.json"
    vocabulary = pathlib.Path(config.input.tokenizer)
    if not file.is_file() or vocabulary.name != "vocab.txt" or vocabulary.parent.resolve() != file.parent.resolve():
        return
    try:
        lowers = json.loads(file.read_bytes()).get("do_lower_case", config.input.lowercase)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} cannot be read ({error}); fetch it anew") from error
    if lowers != config.input.lowercase:
        raise UserError(
            f"config.input.lowercase = {config.input.lowercase}, but {file} has do_lower_case = {lowers}: set "
            f"--config.input.lowercase={lowers}"
        )


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
