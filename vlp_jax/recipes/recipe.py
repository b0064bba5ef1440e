"""What a recipe must offer, and what it can offer.

A recipe is an `nnx.Module` built from shared parts. It always has `loss(batch, key) -> Outputs`. The protocols below
are its capabilities; evaluators ask for one with `require` and refuse, by name, a recipe that lacks it.
"""

import importlib
from typing import Any, Protocol, runtime_checkable

import jax
import ml_collections
from flax import nnx

from vlp_jax.types import Batch, Outputs, UserError

RECIPES = {"smaug": "Smaug"}


@runtime_checkable
class Trainable(Protocol):
    """Every recipe."""

    def loss(self, batch: Batch, key: jax.Array, masked: bool = True) -> Outputs: ...


@runtime_checkable
class DualEncoder(Protocol):
    """Embeds clips and texts apart, `[B, E]` of unit length each: retrieval, search, zero-shot."""

    def embed_video(self, video: Any) -> jax.Array: ...

    def embed_text(self, ids: Any, mask: Any) -> jax.Array: ...


@runtime_checkable
class Matcher(Protocol):
    """Scores (clip, text) pairs jointly, logit `[P]`: rerank, multiple choice."""

    def encode_clip(self, video: Any) -> Any: ...

    def encode_text(self, ids: Any, mask: Any) -> jax.Array: ...

    def match(self, clips: Any, clip_P: Any, words: Any, mask: Any) -> jax.Array: ...


@runtime_checkable
class Reconstructor(Protocol):
    """Rebuilds hidden pixels and reports what was hidden and kept: pictures, analysis."""

    def reconstruct(self, batch: Batch, key: jax.Array) -> Any: ...


def build(config: ml_collections.ConfigDict, tokenizer: Any, rngs: nnx.Rngs) -> nnx.Module:
    """Builds the recipe that `config.recipe` names.

    Raises:
      UserError: there is no such recipe.
    """
    if config.recipe not in RECIPES:
        raise UserError(f"config.recipe = {config.recipe!r}: expected one of {', '.join(sorted(RECIPES))}")
    module = importlib.import_module(f"vlp_jax.recipes.{config.recipe}")
    return getattr(module, RECIPES[config.recipe])(config, tokenizer, rngs=rngs)


def require(model: Any, capability: type, purpose: str) -> None:
    """Refuses a recipe that lacks what `purpose` needs."""
    if not isinstance(model, capability):
        raise UserError(f"{purpose} needs a recipe that is a {capability.__name__}; {type(model).__name__} is not one")
