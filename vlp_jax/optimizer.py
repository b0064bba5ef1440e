"""AdamW with decoupled decay on matrices only, linear warm-up, cosine decay, gradient clipping; what is frozen, and
what learns at another rate."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from vlp_jax.types import UserError

DECAYED = ("kernel", "embedding")
# Of a module with a stack of blocks, the parts that come after them; all others come before.
_AFTER_BLOCKS = ("norm", "out", "word_head")


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
    _check_matched("trainable", patterns, jax.tree.leaves(named))
    return jax.tree.map(lambda name: not patterns or any(re.fullmatch(p, name) for p in patterns), named)


def rate_factors(config: ml_collections.ConfigDict, params: Any) -> Any:
    """What the learning rate of each parameter is multiplied by: its multiplier times its layer's decay.

    The multiplier is that of the first of `config.optimizer.multipliers` whose pattern matches the whole path, 1 where
    none does.

    The layer's decay is that of BEiT's and MAE's code, after ELECTRA (arXiv 2003.10555). In a module of depth blocks
    that one of `config.optimizer.layer_decay_stacks` matches, L = depth + 1; what comes before the blocks (patches or
    words, CLS, positions and their norm) is layer 0, block i of 1 .. depth is layer i with all that it holds, what
    comes after them (the last norm) is layer L, and layer i has layer_decay ** (L - i). So the last block has
    layer_decay, and 1 is left to what follows and to the rest of the model. A word table that is also the output of
    masked language modelling is of layer 0.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      A tree as `params` of Python floats; for a stack's arrays `[depth, ...]`, where it decays, float32
      `[depth, 1, ...]`.

    Raises:
      UserError: a pattern matches no parameter, or no module with blocks; it names the nearest ones.
    """
    o = config.optimizer
    named = names(params)
    known = jax.tree.leaves(named)
    _check_matched("multipliers", [pattern for pattern, _ in o.multipliers], known)
    depths = {} if o.layer_decay == 1 else _depths(o.layer_decay_stacks, known, jax.tree.leaves(params))

    def factor(name, leaf):
        own = next((factor for pattern, factor in o.multipliers if re.fullmatch(pattern, name)), 1.0)
        stack = next((stack for stack in depths if name.startswith(f"{stack}/")), None)
        if stack is None:
            return float(own)
        part, last = name.removeprefix(f"{stack}/").split("/")[0], depths[stack] + 1
        if part == "blocks":
            decays = own * o.layer_decay ** (last - 1 - np.arange(last - 1.0))
            return decays.reshape(-1, *(1,) * (len(leaf.shape) - 1)).astype(np.float32)
        return float(own if part in _AFTER_BLOCKS else own * o.layer_decay**last)

    return jax.tree.map(factor, named, params)


def ema_decays(config: ml_collections.ConfigDict, params: Any) -> Any:
    """The decay of each parameter's moving average: that of the first of `config.optimizer.ema_decays` whose pattern
    matches the whole path, `config.optimizer.ema_decay` where none does.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      A tree as `params` of Python floats.

    Raises:
      UserError: a pattern matches no parameter; it names the nearest ones.
    """
    o, named = config.optimizer, names(params)
    _check_matched("ema_decays", [pattern for pattern, _ in o.ema_decays], jax.tree.leaves(named))
    decay_of = lambda name: next((decay for p, decay in o.ema_decays if re.fullmatch(p, name)), o.ema_decay)
    return jax.tree.map(lambda name: float(decay_of(name)), named)


def _depths(patterns: Iterable[str], known: list[str], leaves: list[Any]) -> dict[str, int]:
    """Path of each module with a stack of blocks that a pattern matches -> number of the blocks."""
    stacks = {name.partition("/blocks/")[0]: leaf.shape[0] for name, leaf in zip(known, leaves) if "/blocks/" in name}
    for pattern in patterns:
        if not any(re.fullmatch(pattern, stack) for stack in stacks):
            raise UserError(
                f"config.optimizer.layer_decay_stacks holds {pattern!r}, which matches the whole path of no module "
                f"with blocks; expected some of {', '.join(stacks)}"
            )
    return {stack: depth for stack, depth in stacks.items() if any(re.fullmatch(p, stack) for p in patterns)}


def _check_matched(key: str, patterns: Iterable[str], known: list[str]) -> None:
    """Refuses a pattern of `config.optimizer.KEY` that matches the whole path of no parameter."""
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in known):
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3)
            modules = sorted({name.split("/")[0] for name in known})
            hint = f"; near it are {', '.join(near)}" if near else ""
            raise UserError(
                f"config.optimizer.{key} holds {pattern!r}, which matches the whole path of no parameter{hint}; "
                f"the model's modules are {', '.join(modules)}, and {modules[0] + '/.*'!r} matches all of one"
            )


def trained_summary(config: ml_collections.ConfigDict, params: Any) -> str:
    """One line that says how many parameters the optimiser has, and how far their learning rates differ; raises as
    `trained_mask` and `rate_factors`.

    Those that the loss of a task does not reach, such as the word head in question answering, are among them.
    """
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(trained_mask(config, params))))
    total = sum(leaf.size for leaf, _ in pairs)
    trained = [leaf.size for leaf, trains in pairs if trains]
    if len(trained) == len(pairs):
        return f"{total:,} parameters, none of them frozen{_rates(config, params)}"
    return (
        f"{sum(trained):,} of {total:,} parameters train, in {len(trained)} of {len(pairs)} arrays "
        f"(config.optimizer.trainable = {tuple(config.optimizer.trainable)}){_rates(config, params)}"
    )


def _rates(config, params) -> str:
    """The range of the factors of what trains, for a summary; '' where all are 1."""
    pairs = zip(jax.tree.leaves(rate_factors(config, params)), jax.tree.leaves(trained_mask(config, params)))
    factors = np.concatenate([np.ravel(factor) for factor, trains in pairs if trains])
    return "" if (factors == 1).all() else f"; learning rates x {factors.min():.3g} to x {factors.max():.3g}"


def make(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Builds the optimiser of a run of `steps` steps.

    Parameters that do not train (`config.optimizer.trainable`) have no moments, do not decay, and take no part in the
    gradient's norm; their updates are zero. The factors of `rate_factors` are those of AdamW's parameter groups: the
    gradient's norm and the moments do not know them, and decoupled decay is multiplied as the rest of the update is.
    """
    o = config.optimizer
    transform = optax.chain(
        optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity(),
        optax.adamw(schedule(config, steps), o.b1, o.b2, weight_decay=o.weight_decay, mask=decay_mask),
    )
    if o.trainable:
        frozen = lambda params: jax.tree.map(lambda trains: not trains, trained_mask(config, params))
        transform = optax.chain(
            optax.masked(transform, lambda params: trained_mask(config, params)),
            optax.masked(optax.set_to_zero(), frozen),
        )
    return _with_rates(config, transform) if o.multipliers or o.layer_decay != 1 else transform


def _with_rates(config, transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform` with its updates times `rate_factors`; a state of its own would only hold constants."""

    def update(updates, state, params=None):
        updates, state = transform.update(updates, state, params)
        return jax.tree.map(jnp.multiply, updates, rate_factors(config, params)), state

    return optax.GradientTransformation(transform.init, update)
