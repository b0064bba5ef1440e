"""Which patches each word looks at in the fusion layers: their cross-attention as it is, and rolled out over layers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax.analysis import drawing, texts
from vlp_jax.analysis.loading import Clips, Loaded
from vlp_jax.types import UserError

_HEAT = matplotlib.colormaps["magma"]


@dataclasses.dataclass(frozen=True)
class WordAttention:
    """Where the words of a text look in a clip.

    W words: [CLS], which stands for the whole text and is what matching reads, the words, and [SEP]. The row of a word
    of several pieces is the mean of theirs. A row sums to 1 over patches, CLS and fused tokens together (`rollout` with
    what stays with the words). Where a patch cannot be looked at, as it was pruned or its frame not selected, is nan.

    Attributes:
      clip: number of the clip among the given ones.
      text: as it was given.
      words: W names.
      raw_FxAxWxTxN: float32, the weights that the model itself uses in each of F fusion layers and A heads.
      raw_other_FxAxW: float32, what falls on the CLS tokens of the frames and on fused tokens.
      rollout_WxTxN: float32, see `rollout`.
      rollout_other_W: float32, what falls on CLS and fused tokens there.
      rollout_words_W: float32, what stays with the words.
      frames: int `[Kt]`, the temporal slots that the text keeps.
    """

    clip: int
    text: str
    words: list[str]
    raw_FxAxWxTxN: np.ndarray
    raw_other_FxAxW: np.ndarray
    rollout_WxTxN: np.ndarray
    rollout_other_W: np.ndarray
    rollout_words_W: np.ndarray
    frames: np.ndarray


def word_attention(loaded: Loaded, clips: Clips, text: str | None = None, clip: int = 0) -> WordAttention:
    """The cross-attention of a text's words to one whole clip, in every fusion layer.

    All frames that are kept are looked at together, as fusion does in training; where `config.evaluation.ensemble`
    is mean, max or lse, evaluation fuses frames one by one instead.

    Args:
      text: the clip's own caption by default, as far as the model reads it.
      clip: number of the clip among `clips`.

    Raises:
      UserError: the run has no fusion, there is no such clip, or the text cannot be read.
    """
    c = loaded.config
    if loaded.model.fusion is None:
        raise UserError(
            f"word_attention needs fusion layers, which {c.name} lacks, as it was trained with config.loss.vtm = 0 and "
            "config.loss.mlm = 0: take a run with one of them above 0"
        )
    if not 0 <= clip < len(clips.captions):
        raise UserError(f"clip = {clip}: expected 0 to {len(clips.captions) - 1}, a number among the given clips")
    if not isinstance(text, (str, type(None))):
        raise UserError(f"text = {text!r}: expected one text, or None for the clip's own caption")
    batch = clips.batch
    ids, mask = batch.text_ids[clip : clip + 1], batch.text_mask[clip : clip + 1]
    if text is not None:
        ids, mask = texts.encode(loaded, [text])
    rows = (batch.video[clip : clip + 1], ids, mask)
    seen = loaded.apply_rows(_observe, rows)
    words_FxAxLxL, video_FxAxLxKtxS = (np.asarray(x[0], np.float32) for x in (seen["words"], seen["video"]))
    rolled_LxL, rolled_LxU = rollout(words_FxAxLxL, video_FxAxLxKtxS.reshape(*video_FxAxLxKtxS.shape[:3], -1))

    names, places = texts.words(loaded.run.tokenizer, ids[0], mask[0])
    join = lambda x, axis: np.stack([np.take(x, where, axis=axis).mean(axis) for where in places], axis=axis)
    kept_TxK, frames, lead = seen["kept"][0], seen["frames"][0], int(seen["lead"][0])
    slots, count = config_lib.grid(c, batch.video.shape[1])

    def on_patches(x_KtxS):
        """`[..., Kt, S]` -> `[..., T, N]` and what is left."""
        patches = x_KtxS[..., lead : lead + kept_TxK.shape[1]]
        out = np.full((*x_KtxS.shape[:-2], slots * count), np.nan, np.float32)
        out[..., kept_TxK[frames].reshape(-1)] = patches.reshape(*patches.shape[:-2], -1)
        return out.reshape(*x_KtxS.shape[:-2], slots, count), x_KtxS.sum((-2, -1)) - patches.sum((-2, -1))

    raw, raw_other = on_patches(join(video_FxAxLxKtxS, 2))
    rolled, rolled_other = on_patches(join(rolled_LxU, 0).reshape(len(names), *video_FxAxLxKtxS.shape[-2:]))
    return WordAttention(
        clip=clip,
        text=clips.captions[clip] if text is None else text,
        words=names,
        raw_FxAxWxTxN=raw,
        raw_other_FxAxW=raw_other,
        rollout_WxTxN=rolled,
        rollout_other_W=rolled_other,
        rollout_words_W=join(rolled_LxL, 0).sum(1),
        frames=frames,
    )


def rollout(words_FxAxLxL: np.ndarray, video_FxAxLxU: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928) through self- and cross-attention.

    `R [L, L]` and `V [L, U]` say how much of each place of the text is made of the pieces that went into the first
    fusion layer, and of the clip's tokens. R starts as the identity, V as 0. A sublayer of self-attention with weights
    A (the mean over heads) does `R <- (I + A) R / 2` and `V <- (I + A) V / 2`; one of cross-attention with weights C
    does `R <- R / 2` and `V <- (V + C) / 2`. Rows of R and V together keep the sum 1.

    What this leaves out: a residual counts as half, whatever the sizes of both parts; heads count alike; values, output
    projections, norms and MLPs are taken to move nothing between places. It begins at the fusion: pieces are already
    mixed by the text encoder, and the clip's tokens by the video encoder.

    Args:
      words_FxAxLxL: self-attention weights of the words in each layer and head.
      video_FxAxLxU: their cross-attention weights.

    Returns:
      `(R, V)`, float32.
    """
    words = np.eye(words_FxAxLxL.shape[-1], dtype=np.float32)
    video = np.zeros((len(words), video_FxAxLxU.shape[-1]), np.float32)
    for own, cross in zip(words_FxAxLxL.mean(1), video_FxAxLxU.mean(1)):
        mixed = (np.eye(len(words), dtype=np.float32) + own) / 2
        words, video = mixed @ words / 2, (mixed @ video + cross) / 2
    return words, video


def _observe(model, rows):
    video, ids, mask = rows
    words, own = model.encode_text(ids, mask), sharding.own_rows(len(ids))
    clips = model.encode_video(video)
    frames, gate, _ = model.select(clips, model.sentence(words, mask), own, None)
    on_words, on_video = model.fusion.observe(words, mask, clips.tokens, own, frames, gate)
    by_row = {"words": on_words.swapaxes(0, 1), "video": on_video.swapaxes(0, 1)}
    return {**by_row, "frames": frames, "kept": clips.kept, "lead": 0 * own + clips.lead}


def draw_word_attention(
    loaded: Loaded,
    clips: Clips,
    found: WordAttention,
    words: Sequence[str] = (),
    *,
    layer: int | None = None,
    head: int | None = None,
) -> Figure:
    """Draws the frames of the clip and, one row a word, where it looks: brighter is more, grey cannot be looked at.

    Each row is drawn on a scale of its own, up to the share of one patch that stands beside the word.

    Args:
      clips: those that `word_attention` was called with.
      words: those to draw, by name, a word that occurs twice twice; all but [CLS] and [SEP] by default.
      layer: fusion layer, from 0, whose own weights are drawn; the rollout over all layers by default.
      head: of that layer; the mean over its heads by default.

    Raises:
      UserError: no such word, layer, head or clip; or the run has no frames to draw on.
    """
    if found.clip >= len(clips.captions):
        raise UserError(
            f"found is of clip {found.clip}, but clips holds {len(clips.captions)}: expected the clips that "
            "word_attention was called with"
        )
    words = [words] if isinstance(words, str) else words
    layers, heads = found.raw_FxAxWxTxN.shape[:2]
    if layer is None and head is not None:
        raise UserError(f"head = {head} without a layer: the rollout is over all heads; give layer=0 to {layers - 1}")
    for name, value, count in (("layer", layer, layers), ("head", head, heads)):
        if value is not None and not 0 <= value < count:
            raise UserError(f"{name} = {value}: expected 0 to {count - 1}")
    if unknown := [word for word in words if word not in found.words]:
        raise UserError(f"words = {unknown}: expected some of {found.words}")
    chosen = [i for i, w in enumerate(found.words) if (w in words if words else w not in ("[CLS]", "[SEP]"))]
    if layer is None:
        values, what = found.rollout_WxTxN, "attention rollout"
    else:
        of_layer = found.raw_FxAxWxTxN[layer]
        values = of_layer.mean(0) if head is None else of_layer[head]
        what = f"attention of fusion layer {layer}, " + ("mean of heads" if head is None else f"head {head}")
    frames = drawing.slot_frames(loaded, clips.batch.video[found.clip : found.clip + 1])[0]
    return _draw(frames, values[chosen], [found.words[i] for i in chosen], f"{what}: {loaded.title}", found.text)


def _draw(frames: Any, values_WxTxN: np.ndarray, words: Sequence[str], title: str, text: str) -> Figure:
    matplotlib.rcParams["font.size"] = 8
    total, rows = len(frames), len(words) + 1
    figure = Figure(figsize=(max(4.2, 0.85 * total + 1.7), 0.82 * rows + 0.8), layout="constrained")
    figure.suptitle(f"Where words look, {title}\n{drawing.shortened(text)}", fontsize=8)
    axes = figure.subplots(rows, total, squeeze=False)
    tops = [float(np.nanmax(value)) for value in values_WxTxN]
    grey = frames.mean(-1, keepdims=True).repeat(3, -1)
    for slot, frame in enumerate(frames):
        axes[0, slot].imshow(frame, interpolation="nearest")
        axes[0, slot].set_title(f"frame {slot}", fontsize=8)
        for row, value in enumerate(values_WxTxN[:, slot], start=1):
            seen = drawing.on_pixels(np.isfinite(value), frame.shape[0])[..., None]
            heat = _HEAT(drawing.on_pixels(np.nan_to_num(value) / tops[row - 1], frame.shape[0]))[..., :3]
            picture = np.where(seen, 0.8 * heat + 0.2 * grey[slot], drawing.DROPPED + 0.25 * (grey[slot] - 0.5))
            axes[row, slot].imshow(picture.clip(0, 1), interpolation="nearest")
    for axis in axes.flat:
        drawing.bare(axis)
    aside = {"rotation": 0, "ha": "right", "va": "center"}
    axes[0, 0].set_ylabel("clip", **aside)
    for axis, word, top in zip(axes[1:, 0], words, tops):
        axis.set_ylabel(f"{word}\n(to {top:.1%})", **aside)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), _HEAT), ax=axes, shrink=min(0.9, 3 / rows), pad=0.03)
    bar.set_ticks([0, 1], labels=["0", "the row's\nlargest"])
    bar.set_label("share of the word's attention", labelpad=-18)
    return figure
