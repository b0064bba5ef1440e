"""A look inside: runs in, arrays and figures out; notebooks import this alone."""

from vlp_jax.analysis.curves import Curves, draw_curves, read_curves, smooth
from vlp_jax.analysis.curves import groups as curve_groups
from vlp_jax.analysis.loading import Clips, Loaded, load

__all__ = [
    "Clips",
    "Curves",
    "Loaded",
    "curve_groups",
    "draw_curves",
    "load",
    "read_curves",
    "smooth",
]
