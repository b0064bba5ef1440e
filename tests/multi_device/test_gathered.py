"""Parameters that `fsdp` shards, gathered for their computation, on eight devices."""

import pytest

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from vlp_jax import config, sharding

class Model(nnx.Module):
    def __init__(self, rngs):
        normal = lambda *shape: jax.random.normal(rngs.params(), shape)
        self.kernel = nnx.Param(normal(8, 4), out_sharding=("embed", "mlp"))
        self.bias = nnx.Param(normal(4), out_sharding=("mlp",))
        self.stack = nnx.Dict(kernel=nnx.Param(normal(3, 4, 8), out_sharding=("layers", "mlp", "embed")))

def axes(sharding):
    '''Mesh axes by dimension, without those at the end that have none.'''
    found = [axis if isinstance(axis, (str, type(None))) else "/".join(axis) for axis in sharding.spec]
    while found and found[-1] is None:
        found.pop()
    return found

rules = tuple(map(tuple, config.defaults().mesh.rules))
mesh = jax.make_mesh((1, 2, 2, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 4)
graph, abstract = sharding.abstract_model(lambda: Model(nnx.Rngs(0)))
places = sharding.parameter_shardings(abstract, mesh, rules)
out = {}
with sharding.use_mesh(mesh):
    params = sharding.create_sharded(lambda: Model(nnx.Rngs(0)), places)
    before = {name: np.asarray(x) for name, x in nnx.to_flat_state(params)}
    for name, stacks in (("others", False), ("stacks", True)):
        seen = {}

        def loss(params):
            got = sharding.gathered(params, rules, jnp.bfloat16, stacks=stacks)
            for path, x in nnx.to_flat_state(got):
                key = "/".join(map(str, path))
                jax.debug.inspect_array_sharding(x[...], callback=lambda s, key=key: seen.update({key: axes(s)}))
                seen[key + " dtype"] = str(x[...].dtype)
            return sum((x.astype(jnp.float32) ** 2).sum() for x in jax.tree.leaves(got))

        gradient = jax.jit(jax.grad(loss))(params)
        exact = all(
            np.allclose(np.asarray(g), 2 * before[path].astype(jnp.bfloat16).astype(np.float32), rtol=0.01)
            for path, g in nnx.to_flat_state(gradient)
        )
        where = {"/".join(map(str, path)): axes(g[...].sharding) for path, g in nnx.to_flat_state(gradient)}
        types = {str(g[...].dtype) for _, g in nnx.to_flat_state(gradient)}
        out[name] = {"seen": seen, "exact": exact, "gradient": where, "types": sorted(types)}
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def found(on_eight_devices):
    return on_eight_devices(SCRIPT)


def test_kernels_are_whole_but_for_the_tensor_axis_in_the_dtype_of_the_computation(found):
    seen = found["others"]["seen"]
    assert seen["kernel"] == [None, "tensor"] and seen["kernel dtype"] == "bfloat16"
    assert seen["bias dtype"] == "float32"  # what fsdp does not shard stays as it is
    assert seen["stack/kernel dtype"] == "float32"
    seen = found["stacks"]["seen"]
    assert seen["stack/kernel"] == [None, "tensor"] and seen["stack/kernel dtype"] == "bfloat16"
    assert seen["kernel dtype"] == "float32"


@pytest.mark.parametrize("which", ["others", "stacks"])
def test_gradients_are_those_of_the_parameters_and_come_back_in_their_parts(found, which):
    assert found[which]["exact"] and found[which]["types"] == ["float32"]
    name, spec = {
        "others": ("kernel", ["fsdp", "tensor"]),
        "stacks": ("stack/kernel", [None, "tensor", "fsdp"]),
    }[which]
    assert found[which]["gradient"][name] == spec
