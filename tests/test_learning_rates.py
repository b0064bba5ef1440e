"""Learning rates by parameter path: multipliers, layer-wise decay, and that a run without them is what it was."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from vlp_jax import config as config_lib
from vlp_jax import optimizer, sharding, trees
from vlp_jax import state as state_lib
from vlp_jax.recipes import recipe
from vlp_jax.types import UserError

RNG = np.random.default_rng(0)
SHAPES = {
    "vision/embed/kernel": (2, 3),
    "vision/cls": (3,),
    "vision/blocks/mlp/kernel": (4, 3, 2),
    "vision/blocks/norm/scale": (4, 3),
    "vision/norm/scale": (3,),
    "text/embedding": (5, 2),
    "text/blocks/mlp/kernel": (2, 2, 2),
    "temperature": (),
}
RATE, DECAY = 0.01, 0.3
CHANGES = {
    "optimizer.learning_rate": RATE,
    "optimizer.weight_decay": DECAY,
    "optimizer.warmup_share": 0.0,
    "optimizer.clip_norm": 0.5,
}
BOTH = {
    "optimizer.multipliers": (("vision/blocks/norm/.*", 3.0), ("vision/.*", 0.5), ("temp.*", 10)),
    "optimizer.layer_decay": 0.6,
    "optimizer.layer_decay_stacks": ("vision", "te.t"),
}


def tree(values):
    """nnx.State of `{path: array}`."""
    flat = [(tuple(path.split("/")), nnx.Param(jnp.asarray(value, jnp.float32))) for path, value in values.items()]
    return nnx.from_flat_state(flat)


def random_tree(seed):
    rng = np.random.default_rng(seed)
    values = {path: rng.normal(size=shape) for path, shape in SHAPES.items()}
    return values, tree(values)


def by_path(state):
    return {name: np.asarray(leaf) for name, leaf in trees.by_path(state).items()}


@pytest.fixture(scope="module")
def abstract(tiny_config, fake_tokenizer):
    """Shapes of SMAUG's parameters."""
    return sharding.abstract_model(lambda: recipe.build(tiny_config(), fake_tokenizer, nnx.Rngs(0)))[1]


def factors_of(config, params):
    """Path -> factor."""
    factors = jax.tree.leaves(optimizer.rate_factors(config, params))
    return dict(zip(trees.by_path(params), factors, strict=True))


def expected_factors():
    """Of BOTH on SHAPES, written out: 0.6 to the power of what is left of L, 5 in vision and 3 in text."""
    upwards = lambda depth, rank: (0.6 ** np.arange(depth, 0, -1.0)).reshape(-1, *[1] * (rank - 1))
    return {
        "vision/embed/kernel": 0.5 * 0.6**5,
        "vision/cls": 0.5 * 0.6**5,
        "vision/blocks/mlp/kernel": 0.5 * upwards(4, 3),
        "vision/blocks/norm/scale": 3.0 * upwards(4, 2),
        "vision/norm/scale": 0.5,
        "text/embedding": 0.6**3,
        "text/blocks/mlp/kernel": upwards(2, 3),
        "temperature": 10.0,
    }


def test_two_steps_of_adamw_with_multipliers_and_layer_decay_are_those_of_numpy(tiny_config):
    """The factor multiplies the whole update, decay too; clipping and moments see the gradients as they are."""
    config = tiny_config({**CHANGES, **BOTH, "optimizer.end_share": 1.0})
    o, factors = config.optimizer, expected_factors()
    expected, params = random_tree(0)
    transform = optimizer.make(config, 10)
    state = transform.init(params)
    mu, nu = ({path: np.zeros(shape) for path, shape in SHAPES.items()} for _ in range(2))
    for step in (1, 2):
        raw, gradient = random_tree(step)
        updates, state = jax.jit(transform.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum((g**2).sum() for g in raw.values()))
        assert norm > o.clip_norm
        for path, g in raw.items():
            g = g * o.clip_norm / norm
            mu[path] = o.b1 * mu[path] + (1 - o.b1) * g
            nu[path] = o.b2 * nu[path] + (1 - o.b2) * g**2
            move = mu[path] / (1 - o.b1**step) / (np.sqrt(nu[path] / (1 - o.b2**step)) + 1e-8)
            decays = path.endswith("kernel") or path.endswith("embedding")
            expected[path] = expected[path] - RATE * factors[path] * (move + DECAY * decays * expected[path])
    for path, value in by_path(params).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_layer_decay_is_that_of_beit(tiny_config, abstract):
    """BEiT's assigner: decay ** (depth + 1 - i), the embedding i = 0, block k of 0 .. depth - 1 i = k + 1, the norm and
    all heads i = depth + 1."""
    factors = factors_of(tiny_config({"optimizer.layer_decay": 0.75}), abstract)
    depth = tiny_config().model.vision.layers
    for name, factor in factors.items():
        if name.startswith("vision/blocks/"):
            np.testing.assert_allclose(np.ravel(factor), [0.75 ** (depth + 1 - i) for i in range(1, depth + 1)])
            assert np.ndim(factor) == len(trees.by_path(abstract)[name].shape)
        elif name.startswith("vision/") and not name.startswith("vision/norm/"):
            assert factor == 0.75 ** (depth + 1), name
        else:
            assert factor == 1.0, name
    assert {"vision/embed/kernel", "vision/cls", "vision/norm/scale"} <= factors.keys()


@given(
    rules=st.lists(
        st.tuples(
            st.sampled_from(["vision/.*", ".*kernel", ".*/blocks/.*", "text/.*", "temperature", "vision/norm/scale"]),
            st.floats(1e-6, 1e6),
        ),
        max_size=5,
    )
)
def test_the_first_pattern_that_matches_a_whole_path_gives_the_factor(rules):
    config = config_lib.update(config_lib.defaults(), {"optimizer.multipliers": tuple(rules)})
    factors = factors_of(config, random_tree(0)[1])
    for name, factor in factors.items():
        matching = [factor for pattern, factor in rules if re.compile(pattern).fullmatch(name)]
        assert factor == (matching[0] if matching else 1.0)


@given(depth=st.integers(1, 6), decay=st.floats(0.1, 1.0), multiplier=st.floats(0.01, 10.0))
def test_layers_rise_by_one_over_the_decay_and_multipliers_scale_them_all(depth, decay, multiplier):
    changes = {"optimizer.layer_decay": decay, "optimizer.multipliers": ((".*", multiplier),)}
    params = tree({"vision/cls": np.zeros(2), "vision/blocks/x/bias": np.zeros((depth, 2)), "vision/norm/bias": [0.0]})
    factors = factors_of(config_lib.update(config_lib.defaults(), changes), params)
    blocks = np.broadcast_to(np.ravel(factors["vision/blocks/x/bias"]), depth)
    upwards = [factors["vision/cls"], *blocks, factors["vision/norm/bias"]]
    np.testing.assert_allclose(upwards[-1], multiplier)
    np.testing.assert_allclose(np.divide(upwards[:-1], upwards[1:]), decay, rtol=1e-5)


def test_factors_add_no_state(tiny_config):
    _, params = random_tree(0)
    for frozen in ({}, {"optimizer.trainable": ("vision/.*",)}):
        plain, scaled = (optimizer.make(tiny_config({**frozen, **more}), 10).init(params) for more in ({}, BOTH))
        assert jax.tree.structure(plain) == jax.tree.structure(scaled)


def test_without_the_knobs_the_program_is_clipping_and_adamw_alone(tiny_config):
    config, (_, params) = tiny_config(), random_tree(0)
    o = config.optimizer
    plain = optax.chain(
        optax.clip_by_global_norm(o.clip_norm),
        optax.adamw(optimizer.schedule(config, 10), o.b1, o.b2, weight_decay=o.weight_decay, mask=optimizer.decay_mask),
    )
    program = lambda transform: str(jax.make_jaxpr(transform.update)(params, transform.init(params), params))
    # Addresses of functions are no part of a program.
    ours, theirs = (re.sub(r"0x[0-9a-f]+", "", program(x)) for x in (optimizer.make(config, 10), plain))
    assert ours == theirs
    scaled = re.sub(r"0x[0-9a-f]+", "", program(optimizer.make(tiny_config(BOTH), 10)))
    assert scaled != theirs


def test_a_factor_moves_a_whole_step_of_training_in_proportion(tiny_config, fake_tokenizer, random_batch):
    """Frozen parameters keep every bit, beside multiplied ones."""
    base = {**CHANGES, "optimizer.trainable": ("text_projection/.*", "vision/blocks/.*")}
    halved = {"optimizer.multipliers": (("text_projection/kernel", 0.5),), "optimizer.layer_decay": 0.5}
    moved = []
    for changes in (base, {**base, **halved}):
        config = tiny_config(changes)
        mesh = sharding.make_mesh(config, jax.devices()[:1])
        run = state_lib.setup(config, fake_tokenizer, mesh, 10)
        with sharding.use_mesh(mesh):
            state = run.create()
            before = by_path(state.params)
            before = {name: value.copy() for name, value in before.items()}
            batch = jax.tree.map(jnp.asarray, random_batch(config))
            after = by_path(state_lib.train_step(run)(state, batch, np.asarray(True))[0].params)
        moved.append(types.SimpleNamespace(by={name: after[name] - before[name] for name in before}))
    plain, scaled = (x.by for x in moved)
    layers = 0.5 ** np.arange(3, 0, -1.0)
    for name, move in plain.items():
        factor = 1.0
        if name == "text_projection/kernel":
            factor = 0.5
        elif name.startswith("vision/blocks/"):
            factor = layers.reshape(-1, *[1] * (move.ndim - 1))
        np.testing.assert_allclose(scaled[name], factor * move, rtol=1e-2, atol=2e-6, err_msg=name)
        assert np.any(move) == name.startswith(("text_projection/", "vision/blocks/")), name


def test_patterns_that_match_nothing_are_refused_before_the_first_step(tiny_config, fake_tokenizer):
    mesh = sharding.make_mesh(tiny_config(), jax.devices()[:1])
    for changes, words in (
        ({"optimizer.multipliers": (("vision", 0.5),)}, r"multipliers holds 'vision'.*'\w+/\.\*' matches all of one"),
        (
            {"optimizer.layer_decay": 0.9, "optimizer.layer_decay_stacks": ("vison",)},
            r"layer_decay_stacks holds 'vison'.*expected some of .*vision",
        ),
    ):
        with pytest.raises(UserError, match=words):
            state_lib.setup(tiny_config(changes), fake_tokenizer, mesh, 10)


def test_the_summary_says_how_far_learning_rates_differ(tiny_config, abstract):
    line = optimizer.trained_summary(tiny_config({"optimizer.layer_decay": 0.5}), abstract)
    assert line.endswith("none of them frozen; learning rates x 0.0625 to x 1")
    # Of what trains alone.
    changes = {"optimizer.multipliers": (("vision/.*", 0.5),), "optimizer.trainable": ("text/.*",)}
    assert "learning rates" not in optimizer.trained_summary(tiny_config(changes), abstract)
