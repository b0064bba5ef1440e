"""Classifying clips: fine-tuning, or a linear probe on a frozen encoder.

Launch::

    python -m vlp_jax.train --config configs/finetune/classification.py:ssv2_probe --config.init_from=runs/pretrained \\
        --workdir runs/ssv2_probe
    python -m vlp_jax.evaluate --workdir runs/ssv2_probe --checkpoint best

Arguments: `ssv2` (174 templates of Something-Something V2), `moving_shapes` (embedded, CPU), each also with `_probe`,
which trains the classifier alone. Only the video encoder is taken over. The checkpoint is chosen by the accuracy of the
validation split, for SSv2, whose validation split is the one that is reported, of a part of the training split.

Every number is inferred. SSv2's classes say left and right: no flips. Not run on SSv2 here.
"""

from typing import Any

from configs import finetune

SHARED: dict[str, Any] = {
    "task.kind": "classification",
    "epochs": 10.0,
    "loss.vtc": 0.0,
    "loss.vtm": 0.0,
    "input.flip": False,
    "evaluation.select_by": "accuracy",
    "init_may_differ": (
        *finetune.HEAD,
        *finetune.PIXELS,
        *finetune.WORDS,
        *finetune.CONTRAST,
        *finetune.MATCHING,
        *finetune.READING,
    ),
}

FINE_TUNED: dict[str, dict[str, Any]] = {
    "ssv2": {
        "input.path": "datasets/ssv2",
        "input.split": "template_train[kept]",
        "evaluation.validation_split": "template_train[held_out]",
        "evaluation.split": "template_validation",
    },
    "moving_shapes": {
        **finetune.MOVING_SHAPES,
        "input.split": "cls_train",
        "evaluation.validation_split": "cls_validation",
        "evaluation.split": "cls_test",
    },
}

PROBE: dict[str, Any] = {
    "optimizer.trainable": ("head/.*",),
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.0,
}

SETS = {**FINE_TUNED, **{f"{name}_probe": {**values, **PROBE} for name, values in FINE_TUNED.items()}}


def get_config(arg: str = ""):
    """Returns the config of a data set, e.g. `ssv2`, or of a linear probe on it, `ssv2_probe`."""
    return finetune.build("classification", arg, SHARED, SETS)
