"""Checks of a config: each knob's range, and how knobs fit together.

Messages quote the offending value, what was expected, and the fix.
"""

import difflib
import math
import os
import re

import ml_collections

from vlp_jax import config as config_lib
from vlp_jax import validation_features, validation_model
from vlp_jax.evaluation import evaluators
from vlp_jax.input import splits
from vlp_jax.types import UserError

_CHOICES = {
    "compute_dtype": ("float32", "bfloat16"),
    "matmul_precision": ("default", "highest"),
    "input.kind": ("tfds", "table", "shards"),
    "input.positives": ("clip", "caption"),
    "model.vision.attention": ("frame", "joint"),
    "model.vision.pool": ("cls", "mean"),
    "model.vision.positions": ("sincos", "learned", "relative", "sequence", "none"),
    "model.vision.activation": ("gelu", "quick_gelu"),
    "model.vision.temporal_attention": ("none", "zero_init", "divided"),
    "model.text.activation": ("gelu", "quick_gelu"),
    "model.text.pool": ("cls", "last"),
    "model.vision.inflate": ("centre", "mean"),
    "model.vision.feature_projection": ("linear", "mlp"),
    "model.vision.time_positions": ("none", "sincos", "learned"),
    "model.similarity": ("clip", "frames"),
    "input.ablate": ("", "video", "text", "order"),
    "task.kind": ("pretrain", "question_answering", "multiple_choice", "classification"),
    "task.head": ("decoder", "classifier"),
    "evaluation.ensemble": ("concat", "mean", "max", "lse"),
    "model.masking.kind": ("none", "random", "tube", "block", "frame"),
    "model.decoder.source": ("before_pruning", "survivors"),
    "model.decoder.attention": ("frame", "joint"),
    "model.decoder.positions": ("sincos", "learned", "sequence"),
    "model.decoder.target": ("patch", "channel", "pixels"),
    "model.text.norm": ("pre", "post"),
    "model.text.mask_policy": ("80/10/10", "always"),
    "model.attention_kernel": ("xla", "cudnn"),
    "model.remat": ("none", "dots", "full"),
}

# key -> (low, low allowed, high, high allowed, what it is)
_RANGES = {
    "model.masking.ratio": (0, True, 1, False),
    "model.masking.unmasked_share": (0, True, 1, False),
    "model.pruning.keep_rate": (0, False, 1, True),
    "model.decoder.share": (0, False, 1, True),
    "model.text.mask_ratio": (0, False, 1, False),
    "model.text.norm_epsilon": (0, False, 1, False),
    "model.vision.norm_epsilon": (0, False, 1, False),
    "model.decoder.norm_epsilon": (0, False, 1, False),
    "model.vision.layer_scale": (0, True, None, True),
    "seed": (0, True, None, True),
    "model.temperature": (0.001, True, 0.5, True),
    "model.selection.noise": (0, True, None, True),
    "input.max_bad_share": (0, True, 1, True),
    "input.clip_timeout_s": (0, False, None, True),
    "input.cache_gib": (0, True, None, True),
    "input.workers": (0, True, None, True),
    "input.features.width": (0, True, None, True),
    "input.features.regions": (0, True, None, True),
    "model.vision.layers": (0, True, None, True),
    "optimizer.learning_rate": (0, False, None, True),
    "optimizer.warmup_share": (0, True, 1, False),
    "optimizer.end_share": (0, True, 1, True),
    "optimizer.b1": (0, True, 1, False),
    "optimizer.b2": (0, True, 1, False),
    "optimizer.weight_decay": (0, True, None, True),
    "optimizer.clip_norm": (0, True, None, True),
    "optimizer.ema_decay": (0, True, 1, False),
    "optimizer.layer_decay": (0, False, 1, True),
    "evaluation.every_steps": (0, True, None, True),
    "evaluation.rerank": (0, True, None, True),
    "evaluation.frames": (0, True, None, True),
    "evaluation.token_gib": (0, True, None, True),
    "evaluation.bootstrap": (0, True, None, True),
    "model.temporal.layers": (0, True, None, True),
    "model.adapters.reduction": (0, True, None, True),
    "similarity_rows": (0, True, None, True),
    "model.vision.time_slots": (0, True, None, True),
    "loss.distill": (0, True, 1, True),
    "loss.vtc": (0, True, None, True),
    "loss.vtm": (0, True, None, True),
    "loss.vtm_group": (0, True, None, True),
    "loss.mlm": (0, True, None, True),
    "loss.mvm": (0, True, None, True),
}

_POSITIVE = (
    "batch_size accumulate_steps log_every input.frames input.image_size input.max_text_tokens input.threads "
    "input.prefetch model.vision.patch_size model.vision.tubelet model.vision.width "
    "model.vision.heads model.vision.mlp_ratio model.decoder.width model.decoder.layers model.decoder.heads "
    "model.text.width model.text.layers model.text.heads model.text.mlp_ratio model.fusion.layers model.projection "
    "checkpoint.every_steps checkpoint.keep evaluation.batch_size input.max_pixels task.max_answer_tokens "
    "task.shortlist"
).split()


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every knob's range and how knobs fit together.

    Raises:
      UserError: quoting the key, its value, what was expected and the fix.
    """
    _validate_values(config)
    for pattern in config.init_may_differ:
        _check_pattern("init_may_differ", pattern)
    _validate_length(config)
    _validate_input(config)
    validation_model.validate(config)
    _validate_task(config)
    _validate_optimizer(config)
    _validate_evaluation(config)
    _validate_mixture(config)


def validate_input(config: ml_collections.ConfigDict) -> None:
    """Checks `config.input` alone, for commands that read data and train nothing; as `validate`."""
    _validate_values(config, "input.")
    _validate_input(config)


def _validate_values(config, prefix=""):
    """Checks each knob whose key begins with `prefix` by itself."""
    values = config_lib.leaves(config)
    wanted = lambda table: [key for key in table if key.startswith(prefix)]
    for key in wanted(_CHOICES):
        choices = _CHOICES[key]
        if values[key] not in choices:
            near = difflib.get_close_matches(str(values[key]), choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(choice or "'' (none)" for choice in choices)
            raise UserError(f"config.{key} = {values[key]!r}: expected one of {known}{hint}")
    for key in wanted(_POSITIVE):
        if not 0 < values[key] < math.inf:
            raise UserError(f"config.{key} = {values[key]!r}: expected a finite number above 0")
    for key in wanted(_RANGES):
        value, (low, low_ok, high, high_ok) = values[key], _RANGES[key]
        above = value >= low if low_ok else value > low
        below = value < math.inf if high is None else (value <= high if high_ok else value < high)
        if not (above and below):
            end = "inf)" if high is None else f"{high}{']' if high_ok else ')'}"
            raise UserError(f"config.{key} = {value!r}: expected a number in {'[' if low_ok else '('}{low}, {end}")


def _validate_length(c):
    given = {k: c[k] for k in ("steps", "epochs", "examples") if c[k]}
    if len(given) != 1 or not min(given.values()) > 0:
        got = ", ".join(f"config.{k}={v}" for k, v in given.items()) or "none of them"
        raise UserError(
            f"the run's length: expected exactly one positive value among config.steps, config.epochs and "
            f"config.examples, got {got}; set the others to 0"
        )
    if c.batch_size % c.accumulate_steps:
        raise UserError(
            f"config.batch_size = {c.batch_size} is not divisible by config.accumulate_steps = {c.accumulate_steps}"
        )


def _validate_input(c):
    if len(c.input.crop_scale) != 2:
        raise UserError(f"config.input.crop_scale = {c.input.crop_scale}: expected two numbers, (low, high)")
    low, high = c.input.crop_scale
    if not 0 < low <= high <= 1:
        raise UserError(f"config.input.crop_scale = {c.input.crop_scale}: expected 0 < low <= high <= 1")
    if not c.input.path:
        raise UserError(
            "config.input.path is empty: expected a dataset directory (kind tfds), a .csv, .tsv or .jsonl file (kind "
            "table) or .tar files (kind shards); "
            "`python -m data.moving_shapes --out datasets/moving_shapes` makes the embedded one"
        )
    if bool(c.input.start_column) != bool(c.input.end_column):
        raise UserError(
            f"config.input.start_column = {c.input.start_column!r} and config.input.end_column = "
            f"{c.input.end_column!r}: expected the names of both columns, or of neither"
        )
    validation_features.check_input(c)
    if not c.input.features.width and c.input.image_size % c.model.vision.patch_size:
        raise UserError(
            f"config.input.image_size = {c.input.image_size} is not a multiple of "
            f"config.model.vision.patch_size = {c.model.vision.patch_size}"
        )
    if c.input.frames % c.model.vision.tubelet:
        raise UserError(
            f"config.input.frames = {c.input.frames} is not a multiple of "
            f"config.model.vision.tubelet = {c.model.vision.tubelet}"
        )


def _validate_task(c):
    # Of a task's recipe only the parts exist that the weights of its own loss ask for.
    if c.task.kind == "question_answering" and not (c.loss.vtm or c.loss.mlm):
        raise UserError(
            "config.task.kind = 'question_answering' with config.loss.vtm = 0 and config.loss.mlm = 0: the questions "
            "are fused with their clips, and these terms decide whether the recipe has fusion layers; set loss.mlm=1 "
            "(it adds the word head alone), or loss.vtm and loss.vtc"
        )
    if c.task.kind == "multiple_choice" and not c.loss.vtm:
        raise UserError(
            "config.task.kind = 'multiple_choice' with config.loss.vtm = 0: options are scored by the matching head, "
            "which the recipe has where loss.vtm is above 0; set loss.vtm=1 and loss.vtc=1"
        )
    if c.task.kind == "question_answering" and c.task.max_answer_tokens < 3:
        raise UserError(
            f"config.task.max_answer_tokens = {c.task.max_answer_tokens}: expected at least 3, [CLS], a word and [SEP]"
        )
    if c.evaluation.frames % c.model.vision.tubelet:
        raise UserError(
            f"config.evaluation.frames = {c.evaluation.frames} is not a multiple of config.model.vision.tubelet = "
            f"{c.model.vision.tubelet}"
        )


def _validate_optimizer(c):
    o = c.optimizer
    for key in ("trainable", "layer_decay_stacks"):
        for pattern in o[key]:
            _check_pattern(f"optimizer.{key}", pattern)
    if o.layer_decay != 1 and not o.layer_decay_stacks:
        raise UserError(
            f"config.optimizer.layer_decay = {o.layer_decay} with config.optimizer.layer_decay_stacks = (): no layer "
            "would have it; name stacks, or set layer_decay=1"
        )
    for rule in o.multipliers:
        if not (_is_rule(rule) and 0 < rule[1] < math.inf):
            raise UserError(
                f"config.optimizer.multipliers holds {rule!r}: expected (pattern, factor), a regular expression and a "
                "finite number above 0, as in (('vision/.*', 0.1),); what does not train at all is left out of "
                "config.optimizer.trainable"
            )
        _check_pattern("optimizer.multipliers", rule[0])
    for rule in o.ema_decays:
        if not (_is_rule(rule) and 0 <= rule[1] < 1):
            raise UserError(
                f"config.optimizer.ema_decays holds {rule!r}: expected (pattern, decay), a regular expression and a "
                "number in [0, 1), as in (('vision/.*', 0.999),)"
            )
        _check_pattern("optimizer.ema_decays", rule[0])
    if o.ema_decays and not o.ema_decay:
        raise UserError(
            f"config.optimizer.ema_decays = {tuple(o.ema_decays)} with config.optimizer.ema_decay = 0.0, which keeps "
            "no average: set ema_decay to the decay of all other parameters"
        )


def _is_rule(rule):
    return isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], str) and isinstance(rule[1], (int, float))


def _validate_evaluation(c):
    e = c.evaluation
    frames = config_lib.evaluated_input(c).frames
    if c.input.ablate == "order" and frames < 2:
        raise UserError(
            f"config.input.ablate = 'order' with clips of {frames} frame, which has no order: set config.evaluation."
            "frames (evaluate's --frames) to 2 or more"
        )
    if not e.select_by:
        return
    if not e.every_steps:
        raise UserError(
            f"config.evaluation.select_by = {e.select_by!r} with config.evaluation.every_steps = 0: nothing "
            "is measured during training; set every_steps, or select_by to ''"
        )
    evaluators.check_metric(evaluators.kind_of(c.task.kind), e.select_by)
    parts = c.input.kind != "shards"  # which have no [held_out]
    held_out = splits.parse(c.input.split)[0] + splits.HELD_OUT
    # A held-out part may be both: where there is no test set, evaluation says that its number was chosen by.
    same = e.validation_split == e.split and splits.parse(e.split)[1] == "held_out"
    if splits.may_meet(c.input.kind, e.validation_split, e.split) and not same:
        raise UserError(
            f"config.evaluation.select_by = {e.select_by!r} with config.evaluation.validation_split = "
            f"{e.validation_split!r} and config.evaluation.split = {e.split!r}, which may have clips in common: a "
            "checkpoint must not be chosen on what is reported; set another config.evaluation.split, or another "
            "validation_split" + (f", such as {held_out!r}" if parts and e.validation_split != held_out else "")
        )
    for name, own in config_lib.training_inputs(c).items():
        elsewhere = os.path.realpath(own.path) != os.path.realpath(c.input.path)
        if elsewhere or not splits.may_meet(c.input.kind, own.split, e.validation_split):
            continue
        key, whole = f"mixture.{name}" if name else "input", splits.parse(own.split)[0]
        fix = "set another validation_split"
        if parts:
            fix += (
                f", or config.{key}.split={whole}{splits.KEPT} and "
                f"config.evaluation.validation_split={whole}{splits.HELD_OUT}"
            )
        raise UserError(
            f"config.evaluation.validation_split = {e.validation_split!r} and config.{key}.split = {own.split!r} may "
            f"have clips in common: a checkpoint must not be chosen on clips that it trained on; {fix}"
        )


def _check_pattern(key, pattern):
    try:
        re.compile(pattern)
    except re.error as e:
        raise UserError(
            f"config.{key} holds {pattern!r}: expected a regular expression that matches whole parameter paths, but {e}"
        ) from e


def _validate_mixture(c):
    for name in c.mixture:
        own = c.copy_and_resolve_references()
        own.input = config_lib.source_input(c, name)
        own.mixture = ml_collections.ConfigDict()
        with config_lib.errors_of_source(name):
            if not 0 < c.mixture[name].weight < math.inf:
                raise UserError(f"weight = {c.mixture[name].weight}: expected a finite number above 0")
            slots = config_lib.grid(own)[0]
            # Fewer frames than the selector keeps are all kept.
            own.model.selection.frames = min(c.model.selection.frames, slots) if slots > 1 else 0
            # What is evaluated, and how, is not this source's: checked above.
            own.evaluation.select_by = own.input.ablate = ""
            validate(own)
