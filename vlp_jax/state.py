"""The training state, how it is laid out on the mesh, and the compiled step that moves it on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax import optimizer, sharding
from vlp_jax.tasks import task
from vlp_jax.types import Batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything that a checkpoint holds.

    Attributes:
      params: the model's parameters, float32.
      opt_state: the optimiser's state, sharded as the parameters.
      ema: moving average of the parameters, or None; evaluation uses it, and losses that have a teacher.
    """

    params: Any
    opt_state: Any
    ema: Any

    @property
    def evaluated(self) -> Any:
        """The parameters that evaluation uses: the average where there is one."""
        return self.params if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True)
class Setup:
    """A model, its optimiser and where their arrays lie; nothing is allocated.

    Attributes:
      graph: the model without parameters; `nnx.merge(graph, params)` is the recipe, or the
        task's model on top of it (`tasks.task.build`).
      abstract: TrainState of ShapeDtypeStructs with shardings, for `create` and for restoring.
    """

    config: Any
    mesh: Any
    graph: Any
    transform: optax.GradientTransformation
    abstract: TrainState
    make_model: Callable[[], nnx.Module]

    def create(self) -> TrainState:
        """Builds the state, each array directly in its place on the mesh."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract)
        params = sharding.create_sharded(self.make_model, shardings.params)
        opt_state = jax.jit(self.transform.init, out_shardings=shardings.opt_state)(params)
        ema = None if self.abstract.ema is None else jax.tree.map(jnp.copy, params)
        return TrainState(params, opt_state, ema)


def setup(
    config: ml_collections.ConfigDict, tokenizer: Any, mesh: jax.sharding.Mesh, steps: int, answers: int = 0
) -> Setup:
    """Shapes and shardings of a run's state.

    Args:
      tokenizer: gives `vocab_size`, `mask_id` and `first_word_id`.
      steps: length of the run, for the learning-rate schedule.
      answers: length of the answer list, or number of classes, for the heads that need it (`tasks.task.build`).
    """
    make_model = lambda: task.build(config, tokenizer, nnx.Rngs(config.seed), answers)
    graph, params = sharding.abstract_model(make_model)
    places = sharding.parameter_shardings(params, mesh, config.mesh.rules)
    # A pattern that matches nothing stops here, not in the first step.
    optimizer.rate_factors(config, params)
    optimizer.ema_decays(config, params)
    transform = optimizer.make(config, steps)
    opt_state = jax.eval_shape(transform.init, params)
    # A parameter that does not train has an `optax.MaskedNode` in place of its moments.
    masked = lambda x: isinstance(x, optax.MaskedNode)
    opt_places = optax.tree_map_params(
        transform,
        lambda moment, place: moment if masked(moment) else place,
        opt_state,
        places,
        transform_non_params=lambda _: sharding.replicated(mesh),
        is_leaf=masked,
    )
    place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    params = jax.tree.map(place, params, places)
    abstract = TrainState(
        params, jax.tree.map(place, opt_state, opt_places), params if config.optimizer.ema_decay else None
    )
    return Setup(config, mesh, graph, transform, abstract, make_model)


def train_steps(run: Setup, steps: int) -> Callable[[int], Callable]:
    """Returns what gives the compiled step for step 0 .. steps - 1: masked ones, then unmasked ones if configured."""
    masked, unmasked = train_step(run), train_step(run, masked=False)
    switch = config_lib.masked_steps(run.config, steps)
    return lambda step: masked if step < switch else unmasked


def train_step(run: Setup, masked: bool = True) -> Callable[[TrainState, Batch, Any], tuple[TrainState, dict]]:
    """Returns the compiled step `(state, batch, good) -> (state, metrics)`; the state's buffers are reused.

    The metrics are `terms` and `measurements` as `(sum, count)`, `loss`, `grad_norm` and `finite`. Where loss or
    gradients are not finite, or `good` (bool scalar, the `finite` of the step before) is False, the state comes back
    unchanged and `finite` is False: however late the host looks, the last good state is still there to be saved.
    """
    config = run.config
    trains = optimizer.trained_mask(config, run.abstract.params)
    # By selection, not by adding zeros: frozen parameters keep every bit.
    only_trained = lambda new, old: jax.tree.map(lambda trains, new, old: new if trains else old, trains, new, old)

    decays = optimizer.ema_decays(config, run.abstract.params)
    model = lambda params: nnx.merge(run.graph, sharding.gathered(params, run.config.mesh.rules))

    def loss_of(params, batch, average):
        # Made here, in the program: the devices that it is compiled for need not be there. 0 is the parameters' own.
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        # Gradients are those of `params` alone: what teaches is a constant.
        teacher = {"teacher": model(average)} if config.loss.distill else {}
        out = model(params).loss(batch, key, masked, **teacher)
        sums = {"terms": out.terms, "measurements": out.measurements}
        return out.loss, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), sums)

    def gradients(params, batch, average):
        parts, of = config.accumulate_steps, jax.value_and_grad(loss_of, has_aux=True)
        if parts == 1:
            return of(params, batch, average)
        # Every parts-th row, so that a micro-batch lies on all devices as the batch does.
        micro = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)

        def add(total, batch):
            return jax.tree.map(jnp.add, total, of(params, batch, average)), None

        shapes = jax.eval_shape(of, params, jax.tree.map(lambda x: x[0], micro), average)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        ((loss, sums), grads), _ = jax.lax.scan(add, zeros, micro)
        return (loss / parts, sums), jax.tree.map(lambda g: g / parts, grads)

    def step(state, batch, good):
        (loss, sums), grads = gradients(state.params, batch, state.ema)
        # Nothing reads the other gradients, so that XLA drops what computes them.
        grads = only_trained(grads, jax.tree.map(jnp.zeros_like, grads))
        grad_norm = optax.tree.norm(grads)
        finite = good & jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = run.transform.update(grads, state.opt_state, state.params)
        params = only_trained(optax.apply_updates(state.params, updates), state.params)
        ema = state.ema
        if ema is not None:
            average = lambda decay, old, new: decay * old + (1 - decay) * new
            ema = only_trained(jax.tree.map(average, decays, ema, params), params)
        new = TrainState(params, opt_state, ema)
        state = jax.tree.map(functools.partial(jnp.where, finite), new, state)
        return state, {**sums, "loss": loss, "grad_norm": grad_norm, "finite": finite}

    shardings = jax.tree.map(lambda x: x.sharding, run.abstract)
    # On every device, so that every process can read the metrics.
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(run.mesh)))


def merge(run: Setup, params: Any) -> Any:
    """The recipe, or the task's model, with these parameters."""
    return nnx.merge(run.graph, params)
