"""A look inside: runs in, arrays and figures out; notebooks import this alone."""

from vlp_jax.analysis.loading import Clips, Loaded, load

__all__ = ["Clips", "Loaded", "load"]
