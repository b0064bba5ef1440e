"""What if more were thrown away at test: recall and cost of a trained run as keep rate or mask ratio change."""

import dataclasses
from collections.abc import Sequence

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax import state as state_lib
from vlp_jax.analysis import drawing
from vlp_jax.analysis.loading import Loaded
from vlp_jax.analysis.pruning import check_prunes, mask_keys
from vlp_jax.evaluation import ranking, reading, statistics
from vlp_jax.evaluation.retrieval import DIRECTIONS, Captions, Retrieval
from vlp_jax.telemetry import flops
from vlp_jax.types import UserError

KEEP_RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
MASK_RATIOS = (0.0, 0.2, 0.4, 0.6, 0.75, 0.9)


@dataclasses.dataclass(frozen=True)
class Point:
    """A trained run under one other setting.

    Attributes:
      knob: `model.pruning.keep_rate` or `model.masking.ratio`.
      value: of the knob.
      is_own: whether this is the setting that the run is evaluated at: its own keep rate, and nothing masked.
      recall: `text_to_video` and `video_to_text` -> R@1 in percent.
      interval: the same -> its 95% bootstrap interval, as in `vlp_jax.evaluate`.
      gflops: GFLOPs of embedding one clip, counted by `telemetry.flops`.
    """

    knob: str
    value: float
    is_own: bool
    recall: dict[str, float]
    interval: dict[str, tuple[float, float]]
    gflops: float


def what_if(
    loaded: Loaded,
    *,
    keep_rates: Sequence[float] = KEEP_RATES,
    mask_ratios: Sequence[float] = MASK_RATIOS,
    split: str | None = None,
    seed: int | None = None,
) -> list[Point]:
    """Retrieval over a whole split under other keep rates, and with other shares of the patches hidden.

    The parameters stay as they are: no setting but its own has been trained for. Recall is that of the embeddings
    alone, without reranking. Each clip is decoded once, and embedded under every setting. Masks are those of the run's
    own `config.model.masking.kind`; at ratio 0 the clip is whole.

    Args:
      keep_rates: above 0 up to 1; () for none.
      mask_ratios: from 0 to below 1; () for none.
      split: by default `config.evaluation.split`.
      seed: of the masks; `config.seed` by default.

    Returns:
      A point for each keep rate, then one for each mask ratio.

    Raises:
      UserError: the run does not prune, or does not mask, where that is asked for; a value out of range; or the run
        cannot retrieve.
    """
    c, run = loaded.config, loaded.run
    settings = [("model.pruning.keep_rate", float(rate)) for rate in keep_rates]
    settings += [("model.masking.ratio", float(ratio)) for ratio in mask_ratios]
    if not settings:
        raise UserError("what_if(keep_rates=(), mask_ratios=()): expected a setting or more")
    if keep_rates:
        check_prunes(loaded, "what_if(keep_rates=...), but for keep_rates=(),")
    if mask_ratios and c.model.masking.kind == "none":
        raise UserError(
            f"what_if(mask_ratios=...) needs a run that masks, but {c.name} has config.model.masking.kind = 'none': "
            "give mask_ratios=()"
        )
    variants = [_variant(loaded, *setting) for setting in settings]
    source = loaded.source(split)
    evaluator = Retrieval(run.setup.graph, run.setup.abstract.params, c, source, run.tokenizer, run.setup.mesh)
    captions, seed = evaluator.captions, c.seed if seed is None else seed
    embedded: list[list[np.ndarray]] = [[] for _ in settings]
    valid: list[np.ndarray] = []
    read = reading.read(
        c, source, run.tokenizer, run.setup.mesh, batch_size=evaluator.batch_size, records=captions.records
    )
    for number, clips in enumerate(read):
        real = ~clips.is_padding
        valid.append(clips.valid[real])
        index = np.zeros(len(real), np.int32)
        index[real] = captions.records[number * len(real) : (number + 1) * len(real)]
        for parts, (variant, embed) in zip(embedded, variants):
            parts.append(variant.apply(embed, clips.video, index, seed)[real])
    with sharding.use_mesh(run.setup.mesh):
        texts_QxE = evaluator.texts(run.params)[0][captions.text_Q]
        found = [_recall(c, captions, texts_QxE, np.concatenate(x), np.concatenate(valid), run) for x in embedded]
    frames = config_lib.evaluated_input(c).frames
    own = {"model.pruning.keep_rate": c.model.pruning.keep_rate, "model.masking.ratio": 0.0}
    return [
        Point(knob, value, value == own[knob], recall, interval, _gflops(variant, embed, frames))
        for (knob, value), (recall, interval), (variant, embed) in zip(settings, found, variants)
    ]


def _variant(loaded, knob, value):
    """The run under one setting, and the function that embeds its clips."""
    masks, frames = knob.endswith("ratio"), config_lib.evaluated_input(loaded.config).frames
    tried = config_lib.update(loaded.config.copy_and_resolve_references(), {knob: value})
    right = 0 <= value < 1 if masks else 0 < value <= 1
    if not right or min(config_lib.visible_patches(tried, frames)) < 1:
        expected = "from 0 to below 1, with a visible patch left" if masks else "above 0, up to 1"
        raise UserError(f"{knob} = {value}: expected a value {expected}")
    hides = masks and config_lib.visible_patches(tried, frames) != config_lib.grid(tried, frames)
    # Clips that are whole are none to train on, where hidden patches are rebuilt.
    return loaded.under(tried), _embed_masked if hides else _embed_whole


def _embed_whole(model, video, index, seed):
    del index, seed
    return model.embed_clip(model.encode_clip(video))


def _embed_masked(model, video, index, seed):
    mask = model.sample_mask(mask_keys(index, seed), video)
    return model.embed_clip(model.vision(video, mask.visible))


def _recall(config, captions: Captions, texts_QxE, clips_CxE, valid_C, run):
    """R@1 of both directions, and its intervals; as `Retrieval` computes them."""
    text_side, clip_side = (texts_QxE, captions.group_Q), (clips_CxE, captions.group_C)
    rank = lambda queries, gallery, valid: (
        ranking.rank(queries[0], gallery[0], queries[1], gallery[1], valid, mesh=run.setup.mesh).rank_Q
    )
    ranks = rank(text_side, clip_side, valid_C), rank(clip_side, text_side, captions.valid_Q)
    recall, interval = {}, {}
    for name, ranks_Q, groups in zip(DIRECTIONS, captions.with_missed(*ranks, valid_C), captions.drawn_together):
        hits = 100.0 * (ranks_Q <= 1)
        recall[name] = float(hits.mean())
        interval[name] = statistics.interval(
            hits, np.mean, groups_Q=groups, samples=config.evaluation.bootstrap or 1000, seed=config.seed
        )
    return recall, interval


def _gflops(loaded: Loaded, embed, frames: int) -> float:
    setup, ways = loaded.run.setup, loaded.ways
    form, dtype = config_lib.clip_form(loaded.config.input, frames)
    video, index = jax.ShapeDtypeStruct((ways, *form), dtype), jax.ShapeDtypeStruct((ways,), np.int32)
    function = lambda params, video, index: embed(state_lib.merge(setup, params), video, index, 0)
    with sharding.use_mesh(setup.mesh):
        return flops.count(function, setup.abstract.params, video, index).total / ways / 1e9


def draw_what_if(loaded: Loaded, points: Sequence[Point]) -> Figure:
    """Draws R@1 against the GFLOPs of embedding a clip, one panel a direction, one line a knob.

    Some of a knob's values stand beside its line. Bands are 95% bootstrap intervals; a ring marks the setting that the
    run is evaluated at.

    Raises:
      UserError: no points.
    """
    if not points:
        raise UserError("draw_what_if(points=[]): expected what what_if returned")
    matplotlib.rcParams["font.size"] = 8
    figure = Figure(figsize=(8.2, 3.5), layout="constrained")
    figure.suptitle(f"Recall of {loaded.title}, as it is, when more is dropped at test", fontsize=9)
    lines = {
        "model.pruning.keep_rate": ("keep rate of pruning", drawing.BLUE, "o", (0, 8)),
        "model.masking.ratio": ("mask ratio", drawing.ORANGE, "s", (2, -13)),
    }
    for axis, direction in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS):
        for knob, (name, color, marker, offset) in lines.items():
            own = sorted((p for p in points if p.knob == knob), key=lambda p: p.gflops)
            if not own:
                continue
            x, y = [p.gflops for p in own], [p.recall[direction] for p in own]
            low, high = zip(*(p.interval[direction] for p in own))
            axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            axis.plot(x, y, marker=marker, color=color, label=name, markersize=4)
            for p in [own[0], *(p for p in own[1:-1] if knob.endswith("ratio") or p.is_own), own[-1]]:
                at = (p.gflops, p.recall[direction])
                axis.annotate(f"{p.value:g}", at, xytext=offset, textcoords="offset points", ha="center", color=color)
        for p in [p for p in points if p.is_own]:
            axis.plot(p.gflops, p.recall[direction], "o", markersize=11, fillstyle="none", color="black")
        axis.set_title(direction.replace("_", " "), fontsize=8)
        axis.set_xlabel("GFLOPs of embedding a clip")
        axis.set_ylim(0, 1.1 * max(max(p.interval[name]) for p in points for name in DIRECTIONS))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("R@1, %")
    figure.axes[0].legend(loc="lower right", frameon=False, title="ring: as evaluated", title_fontsize=8)
    return figure
