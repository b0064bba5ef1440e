"""AdamW with decoupled decay on matrices only, linear warm-up, cosine decay and gradient clipping."""

from typing import Any

import jax
import ml_collections
import optax
from flax import nnx

DECAYED = ("kernel", "embedding")


def schedule(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate of step 0 .. steps - 1: linear from 0 to the peak, then a half cosine to `end_share` of it."""
    o = config.optimizer
    warmup = round(o.warmup_share * steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else o.learning_rate,
        peak_value=o.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=o.learning_rate * o.end_share,
    )


def decay_mask(params: Any) -> Any:
    """True for kernels and embedding tables; biases, norms, positions, tokens and the temperature do not decay.

    Names decide, not ranks: stacked layers give every bias a second dimension.
    """
    flat = nnx.to_flat_state(params)
    return jax.tree.unflatten(jax.tree.structure(params), [path[-1] in DECAYED for path, _ in flat])


def make(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Builds the optimiser of a run of `steps` steps."""
    o = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity(),
        optax.adamw(schedule(config, steps), o.b1, o.b2, weight_decay=o.weight_decay, mask=decay_mask),
    )
