"""Singularity pre-training, in two stages: one frame, then four with layers over time.

Launch::

    python -m vlp_jax.train --config configs/singularity.py:small_stage1 --workdir runs/stage1
    python -m vlp_jax.train --config configs/singularity.py:small_stage2 --config.init_from=runs/stage1 \\
        --workdir runs/stage2

Arguments: `tiny`, `small` (moving_shapes, the towers of `configs/smaug.py`'s sizes) and `base` (BEiT-B/16 at 224 px,
BERT-base-sized text, WebVid-2M and CC3M together, "5M"), each with `_stage1` or `_stage2`. Stage 1 alone is
Singularity, stage 2 adds its temporal variant's two layers; a clip's frames come together at test by `--ensemble`.

`tiny` and `small` contrast what the layers over time give, the stronger variant there; `base` the frames before them,
as published. From the released configs, for `base`: 10 epochs at 1e-4, then 5 at 5e-5, one of them warm-up, cosine to
1%, weight decay 0.02, no clipping, one random frame, crops of scale (0.5, 1), flips. Its batches are 128 images or 96
videos a GPU; 384 a step here is inferred. `tiny` and `small` take optimiser and length from SMAUG's of their size: no
published ones exist. Not run at `base`; benchmarks/cost_quality.py compares `small`.
"""

from typing import Any

from configs import smaug, smaug_5m
from vlp_jax.config import add_source, update
from vlp_jax.types import UserError

# The model, on the towers of `configs/smaug.py`'s dense opponent.
MODEL: dict[str, Any] = {
    "recipe": "singularity",
    "model.vision.positions": "relative",
    "model.vision.time_positions": "none",
    "model.vision.pool": "mean",
    "model.similarity": "frames",
}

STAGES: dict[str, dict[str, Any]] = {
    "stage1": {"input.frames": 1},
    "stage2": {
        "input.frames": 4,
        "model.temporal.layers": 2,
        # The captions of moving_shapes say what moves and in which order: contrasting frames would not see it.
        "model.temporal.embed": True,
        # The layers over time begin here.
        "init_may_differ": ("temporal/.*",),
    },
}

BASE: dict[str, Any] = {
    **{key: smaug_5m.COMMON[key] for key in ("input.path", "input.tokenizer", "input.flip", "input.workers")},
    "batch_size": 384,
    "optimizer.clip_norm": 0.0,
}
BASE_STAGES: dict[str, dict[str, Any]] = {
    "stage1": {"epochs": 10.0, "optimizer.learning_rate": 1e-4, "optimizer.warmup_share": 0.1},
    "stage2": {
        "epochs": 5.0,
        "optimizer.learning_rate": 5e-5,
        "optimizer.warmup_share": 0.2,
        "model.temporal.embed": False,
    },
}


def get_config(arg: str = "small_stage1"):
    """Returns the config of a size and stage, e.g. `base_stage1`."""
    size, _, stage = arg.partition("_")
    if size not in ("tiny", "small", "base") or stage not in STAGES:
        raise UserError(f"configs/singularity.py:{arg}: expected tiny, small or base, then _stage1 or _stage2")
    config = update(smaug.get_config(f"{size}_dense"), {**MODEL, **STAGES[stage], "name": f"singularity-{arg}"})
    if size == "base":
        update(config, {**BASE, **BASE_STAGES[stage]})
        for name, count in smaug_5m.SIZES.items():
            add_source(config, name, weight=count, path=f"datasets/{name}", **smaug_5m.images(name))
    return config
