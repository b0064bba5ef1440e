"""Fine-tuning for text-video retrieval: contrast and matching on whole clips.

Launch::

    python -m vlp_jax.train --config configs/finetune/retrieval.py:msrvtt --config.init_from=runs/pretrained \\
        --workdir runs/msrvtt
    python -m vlp_jax.evaluate --workdir runs/msrvtt --checkpoint best

Arguments: `msrvtt` (1k-A), `didemo` and `activitynet` (paragraphs), `msvd`, `lsmdc`, `ssv2` (labels),
`ssv2_template` (templates), `moving_shapes` (embedded, CPU). The checkpoint is chosen by R@1, text to video, of the
validation split; where a set has none, of a part of the training split that is kept from training, never of the split
that is reported.

VTC + VTM without MLM, the rates, no warm-up, the lengths of runs and texts of MSR-VTT, DiDeMo, ActivityNet and SSv2,
and the rerank of the best 128 are Singularity's; 12 frames, and 32 at test for ActivityNet, VindLU's. Inferred:
everything of MSVD and LSMDC, and what configs/finetune/__init__.py names. SSv2's labels say left and right: no flips.
Not run on these sets here.

Every clip of an SSv2 label or template is right for it (`input.positives`): at test as in Singularity, and in contrast,
which is inferred.

With a retrieval model the multiple-choice test MSRVTT-MC needs no training (Singularity). Its 2,990 clips are the
official test split, most of which train_9k holds: for it, train on train_7k::

    python -m vlp_jax.train --config configs/finetune/retrieval.py:msrvtt --config.init_from=runs/pretrained \\
        --config.input.split='train_7k[kept]' --config.evaluation.validation_split='train_7k[held_out]' \\
        --workdir runs/msrvtt_7k
    python -m vlp_jax.evaluate --workdir runs/msrvtt_7k --checkpoint best --task multiple_choice --split mc_test
"""

from typing import Any

from configs import finetune

SHARED: dict[str, Any] = {
    "epochs": 10.0,
    "optimizer.warmup_share": 0.0,
    "input.max_text_tokens": 32,
    "input.split": "train",
    "evaluation.validation_split": "validation",
    "evaluation.rerank": 128,
    "evaluation.select_by": "text_to_video/R@1",
    "init_may_differ": (*finetune.PIXELS, *finetune.WORDS, *finetune.HEAD),
}

SSV2: dict[str, Any] = {
    "input.path": "datasets/ssv2",
    "input.flip": False,
    "input.positives": "caption",  # many clips share a template, and some a label
}

SETS: dict[str, dict[str, Any]] = {
    "msrvtt": {
        "epochs": 5.0,
        "input.path": "datasets/msrvtt",
        "input.split": "train_9k[kept]",
        "evaluation.validation_split": "train_9k[held_out]",
        "evaluation.split": "test_1ka",
    },
    "didemo": {"input.path": "datasets/didemo", "input.max_text_tokens": 64},
    "activitynet": {
        "input.path": "datasets/activitynet",
        "input.max_text_tokens": 150,
        "input.split": "train[kept]",
        "evaluation.validation_split": "train[held_out]",
        "evaluation.split": "val_1",
        "evaluation.frames": 32,
    },
    "msvd": {"input.path": "datasets/msvd"},
    "lsmdc": {"input.path": "datasets/lsmdc", "evaluation.split": "test_1k"},
    "ssv2": {
        **SSV2,
        "input.max_text_tokens": 25,
        "input.split": "label_train[kept]",
        "evaluation.validation_split": "label_train[held_out]",
        "evaluation.split": "label_validation_small",
    },
    "ssv2_template": {
        **SSV2,
        "optimizer.learning_rate": 1e-4,
        "input.max_text_tokens": 22,
        "input.split": "template_train[kept]",
        "evaluation.validation_split": "template_train[held_out]",
        "evaluation.split": "template_validation_small",
    },
    "moving_shapes": {**finetune.MOVING_SHAPES, "evaluation.rerank": 16},
}


def get_config(arg: str = ""):
    """Returns the config of a data set."""
    return finetune.build("retrieval", arg, SHARED, SETS)
