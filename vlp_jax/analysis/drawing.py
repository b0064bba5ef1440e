"""What figures of clips share: frames of slots, values laid over patches, and a palette that all can tell apart."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vlp_jax.types import UserError

# Of Okabe and Ito (2008), told apart with any colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"
# One for each of several lines; without the yellow of that palette, which white paper swallows.
SERIES = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DROPPED = 0.6  # grey of what the model does not see
_TITLE = 75  # characters


def slot_frames(loaded: Any, video: np.ndarray) -> np.ndarray:
    """The first frame of each temporal slot, float32 `[B, T, H, W, 3]` in 0..1, of uint8 `[B, F, H, W, 3]`.

    Raises:
      UserError: the run sees precomputed features, which have no frames to draw on.
    """
    if loaded.config.input.features.width:
        raise UserError(
            f"{loaded.title} sees precomputed features (config.input.features.width = "
            f"{loaded.config.input.features.width}), which have no frames to draw on: take a run of videos, or the "
            "arrays that this picture is made of"
        )
    return video[:, :: loaded.config.model.vision.tubelet].astype(np.float32) / 255


def on_pixels(patches_xN: np.ndarray, size: int) -> np.ndarray:
    """Values of the patches of square frames as pixels, `[..., N] -> [..., size, size]`."""
    side = round(patches_xN.shape[-1] ** 0.5)
    grid = patches_xN.reshape(*patches_xN.shape[:-1], side, side)
    return np.repeat(np.repeat(grid, size // side, axis=-2), size // side, axis=-1)


def faded(frames_xHxWx3: np.ndarray, shown_xN: np.ndarray) -> np.ndarray:
    """Frames whose patches fade to white where they are not `shown`."""
    shown = on_pixels(shown_xN, frames_xHxWx3.shape[-2])[..., None]
    return np.where(shown, frames_xHxWx3, 0.2 * frames_xHxWx3 + 0.8)


def shortened(text: str, length: int = _TITLE) -> str:
    """A caption that fits over a picture."""
    return text if len(text) <= length else text[: length - 3] + "..."


def bare(axis: Any) -> None:
    """Takes ticks and frame away, of an axis that holds a picture."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def rows_of_frames(rows_RxBxT: Sequence[np.ndarray], names: Sequence[str], titles: Sequence[str], title: str) -> Figure:
    """Draws, for each of B clips, R rows of T frames side by side.

    Args:
      rows_RxBxT: R arrays `[B, T, H, W, 3]` in 0..1.
      names: of the rows.
      titles: of the clips.
      title: of the figure.
    """
    matplotlib.rcParams["font.size"] = 8
    b, total = rows_RxBxT[0].shape[:2]
    columns = min(b, 2)
    blocks_down, rows = -(-b // columns), len(names)
    size = (columns * (1.1 * total + 1.1), blocks_down * (1.12 * rows + 0.35) + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=9)
    blocks = figure.subfigures(blocks_down, columns, squeeze=False).reshape(-1)[:b]
    for i, block in enumerate(blocks):
        block.suptitle(shortened(titles[i]), fontsize=8)
        axes = block.subplots(rows, total, squeeze=False)
        for row, name in enumerate(names):
            axes[row, 0].set_ylabel(name)
            for column in range(total):
                bare(axes[row, column])
                axes[row, column].imshow(rows_RxBxT[row][i, column].clip(0, 1), interpolation="nearest")
    return figure
