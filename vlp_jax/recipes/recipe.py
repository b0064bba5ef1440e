"""What a recipe must offer, and what it can offer.

A recipe is an `nnx.Module` built from shared parts. It always has `loss(batch, key) -> Outputs`. The protocols below
are its capabilities; evaluators ask for one with `require` and refuse, by name, a recipe that lacks it. Where
`config.loss.distill` is set, `loss` also gets `teacher`, the recipe with the moving average of its parameters; a recipe
that has no use for it lists `loss.distill` in FIXED.
"""

import importlib
from typing import Any, Protocol, runtime_checkable

import jax
import ml_collections
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax.types import Batch, Outputs, UserError

RECIPES = {"smaug": "Smaug", "singularity": "Singularity", "vindlu": "Vindlu"}


@runtime_checkable
class Trainable(Protocol):
    """Every recipe."""

    def loss(self, batch: Batch, key: jax.Array, masked: bool = True) -> Outputs: ...


@runtime_checkable
class DualEncoder(Protocol):
    """Embeds clips and texts apart, `[B, E]`, dot products being similarities: retrieval, search, zero-shot."""

    def embed_video(self, video: Any) -> jax.Array: ...

    def embed_clip(self, clips: Any) -> jax.Array: ...

    def embed_text(self, ids: Any, mask: Any) -> jax.Array: ...


@runtime_checkable
class Matcher(Protocol):
    """Scores (clip, text) pairs jointly, logit `[P]`: rerank, multiple choice."""

    def encode_clip(self, video: Any) -> Any: ...

    def encode_text(self, ids: Any, mask: Any) -> jax.Array: ...

    def match(self, clips: Any, clip_P: Any, words: Any, mask: Any, keys_P: Any = None) -> jax.Array: ...


@runtime_checkable
class Fuser(Protocol):
    """Fuses (clip, text) pairs, `[P, L, D]`: what heads for questions, choices and classes stand on."""

    def encode_clip(self, video: Any) -> Any: ...

    def encode_text(self, ids: Any, mask: Any) -> jax.Array: ...

    def fuse(self, clips: Any, clip_P: Any, words: Any, mask: Any, keys_P: Any = None) -> jax.Array: ...


@runtime_checkable
class FeatureEncoder(Protocol):
    """Encodes clips alone: `encode_video(video).tokens` is `[B, T, S, D]`, the CLS of each frame first: probes."""

    def encode_video(self, video: Any) -> Any: ...


@runtime_checkable
class Reconstructor(Protocol):
    """Rebuilds hidden pixels and reports what was hidden and kept: pictures, analysis."""

    def reconstruct(self, batch: Batch, key: jax.Array) -> Any: ...


def load(config: ml_collections.ConfigDict) -> Any:
    """The class of the recipe that `config.recipe` names.

    Raises:
      UserError: there is no such recipe, or a knob that it has no use for is set.
    """
    if config.recipe not in RECIPES:
        raise UserError(f"config.recipe = {config.recipe!r}: expected one of {', '.join(sorted(RECIPES))}")
    kind = _class_of(config.recipe)
    values = config_lib.leaves(config)
    for key, only in kind.FIXED.items():
        if values[key] != only:
            raise UserError(
                f"config.{key} = {values[key]!r}: the recipe {config.recipe!r} has no such part; set it to {only!r}, "
                "or choose another config.recipe"
            )
    return kind


def build(config: ml_collections.ConfigDict, tokenizer: Any, rngs: nnx.Rngs) -> nnx.Module:
    """Builds the recipe that `config.recipe` names; raises as `load`."""
    return load(config)(config, tokenizer, rngs=rngs)


def require(model: Any, capability: type, purpose: str) -> None:
    """Refuses a recipe that lacks what `purpose` needs; names those that have it."""
    if not isinstance(model, capability):
        able = [name for name in sorted(RECIPES) if issubclass(_class_of(name), capability)]
        fix = f"take a run of config.recipe = {' or '.join(able)}" if able else "no recipe here is one"
        raise UserError(
            f"{purpose} needs a recipe that is a {capability.__name__}; {type(model).__name__} is not one: {fix}"
        )


def require_embeddings(model: Any, config: ml_collections.ConfigDict, purpose: str) -> None:
    """Refuses a recipe that is no DualEncoder, and one whose embeddings no contrastive loss has trained."""
    require(model, DualEncoder, purpose)
    if not config.loss.vtc:
        raise UserError(
            f"{purpose} needs embeddings that were trained, but {config.name} has config.loss.vtc = 0: take a run with "
            "config.loss.vtc above 0"
        )


def _class_of(name: str) -> Any:
    return getattr(importlib.import_module(f"vlp_jax.recipes.{name}"), RECIPES[name])
