"""VindLU pre-training: temporal attention in every block, images and videos in turn.

Launch::

    python -m vlp_jax.train --config configs/vindlu.py:small --workdir runs/vindlu

Arguments: `tiny`, `small` (moving_shapes, the towers of `configs/smaug.py`'s sizes; it has no images, so that only
videos are seen) and `base` (BEiT-B/16 at 224 px with 4 frames, WebVid-2M videos and CC3M images in alternating batches,
"5M").

From the released configs, for `base`: 10 epochs at 1e-4, one of them warm-up, weight decay 0.02, no clipping, 4 frames.
Its batches are 64 clips or images a GPU; 512 a step, and the crops, are inferred. `tiny` and `small` take optimiser and
length from SMAUG's of their size. Not run at `base`; benchmarks/cost_quality.py compares `small`.
"""

from typing import Any

from configs import smaug, smaug_5m
from vlp_jax.config import add_source, update
from vlp_jax.types import UserError

MODEL: dict[str, Any] = {
    "recipe": "vindlu",
    "model.vision.positions": "relative",
    "model.vision.time_positions": "learned",
    "model.vision.temporal_attention": "zero_init",
    "model.vision.pool": "mean",
    "model.similarity": "frames",
}

BASE: dict[str, Any] = {
    **{key: smaug_5m.COMMON[key] for key in ("input.path", "input.tokenizer", "input.flip", "input.workers")},
    "input.frames": 4,
    "epochs": 10.0,
    "optimizer.learning_rate": 1e-4,
    "optimizer.clip_norm": 0.0,
}


def get_config(arg: str = "small"):
    """Returns the config of a size."""
    if arg not in ("tiny", "small", "base"):
        raise UserError(f"configs/vindlu.py:{arg}: expected tiny, small or base")
    config = update(smaug.get_config(f"{arg}_dense"), {**MODEL, "name": f"vindlu-{arg}"})
    if arg == "base":
        update(config, BASE)
        for name, count in smaug_5m.SIZES.items():
            add_source(config, name, weight=count, path=f"datasets/{name}", **smaug_5m.images(name))
    return config
