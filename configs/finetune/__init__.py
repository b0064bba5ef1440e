"""Fine-tuning: `--config.init_from=WORKDIR` of a pre-trained run is all that a command must add.

The model is that run's own (`config.init_model`): recipe, model.*, input.image_size and compute_dtype come from its
checkpoint, and the command prints what was taken. Clips are seen whole, as Singularity fine-tunes, whatever the
pre-training masked. The tokenizer is that run's own, too.

Weight decay 0.02, the decay of the learning rate to 10% and gradients that are not clipped are those of Singularity's
released fine-tuning configs; 12 frames are VindLU's of fine-tuning. Inferred: batch size 128 (Singularity has 32 videos
a GPU and does not say how many GPUs), the steps between two evaluations, and, where a file does not say otherwise,
warm-up over a tenth of the steps.
"""

import difflib
from typing import Any

import ml_collections

from configs.smaug import MOVING_SHAPES as SHAPES
from vlp_jax.config import defaults, update
from vlp_jax.types import UserError

COMMON: dict[str, Any] = {
    "init_model": True,
    "batch_size": 128,
    "input.frames": 12,
    "input.workers": 8,
    "model.masking.kind": "none",
    "model.masking.ratio": 0.0,
    "loss.mlm": 0.0,
    "loss.mvm": 0.0,
    "optimizer.learning_rate": 1e-5,
    "optimizer.end_share": 0.1,
    "optimizer.clip_norm": 0.0,
    "evaluation.every_steps": 500,
    "checkpoint.every_steps": 500,
}

# The embedded clips on a CPU: as many frames as in pre-training, and an optimiser for small models (inferred).
MOVING_SHAPES: dict[str, Any] = {
    **SHAPES,
    "epochs": 3.0,
    "input.tokenizer": "",
    "input.frames": 4,
    "input.workers": 0,
    "optimizer.learning_rate": 3e-4,
    "optimizer.warmup_share": 0.1,
    "optimizer.end_share": 0.01,
    "optimizer.clip_norm": 1.0,
    "evaluation.every_steps": 20,
    "checkpoint.every_steps": 50,
}

# What a model pre-trained with every loss has and a task does not need; a head is what a task adds.
HEAD = ("head/.*",)
PIXELS = ("decoder/.*",)
WORDS = ("word_head/.*",)
CONTRAST = ("video_projection/.*", "text_projection/.*", "temperature")
MATCHING = ("match_head/.*",)
READING = ("text/.*", "fusion/.*", "selector/.*")


def build(file: str, arg: str, shared: dict[str, Any], sets: dict[str, dict[str, Any]]) -> ml_collections.ConfigDict:
    """The config of the data set `arg` of `file`: COMMON, then what its sets share, then the set's own.

    Raises:
      UserError: there is no such data set in the file.
    """
    if arg not in sets:
        near = difflib.get_close_matches(arg, sets, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        asked = f"has no data set {arg!r}" if arg else "needs a data set"
        raise UserError(f"configs/finetune/{file}.py {asked}: expected one of {', '.join(sets)}, after a colon{hint}")
    return update(defaults(), {**COMMON, **shared, **sets[arg], "name": f"{file}-{arg}"})
