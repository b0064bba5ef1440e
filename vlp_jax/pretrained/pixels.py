"""Pixels of another mean and deviation than ours, folded into the weights of an imported encoder and decoder.

Ours are of mean and deviation 0.5, so in [-1, 1]; an affine map of what a linear layer takes or gives goes into its
weights exactly.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlp_jax.pretrained.family import Family, VisionFamily
from vlp_jax.types import UserError

_FILES = ("preprocessor_config.json", "processor_config.json")  # transformers' of one kind of input, and of several


def fold(values: dict[str, np.ndarray], config: Any, family: Family, source: str, theirs: Mapping[str, Any]) -> str:
    """Lets the patch embedding take our pixels, and a decoder of pixels give them; returns a note for the report.

    Args:
      values: our parameters that were imported, changed in place.
      theirs: config.json beside the weights.

    Raises:
      UserError: the file that says which pixels the model was trained on is damaged, or does not say it.
    """
    found = _trained_on(source, theirs)
    mean, deviation = found or (np.full(3, 0.5), np.full(3, 0.5))
    decoder = family.decoder if isinstance(family, VisionFamily) else None
    if decoder and config.model.decoder.from_file and config.model.decoder.target == "pixels":
        own = decoder.pixels == "own"
        scale, shift = (deviation, mean) if own else (np.ones(3), np.zeros(3))  # theirs -> [0, 1]
        kernel, bias = values["decoder/out/kernel"], values["decoder/out/bias"]
        colours = kernel.reshape(*kernel.shape[:-1], -1, 3)
        values["decoder/out/kernel"] = (colours * (2 * scale)).reshape(kernel.shape)
        values["decoder/out/bias"] = (bias.reshape(-1, 3) * (2 * scale) + 2 * shift - 1).reshape(bias.shape)
    if found is None:
        return (
            f", no {_FILES[0]} beside it: taken as trained on pixels of mean and deviation 0.5; write that file with "
            "image_mean and image_std where it was others, such as ImageNet's"
        )
    if (mean == 0.5).all() and (deviation == 0.5).all():
        return ""
    width = values["vision/embed/kernel"].shape[-1]
    kernel = values["vision/embed/kernel"].reshape(-1, 3, width).astype(np.float64)
    offset = ((0.5 - mean) / deviation)[:, None]
    bias = values.get("vision/embed/bias", np.zeros(width))  # CLIP's has none
    values["vision/embed/bias"] = bias + (kernel * offset).sum((0, 1))
    values["vision/embed/kernel"] = (kernel * (0.5 / deviation)[:, None]).reshape(values["vision/embed/kernel"].shape)
    return f", its pixels' mean {mean.tolist()} and deviation {deviation.tolist()} folded into the patch embedding"


def _trained_on(source: str, theirs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and deviation of pixels in [0, 1], of a file beside the weights, or of timm's config.json; None of none."""
    place = pathlib.Path(source)
    folder = place if place.is_dir() else place.parent
    of_timm = theirs.get("pretrained_cfg", theirs)
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    try:
        if file is not None:
            found, keys = json.loads(file.read_bytes()), ("image_mean", "image_std")
            found = found.get("image_processor", found.get("video_processor", found))
        elif "mean" in of_timm or "std" in of_timm:
            file, found, keys = folder / "config.json", of_timm, ("mean", "std")
        else:
            return None
        factor = 255 * float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 255.0
        mean, deviation = np.zeros(3), np.ones(3)
        if found.get("do_normalize", True):
            lacking = [key for key in keys if key not in found]
            if lacking:
                raise UserError(f"{file} has no {' and '.join(lacking)}: expected three numbers of each; add them")
            mean, deviation = (np.asarray(found[key], np.float64) for key in keys)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read ({error}); fetch it anew") from error
    if mean.shape != (3,) or deviation.shape != (3,) or not (deviation > 0).all() or not factor > 0:
        raise UserError(
            f"{file}: {keys[0]} {mean} and {keys[1]} {deviation}: expected three numbers, the latter > 0, and a "
            "rescale_factor above 0"
        )
    return (mean, deviation) if abs(factor - 1) < 1e-6 else (mean / factor, deviation / factor)
