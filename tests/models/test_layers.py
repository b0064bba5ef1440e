"""Affine maps, stacks and their scans, positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlp_jax.models import layers


def make_mlp(rngs):
    return layers.Mlp(8, 2.0, dtype=jnp.float32, rngs=rngs)


@pytest.fixture(scope="module")
def stacked(build_module):
    return build_module(lambda rngs: layers.stack(make_mlp, 3, rngs))


def in_a_loop(stacked, x):
    graph, params = nnx.split(stacked)
    for i in range(3):
        x = x + nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], params))(x)
    return x


@pytest.mark.parametrize("outputs", [12, (2, 6), (3, 2, 6)], ids=str)
def test_dense_is_xavier_uniform_for_each_of_its_outputs(build_module, outputs):
    axes = (None,) * (1 + (1 if isinstance(outputs, int) else len(outputs)))
    kernel = np.asarray(build_module(layers.dense, 40, outputs, axes, dtype=jnp.float32).kernel[...])
    limit = np.sqrt(6 / (40 + 12))  # q, k and v side by side have the bounds of one of them
    assert abs(kernel).max() <= limit
    assert abs(kernel).max() > 0.95 * limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.1)


def test_dense_maps_the_trailing_axes(build_module):
    layer = build_module(layers.dense, (2, 3), 4, (None, None, None), dtype=jnp.float32)
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    expected = x.reshape(5, 6) @ np.asarray(layer.kernel[...]).reshape(6, 4)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_norm_has_statistics_in_float32(build_module):
    layer = build_module(layers.norm, 64, dtype=jnp.bfloat16)
    x = jnp.asarray(np.random.default_rng(0).normal(300, 1, (2, 64)), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer(x).astype(np.float32), exact, atol=0.02, rtol=0.01)
    assert layer.scale[...].dtype == jnp.float32


def test_stacked_layers_differ_and_carry_a_leading_axis(stacked):
    for _, leaf in nnx.to_flat_state(nnx.state(stacked)):
        assert leaf.shape[0] == 3
    kernel = np.asarray(stacked.up.kernel[...])
    assert abs(kernel[0] - kernel[1]).max() > 0.1


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_scan_is_the_loop_over_its_layers_with_the_same_gradient(stacked, remat, unroll):
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    graph, params = nnx.split(stacked)

    def value(run):
        return jax.jit(jax.value_and_grad(lambda params, x: (run(nnx.merge(graph, params), x) ** 2).sum(), (0, 1)))

    scan = lambda module, x: layers.scan(module, lambda layer, x: x + layer(x), x, layers.Loop(remat, unroll))
    got, expected = value(scan)(params, x), value(in_a_loop)(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def test_segments_of_a_stack_run_one_after_another_are_the_stack(stacked):
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    graph, params = nnx.split(stacked)
    out = x
    for segment in layers.split_layers(params, [1, 2]):
        out = layers.scan_params(graph, segment, lambda layer, x: x + layer(x), out)
    np.testing.assert_allclose(out, in_a_loop(stacked, x), rtol=1e-5, atol=1e-6)


# --- Positions --------------------------------------------------------------------------------------------------------


def test_sincos_is_the_transformers_table():
    table = layers.sincos(np.array([0, 3, 7]), 8)
    assert table.dtype == np.float32
    for row, p in enumerate([0, 3, 7]):
        angles = [p / 10_000 ** (2 * i / 8) for i in range(4)]
        np.testing.assert_allclose(table[row], [*np.sin(angles), *np.cos(angles)], atol=1e-6)


def test_positions_of_patches_are_distinct_and_separable():
    table = layers.space_time_positions(3, 4, 32)
    assert table.shape == (3, 16, 32)
    assert len(np.unique(table.reshape(48, 32).round(4), axis=0)) == 48
    space, time = table[0], layers.time_positions(3, 32)
    np.testing.assert_allclose(table, space[None] + time[:, None], atol=1e-6)
    # Patches are numbered row by row: the first half of the width is the row, the second the column.
    grid = space.reshape(4, 4, 32)
    assert (grid[:, :1, :16] == grid[:, :, :16]).all()
    assert (grid[:1, :, 16:] == grid[:, :, 16:]).all()


def test_an_image_has_the_positions_of_a_clips_first_frame():
    np.testing.assert_array_equal(layers.time_positions(5, 16)[0], 0)
    np.testing.assert_array_equal(layers.space_time_positions(1, 4, 16)[0], layers.space_time_positions(5, 4, 16)[0])


def test_a_width_not_divisible_by_4_is_refused():
    with pytest.raises(ValueError, match="18"):
        layers.space_time_positions(1, 2, 18)


def test_compute_dtype():
    assert layers.compute_dtype("float32") == jnp.float32
    assert layers.compute_dtype("bfloat16") == jnp.bfloat16


def plain_norm(x, scale, bias):
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-6) * scale + bias


RNG = np.random.default_rng(0)
X = (2 * RNG.normal(size=(3, 5, 16)) + 0.5).astype(np.float32)
SCALE, BIAS = RNG.normal(size=(2, 16)).astype(np.float32)
LEAN = {
    "norm": (lambda *args: layers._normalise(*args, 1e-6), plain_norm, (X, SCALE, BIAS)),
    "gelu": (layers.gelu, lambda x: jax.nn.gelu(x, approximate=False), (4 * X,)),
    "quick_gelu": (layers.quick_gelu, lambda x: x * jax.nn.sigmoid(1.702 * x), (4 * X,)),
    "softmax": (lambda x: layers.softmax(x, jnp.float32), lambda x: jax.nn.softmax(x, axis=-1), (X,)),
}


@pytest.mark.parametrize("name", LEAN)
def test_functions_with_gradients_of_their_own_have_those_of_autodiff(name):
    ours, plain, args = LEAN[name]
    g = RNG.normal(size=X.shape).astype(np.float32)
    value = lambda fn: lambda *args: (fn(*args) * g).sum()
    every = tuple(range(len(args)))
    np.testing.assert_allclose(ours(*args), plain(*args), rtol=1e-5, atol=1e-5)
    for got, expected in zip(jax.grad(value(ours), every)(*args), jax.grad(value(plain), every)(*args)):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LEAN)
def test_a_backward_pass_keeps_one_array_of_the_inputs_shape_in_its_own_precision(name):
    ours, _, args = LEAN[name]
    args = (args[0].astype(jnp.bfloat16), *args[1:])
    if name == "softmax":  # its logits are float32 whatever the weights are
        ours, args = lambda x: layers.softmax(x, jnp.bfloat16), (X,)
    _, backward = jax.vjp(ours, *args)
    kept = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "shape") and leaf.shape == X.shape]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]


def test_the_norm_is_flaxs(build_module):
    ours = build_module(layers.norm, 16, dtype=jnp.float32)
    theirs = nnx.LayerNorm(16, epsilon=1e-6, use_fast_variance=False, rngs=nnx.Rngs(0))
    for module in (ours, theirs):
        module.scale[...], module.bias[...] = SCALE, BIAS
    np.testing.assert_allclose(ours(X), theirs(X), rtol=1e-5, atol=1e-5)
