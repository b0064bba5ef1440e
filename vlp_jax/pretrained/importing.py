"""Published weights into a new run's parameters: `config.model.text.init_from`."""

import dataclasses
from typing import Any

import jax
import numpy as np

from vlp_jax import checkpoint
from vlp_jax.pretrained import bert, distilbert, roberta, weights
from vlp_jax.pretrained.text_family import TextFamily
from vlp_jax.types import UserError
from vlp_jax.warm_start import RECIPE, Report

TEXT = {module.FAMILY.model_type: module.FAMILY for module in (bert, roberta, distilbert)}


def text(config: Any, params: Any) -> tuple[Any, Report]:
    """`params` with the text tower of `config.model.text.init_from`, and a report of what was done.

    Args:
      params: the new run's parameters, placed on the mesh; the recipe's alone, or those of a task around it.

    Raises:
      UserError: nothing is there, it is of no family that is known, or it does not fit.
    """
    source = config.model.text.init_from
    tensors, theirs = weights.open_weights(source)
    family = _family(tensors, theirs, source)
    family.check_config(config, theirs, source)
    here = checkpoint.by_path(params)
    shapes = {name.removeprefix(RECIPE): leaf.shape for name, leaf in here.items()}
    values, report = family.load(config, shapes, tensors, source)
    new = {
        name: _place(values[name.removeprefix(RECIPE)], leaf) if name.removeprefix(RECIPE) in values else leaf
        for name, leaf in here.items()
    }
    report = dataclasses.replace(report, source=f"{source} ({family.model_type})")
    return jax.tree.unflatten(jax.tree.structure(params), list(new.values())), report


def _place(value: np.ndarray, leaf: jax.Array) -> jax.Array:
    return jax.device_put(value.astype(leaf.dtype), leaf.sharding)


def _family(tensors: weights.Tensors, theirs: dict[str, Any], source: str) -> TextFamily:
    """By config.json, or by names where there is none."""
    known = ", ".join(TEXT)
    if theirs:
        kind = theirs.get("model_type")
        if kind not in TEXT:
            raise UserError(f"{source} is a model of model_type {kind!r}; a text tower can start from {known}")
        return TEXT[kind]
    for family in TEXT.values():
        first = family.layer[0].theirs[0].format(i=0)
        if first in map(family.rename, tensors.names()):
            return family
    raise UserError(
        f"{source} has no config.json, and its names, such as {', '.join(sorted(tensors.names())[:3])}, are of no text "
        f"encoder that is known; expected one of {known}"
    )
