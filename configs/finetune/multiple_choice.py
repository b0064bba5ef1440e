"""Fine-tuning for multiple choice: which of the texts describes the clip.

Launch::

    python -m vlp_jax.train --config configs/finetune/multiple_choice.py:lsmdc --config.init_from=runs/pretrained \\
        --workdir runs/lsmdc_mc
    python -m vlp_jax.evaluate --workdir runs/lsmdc_mc --checkpoint best

Arguments: `lsmdc`, `moving_shapes` (embedded, CPU). Each option is scored by itself by the matching head. The
checkpoint is chosen by the accuracy of the validation split. A retrieval run needs no such training to answer::

    python -m vlp_jax.evaluate --workdir runs/msrvtt_7k --task multiple_choice --split mc_test --frames 12

which is how MSRVTT-MC is measured (Singularity: VTM's best of five captions, 12 frames); it has no training split. The
model must not have trained on train_9k, which holds most of its clips (configs/finetune/retrieval.py).
Training on choices, and its every number, is inferred. Not run on LSMDC here.
"""

from typing import Any

from configs import finetune

SHARED: dict[str, Any] = {
    "task.kind": "multiple_choice",
    "epochs": 5.0,
    "input.max_text_tokens": 32,
    "input.split": "mc_train",
    "evaluation.validation_split": "mc_validation",
    "evaluation.split": "mc_test",
    "evaluation.select_by": "accuracy",
    "init_may_differ": (*finetune.HEAD, *finetune.PIXELS, *finetune.WORDS),
}

SETS: dict[str, dict[str, Any]] = {
    "lsmdc": {"input.path": "datasets/lsmdc"},
    "moving_shapes": {**finetune.MOVING_SHAPES, "input.positives": "clip"},
}


def get_config(arg: str = ""):
    """Returns the config of a data set."""
    return finetune.build("multiple_choice", arg, SHARED, SETS)
