"""A look inside: runs in, arrays and figures out; notebooks import this alone."""

from vlp_jax.analysis.attention import WordAttention, word_attention, word_attention_figure
from vlp_jax.analysis.loading import Clips, Loaded, load
from vlp_jax.analysis.pictures import Rebuilt, reconstruct, reconstruct_figure
from vlp_jax.analysis.pruning import (
    Kept,
    Kind,
    foreground,
    kept_patches,
    kept_patches_figure,
    share_kept,
    share_kept_figure,
)
from vlp_jax.analysis.selection import Selection, frame_selection, frame_selection_figure
from vlp_jax.analysis.trade_off import Point, what_if, what_if_figure

__all__ = [
    "Clips",
    "Kept",
    "Kind",
    "Loaded",
    "Point",
    "Rebuilt",
    "Selection",
    "WordAttention",
    "foreground",
    "frame_selection",
    "frame_selection_figure",
    "kept_patches",
    "kept_patches_figure",
    "load",
    "reconstruct",
    "reconstruct_figure",
    "share_kept",
    "share_kept_figure",
    "what_if",
    "what_if_figure",
    "word_attention",
    "word_attention_figure",
]
