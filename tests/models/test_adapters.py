"""Adapters: their formula, that a network begins as without them, and that they alone train where asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlp_jax import checkpoint, sharding, trees, warm_start
from vlp_jax import state as state_lib
from vlp_jax.models import blocks, layers
from vlp_jax.recipes import recipe
from vlp_jax.types import UserError

RNG = np.random.default_rng(0)
ADAPTERS = {"model.adapters.reduction": 4}
KEY = jax.random.key(3)


def randomised(params, pattern):
    """The parameters with those whose path holds `pattern` drawn anew."""
    here = trees.by_path(params)
    draw = lambda x: jnp.asarray(RNG.normal(0, 0.5, x.shape), jnp.float32)
    return jax.tree.unflatten(
        jax.tree.structure(params), [draw(x) if pattern in name else x for name, x in here.items()]
    )


def random_module(build_module, make, *args, **kwargs):
    """A module whose adapters are drawn at random."""
    graph, params = nnx.split(build_module(make, *args, **kwargs))
    return nnx.merge(graph, randomised(params, "adapter_" if make is not layers.Adapter else ""))


def test_an_adapter_adds_its_bottleneck_to_what_comes_in(build_module):
    adapter = random_module(build_module, layers.Adapter, 6, 2, dtype=jnp.float32)
    h = RNG.normal(size=(3, 5, 6)).astype(np.float32)
    down, up = adapter.down, adapter.up
    hidden = np.maximum(h @ np.asarray(down.kernel[...]) + np.asarray(down.bias[...]), 0)
    expected = h + hidden @ np.asarray(up.kernel[...]) + np.asarray(up.bias[...])
    np.testing.assert_allclose(adapter(jnp.asarray(h)), expected, rtol=1e-5, atol=1e-5)
    assert (np.asarray(adapter(jnp.asarray(h))) != h).any()


@pytest.mark.parametrize("place", ["pre", "post"])
def test_a_block_adapts_what_each_sublayer_gives_before_its_residual(build_module, place):
    sizes = {"place": place, "scale": 0.3, "adapter": 2, "kernel": "xla", "dtype": jnp.float32}
    block = random_module(build_module, blocks.Block, 8, 2, 2.0, **sizes)
    x = jnp.asarray(RNG.normal(size=(2, 3, 8)), jnp.float32)
    expected = x
    for norm, body, adapter in (
        (block.norm_attention, block.attention, block.adapter_attention),
        (block.norm_mlp, block.mlp, block.adapter_mlp),
    ):
        if place == "pre":
            expected = expected + adapter(0.3 * body(norm(expected)))
        else:
            expected = norm(expected + adapter(0.3 * body(expected)))
    np.testing.assert_allclose(block(x), expected, rtol=1e-5, atol=1e-5)


def test_a_block_that_prunes_adapts_as_others_do(build_module):
    sizes = {"side": 0, "temporal": "none", "activation": "gelu", "epsilon": 1e-6, "scale": 0.0, "adapter": 2}
    block = random_module(build_module, blocks.VideoBlock, 8, 2, 2.0, **sizes, kernel="xla", dtype=jnp.float32)
    x = jnp.asarray(RNG.normal(size=(2, 3, 5, 8)), jnp.float32)
    attended, _ = block.attend_and_score(x, "frame")
    np.testing.assert_allclose(block.feed_forward(attended), block.encode(x, "frame"), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def both(tiny_config, fake_tokenizer):
    """`(graph, params)` of SMAUG without adapters, and with them and the same other parameters."""

    def split(changes):
        with nnx.use_eager_sharding(False):
            return nnx.split(recipe.build(tiny_config(changes), fake_tokenizer, nnx.Rngs(0)))

    plain, (graph, params) = split({}), split(ADAPTERS)
    same = trees.by_path(plain[1])
    filled = [same.get(name, x) for name, x in trees.by_path(params).items()]
    return plain, (graph, jax.tree.unflatten(jax.tree.structure(params), filled))


def test_adapters_stand_after_every_attention_and_mlp_of_the_chosen_towers(both, tiny_config, fake_tokenizer):
    plain, adapted = (set(trees.by_path(params)) for _, params in both)
    assert plain < adapted
    modules = {name.split("/")[0] + "/" + name.split("/")[2] for name in adapted - plain}
    expected = {f"{tower}/adapter_{after}" for tower in ("vision", "text") for after in ("attention", "mlp")}
    assert modules == expected | {f"fusion/adapter_{after}" for after in ("self", "cross", "mlp")}
    config = tiny_config({**ADAPTERS, "model.adapters.towers": ("text",)})
    params = sharding.abstract_model(lambda: recipe.build(config, fake_tokenizer, nnx.Rngs(0)))[1]
    assert {name.split("/")[0] for name in trees.by_path(params) if "/adapter_" in name} == {"text"}


def test_a_model_begins_as_it_is_without_adapters_and_their_last_maps_have_gradients(both, tiny_config, random_batch):
    batch = jax.tree.map(jnp.asarray, random_batch(tiny_config()))
    (plain, plain_params), (graph, params) = both
    value = lambda graph: jax.jit(jax.value_and_grad(lambda params: nnx.merge(graph, params).loss(batch, KEY).loss))
    expected, without = value(plain)(plain_params)
    loss, gradient = value(graph)(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    gradient, without = trees.by_path(gradient), trees.by_path(without)
    for name, g in gradient.items():
        if name in without:
            np.testing.assert_allclose(g, without[name], rtol=1e-3, atol=1e-5, err_msg=name)
        else:
            # D has none as long as U is zero; every layer's U has.
            assert (np.abs(g).reshape(len(g), -1).max(1) > 0).all() == ("/up/" in name), name


def test_adapters_train_alone_and_everything_else_keeps_every_bit(tiny_config, fake_tokenizer, random_batch):
    changes = {**ADAPTERS, "optimizer.trainable": (".*/adapter_.*",), "optimizer.warmup_share": 0.0}
    config = tiny_config({**changes, "optimizer.learning_rate": 1e-2})
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    run = state_lib.setup(config, fake_tokenizer, mesh, 10)
    with sharding.use_mesh(mesh):
        state = run.create()
        before = {name: np.asarray(x).copy() for name, x in trees.by_path(state.params).items()}
        step = state_lib.train_step(run)
        for seed in range(2):
            state, _ = step(state, jax.tree.map(jnp.asarray, random_batch(config, seed=seed)), np.asarray(True))
    after = trees.by_path(state.params)
    moved = {name for name, x in before.items() if np.asarray(after[name]).tobytes() != x.tobytes()}
    assert moved == {name for name in before if "/adapter_" in name}


def test_a_run_without_adapters_starts_one_with_them_only_where_the_config_says_so(
    tmp_path, tiny_config, fake_tokenizer
):
    def create(changes, seed):
        config = tiny_config({**changes, "seed": seed})
        mesh = sharding.make_mesh(config, jax.devices()[:1])
        with sharding.use_mesh(mesh):
            return state_lib.setup(config, fake_tokenizer, mesh, 10).create()

    old, new = create({}, 0), create(ADAPTERS, 1)
    writer = checkpoint.Checkpointer(tmp_path / "checkpoints", keep=1, asynchronous=False)
    writer.save(1, old, {})
    writer.close()
    with pytest.raises(UserError, match=r"has no adapters .*: config.init_may_differ=\('\.\*/adapter_\.\*',\)"):
        warm_start.load(str(tmp_path), (), new.params)
    params, report = warm_start.load(str(tmp_path), (".*/adapter_.*",), new.params)
    there, own = trees.by_path(old.params), trees.by_path(new.params)
    for name, value in trees.by_path(params).items():
        np.testing.assert_array_equal(value, own[name] if "/adapter_" in name else there[name])
        assert (report.taken[name].how == "created") == ("/adapter_" in name)
