"""vlp_jax: efficient video-language pre-training in JAX."""

__version__ = "0.1.0"
