"""Fine-tuning for open-ended questions about videos, answered from a closed list.

Launch::

    python -m vlp_jax.train --config configs/finetune/question_answering.py:msrvtt_qa \\
        --config.init_from=runs/pretrained --workdir runs/msrvtt_qa
    python -m vlp_jax.evaluate --workdir runs/msrvtt_qa --checkpoint best

Arguments: `msrvtt_qa`, `msvd_qa`, `activitynet_qa`, `moving_shapes` (embedded, CPU). A decoder that starts from the
fusion layers ranks the answers (`--config.task.head=classifier` for a classifier over the list instead). The checkpoint
is chosen by the accuracy of the validation split.

The decoder, lr 1e-5, 10 epochs of which half an epoch warms up, questions of 25 and answers of 5 tokens and the 128
answers that are scored in full are Singularity's; 12 frames VindLU's; the rest is inferred
(configs/finetune/__init__.py). Not run on these sets here.
"""

from typing import Any

from configs import finetune

SHARED: dict[str, Any] = {
    "task.kind": "question_answering",
    "task.head": "decoder",
    "task.answers": "qa_answers",
    "task.max_answer_tokens": 5,
    "task.shortlist": 128,
    "epochs": 10.0,
    "optimizer.warmup_share": 0.05,
    "input.max_text_tokens": 25,
    "input.split": "qa_train",
    "evaluation.validation_split": "qa_validation",
    "evaluation.split": "qa_test",
    "evaluation.select_by": "accuracy",
    # MLM's weight is what gives the recipe its fusion layers; the task trains by its own loss.
    "loss.vtc": 0.0,
    "loss.vtm": 0.0,
    "loss.mlm": 1.0,
    "init_may_differ": (
        *finetune.HEAD,
        *finetune.PIXELS,
        *finetune.CONTRAST,
        *finetune.MATCHING,
    ),
}

SETS: dict[str, dict[str, Any]] = {
    "msrvtt_qa": {"input.path": "datasets/msrvtt"},
    "msvd_qa": {"input.path": "datasets/msvd"},
    "activitynet_qa": {"input.path": "datasets/activitynet"},
    "moving_shapes": {
        **finetune.MOVING_SHAPES,
        "input.positives": "clip",
        "task.max_answer_tokens": 6,
    },
}


def get_config(arg: str = ""):
    """Returns the config of a data set."""
    return finetune.build("question_answering", arg, SHARED, SETS)
