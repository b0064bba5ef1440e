"""The similarities of a batch on eight devices, a few rows at a time: the plain loss and gradient, no B x B."""

import re

import numpy as np
import pytest

B, E, ROWS = 256, 4, 8
MESHES = {"data=8": (1, 8, 1, 1), "data=2, fsdp=2, tensor=2": (1, 2, 2, 2)}

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from vlp_jax import sharding
from vlp_jax.objectives import contrastive, matching

jax.config.update("jax_disable_most_optimizations", True)
assert len(jax.devices()) == 8
job = json.load(sys.stdin)
B, rng = job["batch"], np.random.default_rng(0)
video, text, *taught = (rng.normal(size=(B, job["width"])).astype(np.float32) for _ in range(4))
ids, valid = rng.integers(0, B // 2, B).astype(np.int32), rng.random(B) < 0.9
keys = jax.random.split(jax.random.key(0), B)

def value(video, text, temperature, ids, valid, keys, taught_video, taught_text, rows):
    pairs, taught = (
        contrastive.Similarities(contrastive.unit(v), contrastive.unit(t), temperature, ids, valid, rows)
        for v, t in ((video, text), (taught_video, taught_text))
    )
    total, count = contrastive.vtc(pairs)
    total += contrastive.vtc(pairs, taught, 0.4)[0]
    drawn = matching.hard_negatives(keys, pairs)[0], matching.hard_negatives(keys, pairs.T)[0]
    return total / count, (contrastive.recall_at_1(pairs), drawn)

def run(rows, *args):
    fn = jax.jit(jax.value_and_grad(lambda *args: value(*args, rows), argnums=(0, 1, 2), has_aux=True))
    compiled = fn.lower(*args).compile()
    (loss, (hits, drawn)), gradient = jax.device_get(compiled(*args))
    out = {"loss": float(loss), "hits": [float(x) for x in hits], "drawn": [x.tolist() for x in drawn]}
    return {**out, "gradient": [np.asarray(x).tolist() for x in gradient], "hlo": compiled.as_text()}

args = video, text, jnp.float32(0.1), ids, valid, keys, *taught
out = {"plain": run(0, *args)}
for name, sizes in job["meshes"].items():
    mesh = jax.make_mesh(tuple(sizes), sharding.AXES, axis_types=(AxisType.Auto,) * 4)
    spread, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    with sharding.use_mesh(mesh):
        placed = [jax.device_put(x, everywhere if np.ndim(x) == 0 else spread) for x in args]
        out[name] = run(job["rows"], *placed)
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def results(on_eight_devices):
    return on_eight_devices(SCRIPT, {"batch": B, "width": E, "rows": ROWS, "meshes": MESHES})


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_loss_gradient_recall_and_negatives_are_those_of_the_whole_matrix(results, mesh):
    plain, ours = results["plain"], results[mesh]
    np.testing.assert_allclose(ours["loss"], plain["loss"], rtol=1e-5)
    for got, expected in zip(ours["gradient"], plain["gradient"]):
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)
    assert ours["hits"] == plain["hits"]
    assert ours["drawn"] == plain["drawn"]


def sizes(hlo):
    """Elements of every array in the text of a program."""
    return [int(np.prod([int(n) for n in dims.split(",")])) for dims in re.findall(r"\w\d+\[([\d,]+)\]", hlo)]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_no_device_ever_holds_more_than_the_rows_that_were_asked_for(results, mesh):
    assert max(sizes(results["plain"]["hlo"])) >= B * B
    # Hard negatives draw two 32-bit words at a time.
    assert max(sizes(results[mesh]["hlo"])) <= 2 * ROWS * B


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_no_collective_runs_inside_the_loop_over_rows(results, mesh):
    computations = re.split(r"\n(?=\S.*\{\n)", results[mesh]["hlo"])
    loops = set(re.findall(r"body=%?([\w.]+)", results[mesh]["hlo"]))
    bodies = [text for text in computations if re.match(r"%?([\w.]+)", text)[1] in loops]
    assert bodies
    for body in bodies:
        assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", body)
