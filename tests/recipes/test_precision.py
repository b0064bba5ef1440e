"""In bfloat16, matrix products take bfloat16 on both sides, in both passes."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core

from configs.smaug import DENSE
from vlp_jax.models import layers
from vlp_jax.recipes import recipe

PLAIN = {**DENSE, "model.vision.positions": "relative", "model.vision.pool": "mean"}
RECIPES = {
    "smaug": {},
    "singularity": {**PLAIN, "recipe": "singularity", "model.vision.time_positions": "none"},
    "vindlu": {**PLAIN, "recipe": "vindlu", "model.vision.temporal_attention": "zero_init"},
}


def products(jaxpr):
    """The matrix products of a program, those of programs inside it too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from products(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("name", RECIPES)
def test_no_product_of_a_step_mixes_precisions_and_nearly_all_work_is_in_bfloat16(
    tiny_config, fake_tokenizer, random_batch, name
):
    config = tiny_config({**RECIPES[name], "compute_dtype": "bfloat16"})
    with nnx.use_eager_sharding(False):
        graph, params = nnx.split(recipe.build(config, fake_tokenizer, nnx.Rngs(0)))
    loss = lambda params, batch: nnx.merge(graph, params).loss(batch, jax.random.key(0)).loss
    jaxpr = jax.make_jaxpr(jax.grad(loss))(params, random_batch(config)).jaxpr
    work = collections.Counter()
    for equation in products(jaxpr):
        left, right = (var.aval for var in equation.invars)
        assert left.dtype == right.dtype, f"{left} x {right} at {equation.source_info.name_stack}"
        (contracted, _), _ = equation.params["dimension_numbers"]
        inner = math.prod(left.shape[axis] for axis in contracted)
        work[left.dtype.name] += inner * math.prod(equation.outvars[0].aval.shape)
    # Similarities, the match head and the kept frames' scores are float32.
    assert work["bfloat16"] > 0.95 * work.total()


def test_an_einsum_to_float32_keeps_its_sums_in_float32_and_rounds_its_gradient_to_its_factors_type():
    rng = np.random.default_rng(0)
    a, b, g = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 300), (4, 300), (3, 4)))
    a, b = jnp.asarray(a, jnp.bfloat16), jnp.asarray(b, jnp.bfloat16)
    fn = lambda a, b: layers.einsum_to_float32("ik,jk->ij", a, b)
    out, backward = jax.vjp(fn, a, b)
    wide = [np.asarray(x, np.float64) for x in (a, b)]
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, wide[0] @ wide[1].T, rtol=1e-5, atol=1e-4)  # bfloat16 sums would be off by 0.1
    got = backward(jnp.asarray(g))
    assert {x.dtype.name for x in got} == {"bfloat16"}
    for x, expected in zip(got, (g @ wide[1], g.T @ wide[0])):
        np.testing.assert_allclose(np.asarray(x, np.float32), expected, rtol=0.02, atol=0.02)
    exact = [x.astype(jnp.float32) for x in (a, b)]
    for x, expected in zip(jax.vjp(fn, *exact)[1](jnp.asarray(g)), (g @ wide[1], g.T @ wide[0])):
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)
