"""Pictures of what the model was shown, rebuilt and kept."""

import dataclasses
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vlp_jax import config as config_lib
from vlp_jax.analysis.loading import Clips, Loaded
from vlp_jax.models.vision import patchify, unpatchify
from vlp_jax.objectives import masked_vision
from vlp_jax.recipes import recipe
from vlp_jax.types import UserError

ROWS = ("clip", "visible", "rebuilt", "kept")
GREY = 0.5


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """Clips masked and rebuilt.

    Attributes:
      result: what `recipe.reconstruct` returned, NumPy arrays.
      error_BxTxN: float32, the mean squared error of each hidden patch in the loss's own unit (where
        `config.model.decoder.target` is patch or channel, 1 is what predicting its mean gives); nan where visible.
    """

    result: Any
    error_BxTxN: np.ndarray

    def mean_error(self, of_BxTxN: np.ndarray | None = None) -> float:
        """The mean over the hidden patches, or over those of one kind (bool, such as `foreground`).

        Raises:
          UserError: no hidden patch is of the kind.
        """
        hidden = np.isfinite(self.error_BxTxN)
        chosen = hidden if of_BxTxN is None else hidden & of_BxTxN
        if not chosen.any():
            raise UserError(f"mean_error: none of the {int(hidden.sum())} hidden patches is of the kind asked for")
        return float(self.error_BxTxN[chosen].mean())


def check_decoder(model: Any, config: Any, what: str) -> None:
    """Raises UserError where a run has no pixel decoder, which `what` needs."""
    recipe.require(model, recipe.Reconstructor, what)
    if not config.loss.mvm:
        raise UserError(
            f"{what} needs a pixel decoder, but {config.name} was trained with config.loss.mvm = 0: "
            "take a run with config.loss.mvm above 0"
        )


def reconstruct(loaded: Loaded, clips: Clips, seed: int | None = None) -> Rebuilt:
    """Masks clips as training does, encodes what is visible, and rebuilds what is hidden.

    Args:
      seed: of the masks; `config.seed` by default.

    Raises:
      UserError: the run has no pixel decoder.
    """
    check_decoder(loaded.model, loaded.config, "reconstruct")
    result, error = loaded.apply_rows(_rebuild, clips.batch, loaded.config.seed if seed is None else seed)
    slots, count = config_lib.grid(loaded.config, clips.batch.video.shape[1])
    error_BxTN = np.full((len(clips.captions), slots * count), np.nan, np.float32)
    flat = lambda x: x.reshape(len(x), -1)
    np.put_along_axis(error_BxTN, flat(result.mask.hidden), flat(error), axis=1)
    return Rebuilt(result, error_BxTN.reshape(-1, slots, count))


def _rebuild(model, batch, seed):
    result = model.reconstruct(batch, jax.random.key(seed))
    return result, masked_vision.patch_errors(result.predicted, model.target(batch.video, result.mask.hidden))


def draw_reconstruction(loaded: Loaded, clips: Clips, rebuilt: Rebuilt) -> Figure:
    """Draws what `reconstruct` gave, see `reconstruction`."""
    return reconstruction(loaded.config, clips.batch.video, rebuilt.result, clips.captions)


def reconstruction(config: Any, video: np.ndarray, result: Any, captions: list[str]) -> Figure:
    """Draws, for each clip, four rows of T frames: the clip, its visible patches, the rebuilt clip, the kept tokens.

    Where the decoder predicts normalised patches, they are shown with each true patch's own mean and deviation, as
    MAE's pictures are, and visible patches are pasted in. In the last row dropped patches are faded, and frames that
    the text-guided selector drops are dimmed further.

    Args:
      config: the run's config.
      video: uint8 `[B, F, H, W, 3]`.
      result: what `recipe.reconstruct` returned, as NumPy arrays.
      captions: B captions, the titles.
    """
    matplotlib.rcParams["font.size"] = 8
    vision = config.model.vision
    patch, tubelet = vision.patch_size, vision.tubelet
    slots, count = config_lib.grid(config, video.shape[1])
    b = len(video)
    patches = np.asarray(patchify(video, patch, tubelet)).astype(np.float32) / 255
    flat = patches.reshape(b, slots * count, -1)

    def shown(index, value):
        out = np.full_like(flat, GREY)
        for i in range(b):
            rows = index[i].reshape(-1)
            out[i, rows] = value[i].reshape(len(rows), -1)
        return out

    pick = lambda index: [flat[i][index[i].reshape(-1)] for i in range(b)]
    visible = shown(result.mask.visible, pick(result.mask.visible))
    true_hidden = np.stack(pick(result.mask.hidden))
    # The network saw pixels in -1..1; normalised patches are the same on either scale.
    predicted = result.predicted.reshape(true_hidden.shape)
    predicted = masked_vision.pixels_of(predicted, true_hidden, config.model.decoder.target)
    rebuilt = visible.copy()
    kept = 0.25 * flat + 0.75
    for i in range(b):
        rebuilt[i, result.mask.hidden[i].reshape(-1)] = predicted[i]
        rows = result.kept[i].reshape(-1)
        kept[i, rows] = flat[i, rows]
        dropped = np.setdiff1d(np.arange(slots), result.frames[i])
        kept[i].reshape(slots, count, -1)[dropped] *= 0.45

    frames = [
        np.asarray(unpatchify(x.reshape(patches.shape), patch, tubelet)).clip(0, 1)
        for x in (flat, visible, rebuilt, kept)
    ]
    total = frames[0].shape[1]
    columns = min(b, 2)
    rows = -(-b // columns)
    figure = Figure(figsize=(columns * (1.1 * total + 0.9), rows * 4.75), layout="constrained")
    blocks = figure.subfigures(rows, columns, squeeze=False).reshape(-1)[:b]
    for i, block in enumerate(blocks):
        block.suptitle(captions[i] if len(captions[i]) < 75 else captions[i][:72] + "...")
        axes = block.subplots(len(ROWS), total, squeeze=False)
        for row, name in enumerate(ROWS):
            axes[row, 0].set_ylabel(name)
            for column in range(total):
                axis = axes[row, column]
                axis.imshow(frames[row][i, column], interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
    return figure
