"""What spatial sparsification keeps: the patches that each pruning layer of the encoder leaves."""

import dataclasses
from collections.abc import Sequence

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vlp_jax import config as config_lib
from vlp_jax import masking
from vlp_jax.analysis import arguments, drawing
from vlp_jax.analysis.loading import Clips, Loaded
from vlp_jax.evaluation import statistics
from vlp_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Kept:
    """Which patches of B clips are still there.

    Attributes:
      layers: numbers of the R encoder layers that prune, counted from 0.
      visible_BxTxN: bool, the patches that the encoder was shown; all of them, but for masked clips.
      kept_RxBxTxN: bool, those that each of these layers leaves.
      masked: whether the clips were masked.
    """

    layers: tuple[int, ...]
    visible_BxTxN: np.ndarray
    kept_RxBxTxN: np.ndarray
    masked: bool


def check_prunes(loaded: Loaded, what: str) -> None:
    """Raises UserError where a run does not prune."""
    if not loaded.config.model.pruning.layers:
        raise UserError(
            f"{what} needs a run that prunes, but {loaded.config.name} has config.model.pruning.layers = (): take a "
            "run of config.recipe = smaug with layers that prune"
        )


def kept_patches(loaded: Loaded, clips: Clips, *, masked: bool = False, seed: int | None = None) -> Kept:
    """Which patches of the clips each pruning layer leaves.

    Args:
      masked: hide patches first, as training does; the masks are those of `reconstruct`.
      seed: of the masks; `config.seed` by default.

    Raises:
      UserError: the run does not prune, or does not mask where masked clips are asked for.
    """
    c = loaded.config
    check_prunes(loaded, "kept_patches")
    if masked and c.model.masking.kind == "none":
        raise UserError(
            f"kept_patches(masked=True) needs a run that masks, but {c.name} has config.model.masking.kind = 'none': "
            "call it with masked=False"
        )
    shape = (len(clips.captions), *config_lib.grid(c, clips.batch.video.shape[1]))
    function = _of_masked if masked else _of_whole
    visible, survivors = loaded.apply_rows(function, clips.batch, c.seed if seed is None else seed)
    chosen = [_chosen(index, shape) for index in (visible, *survivors)]
    return Kept(tuple(c.model.pruning.layers), chosen[0], np.stack(chosen[1:]), masked)


def mask_keys(index_B, seed):
    """The key of each clip that `Smaug.reconstruct` draws its mask from."""
    return jax.vmap(jax.random.fold_in, (0, None))(masking.example_keys(jax.random.key(seed), index_B), 0)


def _of_whole(model, batch, seed):
    del seed
    slots, count = config_lib.grid(model.config, batch.video.shape[1])
    return masking.all_visible(len(batch.video), slots, count), model.encode_video(batch.video).survivors


def _of_masked(model, batch, seed):
    visible = model.sample_mask(mask_keys(batch.index, seed), batch.video).visible
    return visible, model.vision(batch.video, visible).survivors


def _chosen(index_BxTxK, shape):
    """Patch numbers `t * N + n` of each clip as bool `[B, T, N]`."""
    out = np.zeros((shape[0], shape[1] * shape[2]), bool)
    np.put_along_axis(out, index_BxTxK.reshape(shape[0], -1), True, axis=1)
    return out.reshape(shape)


def draw_kept_patches(loaded: Loaded, clips: Clips, kept: Kept) -> Figure:
    """Draws, for each clip, the frames and one row for each pruning layer, where what has been dropped is faded.

    Of masked clips a row between them shows what the encoder was given. Of tubelets the first frame is drawn.
    """
    frames = drawing.slot_frames(loaded, clips.batch.video)
    rows, names = [frames], ["clip"]
    if kept.masked:
        rows.append(drawing.faded(frames, kept.visible_BxTxN))
        names.append(f"visible\n({kept.visible_BxTxN.mean():.0%})")
    for layer, left in zip(kept.layers, kept.kept_RxBxTxN):
        rows.append(drawing.faded(frames, left))
        names.append(f"after layer {layer}\n({left.mean():.0%})")
    rate = loaded.config.model.pruning.keep_rate
    how = "masked" if kept.masked else "whole"
    title = f"What pruning keeps of {how} clips (keep rate {rate:g}; faded: dropped): {loaded.title}"
    return drawing.rows_of_frames(rows, names, clips.captions, title)


def foreground(loaded: Loaded, clips: Clips, threshold: int = 40) -> np.ndarray:
    """Patches that stand out from their frame, bool `[B, T, N]`: where a plain background ends and objects begin.

    A patch stands out where some pixel of it differs from the median colour of its frame by more than `threshold` in
    red, green or blue. This finds the objects of moving_shapes, whose background is a nearly even grey (within 25 of
    its median, objects beyond 60 even when faded), and says little about busier clips. Of tubelets the first frame
    counts.

    Args:
      threshold: 0 to 255.
    """
    frames = drawing.slot_frames(loaded, clips.batch.video) * 255
    off = np.abs(frames - np.median(frames, axis=(2, 3), keepdims=True)).max(-1) > threshold
    b, t, size, _ = off.shape
    patch = loaded.config.model.vision.patch_size
    return off.reshape(b, t, size // patch, patch, size // patch, patch).any((3, 5)).reshape(b, t, -1)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How many patches of one kind are kept, against chance.

    Attributes:
      patches: of that kind, among those that the encoder was shown.
      kept: share of them that the last pruning layer leaves, 0 to 1.
      low, high: 95% bootstrap interval of `kept`; clips are resampled.
      chance: share of all patches shown that it leaves: what a random choice would keep of any kind.
    """

    patches: int
    kept: float
    low: float
    high: float
    chance: float


def share_kept(kept: Kept, kind_BxTxN: np.ndarray, rows: Sequence[int] | None = None, *, samples: int = 1000) -> Kind:
    """How many patches of a kind (bool, such as `foreground` or its opposite) the last pruning layer leaves.

    Args:
      rows: numbers of the clips that count; all by default.
      samples: resamples behind the interval.

    Raises:
      UserError: no patch that the encoder was shown is of the kind, or an argument of another form.
    """
    if kind_BxTxN.shape != kept.visible_BxTxN.shape or kind_BxTxN.dtype != bool:
        raise UserError(
            f"kind_BxTxN: patches of shape {kind_BxTxN.shape}, {kind_BxTxN.dtype}: expected "
            f"{kept.visible_BxTxN.shape}, a bool for each patch"
        )
    arguments.check_positive("samples", samples)
    count = len(kind_BxTxN)
    chosen = np.array(arguments.numbers("rows", range(count) if rows is None else rows, count, "of the clips"), int)
    shown, left = kept.visible_BxTxN[chosen], kept.kept_RxBxTxN[-1][chosen]
    of_kind = kind_BxTxN[chosen] & shown
    if not of_kind.any():
        raise UserError(f"none of the {int(shown.sum())} patches that the encoder was shown is of the kind asked for")
    pairs_Bx2 = np.stack([(of_kind & left).sum((1, 2)), of_kind.sum((1, 2))], axis=1)
    pairs_Bx2 = pairs_Bx2[pairs_Bx2[:, 1] > 0]  # clips without any say nothing, and a resample of them has no share
    share = lambda pairs: pairs[:, 0].sum() / pairs[:, 1].sum()
    low, high = statistics.interval(pairs_Bx2, share, samples=samples, seed=0)
    return Kind(int(of_kind.sum()), float(share(pairs_Bx2)), low, high, float(left.sum() / shown.sum()))


def draw_share_kept(loaded: Loaded, kinds: dict[str, Kind]) -> Figure:
    """Draws the share of each named kind of patches that pruning keeps, with its interval, against chance."""
    if not kinds:
        raise UserError("draw_share_kept(kinds={}): expected a kind or more, each from share_kept")
    matplotlib.rcParams["font.size"] = 8
    figure = Figure(figsize=(5.6, 0.27 * len(kinds) + 1.2), layout="constrained")
    figure.suptitle(
        f"Which patches pruning keeps (keep rate {loaded.config.model.pruning.keep_rate:g}): {loaded.title}"
    )
    axis, own = figure.subplots(), list(kinds.values())
    share = np.array([kind.kept for kind in own])
    ends = np.array([[kind.kept - kind.low, kind.high - kind.kept] for kind in own]).T.clip(0)
    labels = [f"{name} ({kind.patches:,} patches)" for name, kind in kinds.items()]
    axis.barh(labels, share, xerr=ends, color=drawing.BLUE, height=0.65, ecolor="black", error_kw={"linewidth": 0.9})
    axis.axvline(own[0].chance, color=drawing.ORANGE, linestyle="--", linewidth=1.2)
    axis.annotate(
        f"chance {own[0].chance:.2f}",
        (own[0].chance, 1),
        (3, 3),
        ("data", "axes fraction"),
        "offset points",
        color=drawing.ORANGE,
        ha="center",
    )
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("share kept (line: 95% interval over clips)")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
