"""What a run takes over of the one it starts from: the model's config, the tokenizer, and whether the head fits."""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from vlp_jax import config as config_lib
from vlp_jax import warm_start, workdir
from vlp_jax.input import tokenizer as tokenizer_lib
from vlp_jax.tasks import task
from vlp_jax.types import UserError

# What `config.init_model` takes from that run. Masking stays this run's own: fine-tuning sees whole clips.
_FEATURES = ("input.features.width", "input.features.regions", "input.features.boxes")
_TAKEN = ("recipe", "compute_dtype", "input.image_size", "input.lowercase", *_FEATURES, "model.")
# Nor what that run itself started from.
_OWN = ("model.masking.", "model.text.init_from", "model.vision.init_from", "model.decoder.from_file")
_BEGINNING = 2**20  # bytes of a table that tell it from others


def model_config(config: Any, given: Collection[str] = (), saved: Any = None) -> str:
    """Sets the model's part of `config` to that of the run that `config.init_from` names; returns a statement of it.

    Taken are recipe, compute_dtype, input.image_size, input.lowercase, input.features.* but path, and model.* but
    model.masking.*. What the command line sets stays, and the statement says so; parameters that then do not fit are
    refused when they are loaded. Where the selector keeps some of the frames and a clip has another number of them
    here, it keeps the same share.

    Args:
      given: dotted keys that the command line sets.
      saved: config of this run itself where it is continued: it is complete already, and need not find the other one.

    Raises:
      UserError: `config.init_from` is empty or names no run, or one of another version of the code.
    """
    if saved is None:
        if not config.init_from:
            raise UserError(
                "config.init_from is empty: this config fine-tunes another run's model; give "
                "--config.init_from=WORKDIR of a run that has saved a checkpoint"
            )
        origin = warm_start.find(config.init_from)
        metadata = origin.metadata()
        there = config_lib.from_json(json.dumps(metadata["config"]))
        source = f"{config.init_from} ({there.name}, recipe {there.recipe})"
    else:
        there, source = saved, "this workdir's run"
    values = config_lib.leaves(there)
    wanted = [key for key in values if key.startswith(_TAKEN) and not key.startswith(_OWN)]
    own = {key: value for key, value in config_lib.leaves(config).items() if key in given}
    config_lib.update(config, {key: values[key] for key in wanted if key not in own})
    lines = [f"model of {source}: {', '.join(name.rstrip('.') for name in _TAKEN[:-1])} and model.* are its own"]
    kept, slots, slots_there = there.model.selection.frames, config_lib.grid(config)[0], config_lib.grid(there)[0]
    if kept and slots != slots_there and "model.selection.frames" not in own:
        share = min(slots, max(2, math.ceil(kept * slots / slots_there))) if slots > 1 else 0
        config.model.selection.frames = share
        lines.append(
            f"config.model.selection.frames = {share} of {slots} temporal slots ({kept} of {slots_there} there)"
        )
    table = there.model.vision.time_slots or slots_there
    fixed = there.model.vision.time_positions == config.model.vision.time_positions == "sincos"
    if fixed and slots != table and "model.vision.time_slots" not in own:
        # The same moment of a clip keeps its position, as a learned table is interpolated.
        config.model.vision.time_slots = table
        lines.append(f"config.model.vision.time_slots = {table}: its fixed time positions interpolated to {slots}")
    for key in wanted:
        if key in own and own[key] != values[key]:
            lines.append(f"set on the command line instead: config.{key} = {own[key]!r} ({values[key]!r} there)")
    return "\n  ".join(lines)


def tokenizer_file(config: Any) -> pathlib.Path:
    """The tokenizer of the run that `config.init_from` names.

    Raises:
      UserError: `config.input.tokenizer` is another one, whose ids would mean other words; or that run has none.
    """
    own = workdir.run_tokenizer(warm_start.find(config.init_from).workdir)
    given = pathlib.Path(config.input.tokenizer) if config.input.tokenizer else None
    if given and given.is_file() and tokenizer_lib.read(given) != own.read_bytes():
        size = lambda path: (
            tokenizer_lib.open_tokenizer(path, config.input.max_text_tokens, config.input.lowercase).vocab_size
        )
        raise UserError(
            f"config.input.tokenizer = {str(given)!r} ({size(given)} pieces) is not that of the run in "
            f"config.init_from, {own} ({size(own)} pieces): the rows of its word table would mean other words; leave "
            "config.input.tokenizer empty"
        )
    return own


def parameters(config: Any, params: Any, answers: bytes | None = None) -> tuple[Any, warm_start.Report]:
    """`warm_start.load` of `config.init_from` into a new run's parameters.

    Args:
      answers: this run's answer list, serialised; a head over a list is taken only from one over the same list.

    Raises:
      UserError: as `warm_start.load`; or the positions of a clip's patches in one row would mean other places.
    """
    origin = warm_start.find(config.init_from)
    there = origin.metadata()["config"]
    _check_sequence(config, there)
    saved = there["task"]
    same = (saved["kind"], saved["head"]) == (config.task.kind, config.task.head)
    over_a_list = config.task.kind == "classification" or config.task.head == "classifier"
    if same and over_a_list:
        file = origin.workdir / workdir.ANSWERS
        same = answers is not None and file.is_file() and file.read_bytes() == answers
    return warm_start.load(config.init_from, tuple(config.init_may_differ), params, task.origins, same_head=same)


def _check_sequence(config: Any, there: Any) -> None:
    """Refuses another number of patches in a frame where they are numbered in one row: there is no table to
    interpolate, and nothing else would tell."""
    model = config.model
    side = config.input.image_size // model.vision.patch_size
    trained = there["input"]["image_size"] // there["model"]["vision"]["patch_size"]
    if "sequence" in (model.vision.positions, model.decoder.positions) and side != trained:
        raise UserError(
            f"config.input.image_size = {config.input.image_size} makes {side} x {side} patches of a frame, the run in "
            f"config.init_from has {trained} x {trained}: positions = 'sequence' number them in one row, so that all "
            f"would be others; set input.image_size={trained * model.vision.patch_size}"
        )


def trained_on(config: Any, history: Sequence[dict[str, str]] | None = None) -> list[dict[str, str]]:
    """What the model will have trained on, first things first: this run's sources, after those of `config.init_from`.

    Args:
      history: of this run itself where it is continued, whose data may lie at another path by now.

    Returns:
      `{path, content, split, stage}` of each, the path resolved, `content` as `content_of`, the stage `pre-trained`,
      `trained` or `fine-tuned`.
    """
    before = [] if history is None else list(history)
    if history is None and config.init_from:
        before = warm_start.find(config.init_from).metadata()["trained_on"]
        before = [{**item, "stage": "pre-trained"} for item in before]
    # A later stage of pre-training starts from a run, too; only fine-tuning takes its model over.
    stage = ("fine-tuned" if config.init_model else "pre-trained") if config.init_from else "trained"
    own = [
        {"path": os.path.realpath(i.path), "content": content_of(i.path), "split": i.split, "stage": stage}
        for i in config_lib.training_inputs(config).values()
    ]
    return before + [item for item in own if item not in before]


def content_of(path: str) -> str:
    """A digest by which a data set is known wherever it lies: of its dataset_info.json, or of the table's beginning and
    size; '' of globs and shards, which are known by their path alone."""
    file = pathlib.Path(path)
    file = file / "dataset_info.json" if file.is_dir() else file
    if not file.is_file():
        return ""
    with file.open("rb") as f:
        return hashlib.blake2b(f.read(_BEGINNING) + b"%d" % file.stat().st_size, digest_size=8).hexdigest()
