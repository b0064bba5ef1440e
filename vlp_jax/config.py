"""Configs: changing, mixing and storing them, and values derived from their knobs (`vlp_jax/knobs.py`).

A config file starts from `defaults()` and changes what differs. Each binary calls `validation.validate` before any
work.
"""

import contextlib
import difflib
import fractions
import json
import math
from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections import config_dict

from vlp_jax.knobs import ADDED
from vlp_jax.knobs import defaults as defaults
from vlp_jax.types import UserError


def update(config: ml_collections.ConfigDict, changes: dict[str, Any]) -> ml_collections.ConfigDict:
    """Sets dotted keys in place, e.g. `{"model.vision.width": 128}`; an unknown key is refused with a suggestion.

    Raises:
      UserError: there is no such key, or the value has another type than the knob.
    """
    for key, value in changes.items():
        check_key(config, key)
        *path, last = key.split(".")
        node = config
        for name in path:
            node = node[name]
        try:
            node[last] = value
        except (TypeError, ValueError) as e:
            raise UserError(
                f"config.{key} = {value!r}: expected {type(node[last]).__name__}, as in {node[last]!r}"
            ) from e
    return config


# What a source of the mixture may set for itself, besides its weight; everything else is `config.input`'s.
SOURCE_KEYS = (
    "kind",
    "path",
    "split",
    "video_root",
    "video_column",
    "caption_column",
    "start_column",
    "end_column",
    "caption_key",
    "positives",
    "frames",
    "crop_scale",
    "flip",
)


def add_source(config: ml_collections.ConfigDict, name: str, *, weight: float, **values: Any) -> None:
    """Adds a source to `config.mixture`, e.g. `add_source(config, "cc3m", weight=3, path="datasets/cc3m", frames=1)`.

    Args:
      weight: above 0; the share of the steps that train on this source, relative to the other sources.
      values: `config.input` keys (those of SOURCE_KEYS) that differ for this source.

    Raises:
      UserError: a key that a source cannot have, or a name that is no identifier.
    """
    if not name.isidentifier():
        raise UserError(f"source {name!r} of config.mixture: expected letters, digits and _, no digit first")
    for key in values:
        if key not in SOURCE_KEYS:
            near = difflib.get_close_matches(key, SOURCE_KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"config.mixture.{name}.{key}: expected one of {', '.join(SOURCE_KEYS)}{hint}")
    # Every key is there, so that the command line can set it; None is what `config.input` says.
    own = {key: config_dict.placeholder(type(config.input[key])) for key in SOURCE_KEYS}
    with config.unlocked():
        config.mixture[name] = ml_collections.ConfigDict({**own, "weight": float(weight)})
        config.mixture[name].update(values)


@contextlib.contextmanager
def errors_of_source(name: str) -> Iterator[None]:
    """Names the source of `config.mixture` in a UserError; does nothing for '', the single source without a name."""
    try:
        yield
    except UserError as error:
        if not name:
            raise
        raise UserError(
            f"source {name!r} of config.mixture, whose own values are config.mixture.{name}.*: {error}"
        ) from error


def source_input(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """`config.input` with the values that the source `name` of `config.mixture` has of its own."""
    own = config.input.copy_and_resolve_references()
    for key, value in config.mixture[name].items():
        if key != "weight" and value is not None:
            own[key] = value
    return own


def training_inputs(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """What the run trains on: source -> `source_input`, by name; `{"": config.input}` where it is no mixture."""
    return {name: source_input(config, name) for name in sorted(config.mixture)} or {"": config.input}


def evaluated_input(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`config.input` as clips are read at test: with `config.evaluation.frames` frames where that is set."""
    own = config.input.copy_and_resolve_references()
    own.frames = config.evaluation.frames or own.frames
    return own


def check_key(config: ml_collections.ConfigDict, key: str) -> None:
    """Raises UserError, with the nearest existing key, where the dotted `key` names no knob of `config`."""
    known = leaves(config)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [
            k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]
        ]
        hint = f"did you mean {near[0]!r}?" if near else "`vlp_jax/knobs.py` lists every key."
        raise UserError(f"unknown config key {key!r}: {hint}")


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns dotted key -> value of every leaf."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            out.update(leaves(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def to_json(config: ml_collections.ConfigDict) -> str:
    """Serialises a config; `from_json` restores it."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ml_collections.ConfigDict:
    """Restores a config written by `to_json`; keys that this version lacks, and keys missing there, are refused.

    Those of `knobs.ADDED` may be missing: the run did what their defaults do.

    Raises:
      UserError: the saved config and this version of the code do not have the same keys.
    """

    def tuples(value):
        return tuple(tuples(x) for x in value) if isinstance(value, list) else value

    try:
        tree = json.loads(text)
    except ValueError as error:
        raise UserError(f"the saved config is not valid JSON ({error}); restore it from a backup") from None
    sources = tree.get("mixture") if isinstance(tree, dict) else None
    if not isinstance(sources, dict) or not all(isinstance(source, dict) for source in sources.values()):
        raise UserError(f"the saved config is damaged: {text[:80]!r} is no config; restore it from a backup")
    saved = leaves(ml_collections.ConfigDict(tree))
    config = defaults()
    mixture: dict[str, dict[str, Any]] = {}
    for key in [key for key in saved if key.startswith("mixture.")]:
        _, name, knob = key.split(".", 2)
        value = tuples(saved.pop(key))
        if value is not None:
            mixture.setdefault(name, {})[knob] = value
    for name, values in mixture.items():
        add_source(config, name, **values)
    own = {key for key in leaves(config) if not key.startswith("mixture.")}
    missing = sorted(own - set(saved) - set(ADDED))
    if missing:
        raise UserError(
            f"the saved config lacks {', '.join(missing)}: it was written by another version of vlp_jax; "
            "use the version that wrote it"
        )
    return update(config, {key: tuples(value) for key, value in saved.items()})


# --- Derived values ---------------------------------------------------------------------------------------------------


def loss_weights(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Term -> its weight in `config.loss`."""
    return {term: config.loss[term] for term in ("vtc", "vtm", "mlm", "mvm")}


def total_steps(config: ml_collections.ConfigDict, dataset_size: int) -> int:
    """Steps of the whole run, from `steps`, `epochs` or `examples` (whichever is set); at least 1."""
    if config.steps:
        return config.steps
    examples = config.examples or config.epochs * dataset_size
    return max(1, round(examples / config.batch_size))


def masked_steps(config: ml_collections.ConfigDict, steps: int) -> int:
    """Steps of a run of `steps` that train on masked clips; the rest, at its end, sees whole ones."""
    return steps - round(steps * config.model.masking.unmasked_share)


def clip_form(input_config: ml_collections.ConfigDict, frames: int | None = None) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of a clip in a batch: `(T, H, W, 3)` of uint8 pixels, or `(T, R, width + boxes)` of float32
    features, each followed by its box; R is 1 without regions.

    Args:
      input_config: `config.input`.
      frames: of the clip; `input_config.frames` by default.
    """
    c, frames = input_config, input_config.frames if frames is None else frames
    if c.features.width:
        return (frames, c.features.regions or 1, c.features.width + c.features.boxes), "float32"
    return (frames, c.image_size, c.image_size, 3), "uint8"


def grid(config: ml_collections.ConfigDict, frames: int | None = None) -> tuple[int, int]:
    """Returns `(T, N)`: temporal slots of a clip (frames / tubelet) and patches, or features, of one of them.

    Args:
      frames: of the clip; `config.input.frames` by default.
    """
    side = config.input.image_size // config.model.vision.patch_size
    patches = (config.input.features.regions or 1) if config.input.features.width else side * side
    return (config.input.frames if frames is None else frames) // config.model.vision.tubelet, patches


def kept_after(count: int, rate: float) -> int:
    """Tokens that survive one pruning: `ceil(rate * count)` (EViT), of the rate as it is written in decimal."""
    return math.ceil(fractions.Fraction(str(rate)) * count)


def visible_patches(config: ml_collections.ConfigDict, frames: int | None = None) -> tuple[int, int]:
    """Returns `(T_visible, K)`: the visible temporal slots and the visible patches in each, under the masking config.

    Every kind but `frame` hides patches inside each slot; `frame` hides whole slots. `frames` as in `grid`.
    """
    slots, patches = grid(config, frames)
    ratio = 0.0 if config.model.masking.kind == "none" else config.model.masking.ratio
    if config.model.masking.kind == "frame":
        return slots - round(slots * ratio), patches
    return slots, patches - round(patches * ratio)


def freeze(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
    """A hashable copy, for modules to hold: a static part of the compiled step."""
    return ml_collections.FrozenConfigDict(config)
