"""SMAUG pre-training, in four sizes; append `_dense` for the opponent without masking and sparsification.

Or append `_stage1` and `_stage2`: one frame, then four from where that ended, as Singularity trains (that SMAUG does so
is inferred; benchmarks/cost_quality.py compares). `_stage2` is the size itself, started by `--config.init_from`.
`_features` is SMAUG of precomputed features, without what hides, drops or rebuilds patches; `--config.input.features.*`
says which. `_videomae` and `_timesformer` have the form and the clip lengths of these encoders, so that
`--config.model.vision.init_from` takes their weights: tube masks, and no pruning, which needs a CLS in each frame and
attention inside it.

Launch::

    python -m vlp_jax.train --config configs/smaug.py:tiny --workdir runs/tiny

Arguments: `tiny` (the quickstart, CPU), `small` (moving_shapes on a CPU or one GPU), `base` (ViT-B/16 at 224 px,
BERT-base-sized text with 9 + 3 layers), `large` (ViT-L/16); each also as `tiny_dense`, `small_dense`, `base_dense`,
`large_dense`.

The paper gives no mask ratio, keep rate or number of kept frames. R@1 of 256 unseen clips after 120 s of training
`tiny` (benchmarks/equal_time.py, mean of both directions): dense 50.2 (48.0 to 53.1, three seeds), SMAUG at mask ratio
0.4 51.0 (50.0 to 52.0, three seeds); with one seed 47.1 at 0.6 and 44.5 at 0.75, and at 0.6 44.1 without pruning; at
0.4 48.2 with keep rate 0.5 (two seeds), 49.8 with 3 and 52.5 with all 4 frames kept (one seed, which has 51.0 with 2).
Hence 0.4, keep rate 0.7 and 2 of 4 frames in `tiny` and `small`. Objects there are small and brief. `base` and `large`
keep MAE's 0.75, unmeasured on real clips, and follow Singularity's optimisation and EViT's pruning layers (inferred).
"""

from typing import Any

from vlp_jax.config import defaults, update
from vlp_jax.types import UserError

MOVING_SHAPES = {
    "input.path": "datasets/moving_shapes",
    "input.tokenizer": "datasets/moving_shapes/tokenizer.model",
    # Captions name sizes, places and directions, which crops and flips would falsify.
    "input.crop_scale": (1.0, 1.0),
    "input.flip": False,
    "input.positives": "caption",
    "input.max_text_tokens": 18,
    "input.cache_gib": 2.0,
    "evaluation.batch_size": 64,
}

TINY = {
    **MOVING_SHAPES,
    "epochs": 7.0,
    "batch_size": 128,
    "input.image_size": 48,
    "model.vision.patch_size": 8,
    "model.vision.width": 128,
    "model.vision.layers": 4,
    "model.vision.heads": 4,
    "model.masking.ratio": 0.4,
    "model.masking.unmasked_share": 0.2,
    "model.pruning.layers": (2,),
    "model.decoder.width": 64,
    "model.decoder.layers": 1,
    "model.decoder.heads": 2,
    "model.decoder.share": 0.5,
    "model.text.width": 128,
    "model.text.layers": 2,
    "model.text.heads": 4,
    "model.fusion.layers": 1,
    "model.projection": 128,
    "model.unroll": True,
    "optimizer.learning_rate": 1.5e-3,
}

SMALL = {
    **MOVING_SHAPES,
    "epochs": 40.0,
    "batch_size": 128,
    "input.image_size": 64,
    "model.vision.patch_size": 8,
    "model.vision.width": 192,
    "model.vision.layers": 6,
    "model.vision.heads": 6,
    "model.masking.ratio": 0.4,
    "model.masking.unmasked_share": 0.2,
    "model.pruning.layers": (2, 4),
    "model.decoder.width": 96,
    "model.decoder.layers": 2,
    "model.decoder.heads": 3,
    "model.decoder.share": 0.5,
    "model.text.width": 192,
    "model.text.layers": 4,
    "model.text.heads": 6,
    "model.fusion.layers": 2,
    "model.projection": 192,
    "model.unroll": True,
    "optimizer.learning_rate": 5e-4,
}

BASE = {
    "epochs": 10.0,
    "batch_size": 512,
    "compute_dtype": "bfloat16",
    "model.decoder.share": 0.5,
    "model.remat": "none",
    "checkpoint.every_steps": 1000,
}

LARGE = {
    **BASE,
    "model.vision.width": 1024,
    "model.vision.layers": 24,
    "model.vision.heads": 16,
    "model.pruning.layers": (6, 12, 18),
    "model.decoder.width": 512,
    "model.decoder.heads": 8,
    "model.remat": "dots",
}

DENSE: dict[str, Any] = {
    "model.masking.kind": "none",
    "model.masking.ratio": 0.0,
    "model.masking.unmasked_share": 0.0,
    "model.pruning.layers": (),
    "model.selection.frames": 0,
    "loss.mvm": 0.0,
}

STAGES: dict[str, dict[str, Any]] = {
    # One frame leaves nothing to select; whole clips come at the end of stage 2.
    "stage1": {"input.frames": 1, "model.selection.frames": 0, "model.masking.unmasked_share": 0.0},
    # The scorer of frames begins here.
    "stage2": {"init_may_differ": ("selector/.*",)},
}

FEATURES: dict[str, Any] = {
    **{key: value for key, value in DENSE.items() if key != "model.selection.frames"},
    "model.vision.positions": "none",
    # A frame of one feature has nothing to attend to but other frames.
    "model.vision.attention": "joint",
}

# The form of published video encoders; half of their slots are kept by the selector, as in the sizes above.
PUBLISHED: dict[str, dict[str, Any]] = {
    "videomae": {
        "input.frames": 16,
        "model.vision.tubelet": 2,
        "model.vision.cls": False,
        "model.vision.pool": "mean",
        "model.vision.attention": "joint",
        "model.vision.positions": "sequence",
        "model.vision.time_positions": "none",
        "model.vision.norm_epsilon": 1e-12,
        "model.masking.kind": "tube",
        "model.pruning.layers": (),
        "model.selection.frames": 4,
        "model.decoder.cls": False,
    },
    "timesformer": {
        "input.frames": 8,
        "model.vision.positions": "learned",
        "model.vision.time_positions": "learned",
        "model.vision.temporal_attention": "divided",
        "model.masking.kind": "tube",
        "model.pruning.layers": (),
        "model.selection.frames": 4,
    },
}

VARIANTS: dict[str, dict[str, Any]] = {"": {}, "dense": DENSE, "features": FEATURES, **STAGES, **PUBLISHED}

SIZES = {"tiny": TINY, "small": SMALL, "base": BASE, "large": LARGE}


def get_config(arg: str = "tiny"):
    """Returns the config of a size, e.g. `base`, of its dense opponent, `base_dense`, or of a stage, `base_stage1`."""
    size, _, variant = arg.partition("_")
    if size not in SIZES or variant not in VARIANTS:
        more = ", ".join(f"_{name}" for name in VARIANTS if name)
        raise UserError(f"configs/smaug.py:{arg}: expected one of {', '.join(SIZES)}, each also with {more}")
    return update(defaults(), {**SIZES[size], **VARIANTS[variant], "name": f"smaug-{arg}"})
