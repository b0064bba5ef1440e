"""A look inside: runs in, arrays and figures out; notebooks import this alone."""

from vlp_jax.analysis.attention import WordAttention, word_attention, word_attention_figure
from vlp_jax.analysis.contrasts import Foil, MinimalPairs, draw_minimal_pairs, foils, minimal_pairs
from vlp_jax.analysis.curves import Curves, draw_curves, read_curves, smooth
from vlp_jax.analysis.curves import groups as curve_groups
from vlp_jax.analysis.frontier import CostPoint, draw_frontier, pareto, read_points
from vlp_jax.analysis.loading import Clips, Loaded, load
from vlp_jax.analysis.pictures import Rebuilt, reconstruct, reconstruct_figure
from vlp_jax.analysis.principal import principal_components
from vlp_jax.analysis.projection import draw_projection, project
from vlp_jax.analysis.pruning import (
    Kept,
    Kind,
    foreground,
    kept_patches,
    kept_patches_figure,
    share_kept,
    share_kept_figure,
)
from vlp_jax.analysis.retrieval import Answer, Retrieved, draw_queries, draw_similarity, retrieve
from vlp_jax.analysis.selection import Selection, frame_selection, frame_selection_figure
from vlp_jax.analysis.trade_off import Point, what_if, what_if_figure
from vlp_jax.analysis.word_errors import (
    MOVING_SHAPES,
    Confusions,
    Difference,
    Share,
    confusions,
    difference,
    draw_confusions,
)

__all__ = [
    "MOVING_SHAPES",
    "Answer",
    "Clips",
    "Confusions",
    "CostPoint",
    "Curves",
    "Difference",
    "Foil",
    "Kept",
    "Kind",
    "Loaded",
    "MinimalPairs",
    "Point",
    "Rebuilt",
    "Retrieved",
    "Selection",
    "Share",
    "WordAttention",
    "confusions",
    "curve_groups",
    "difference",
    "draw_confusions",
    "draw_curves",
    "draw_frontier",
    "draw_minimal_pairs",
    "draw_projection",
    "draw_queries",
    "draw_similarity",
    "foils",
    "foreground",
    "frame_selection",
    "frame_selection_figure",
    "kept_patches",
    "kept_patches_figure",
    "load",
    "minimal_pairs",
    "pareto",
    "principal_components",
    "project",
    "read_curves",
    "read_points",
    "reconstruct",
    "reconstruct_figure",
    "retrieve",
    "share_kept",
    "share_kept_figure",
    "smooth",
    "what_if",
    "what_if_figure",
    "word_attention",
    "word_attention_figure",
]
