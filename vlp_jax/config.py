"""Every knob with its meaning and range, validation, and derived values.

A config file starts from `defaults()` and changes what differs. `validate` is called by each binary before any work;
its messages quote the offending value, what was expected, and the fix.
"""

import difflib
import fractions
import json
import math
from typing import Any

import ml_collections

from vlp_jax.types import UserError


def defaults() -> ml_collections.ConfigDict:
    """Returns a locked ConfigDict holding every knob; this function is the reference of what each one means."""
    c = ml_collections.ConfigDict()
    c.name = "unnamed"  # names the run in logs and tables
    c.recipe = "smaug"  # module of vlp_jax/recipes that builds the model
    c.seed = 0  # one seed for parameters, data order, augmentation and masks

    # -- Length of the run: exactly one of the three is positive.
    c.steps = 0
    c.epochs = 0.0
    c.examples = 0

    c.batch_size = 128  # global examples a step, over all hosts and devices
    # Micro-batches a step: gradients and losses are means over them, contrastive negatives come from one of them.
    c.accumulate_steps = 1
    c.compute_dtype = "float32"  # float32 | bfloat16: activations and matmuls; parameters stay float32
    c.matmul_precision = (
        "default"  # default | highest: jax_default_matmul_precision, highest for parity on accelerators
    )

    # -- Input: where clips come from and how they become fixed-shape tubes.
    c.input = i = ml_collections.ConfigDict()
    i.kind = "tfds"  # tfds (ArrayRecord directory written by a builder) | csv (folder of videos and a CSV file)
    i.path = ""  # tfds: directory holding dataset_info.json; csv: the CSV file
    i.split = "train"  # tfds: a split's name; csv: all, or column=value|value to keep the rows with those values
    i.video_root = ""  # csv: folder that the video column is relative to; itself relative to the CSV file's folder
    i.video_column = "video"  # csv: column holding the video's path
    i.caption_column = "caption"  # csv: column holding the caption
    i.positives = "clip"  # clip | caption: which rows of a batch are positives of each other besides themselves
    i.frames = 4  # T, frames sampled from a clip
    i.image_size = 224  # height and width after the crop, pixels
    i.crop_scale = (0.5, 1.0)  # training crop's share of the frame's area, (low, high); (1, 1) squashes the whole frame
    i.flip = True  # horizontal flip of half the training clips; switch off where captions say left or right
    i.max_text_tokens = 32  # L, longer captions are cut and counted
    i.tokenizer = ""  # SentencePiece .model made by data/train_tokenizer.py; copied into the workdir
    i.workers = 0  # decoding processes; 0 decodes in threads of this process
    i.threads = 2  # decoding threads in each process
    i.prefetch = 4  # batches decoded ahead, and at least one by each thread
    i.cache_gib = 0.0  # decoded frames kept in memory by each process, GiB; pays off when clips are few and small
    i.clip_timeout_s = 20.0  # a clip that takes longer to decode is marked invalid, seconds
    i.max_bad_share = 0.05  # the run stops when more than this share of the examples seen did not decode

    # -- Model.
    c.model = m = ml_collections.ConfigDict()
    m.vision = v = ml_collections.ConfigDict()
    v.patch_size = 16  # side of a patch, pixels
    v.tubelet = 1  # frames that one patch spans
    v.width = 768  # D
    v.layers = 12
    v.heads = 12
    v.mlp_ratio = 4.0  # hidden width of the MLP over D
    v.attention = "frame"  # frame (tokens see their own frame) | joint (tokens see the whole clip)
    v.pool = "cls"  # cls | mean: what of each frame becomes the clip's embedding

    m.masking = k = ml_collections.ConfigDict()
    k.kind = (
        "random"  # none | random (a mask per frame) | tube (one mask for all frames) | block | frame (whole frames)
    )
    k.ratio = 0.75  # share of the patches hidden from the encoder, [0, 1)
    k.unmasked_share = (
        0.0  # last share of the steps that train on whole clips, [0, 1): FLIP's unmasked tuning, without MVM
    )

    m.pruning = p = ml_collections.ConfigDict()
    p.layers = (3, 6, 9)  # blocks, counted from 0, after whose attention tokens are dropped; () for none
    p.keep_rate = 0.7  # share of the tokens that survives each of them, (0, 1]
    p.fused_token = False  # add one token, the attention-weighted mean of the dropped ones (EViT takes the sum)

    m.decoder = d = ml_collections.ConfigDict()
    d.width = 384
    d.layers = 4
    d.heads = 6
    d.source = "before_pruning"  # before_pruning | survivors: which tokens the pixels are decoded from
    d.share = 1.0  # share of the hidden patches that is decoded, (0, 1]; below 1 is VideoMAE V2's dual masking
    d.attention = "frame"  # frame | joint

    m.text = t = ml_collections.ConfigDict()
    t.width = 768
    t.layers = 9
    t.heads = 12
    t.mlp_ratio = 4.0
    t.mask_ratio = 0.5  # share of the words chosen for masked language modelling, (0, 1)
    t.mask_policy = "80/10/10"  # 80/10/10 (BERT) | always (each chosen word becomes [MASK])

    m.selection = s = ml_collections.ConfigDict()
    s.frames = 2  # frames that the text-guided selector keeps of T / tubelet, 2 or more; 0 keeps all
    s.noise = 1.0  # scale of the Gumbel noise added to the scores in training, so that every frame is tried

    m.fusion = f = ml_collections.ConfigDict()
    f.layers = 3  # text layers with cross-attention to the kept video tokens

    m.projection = 256  # width of the shared embedding space
    m.temperature = 0.07  # initial contrastive temperature, learned, clamped to [0.001, 0.5]
    m.attention_kernel = "xla"  # xla | cudnn (NVIDIA GPU, bfloat16)
    m.remat = "none"  # none | dots (keep matmul outputs) | full: what is recomputed in the backward pass
    m.unroll = False  # unroll the scans over layers: slower to compile, for FLOP counting and very shallow models

    # -- Weights of the loss terms; 0 removes the term and its computation.
    c.loss = w = ml_collections.ConfigDict()
    w.vtc = 1.0  # video-text contrastive
    w.vtm = 1.0  # video-text matching with hard negatives
    w.mlm = 1.0  # masked language modelling
    w.mvm = 1.0  # masked video modelling: pixels of the hidden patches

    # -- Optimiser: AdamW, linear warm-up, cosine decay.
    c.optimizer = o = ml_collections.ConfigDict()
    o.learning_rate = 1e-4  # peak
    o.warmup_share = 0.1  # share of the steps spent warming up, [0, 1)
    o.end_share = 0.01  # final learning rate over the peak
    o.b1 = 0.9
    o.b2 = 0.999
    o.weight_decay = 0.02  # decoupled; none on biases, norms, positions and the temperature
    o.clip_norm = 1.0  # global gradient norm; 0 switches clipping off
    o.ema_decay = 0.0  # exponential moving average of the parameters, used by evaluation; 0 switches it off

    # -- Mesh: sizes of the axes; their product is the number of devices, one may be -1 (the rest).
    c.mesh = h = ml_collections.ConfigDict()
    h.replica = 1  # data parallel over slices
    h.data = -1  # data parallel, parameters replicated
    h.fsdp = 1  # data parallel, parameters sharded
    h.tensor = 1  # heads and hidden units sharded
    # Logical axis of a parameter or activation -> mesh axis ("" for replicated).
    h.rules = (("embed", "fsdp"), ("mlp", "tensor"), ("heads", "tensor"), ("vocabulary", "tensor"))

    # -- Checkpoints and logs.
    c.checkpoint = x = ml_collections.ConfigDict()
    x.every_steps = 500  # also at the end, on SIGTERM and on SIGINT
    x.keep = 2  # newest checkpoints kept
    x.asynchronous = False  # write in the background (accelerators)
    c.log_every = 20  # steps between lines of metrics

    # -- Evaluation, by vlp_jax.evaluate and during training.
    c.evaluation = e = ml_collections.ConfigDict()
    e.split = "test"  # as input.split
    e.batch_size = 64
    e.every_steps = 0  # retrieval on `validation_split` during training; 0 never
    e.validation_split = "validation"
    e.rerank = 0  # candidates of each query re-scored by the matching head; 0 ranks by the dual encoder alone
    c.lock()
    return c


def update(config: ml_collections.ConfigDict, changes: dict[str, Any]) -> ml_collections.ConfigDict:
    """Sets dotted keys in place, e.g. `{"model.vision.width": 128}`; an unknown key is refused with a suggestion.

    Raises:
      UserError: there is no such key, or the value has another type than the knob.
    """
    for key, value in changes.items():
        check_key(config, key)
        *path, last = key.split(".")
        node = config
        for name in path:
            node = node[name]
        try:
            node[last] = value
        except (TypeError, ValueError) as e:
            raise UserError(
                f"config.{key} = {value!r}: expected {type(node[last]).__name__}, as in {node[last]!r}"
            ) from e
    return config


def check_key(config: ml_collections.ConfigDict, key: str) -> None:
    """Raises UserError, with the nearest existing key, where the dotted `key` names no knob of `config`."""
    known = leaves(config)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [
            k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]
        ]
        hint = f"did you mean {near[0]!r}?" if near else "`vlp_jax/config.py` lists every key."
        raise UserError(f"unknown config key {key!r}: {hint}")


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns dotted key -> value of every leaf."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            out.update(leaves(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def to_json(config: ml_collections.ConfigDict) -> str:
    """Serialises a config; `from_json` restores it."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ml_collections.ConfigDict:
    """Restores a config written by `to_json`; keys that this version lacks, and keys missing there, are refused.

    Raises:
      UserError: the saved config and this version of the code do not have the same keys.
    """

    def tuples(value):
        return tuple(tuples(x) for x in value) if isinstance(value, list) else value

    try:
        saved = leaves(ml_collections.ConfigDict(json.loads(text)))
    except (ValueError, TypeError) as error:
        raise UserError(f"the saved config is not valid JSON ({error}); restore the workdir's config.json") from None
    config = defaults()
    missing = sorted(set(leaves(config)) - set(saved))
    if missing:
        raise UserError(
            f"the saved config lacks {', '.join(missing)}: it was written by another version of vlp_jax; "
            "add these keys to the workdir's config.json, or use the version that wrote it."
        )
    return update(config, {key: tuples(value) for key, value in saved.items()})


# --- Derived values ---------------------------------------------------------------------------------------------------


def total_steps(config: ml_collections.ConfigDict, dataset_size: int) -> int:
    """Steps of the whole run, from `steps`, `epochs` or `examples` (whichever is set); at least 1."""
    if config.steps:
        return config.steps
    examples = config.examples or config.epochs * dataset_size
    return max(1, round(examples / config.batch_size))


def masked_steps(config: ml_collections.ConfigDict, steps: int) -> int:
    """Steps of a run of `steps` that train on masked clips; the rest, at its end, sees whole ones."""
    return steps - round(steps * config.model.masking.unmasked_share)


def grid(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """Returns `(T, N)`: temporal slots of a clip (frames / tubelet) and patches of one of them."""
    side = config.input.image_size // config.model.vision.patch_size
    return config.input.frames // config.model.vision.tubelet, side * side


def kept_after(count: int, rate: float) -> int:
    """Tokens that survive one pruning: `ceil(rate * count)` (EViT), of the rate as it is written in decimal."""
    return math.ceil(fractions.Fraction(str(rate)) * count)


def visible_patches(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """Returns `(T_visible, K)`: the visible temporal slots and the visible patches in each, under the masking config.

    Every kind but `frame` hides patches inside each slot; `frame` hides whole slots.
    """
    slots, patches = grid(config)
    ratio = 0.0 if config.model.masking.kind == "none" else config.model.masking.ratio
    if config.model.masking.kind == "frame":
        return slots - round(slots * ratio), patches
    return slots, patches - round(patches * ratio)


# --- Validation -------------------------------------------------------------------------------------------------------

_CHOICES = {
    "compute_dtype": ("float32", "bfloat16"),
    "matmul_precision": ("default", "highest"),
    "input.kind": ("tfds", "csv"),
    "input.positives": ("clip", "caption"),
    "model.vision.attention": ("frame", "joint"),
    "model.vision.pool": ("cls", "mean"),
    "model.masking.kind": ("none", "random", "tube", "block", "frame"),
    "model.decoder.source": ("before_pruning", "survivors"),
    "model.decoder.attention": ("frame", "joint"),
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
    "seed": (0, True, None, True),
    "model.temperature": (0.001, True, 0.5, True),
    "model.selection.noise": (0, True, None, True),
    "input.max_bad_share": (0, True, 1, True),
    "input.clip_timeout_s": (0, False, None, True),
    "input.cache_gib": (0, True, None, True),
    "input.workers": (0, True, None, True),
    "optimizer.learning_rate": (0, False, None, True),
    "optimizer.warmup_share": (0, True, 1, False),
    "optimizer.end_share": (0, True, 1, True),
    "optimizer.b1": (0, True, 1, False),
    "optimizer.b2": (0, True, 1, False),
    "optimizer.weight_decay": (0, True, None, True),
    "optimizer.clip_norm": (0, True, None, True),
    "optimizer.ema_decay": (0, True, 1, False),
    "evaluation.every_steps": (0, True, None, True),
    "evaluation.rerank": (0, True, None, True),
    "loss.vtc": (0, True, None, True),
    "loss.vtm": (0, True, None, True),
    "loss.mlm": (0, True, None, True),
    "loss.mvm": (0, True, None, True),
}

_POSITIVE = (
    "batch_size accumulate_steps log_every input.frames input.image_size input.max_text_tokens input.threads "
    "input.prefetch model.vision.patch_size model.vision.tubelet model.vision.width model.vision.layers "
    "model.vision.heads model.vision.mlp_ratio model.decoder.width model.decoder.layers model.decoder.heads "
    "model.text.width model.text.layers model.text.heads model.text.mlp_ratio model.fusion.layers model.projection "
    "checkpoint.every_steps checkpoint.keep evaluation.batch_size"
).split()


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every knob's range and how knobs fit together.

    Raises:
      UserError: quoting the key, its value, what was expected and the fix.
    """
    values = leaves(config)
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            near = difflib.get_close_matches(str(values[key]), choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"config.{key} = {values[key]!r}: expected one of {', '.join(choices)}{hint}")
    for key in _POSITIVE:
        if not values[key] > 0:
            raise UserError(f"config.{key} = {values[key]!r}: expected a number above 0")
    for key, (low, low_ok, high, high_ok) in _RANGES.items():
        value = values[key]
        above = value >= low if low_ok else value > low
        below = high is None or (value <= high if high_ok else value < high)
        if not (above and below):
            interval = f"{'[' if low_ok else '('}{low}, {'inf' if high is None else high}{']' if high_ok else ')'}"
            raise UserError(f"config.{key} = {value!r}: expected a number in {interval}")
    _validate_length(config)
    _validate_input(config)
    _validate_model(config)


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
            "config.input.path is empty: expected a dataset directory (kind tfds) or a CSV file (kind csv); "
            "`python -m data.moving_shapes --out datasets/moving_shapes` makes the embedded one"
        )
    if c.input.image_size % c.model.vision.patch_size:
        raise UserError(
            f"config.input.image_size = {c.input.image_size} is not a multiple of "
            f"config.model.vision.patch_size = {c.model.vision.patch_size}"
        )
    if c.input.frames % c.model.vision.tubelet:
        raise UserError(
            f"config.input.frames = {c.input.frames} is not a multiple of "
            f"config.model.vision.tubelet = {c.model.vision.tubelet}"
        )


def _validate_model(c):
    m = c.model
    for name in ("vision", "decoder", "text"):
        width, heads = m[name].width, m[name].heads
        if width % heads:
            raise UserError(f"config.model.{name}.width = {width} is not divisible by its heads = {heads}")
    for name in ("vision", "decoder"):
        if m[name].width % 4:
            raise UserError(
                f"config.model.{name}.width = {m[name].width} is not divisible by 4, which its two-dimensional "
                "sine-cosine positions need"
            )
    layers = tuple(m.pruning.layers)
    if list(layers) != sorted(set(layers)) or any(not 0 <= x < m.vision.layers for x in layers):
        raise UserError(
            f"config.model.pruning.layers = {layers}: expected increasing block numbers in "
            f"[0, {m.vision.layers - 1}] (the encoder has {m.vision.layers} blocks)"
        )
    slots, patches = grid(c)
    visible_slots, visible = visible_patches(c)
    if min(visible_slots, visible) < 1:
        raise UserError(
            f"config.model.masking.ratio = {m.masking.ratio} ({m.masking.kind}) leaves no visible patch of "
            f"{slots} x {patches}; lower the ratio or use more patches"
        )
    if c.loss.mvm and (visible_slots, visible) == (slots, patches):
        raise UserError(
            f"config.loss.mvm = {c.loss.mvm} needs hidden patches, but config.model.masking (kind "
            f"{m.masking.kind!r}, ratio {m.masking.ratio}) hides none; set loss.mvm=0 or raise the ratio"
        )
    if m.masking.kind == "frame" and m.decoder.attention == "frame" and c.loss.mvm:
        raise UserError(
            "config.model.masking.kind = 'frame' hides whole frames, which per-frame decoding cannot see into: "
            "set config.model.decoder.attention=joint"
        )
    if m.selection.frames == 1:
        raise UserError(
            "config.model.selection.frames = 1: the selector learns from how attention weighs the kept frames against "
            "each other, so that one frame leaves it without a gradient; expected 0 (all) or 2 and more"
        )
    if c.loss.vtm and not c.loss.vtc:
        raise UserError(
            f"config.loss.vtm = {c.loss.vtm} with config.loss.vtc = 0: hard negatives are drawn from the similarities "
            "that the contrastive loss trains; set loss.vtc above 0, or loss.vtm to 0"
        )
    if m.selection.frames < 0 or m.selection.frames > visible_slots:
        raise UserError(
            f"config.model.selection.frames = {m.selection.frames}: expected 0 (all) to {visible_slots}, the "
            f"temporal slots that the encoder sees (frames {c.input.frames} / tubelet {m.vision.tubelet})"
        )
    if not any(c.loss.values()):
        raise UserError("every weight in config.loss is 0: there is nothing to train")


def freeze(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
    """A hashable copy, for modules to hold: a static part of the compiled step."""
    return ml_collections.FrozenConfigDict(config)
