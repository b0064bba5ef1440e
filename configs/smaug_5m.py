"""SMAUG on WebVid-2M and CC3M together ("5M"), in two stages with a curriculum of frames: one frame, then four.

Launch::

    python -m vlp_jax.train --config configs/smaug_5m.py:stage1 --workdir runs/stage1
    python -m vlp_jax.train --config configs/smaug_5m.py:stage2 --config.init_from=runs/stage1 --workdir runs/stage2

Prepare the data with `python -m data.prepare webvid` and `cc3m` (data/README.md), or point a source at tar shards by
`--config.mixture.cc3m.kind=shards --config.mixture.cc3m.path='cc3m/{00000..00331}.tar'` and
`--config.mixture.cc3m.split=all`. A vocabulary comes from `python -m data.train_tokenizer`, or is BERT's `vocab.txt`.

The model is `configs/smaug.py:base`. Both stages' lengths and learning rates, the mixture and the single-source batches
follow Singularity (its released configs: 10 epochs at 1e-4 with one frame, then 5 at 5e-5 with four); that SMAUG trains
so is inferred. Not run at this size here.
"""

from typing import Any

from configs import smaug
from vlp_jax.config import add_source, update
from vlp_jax.types import UserError

# Examples of each: batches are drawn in proportion, so that an epoch of one is about an epoch of the other.
SIZES = {"webvid": 2.5e6, "cc3m": 2.9e6}

COMMON: dict[str, Any] = {
    "input.path": "datasets/webvid",  # evaluation during training, and its validation split
    "input.tokenizer": "datasets/webvid/tokenizer.model",
    "input.flip": True,
    "input.workers": 8,
    "model.vision.time_positions": "learned",
}

STAGES: dict[str, dict[str, Any]] = {
    "stage1": {
        "epochs": 10.0,
        "optimizer.learning_rate": 1e-4,
        "input.frames": 1,
        "model.selection.frames": 0,
    },
    "stage2": {
        "epochs": 5.0,
        "optimizer.learning_rate": 5e-5,
        "input.frames": 4,
        "model.selection.frames": 2,
        "init_from": "runs/stage1",
        # One frame leaves nothing to select: the scorer begins here.
        "init_may_differ": ("selector/.*",),
    },
}


def images(name: str) -> dict[str, Any]:
    """What a source's own values are: images are videos of one frame."""
    return {"frames": 1} if name == "cc3m" else {}


def get_config(arg: str = "stage1"):
    """Returns the config of `stage1` or `stage2`."""
    if arg not in STAGES:
        raise UserError(f"configs/smaug_5m.py:{arg}: expected one of {', '.join(STAGES)}")
    config = update(smaug.get_config("base"), {**COMMON, **STAGES[arg], "name": f"smaug-5m-{arg}"})
    for name, size in SIZES.items():
        add_source(config, name, weight=size, path=f"datasets/{name}", **images(name))
    return config
