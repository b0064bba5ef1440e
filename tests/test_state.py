"""The compiled step: micro-batches, the moving average, and steps that are not finite."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vlp_jax import sharding
from vlp_jax import state as state_lib
from vlp_jax.recipes import recipe

CHANGES = {
    "accumulate_steps": 2,
    "optimizer.ema_decay": 0.9,
    "optimizer.warmup_share": 0.0,
    "optimizer.learning_rate": 1e-2,
    "optimizer.clip_norm": 0.0,
    "model.masking.kind": "none",
    "model.pruning.layers": (),
    "model.selection.frames": 0,
    "loss.mvm": 0.0,
    "loss.mlm": 0.0,
}


@pytest.fixture(scope="module")
def made(tiny_config, fake_tokenizer, random_batch):
    """One compiled step with two micro-batches and a moving average, its state before and after."""
    config = tiny_config(CHANGES)
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    run = state_lib.setup(config, fake_tokenizer, mesh, 10)
    with sharding.use_mesh(mesh):
        before = jax.device_get(run.create())
        step = state_lib.train_step(run)
        batch = random_batch(config)
        places = jax.tree.map(lambda x: x.sharding, run.abstract)
        copy = lambda state=before: jax.device_put(state, places)  # the step reuses its argument's memory
        after, metrics = jax.device_get(step(copy(), batch, np.asarray(True)))
        yield types.SimpleNamespace(
            run=run, before=before, step=step, batch=batch, after=after, metrics=metrics, copy=copy
        )


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), a, b)))


def test_a_new_state_has_float32_parameters_empty_moments_and_the_average_equal_to_them(made):
    assert {leaf.dtype for leaf in jax.tree.leaves(made.before.params)} == {np.dtype("float32")}
    assert equal(made.before.ema, made.before.params)
    assert made.before.evaluated is made.before.ema
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(made.before.opt_state))


def test_without_a_decay_there_is_no_average(tiny_config, fake_tokenizer):
    config = tiny_config()
    run = state_lib.setup(config, fake_tokenizer, sharding.make_mesh(config, jax.devices()[:1]), 10)
    assert run.abstract.ema is None
    assert run.abstract.evaluated is run.abstract.params


def test_micro_batches_give_the_mean_of_their_losses_and_gradients_and_the_sum_of_their_counts(made):
    key = jax.random.fold_in(jax.random.key(made.run.config.seed), 1)

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            out = state_lib.merge(made.run, params).loss(batch, key)
            return out.loss, out.terms

        return jax.value_and_grad(loss, has_aux=True)(params)

    parts = [gradient(made.before.params, jax.tree.map(lambda x, k=k: x[k::2], made.batch)) for k in range(2)]
    ((loss_a, terms_a), grad_a), ((loss_b, terms_b), grad_b) = parts
    mean = jax.tree.map(lambda a, b: (a + b) / 2, grad_a, grad_b)
    np.testing.assert_allclose(made.metrics["loss"], (loss_a + loss_b) / 2, rtol=1e-4)
    np.testing.assert_allclose(made.metrics["grad_norm"], optax.tree.norm(mean), rtol=1e-3)
    for name, pair in made.metrics["terms"].items():
        np.testing.assert_allclose(pair, np.add(terms_a[name], terms_b[name]), rtol=1e-4)
    assert float(made.metrics["terms"]["vtc"][1]) == 8
    # Adam's first moment after one step is (1 - b1) times the gradient.
    moments = optax.tree_utils.tree_get(made.after.opt_state, "mu")
    scale = max(abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(mean))
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m / 0.1, g, rtol=1e-3, atol=1e-5 * scale), moments, mean)


def test_the_average_moves_by_one_minus_its_decay(made):
    moved = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, made.before.ema, made.after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), made.after.ema, moved)
    assert not equal(made.after.ema, made.before.ema)
    assert not equal(made.after.params, made.before.params)


def test_a_finite_step_counts_itself_and_says_so(made):
    assert bool(made.metrics["finite"])
    assert {int(x) for x in jax.tree.leaves(made.after.opt_state) if np.ndim(x) == 0 and x.dtype == np.int32} == {1}


def test_a_step_that_is_not_finite_leaves_the_state_as_it_was(made):
    broken = made.copy()
    head = broken.params["match_head"]["out"]["kernel"]
    head[...] = jnp.full(head.shape, jnp.inf)
    expected = jax.device_get(broken)
    state, metrics = jax.device_get(made.step(broken, made.batch, np.asarray(True)))
    assert not np.isfinite(metrics["loss"])
    assert not metrics["finite"]
    assert equal(state, expected)


def test_after_a_bad_step_no_later_one_moves_the_state(made):
    state, metrics = jax.device_get(made.step(made.copy(), made.batch, np.asarray(False)))
    assert np.isfinite(metrics["loss"])
    assert not metrics["finite"]
    assert equal(state, made.before)
    state, metrics = jax.device_get(made.step(made.copy(state), made.batch, metrics["finite"]))
    assert not metrics["finite"]
    assert equal(state, made.before)


def test_the_seed_decides_the_parameters(made, tiny_config, fake_tokenizer):
    def create(seed):
        with nnx.use_eager_sharding(False):
            config = tiny_config({**CHANGES, "seed": seed})
            return nnx.state(recipe.build(config, fake_tokenizer, nnx.Rngs(seed)))

    first, other = create(0), create(1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), first, made.before.params)
    assert not equal(first, other)


def test_the_last_share_of_the_steps_is_unmasked(tiny_config, fake_tokenizer, made):
    config = tiny_config({"model.masking.unmasked_share": 0.2})
    run = state_lib.setup(config, fake_tokenizer, made.run.mesh, 10)
    step_of = state_lib.train_steps(run, 10)
    assert len({step_of(step) for step in range(8)}) == len({step_of(step) for step in (8, 9)}) == 1
    assert step_of(7) is not step_of(8)


def test_the_recipe_is_rebuilt_from_its_parameters(made):
    module = state_lib.merge(made.run, made.before.params)
    assert equal(nnx.state(module), made.before.params)
