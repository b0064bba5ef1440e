"""Every knob with its meaning and range, and values derived from them.

A config file starts from `defaults()` and changes what differs. Each binary calls `validation.validate` before any
work.
"""

import contextlib
import difflib
import fractions
import json
import math
from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections import config_dict

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
    # Rows of a micro-batch's B x B similarities that a device holds at a time, computed anew for every use; divides the
    # examples that it has. 0 holds B x B over all devices: 4 GiB at B = 32,768, and as much again for gradients.
    c.similarity_rows = 0
    c.compute_dtype = "float32"  # float32 | bfloat16: activations and matmuls; parameters stay float32
    c.matmul_precision = (
        "default"  # default | highest: jax_default_matmul_precision, highest for parity on accelerators
    )

    # -- Input: where clips come from and how they become fixed-shape tubes.
    c.input = i = ml_collections.ConfigDict()
    # tfds (ArrayRecord directory written by a builder) | table (folder of videos and a .csv, .tsv or .jsonl file) |
    # shards (tar files of video2dataset, img2dataset or WebDataset)
    i.kind = "tfds"
    # tfds: directory holding dataset_info.json; table: the file, or a glob of several; shards: directory of .tar files,
    # a glob, or a range such as {00000..00099}.tar
    i.path = ""
    # tfds: a split's name, or that of an annotation table (<name>.jsonl) beside dataset_info.json; table: all, or
    # column=value|value to keep the rows with those values; shards: all, or shards=first..last, counted from 0. tfds
    # and table: followed by [held_out], about 5% of the clips by a hash of their ids, or by [kept], the others
    i.split = "train"
    i.video_root = ""  # table: folder that the video column is relative to; itself relative to the table's folder
    i.video_column = "video"  # table: column holding the video's path
    i.caption_column = "caption"  # table: column holding the caption or question; "" for choices and classes without
    i.start_column = ""  # table: column holding where the clip starts in the video, seconds; "" for whole videos
    i.end_column = ""  # table: column holding where it ends; given together with start_column, or not at all
    i.caption_key = ""  # shards: key of a sample's .json that holds the caption, a.b for b in a; "" takes its .txt
    # clip | caption: which rows are positives of each other besides themselves, in a batch and, in retrieval, at test;
    # caption is for data whose clips share captions.
    i.positives = "clip"
    i.frames = 4  # T, frames sampled from a clip
    i.image_size = 224  # height and width after the crop, pixels
    i.crop_scale = (0.5, 1.0)  # training crop's share of the frame's area, (low, high); (1, 1) squashes the whole frame
    i.flip = True  # horizontal flip of half the training clips; switch off where captions say left or right
    i.max_text_tokens = 32  # L, longer captions are cut and counted
    # SentencePiece .model (data/train_tokenizer.py makes one; T5's and others work), WordPiece vocab.txt (BERT's
    # layout), or byte-level BPE (RoBERTa's, CLIP's) as tokenizer.json, or vocab.json with merges.txt beside it; told
    # apart by content; copied into the workdir.
    i.tokenizer = ""
    i.lowercase = True  # vocab.txt: lower-case and strip accents (uncased); others do as their file says
    i.workers = 0  # decoding processes; 0 decodes in threads of this process
    i.threads = 2  # decoding threads in each process
    i.prefetch = 4  # batches decoded ahead, and at least one by each thread
    i.cache_gib = 0.0  # decoded frames kept in memory by each process, GiB; pays off when clips are few and small
    i.clip_timeout_s = 20.0  # a clip that takes longer to decode is marked invalid, seconds
    i.max_pixels = 2**26  # clips with larger pictures are invalid, before memory is taken for them; height x width
    i.max_bad_share = 0.05  # the run stops when more than this share of the examples seen did not decode

    # table: columns of a task (`config.task.kind`); captions' column holds the question. The annotation tables of tfds
    # have the names question, answer, options, type and label.
    i.answer_column = ""  # the answer, the number of the true option, or the class
    i.options_column = ""  # multiple choice: a JSON list of texts
    i.type_column = ""  # the question's type, by which accuracy is split; "" for none
    # What is taken away from every example, for baselines and tests: "" (nothing) | video (grey frames, a text-only
    # baseline) | text (an empty question, a video-only baseline) | order (frames shuffled, HiTeA's test).
    i.ablate = ""

    # -- Task: what is trained, and what `evaluate` measures by default.
    c.task = a = ml_collections.ConfigDict()
    # pretrain (the recipe's own loss; retrieval is fine-tuned so) | question_answering | multiple_choice |
    # classification
    a.kind = "pretrain"
    a.head = "decoder"  # question_answering: decoder (ranks the answers by likelihood) | classifier (over the answers)
    # question_answering, classification: the answers, a .json list or a .jsonl table with a column `answer`; a name
    # without a folder lies beside the dataset. "" takes the training split's own, most frequent first.
    a.answers = ""
    a.max_answer_tokens = 5  # question_answering: longer answers are cut and counted; [CLS] and [SEP] included
    a.shortlist = 128  # question_answering, decoder: answers ranked by their first token that are then scored in full

    # -- Mixture: several training sources by name, each made by `add_source`; empty: `input` alone. Evaluation reads
    # `input`.
    c.mixture = ml_collections.ConfigDict()

    # -- Start from another run's parameters: its workdir (the newest checkpoint), WORKDIR/best or
    # WORKDIR/checkpoints/STEP; "" from random ones. Tables of temporal positions of another length, and of the places
    # of patches in another grid, are interpolated, of text positions the first rows are taken; every other difference
    # is refused but for parameters whose path matches one of these regular expressions (in full): they start random,
    # or are left out.
    c.init_from = ""
    c.init_may_differ = ()
    # True: recipe, compute_dtype, input.image_size, input.lowercase and model.* (but model.masking.*) are those of that
    # run, whatever this config says of them; only the command line overrides (configs/finetune).
    c.init_model = False

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
    v.cls = True  # a CLS token in each temporal slot; VideoMAE has none
    v.activation = "gelu"  # gelu (exact) | quick_gelu (CLIP): of the MLPs
    v.norm_embedding = False  # a norm before the first block (CLIP)
    # sincos (fixed, added to the patches) | learned (a table over CLS and patches, added: ViT, MAE) | relative (BEiT's
    # learned bias in every attention inside a frame) | sequence (fixed, over the patches of the whole clip in one row:
    # VideoMAE; longer clips go on, and there are no time_positions)
    v.positions = "sincos"
    v.layer_scale = 0.0  # what a learned factor of each sublayer's output starts from (BEiT: 0.1); 0 for none
    v.norm_epsilon = 1e-6  # of the encoder's norms; BEiT's and ViT's of transformers are 1e-12
    # A published image encoder to start from, a Hugging Face folder or a file of weights of ViT's or BEiT's form, by
    # names of transformers or timm (vlp_jax/pretrained); "" for random ones.
    v.init_from = ""
    # centre (all in the middle frame: ViViT) | mean (a share in each: I3D): what patches of one frame become where
    # init_from is an image encoder and tubelet above 1
    v.inflate = "centre"
    # none | sincos (fixed) | learned (a table over the T slots, from zeros); clips of another length interpolate it.
    v.time_positions = "sincos"
    # sincos: slots of the clips that the table is made for; others interpolate it. 0: as many as input.frames has.
    v.time_slots = 0
    # none | zero_init (after each block, from zero: VindLU) | divided (before it, with one CLS for all frames:
    # TimeSformer): attention over time at each location.
    v.temporal_attention = "none"

    m.temporal = q = ml_collections.ConfigDict()
    q.layers = 0  # blocks over time at each location, after the video encoder (Singularity-temporal has 2)
    q.embed = False  # contrast what these blocks give, not the frames before them (Singularity's update_pooler_embed)

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
    d.cls = False  # the CLS of each slot is among what the decoder sees (MAE)
    # sincos (fixed) | learned (a table over CLS and patches, and fixed ones over time: MAE's file has it) | sequence
    # (VideoMAE's, as model.vision.positions)
    d.positions = "sincos"
    d.norm_epsilon = 1e-6  # of the decoder's norms
    d.target = "patch"  # patch | channel: pixels normalised over a patch (MAE) or over each colour of it (VideoMAE)
    # True: the decoder, too, comes from model.vision.init_from (ViT-MAE, VideoMAE); False: it starts random.
    d.from_file = False

    m.text = t = ml_collections.ConfigDict()
    t.width = 768
    t.layers = 9
    t.heads = 12
    t.mlp_ratio = 4.0
    # A published text encoder to start from, its first layers the text encoder's, the next ones the fusion's: a Hugging
    # Face folder or a file of weights of BERT's form (vlp_jax/pretrained); "" for random ones.
    t.init_from = ""
    t.norm = "pre"  # pre | post (BERT and its like): where the norms of text, fusion and answer blocks stand
    t.norm_epsilon = 1e-6  # of these norms; BERT's is 1e-12
    t.norm_embedding = True  # a norm of the word embeddings (BERT); CLIP has none
    t.activation = "gelu"  # gelu (exact) | quick_gelu (CLIP): of the MLPs of text, fusion and answer blocks
    t.causal = False  # words see those before them alone (CLIP)
    t.pool = "cls"  # cls (the first piece) | last (CLIP's end of text): what of a text becomes its embedding
    t.mask_ratio = 0.5  # share of the pieces (or words) chosen for masked language modelling, (0, 1)
    t.whole_words = False  # choose words, and all pieces of a chosen word, instead of pieces one by one
    t.mask_policy = "80/10/10"  # 80/10/10 (BERT) | always (each chosen piece becomes [MASK])

    m.selection = s = ml_collections.ConfigDict()
    s.frames = 2  # frames that the text-guided selector keeps of T / tubelet, 2 or more; 0 keeps all
    s.noise = 1.0  # scale of the Gumbel noise added to the scores in training, so that every frame is tried

    m.fusion = f = ml_collections.ConfigDict()
    f.layers = 3  # text layers with cross-attention to the kept video tokens

    # Bottleneck adapters h + U ReLU(D h) on what attention and MLP give in each block (FrozenBiLM), U from zeros;
    # optimizer.trainable = (".*/adapter_.*",) trains them alone.
    m.adapters = b = ml_collections.ConfigDict()
    b.reduction = 0  # the tower's width over the bottleneck's, which it divides (FrozenBiLM: 8); 0 for none
    b.towers = ("vision", "text", "fusion")  # whose blocks have them

    m.projection = 256  # width of the shared embedding space
    # clip (cosine of the mean over the frames) | frames (mean over the frames of each one's cosine)
    m.similarity = "clip"
    m.temperature = 0.07  # initial contrastive temperature, learned, clamped to [0.001, 0.5]
    m.attention_kernel = "xla"  # xla | cudnn (NVIDIA GPU, bfloat16)
    m.remat = "none"  # none | dots (keep matmul outputs) | full: what is recomputed in the backward pass
    m.unroll = False  # unroll the scans over layers: slower to compile, for FLOP counting and very shallow models

    # -- Weights of the loss terms; 0 removes the term and its computation (`loss_weights`).
    c.loss = w = ml_collections.ConfigDict()
    w.vtc = 1.0  # video-text contrastive
    w.vtm = 1.0  # video-text matching with hard negatives
    w.mlm = 1.0  # masked language modelling
    w.mvm = 1.0  # masked video modelling: pixels of the hidden patches
    # No weight: share of the contrastive targets that a teacher gives, the moving average of the parameters, [0, 1]
    # (ALBEF's alpha of momentum distillation; there it rises to 0.4 in the first epoch). Needs optimizer.ema_decay.
    w.distill = 0.0
    # No weight: hard negatives are drawn among so many consecutive examples of a micro-batch, as in ALBEF's and
    # Singularity's code among those of one GPU; 0: among all. Where each device has whole groups, no clip's tokens
    # leave their device.
    w.vtm_group = 0

    # -- Optimiser: AdamW, linear warm-up, cosine decay.
    c.optimizer = o = ml_collections.ConfigDict()
    o.learning_rate = 1e-4  # peak
    o.warmup_share = 0.1  # share of the steps spent warming up, [0, 1)
    o.end_share = 0.01  # final learning rate over the peak
    o.b1 = 0.9
    o.b2 = 0.999
    o.weight_decay = 0.02  # decoupled; none on biases, norms, positions and the temperature
    o.clip_norm = 1.0  # global gradient norm; 0 switches clipping off
    # Regular expressions that match whole parameter paths: only these train, e.g. ("head/.*",) for a linear probe; ()
    # trains all.
    o.trainable = ()
    # ((pattern, factor), ...): parameters whose whole path matches learn at the rate times the factor, above 0; of
    # several patterns that match the first counts. E.g. (("vision/.*", 0.1),).
    o.multipliers = ()
    # Layer-wise decay of the learning rate (BEiT, MAE), (0, 1]: layer i of L has layer_decay ** (L - i), the embeddings
    # being layer 0, and what follows the blocks layer L; 1 switches it off.
    o.layer_decay = 1.0
    o.layer_decay_stacks = ("(recipe/)?vision",)  # regular expressions: modules with blocks that it holds for
    o.ema_decay = 0.0  # exponential moving average of the parameters, for evaluation and loss.distill; 0: none

    # -- Mesh: sizes of the axes; their product is the number of devices, one may be -1 (the rest). On the command line
    # --config.mesh=NAME sets all four (vlp_jax/meshes.py).
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
    e.every_steps = 0  # the task's metrics (pretrain: retrieval) on `validation_split` during training; 0 never
    e.validation_split = "validation"
    e.rerank = 0  # candidates of each query re-scored by the matching head; 0 ranks by the dual encoder alone
    # Reranking keeps the tokens of all clips in host memory where they fit, GiB; otherwise clips are encoded twice.
    e.token_gib = 8.0
    e.frames = 0  # frames of a clip at test; 0 as in training. Temporal positions are interpolated.
    # singularity, matching of several frames: concat (one fusion over all of them) | mean, max, lse of a score for each
    e.ensemble = "concat"
    # Metric of the validation split whose best checkpoint is kept in WORKDIR/best, e.g. text_to_video/R@1, accuracy; ""
    # keeps none. Needs every_steps.
    e.select_by = ""
    e.bootstrap = 1000  # resamples behind the 95% intervals; 0 for none
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


# What a source of the mixture may set for itself, besides its weight; everything else is `config.input`'s.
SOURCE_KEYS = (
    "kind",
    "path",
    "split",
    "video_root",
    "video_column",
    "caption_column",
    "start_column",
    "end_column",
    "caption_key",
    "positives",
    "frames",
    "crop_scale",
    "flip",
)


def add_source(config: ml_collections.ConfigDict, name: str, *, weight: float, **values: Any) -> None:
    """Adds a source to `config.mixture`, e.g. `add_source(config, "cc3m", weight=3, path="datasets/cc3m", frames=1)`.

    Args:
      weight: above 0; the share of the steps that train on this source, relative to the other sources.
      values: `config.input` keys (those of SOURCE_KEYS) that differ for this source.

    Raises:
      UserError: a key that a source cannot have, or a name that is no identifier.
    """
    if not name.isidentifier():
        raise UserError(f"source {name!r} of config.mixture: expected letters, digits and _, no digit first")
    for key in values:
        if key not in SOURCE_KEYS:
            near = difflib.get_close_matches(key, SOURCE_KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"config.mixture.{name}.{key}: expected one of {', '.join(SOURCE_KEYS)}{hint}")
    # Every key is there, so that the command line can set it; None is what `config.input` says.
    own = {key: config_dict.placeholder(type(config.input[key])) for key in SOURCE_KEYS}
    with config.unlocked():
        config.mixture[name] = ml_collections.ConfigDict({**own, "weight": float(weight)})
        config.mixture[name].update(values)


@contextlib.contextmanager
def errors_of_source(name: str) -> Iterator[None]:
    """Names the source of `config.mixture` in a UserError; does nothing for '', the single source without a name."""
    try:
        yield
    except UserError as error:
        if not name:
            raise
        raise UserError(
            f"source {name!r} of config.mixture, whose own values are config.mixture.{name}.*: {error}"
        ) from error


def source_input(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """`config.input` with the values that the source `name` of `config.mixture` has of its own."""
    own = config.input.copy_and_resolve_references()
    for key, value in config.mixture[name].items():
        if key != "weight" and value is not None:
            own[key] = value
    return own


def training_inputs(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """What the run trains on: source -> `source_input`, by name; `{"": config.input}` where it is no mixture."""
    return {name: source_input(config, name) for name in sorted(config.mixture)} or {"": config.input}


def evaluated_input(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`config.input` as clips are read at test: with `config.evaluation.frames` frames where that is set."""
    own = config.input.copy_and_resolve_references()
    own.frames = config.evaluation.frames or own.frames
    return own


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
        tree = json.loads(text)
    except ValueError as error:
        raise UserError(f"the saved config is not valid JSON ({error}); restore it from a backup") from None
    sources = tree.get("mixture") if isinstance(tree, dict) else None
    if not isinstance(sources, dict) or not all(isinstance(source, dict) for source in sources.values()):
        raise UserError(f"the saved config is damaged: {text[:80]!r} is no config; restore it from a backup")
    saved = leaves(ml_collections.ConfigDict(tree))
    config = defaults()
    mixture: dict[str, dict[str, Any]] = {}
    for key in [key for key in saved if key.startswith("mixture.")]:
        _, name, knob = key.split(".", 2)
        value = tuples(saved.pop(key))
        if value is not None:
            mixture.setdefault(name, {})[knob] = value
    for name, values in mixture.items():
        add_source(config, name, **values)
    missing = sorted(set(leaves(config)) - {key for key in leaves(config) if key.startswith("mixture.")} - set(saved))
    if missing:
        raise UserError(
            f"the saved config lacks {', '.join(missing)}: it was written by another version of vlp_jax; "
            "use the version that wrote it"
        )
    return update(config, {key: tuples(value) for key, value in saved.items()})


# --- Derived values ---------------------------------------------------------------------------------------------------


def loss_weights(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Term -> its weight in `config.loss`."""
    return {term: config.loss[term] for term in ("vtc", "vtm", "mlm", "mvm")}


def total_steps(config: ml_collections.ConfigDict, dataset_size: int) -> int:
    """Steps of the whole run, from `steps`, `epochs` or `examples` (whichever is set); at least 1."""
    if config.steps:
        return config.steps
    examples = config.examples or config.epochs * dataset_size
    return max(1, round(examples / config.batch_size))


def masked_steps(config: ml_collections.ConfigDict, steps: int) -> int:
    """Steps of a run of `steps` that train on masked clips; the rest, at its end, sees whole ones."""
    return steps - round(steps * config.model.masking.unmasked_share)


def grid(config: ml_collections.ConfigDict, frames: int | None = None) -> tuple[int, int]:
    """Returns `(T, N)`: temporal slots of a clip (frames / tubelet) and patches of one of them.

    Args:
      frames: of the clip; `config.input.frames` by default.
    """
    side = config.input.image_size // config.model.vision.patch_size
    return (config.input.frames if frames is None else frames) // config.model.vision.tubelet, side * side


def kept_after(count: int, rate: float) -> int:
    """Tokens that survive one pruning: `ceil(rate * count)` (EViT), of the rate as it is written in decimal."""
    return math.ceil(fractions.Fraction(str(rate)) * count)


def visible_patches(config: ml_collections.ConfigDict, frames: int | None = None) -> tuple[int, int]:
    """Returns `(T_visible, K)`: the visible temporal slots and the visible patches in each, under the masking config.

    Every kind but `frame` hides patches inside each slot; `frame` hides whole slots. `frames` as in `grid`.
    """
    slots, patches = grid(config, frames)
    ratio = 0.0 if config.model.masking.kind == "none" else config.model.masking.ratio
    if config.model.masking.kind == "frame":
        return slots - round(slots * ratio), patches
    return slots, patches - round(patches * ratio)


def freeze(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
    """A hashable copy, for modules to hold: a static part of the compiled step."""
    return ml_collections.FrozenConfigDict(config)
