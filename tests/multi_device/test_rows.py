"""Rows that go from device to device, and rows that stay, on eight devices: NumPy's own indexing and its gradient."""

import re

import numpy as np
import pytest

B, P, D = 32, 64, 4
MESHES = {"one device": (1, 1, 1, 1), "data=8": (1, 8, 1, 1), "replica=2, fsdp=2, tensor=2": (2, 1, 2, 2)}

SCRIPT = """
import json, math, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from vlp_jax import sharding

job = json.load(sys.stdin)
rng, out = np.random.default_rng(0), {}
rows = rng.normal(size=(job["rows"], job["width"])).astype(np.float32)
weight = rng.normal(size=(job["taken"], job["width"])).astype(np.float32)
out["rows"], out["weight"] = rows.tolist(), weight.tolist()
for name, sizes in job["meshes"].items():
    count = math.prod(sizes)
    mesh = jax.make_mesh(tuple(sizes), sharding.AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:count])
    ways = math.prod(sizes[:3])
    each, own = job["taken"] // ways, job["rows"] // ways
    any_P = rng.integers(0, job["rows"], job["taken"]).astype(np.int32)
    near_P = rng.integers(0, own, job["taken"]).astype(np.int32)
    with sharding.use_mesh(mesh):
        assert sharding.ways() == ways
        spread = sharding.batch_sharding(mesh)

        def run(fn, index):
            def loss(rows, index, weight):
                got = fn(rows, index)
                return (got * weight[: len(got)]).sum(), got

            step = jax.jit(jax.value_and_grad(loss, has_aux=True))
            args = [jax.device_put(x, spread) for x in (rows, index, weight[: len(index)])]
            compiled = step.lower(*args).compile()
            (_, got), gradient = jax.device_get(compiled(*args))
            return {"got": got.tolist(), "gradient": gradient.tolist(), "hlo": compiled.as_text()}

        def behind(rows, index):
            both, number = sharding.bring_behind(rows, index[: job["rows"]])
            return sharding.take_near(both, number)

        def brought(rows, index):
            return sharding.take_near(*sharding.bring(rows, index))

        def kept(rows, index):
            both, _ = sharding.bring_behind(rows, index[: job["rows"]])
            return sharding.take_near(both, sharding.own_rows(job["rows"]))

        def of_group(rows, index):
            return sharding.take_any(rows, index, 4)

        def of_group_behind(rows, index):
            return sharding.take_near(*sharding.bring_behind(rows, index, 4))

        group_P = (np.arange(job["rows"]) // 4 * 4 + rng.integers(0, 4, job["rows"])).astype(np.int32)
        out[name] = {
            "group_P": group_P.tolist(),
            "of_group": run(of_group, group_P),
            "of_group_behind": run(of_group_behind, group_P),
            "any_P": any_P.tolist(),
            # The same rows by their number in the whole batch.
            "near_P": (near_P + own * (np.arange(job["taken"]) // each)).tolist(),
            "take_any": run(sharding.take_any, any_P),
            "take_near": run(sharding.take_near, near_P),
            "bring": run(brought, any_P),
            "bring_behind": run(behind, any_P),
            "kept": run(kept, any_P),
        }
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def results(on_eight_devices):
    return on_eight_devices(SCRIPT, {"rows": B, "taken": P, "width": D, "meshes": MESHES})


def check(results, mesh, name, index):
    rows, weight = np.array(results["rows"]), np.array(results["weight"])[: len(index)]
    np.testing.assert_allclose(results[mesh][name]["got"], rows[index], rtol=1e-6)
    gradient = np.zeros_like(rows)
    np.add.at(gradient, index, weight)
    np.testing.assert_allclose(results[mesh][name]["gradient"], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mesh", MESHES)
def test_rows_of_the_whole_batch_and_their_gradients_are_numpys(results, mesh):
    index = np.array(results[mesh]["any_P"])
    check(results, mesh, "take_any", index)
    check(results, mesh, "bring", index)


@pytest.mark.parametrize("mesh", MESHES)
def test_rows_brought_behind_a_devices_own_are_found_and_its_own_stay_where_they_were(results, mesh):
    check(results, mesh, "bring_behind", np.array(results[mesh]["any_P"])[:B])
    check(results, mesh, "kept", np.arange(B))


def collectives(result):
    return re.findall(r"all-gather|all-to-all|collective-permute|reduce-scatter", result["hlo"])


@pytest.mark.parametrize("mesh", MESHES)
def test_near_rows_and_their_gradients_are_numpys_and_no_device_sends_any(results, mesh):
    check(results, mesh, "take_near", np.array(results[mesh]["near_P"]))
    assert not collectives(results[mesh]["take_near"])


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["of_group", "of_group_behind"])
def test_where_devices_have_whole_groups_rows_of_ones_group_are_near(results, mesh, name):
    check(results, mesh, name, np.array(results[mesh]["group_P"]))
    assert not collectives(results[mesh][name])
    assert mesh == "one device" or collectives(results[mesh]["take_any"])
