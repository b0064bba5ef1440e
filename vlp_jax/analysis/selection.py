"""Which frames of a clip the text-guided selector keeps for a text."""

import dataclasses
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vlp_jax import sharding
from vlp_jax.analysis import drawing, texts
from vlp_jax.analysis.loading import Clips, Loaded
from vlp_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Selection:
    """What the selector makes of one clip for each of P texts.

    Attributes:
      clip: number of the clip among the given ones.
      texts: P of them.
      scores_PxT: float32, the selector's scores of the temporal slots.
      share_PxT: float32, their softmax over the slots.
      kept_PxT: bool, the slots that the fusion gets to see.
    """

    clip: int
    texts: list[str]
    scores_PxT: np.ndarray
    share_PxT: np.ndarray
    kept_PxT: np.ndarray


def frame_selection(loaded: Loaded, clips: Clips, queries: Sequence[str], clip: int = 0) -> Selection:
    """Scores the frames of one whole clip against texts, and says which ones are kept.

    Args:
      queries: texts, such as `clips.captions[clip]` and others.
      clip: number of the clip among `clips`.

    Raises:
      UserError: the run keeps all frames, there is no such clip, or a text cannot be read.
    """
    if getattr(loaded.model, "selector", None) is None:
        raise UserError(
            f"frame_selection needs a run that selects frames, but {loaded.config.name} has no selector "
            f"(config.recipe = {loaded.config.recipe!r}, config.model.selection.frames = "
            f"{loaded.config.model.selection.frames}): take a run of config.recipe = smaug with selection.frames "
            "above 0, and loss.vtm or loss.mlm, which use it"
        )
    if not 0 <= clip < len(clips.captions):
        raise UserError(f"clip = {clip}: expected 0 to {len(clips.captions) - 1}, a number among the given clips")
    ids, mask = texts.encode(loaded, queries)
    video = np.repeat(clips.batch.video[clip : clip + 1], len(ids), axis=0)
    frames, scores = loaded.apply_rows(_select, (video, ids, mask))
    kept = np.zeros(scores.shape, bool)
    np.put_along_axis(kept, frames, True, axis=1)
    share = np.exp(scores - scores.max(1, keepdims=True))
    return Selection(clip, list(queries), scores, share / share.sum(1, keepdims=True), kept)


def _select(model, rows):
    video, ids, mask = rows
    sentence = model.sentence(model.encode_text(ids, mask), mask)
    frames, _, scores = model.select(model.encode_video(video), sentence, sharding.own_rows(len(ids)), None)
    return frames, scores


def draw_frame_selection(loaded: Loaded, clips: Clips, found: Selection) -> Figure:
    """Draws, below the frames of the clip, the softmax of the selector's scores as bars over time, one row a text.

    Kept frames have filled bars. Of precomputed features there are no frames to show, and the bars stand alone.
    """
    if found.clip >= len(clips.captions):
        raise UserError(
            f"found is of clip {found.clip}, but clips holds {len(clips.captions)}: expected the clips that "
            "frame_selection was called with"
        )
    matplotlib.rcParams["font.size"] = 8
    total, count = found.share_PxT.shape[1], len(found.texts)
    has_frames = not loaded.config.input.features.width
    width = max(5.5, 1.15 * total + 0.8)
    heights = [1.3 * width / total] * has_frames + [0.95] * count
    figure = Figure(figsize=(width, sum(heights) + 0.9), layout="constrained")
    figure.suptitle(
        f"Frames that the text selects: {loaded.title}\nclip: {drawing.shortened(clips.captions[found.clip])}"
    )
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    if has_frames:
        frames = drawing.slot_frames(loaded, clips.batch.video[found.clip : found.clip + 1])[0]
        for slot, frame in enumerate(frames):
            axes[0].imshow(frame, extent=(slot - 0.47, slot + 0.47, 0, 0.94), aspect="auto", interpolation="nearest")
        axes[0].set_ylim(-0.03, 0.97)
        axes[0].set_box_aspect(1 / total)
        axes[0].tick_params(bottom=False)
        drawing.bare(axes[0])
    for row, axis in enumerate(axes[has_frames:]):
        colors = [drawing.BLUE if kept else "none" for kept in found.kept_PxT[row]]
        bars = axis.bar(range(total), found.share_PxT[row], 0.7, color=colors, edgecolor=drawing.BLUE)
        axis.bar_label(bars, [f"{share:.2f}" for share in found.share_PxT[row]], padding=1)
        axis.axhline(1 / total, color=drawing.GREY, linewidth=0.8, linestyle="--")
        axis.set_title(drawing.shortened(found.texts[row]), fontsize=8, loc="left")
        axis.set_ylim(0, 1.18)
        axis.set_yticks([0, 0.5, 1])
        axis.set_ylabel("share")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlim(-0.5, total - 0.5)
    axes[-1].set_xticks(range(total), [str(slot) for slot in range(total)])
    axes[-1].tick_params(axis="x", length=0)
    axes[-1].set_xlabel("frame (filled: kept for the fusion; dashed: all frames alike)")
    return figure
