"""The optimiser: which parameters decay, the schedule's end points, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vlp_jax import optimizer, sharding, trees
from vlp_jax import state as state_lib
from vlp_jax.recipes import recipe
from vlp_jax.types import UserError


@pytest.fixture(scope="module")
def params(tiny_config, fake_tokenizer):
    """Ones in the shapes of SMAUG's parameters."""
    build = lambda: recipe.build(tiny_config(), fake_tokenizer, nnx.Rngs(0))
    return jax.tree.map(lambda x: jnp.ones(x.shape), sharding.abstract_model(build)[1])


def by_path(tree):
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(tree)}


def decays(path):
    """Matrices of affine maps and the word table; of stacked layers too, whose biases have two dimensions as well."""
    return path.endswith(".kernel") or path == "text.embedding"


def test_kernels_and_embedding_tables_decay_and_nothing_else(params):
    shapes, mask = by_path(params), by_path(optimizer.decay_mask(params))
    assert shapes.keys() == mask.keys()
    for path, leaf in shapes.items():
        assert mask[path] == decays(path), path
        if mask[path]:
            assert leaf.ndim >= 2
    stacked = [path for path, leaf in shapes.items() if ".blocks." in path and leaf.ndim >= 2 and not mask[path]]
    assert stacked  # biases and norms of stacked layers are there to be mistaken for matrices
    for path in ("temperature", "text.position", "vision.cls", "decoder.mask_token", "word_head.bias"):
        assert not mask[path]


def test_without_gradients_exactly_these_shrink_by_rate_times_decay(tiny_config, params):
    config = tiny_config({"optimizer.warmup_share": 0.0, "optimizer.learning_rate": 0.1, "optimizer.weight_decay": 0.5})
    transform = optimizer.make(config, 10)

    @jax.jit
    def step(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.apply_updates(params, transform.update(zeros, transform.init(params), params)[0])

    for path, leaf in by_path(step(params)).items():
        np.testing.assert_allclose(leaf, 1 - 0.1 * 0.5 * decays(path), rtol=1e-6)


def test_the_schedule_rises_to_the_peak_and_falls_along_a_cosine_to_its_end(tiny_config):
    config = tiny_config({"optimizer.learning_rate": 2e-3, "optimizer.warmup_share": 0.1, "optimizer.end_share": 0.05})
    rate = np.array([float(optimizer.schedule(config, 200)(step)) for step in range(201)])
    np.testing.assert_allclose(rate[0], 0)
    np.testing.assert_allclose(rate[10], 1e-3, rtol=1e-5)
    np.testing.assert_allclose(rate[20], 2e-3, rtol=1e-5)
    np.testing.assert_allclose(rate[110], (2e-3 + 1e-4) / 2, rtol=1e-5)
    np.testing.assert_allclose(rate[200], 1e-4, rtol=1e-5)
    assert (np.diff(rate[:21]) > 0).all()
    assert (np.diff(rate[20:]) < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_short_runs_start_at_the_peak_where_there_is_no_warm_up(tiny_config, steps, warmup):
    config = tiny_config({"optimizer.warmup_share": warmup, "optimizer.learning_rate": 1e-3})
    rates = [float(optimizer.schedule(config, steps)(step)) for step in range(steps)]
    assert np.isfinite(rates).all()
    np.testing.assert_allclose(rates[0], 1e-3 if round(warmup * steps) == 0 else 0.0, rtol=1e-6)
    assert max(rates) == pytest.approx(1e-3)


@pytest.mark.parametrize("clip", [0.0, 1.0, 100.0])
def test_the_global_norm_is_clipped_before_adam_or_not_at_all(tiny_config, clip):
    config = tiny_config({"optimizer.clip_norm": clip, "optimizer.weight_decay": 0.0})
    params = nnx.State({"a": jnp.zeros(3), "b": jnp.zeros(1)})
    gradient = nnx.State({"a": jnp.array([3.0, 0.0, 0.0]), "b": jnp.array([4.0])})
    transform = optimizer.make(config, 10)
    _, state = transform.update(gradient, transform.init(params), params)
    moments = optax.tree_utils.tree_get(state, "mu")
    scale = min(1.0, clip / 5) if clip else 1.0
    np.testing.assert_allclose(moments["a"][0], (1 - config.optimizer.b1) * 3.0 * scale, rtol=1e-5)
    np.testing.assert_allclose(moments["b"][0], (1 - config.optimizer.b1) * 4.0 * scale, rtol=1e-5)


FREEZING = {
    "optimizer.warmup_share": 0.0,
    "optimizer.learning_rate": 0.1,
    "optimizer.weight_decay": 0.5,
    "optimizer.clip_norm": 0.0,
}


def copied(state):
    """Path -> array, none of which a step gives away."""
    return {name: np.asarray(leaf).copy() for name, leaf in trees.by_path(state).items()}


@pytest.fixture(scope="module")
def frozen_run(tiny_config, fake_tokenizer, random_batch):
    """State before and after each of two steps that train the text projection and the matching head alone, the steps'
    gradient norms, and AdamW's b1."""
    changes = {**FREEZING, "optimizer.trainable": ("text_projection/.*", "match_head/.*"), "optimizer.ema_decay": 0.5}
    config = tiny_config(changes)
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    with sharding.use_mesh(mesh):
        run = state_lib.setup(config, fake_tokenizer, mesh, 10)
        state = run.create()
        # Negative zeros are kept, too, which adding zero would turn into positive ones.
        state.params["vision"]["cls"][...] = state.params["vision"]["cls"][...].at[0].set(-0.0)
        state.ema["vision"]["cls"][...] = jnp.copy(state.params["vision"]["cls"][...])
        before, after, norms = copied(state), [], []
        for seed in range(2):
            batch = jax.tree.map(jnp.asarray, random_batch(config, seed=seed))
            state, metrics = state_lib.train_step(run)(state, batch, np.asarray(True))
            after.append(copied(state))
            norms.append(float(metrics["grad_norm"]))
    return before, after, norms, config.optimizer.b1


def test_frozen_parameters_and_their_average_keep_every_bit_and_the_others_move(frozen_run):
    before, (_, after), _, _ = frozen_run
    moved = {name for name in before if after[name].tobytes() != before[name].tobytes()}
    trained = {name for name in before if name.split("/")[1] in ("text_projection", "match_head")}
    parts = ("params/", "ema/")
    assert {n for n in moved if n.startswith(parts)} == {n for n in trained if n.startswith(parts)} != set()


def test_frozen_parameters_have_no_moments(frozen_run):
    after = frozen_run[1][-1]
    for moment in ("/mu/", "/nu/"):
        assert {n.split(moment)[1].split("/")[0] for n in after if moment in n} == {"text_projection", "match_head"}


def test_the_gradient_norm_is_that_of_the_trained_parameters(frozen_run):
    """The first step's first moments are the gradients, unclipped here, times 1 - b1: of what trains alone."""
    _, after, norms, b1 = frozen_run
    moments = [np.asarray(leaf) for name, leaf in after[0].items() if "/mu/" in name]
    assert norms[0] == pytest.approx(np.sqrt(sum((m**2).sum() for m in moments)) / (1 - b1), rel=1e-5)
    assert norms[0] > 0


def test_a_pattern_that_matches_nothing_is_refused_with_the_near_names(tiny_config, params):
    config = tiny_config({"optimizer.trainable": ("match_head/.*", "text_projektion/kernel")})
    with pytest.raises(UserError, match=r"'text_projektion/kernel'.*text_projection/kernel.*modules are .*vision"):
        optimizer.trained_mask(config, params)
    # Whole paths match, not beginnings of them.
    with pytest.raises(UserError, match="'match_head'"):
        optimizer.trained_mask(tiny_config({"optimizer.trainable": ("match_head",)}), params)


def test_the_summary_counts_what_trains(tiny_config, params):
    total = sum(x.size for x in jax.tree.leaves(params))
    assert optimizer.trained_summary(tiny_config(), params) == f"{total:,} parameters, none of them frozen"
    some = tiny_config({"optimizer.trainable": ("temperature", "text_projection/bias")})
    assert optimizer.trained_summary(some, params).startswith(f"17 of {total:,} parameters train, in 2 of ")
