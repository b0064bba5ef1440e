"""A look inside: runs in, arrays and figures out; notebooks import this alone."""

from vlp_jax.analysis.attention import WordAttention, draw_word_attention, word_attention
from vlp_jax.analysis.contrasts import Foil, MinimalPairs, draw_minimal_pairs, foils, minimal_pairs
from vlp_jax.analysis.curves import Curves, draw_curves, read_curves, smooth
from vlp_jax.analysis.curves import groups as curve_groups
from vlp_jax.analysis.frontier import CostPoint, draw_frontier, pareto, read_points
from vlp_jax.analysis.loading import Clips, Loaded, load
from vlp_jax.analysis.pictures import Rebuilt, draw_reconstruction, reconstruct
from vlp_jax.analysis.principal import principal_components
from vlp_jax.analysis.projection import draw_projection, project
from vlp_jax.analysis.pruning import (
    Kept,
    Kind,
    draw_kept_patches,
    draw_share_kept,
    foreground,
    kept_patches,
    share_kept,
)
from vlp_jax.analysis.retrieval import Answer, Retrieved, draw_queries, draw_similarity, retrieve
from vlp_jax.analysis.selection import Selection, draw_frame_selection, frame_selection
from vlp_jax.analysis.trade_off import Point, draw_what_if, what_if
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
    "draw_frame_selection",
    "draw_frontier",
    "draw_kept_patches",
    "draw_minimal_pairs",
    "draw_projection",
    "draw_queries",
    "draw_reconstruction",
    "draw_share_kept",
    "draw_similarity",
    "draw_what_if",
    "draw_word_attention",
    "foils",
    "foreground",
    "frame_selection",
    "kept_patches",
    "load",
    "minimal_pairs",
    "pareto",
    "principal_components",
    "project",
    "read_curves",
    "read_points",
    "reconstruct",
    "retrieve",
    "share_kept",
    "smooth",
    "what_if",
    "word_attention",
]
