"""AdamW with decoupled decay on matrices only, linear warm-up, cosine decay, gradient clipping, and what is frozen."""

import difflib
import re
from typing import Any

import jax
import ml_collections
import optax

from vlp_jax.types import UserError

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


def names(params: Any) -> Any:
    """A tree as `params` whose leaves are their paths, e.g. "vision/embed/kernel"."""

    def name(path, _):
        # nnx.Variable holds its array as an attribute.
        path = path[:-1] if path[-1] == jax.tree_util.GetAttrKey("value") else path
        return jax.tree_util.keystr(path, simple=True, separator="/")

    return jax.tree_util.tree_map_with_path(name, params)


def decay_mask(params: Any) -> Any:
    """True for kernels and embedding tables; biases, norms, positions, tokens and the temperature do not decay.

    Names decide, not ranks: stacked layers give every bias a second dimension.
    """
    return jax.tree.map(lambda name: name.rsplit("/", 1)[-1] in DECAYED, names(params))


def trained_mask(config: ml_collections.ConfigDict, params: Any) -> Any:
    """True for the parameters that train: those whose whole path matches one of `config.optimizer.trainable`.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      A tree as `params` of Python bools, all True where the config names none.

    Raises:
      UserError: a pattern matches no parameter; it names the nearest ones.
    """
    patterns = tuple(config.optimizer.trainable)
    named = names(params)
    known = jax.tree.leaves(named)
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in known):
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3)
            modules = sorted({name.split("/")[0] for name in known})
            hint = f"; near it are {', '.join(near)}" if near else ""
            raise UserError(
                f"config.optimizer.trainable holds {pattern!r}, which matches the whole path of no parameter{hint}; "
                f"the model's modules are {', '.join(modules)}, and {modules[0] + '/.*'!r} matches all of one"
            )
    return jax.tree.map(lambda name: not patterns or any(re.fullmatch(p, name) for p in patterns), named)


def trained_summary(config: ml_collections.ConfigDict, params: Any) -> str:
    """One line that says how many parameters the optimiser has; raises as `trained_mask`.

    Those that the loss of a task does not reach, such as the word head in question answering, are among them.
    """
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(trained_mask(config, params))))
    total = sum(leaf.size for leaf, _ in pairs)
    trained = [leaf.size for leaf, trains in pairs if trains]
    if len(trained) == len(pairs):
        return f"{total:,} parameters, none of them frozen"
    return (
        f"{sum(trained):,} of {total:,} parameters train, in {len(trained)} of {len(pairs)} arrays "
        f"(config.optimizer.trainable = {tuple(config.optimizer.trainable)})"
    )


def make(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Builds the optimiser of a run of `steps` steps.

    Parameters that do not train (`config.optimizer.trainable`) have no moments, do not decay, and take no part in the
    gradient's norm; their updates are zero.
    """
    o = config.optimizer
    transform = optax.chain(
        optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity(),
        optax.adamw(schedule(config, steps), o.b1, o.b2, weight_decay=o.weight_decay, mask=decay_mask),
    )
    if not o.trainable:
        return transform
    frozen = lambda params: jax.tree.map(lambda trains: not trains, trained_mask(config, params))
    return optax.chain(
        optax.masked(transform, lambda params: trained_mask(config, params)),
        optax.masked(optax.set_to_zero(), frozen),
    )
