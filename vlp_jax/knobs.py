"""Every knob of a config: its meaning, its range and its default."""

import ml_collections

# Knobs that came after runs were saved, and whose defaults are what the code did before: a saved config may lack them,
# so that runs of earlier versions still open and go on.
ADDED = ("optimizer.ema_decays",)


def defaults() -> ml_collections.ConfigDict:
    """Returns a locked ConfigDict holding every knob; this file is the reference of what each one means."""
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
    _input(c)
    _task(c)
    _model(c)
    _training(c)
    _running(c)
    c.lock()
    return c


def _input(c: ml_collections.ConfigDict) -> None:
    """Where clips come from and how they become tubes."""
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
    # What is taken away from every example, for baselines and tests: "" (nothing) | video (grey frames, or features of
    # zeros: a text-only baseline) | text (an empty question, a video-only baseline) | order (frames shuffled, HiTeA's
    # test).
    i.ablate = ""

    # Precomputed features instead of videos, which are then not opened (vlp_jax/input/features.py); all sources of a
    # mixture share them. What is said above of pixels (image_size, crop_scale, flip, cache_gib, clip_timeout_s,
    # max_pixels) is not read then; frames is how many vectors, or sets of regions, are sampled from a clip's.
    i.features = y = ml_collections.ConfigDict()
    y.path = ""  # folder of CLIP_ID.npz files, or the directory that data/pack_features.py made of one; "" for none
    y.width = 0  # numbers in a feature: S3D 512, CLIP ViT-L/14 768, bottom-up regions 2048; 0 for none
    y.regions = 0  # regions of a frame, each with a feature; 0 where a frame has one feature
    y.boxes = 0  # numbers that say where a region is: 0 (not read) | 4 | 6


def _task(c: ml_collections.ConfigDict) -> None:
    """What is trained, on which mixture, and from which parameters it starts."""
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
    # True: recipe, compute_dtype, input.image_size, input.lowercase, input.features.* (but path) and model.* (but
    # model.masking.*) are those of that run, whatever this config says of them; only the command line overrides
    # (configs/finetune).
    c.init_model = False


def _model(c: ml_collections.ConfigDict) -> None:
    """The towers, and what happens between them."""
    # -- Model.
    c.model = m = ml_collections.ConfigDict()
    m.vision = v = ml_collections.ConfigDict()
    v.patch_size = 16  # side of a patch, pixels
    v.tubelet = 1  # frames that one patch spans
    v.width = 768  # D
    v.layers = 12  # 0, of features alone: their projection is all that there is
    v.heads = 12
    v.mlp_ratio = 4.0  # hidden width of the MLP over D
    v.attention = "frame"  # frame (tokens see their own frame) | joint (tokens see the whole clip)
    v.pool = "cls"  # cls | mean: what of each frame becomes the clip's embedding
    v.cls = True  # a CLS token in each temporal slot; VideoMAE has none
    v.activation = "gelu"  # gelu (exact) | quick_gelu (CLIP): of the MLPs
    v.norm_embedding = False  # a norm before the first block (CLIP)
    # sincos (fixed, added to the patches) | learned (a table over CLS and patches, added: ViT, MAE) | relative (BEiT's
    # learned bias in every attention inside a frame) | sequence (fixed, over the patches of the whole clip in one row:
    # VideoMAE; longer clips go on, and there are no time_positions) | none (and of features nothing else)
    v.positions = "sincos"
    v.layer_scale = 0.0  # what a learned factor of each sublayer's output starts from (BEiT: 0.1); 0 for none
    v.norm_epsilon = 1e-6  # of the encoder's norms; BEiT's and ViT's of transformers are 1e-12
    # A published encoder to start from, a Hugging Face folder or a file of weights of the form of ViT, BEiT, ViT-MAE,
    # VideoMAE, TimeSformer or CLIP, by names of transformers, or of timm where it has them (vlp_jax/pretrained); "" for
    # random ones.
    v.init_from = ""
    # centre (all in the middle frame: ViViT) | mean (a share in each: I3D): what patches of one frame become where
    # init_from is an image encoder and tubelet above 1
    v.inflate = "centre"
    # none | sincos (fixed) | learned (a table over the T slots, from zeros); clips of another length interpolate it.
    v.time_positions = "sincos"
    # sincos: slots of the clips that the table is made for; others interpolate it. 0: as many as input.frames has.
    v.time_slots = 0
    # linear | mlp (affine map, GELU, norm, affine map: VLM's): how a feature becomes D numbers
    v.feature_projection = "linear"
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
    # patch | channel | pixels: pixels normalised over a patch (MAE), over each colour of it (VideoMAE), or as they are
    d.target = "patch"
    # True: the decoder, too, comes from model.vision.init_from (ViT-MAE, VideoMAE); False: it starts random.
    d.from_file = False

    m.text = t = ml_collections.ConfigDict()
    t.width = 768
    t.layers = 9
    t.heads = 12
    t.mlp_ratio = 4.0
    # A published text encoder to start from, its first layers the text encoder's, the next ones the fusion's: a Hugging
    # Face folder or a file of weights of the form of BERT, RoBERTa, DistilBERT or CLIP (vlp_jax/pretrained); "" for
    # random ones.
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
    # Layers written out in place of a scan over them: less memory traffic on GPUs, and for very shallow models on CPUs.
    m.unroll = False


def _training(c: ml_collections.ConfigDict) -> None:
    """The loss and the optimiser."""
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
    # ((pattern, decay), ...): parameters whose whole path matches have this decay, in [0, 1), in place of ema_decay;
    # the first that matches counts. 0 follows at once: of (("vision/.*", 0.999), (".*", 0.0)) vision alone is averaged.
    o.ema_decays = ()


def _running(c: ml_collections.ConfigDict) -> None:
    """Devices, checkpoints, logs and evaluation."""
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
