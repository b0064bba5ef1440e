"""Clips and captions on one plane: principal components, or UMAP where it is installed."""

import collections
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import is_color_like
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vlp_jax.analysis import drawing
from vlp_jax.analysis.principal import principal_components
from vlp_jax.analysis.retrieval import Retrieved
from vlp_jax.analysis.word_errors import MOVING_SHAPES
from vlp_jax.types import UserError

METHODS = ("pca", "umap")
_COLORS = (*drawing.SERIES, "#F0E442")
_OTHER = drawing.GREY


def project(retrieved: Retrieved, method: str = "pca", *, centred: bool = True) -> tuple[np.ndarray, np.ndarray, str]:
    """Embeddings of the captions and of the clips that decoded, together, in two dimensions.

    Args:
      method: pca; or umap (McInnes et al., 2018), by cosine distance, of a fixed seed.
      centred: takes their own mean from the captions and from the clips first; else the gap that contrastive training
        leaves between both (Liang et al., 2022) may be all that the plane shows.

    Returns:
      Captions float64 `[Q, 2]`; clips `[C, 2]`, nan for those that did not decode; what the axes are.

    Raises:
      UserError: no such method, fewer than three points, or UMAP is not installed.
    """
    if method not in METHODS:
        raise UserError(f"method = {method!r}: expected {' or '.join(METHODS)}")
    valid = retrieved.ranks.valid_C
    texts, clips = retrieved.ranks.texts_QxE, retrieved.ranks.clips_CxE[valid]
    if min(texts.shape[1], len(texts) + len(clips) - 1) < 2:
        raise UserError(
            f"a plane needs three points of two dimensions; these are {len(texts)} captions and {len(clips)} clips of "
            f"{texts.shape[1]}"
        )
    if centred:
        texts, clips = texts - texts.mean(0), clips - clips.mean(0)
    both = np.concatenate([texts, clips])
    if method == "pca":
        points, share = principal_components(both, 2)
        axes = f"principal components 1 and 2, {100 * share[0]:.0f}% and {100 * share[1]:.0f}% of the variance"
    else:
        try:
            import umap
        except ImportError as error:
            raise UserError(f"method = 'umap' needs a package: pip install umap-learn ({error})") from error
        points = np.asarray(umap.UMAP(n_components=2, metric="cosine", random_state=0).fit_transform(both), np.float64)
        axes = "UMAP 1 and 2"
    out = np.full((len(valid), 2), np.nan)
    out[valid] = points[len(texts) :]
    return points[: len(texts)], out, axes


def draw_projection(
    retrieved: Retrieved,
    words: Sequence[str] = MOVING_SHAPES["colour"],
    method: str = "pca",
    *,
    centred: bool = True,
) -> Figure:
    """Draws clips as dots and captions as crosses, a line between those of a pair, coloured by words.

    The colour is that of the word that stands first in the caption; the most frequent eight words have colours of their
    own, the rest and captions without any of them are grey. Names of colours have theirs.

    Args:
      words: words and phrases, such as a group of `MOVING_SHAPES`.
      method, centred: as in `project`.

    Raises:
      UserError: no words, none that a caption has, or as `project`.
    """
    words = [words] if isinstance(words, str) else words
    if not words:
        raise UserError("words = []: expected words that captions have, to colour by")
    texts, clips, axes_label = project(retrieved, method, centred=centred)
    c = retrieved.captions
    found = [_first(words, text) for text in c.texts]
    if not any(found):
        raise UserError(
            f"words = {list(words)}: no caption of split {retrieved.split!r} has one of them; expected words that "
            f"captions have, such as those of {next(filter(str.strip, c.texts), '')!r}"
        )
    named = [word for word, _ in collections.Counter(w for w in found if w).most_common(len(_COLORS))]
    # A dot that is blue and means red would mislead everybody.
    own = all(is_color_like(word) for word in words)
    shown = {word: word if own else _COLORS[i] for i, word in enumerate(w for w in words if w in named)}
    colors = [shown.get(word or "", _OTHER) for word in found]

    figure = Figure(figsize=(6.8, 5.2), layout="constrained")
    axis = figure.subplots()
    if own:
        axis.set_facecolor("#C4C4C4")  # on which yellow is seen
    for query, clip in enumerate(c.clip_Q.tolist()):
        if c.valid_Q[query]:
            pair = np.array([texts[query], clips[clip]])
            axis.plot(*pair.T, color=colors[query], linewidth=0.5, alpha=0.35, zorder=1)
    of_clip = dict(zip(c.clip_Q.tolist()[::-1], colors[::-1]))  # of a clip's first caption
    clip_colors = [of_clip.get(clip, _OTHER) for clip in range(len(clips))]
    axis.scatter(clips[:, 0], clips[:, 1], c=clip_colors, s=16, zorder=2)
    full, text_colors = texts[c.valid_Q], [color for color, fine in zip(colors, c.valid_Q) if fine]
    axis.scatter(full[:, 0], full[:, 1], c=text_colors, s=18, marker="x", linewidths=1, zorder=3)
    handles = [Line2D([], [], color=color, linewidth=5) for color in shown.values()]
    names = list(shown)
    if _OTHER in colors:
        handles, names = [*handles, Line2D([], [], color=_OTHER, linewidth=5)], [*names, "other"]
    marks = [Line2D([], [], color="black", marker=mark, linestyle="") for mark in "ox"]
    figure.legend([*handles, *marks], [*names, "clip", "caption"], loc="outside right upper", frameon=False, fontsize=9)
    axis.set_title(f"embeddings, coloured by the first such word\n{retrieved.title}", fontsize=10)
    axis.set_xlabel(axes_label, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    return figure


def _first(words: Sequence[str], text: str) -> str | None:
    """The word of `words` that stands first in a text."""
    hits = [
        (match.start(), -len(word), word)
        for word in words
        if (match := re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))
    ]
    return min(hits)[2] if hits else None
