"""The same losses on one device and on any mesh of eight, and parameters that lie where the rules put them."""

import concurrent.futures

import numpy as np
import pytest

from vlp_jax import config as config_lib
from vlp_jax import validation

STEPS = 3
MESHES = {
    "one device": {},
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    "data=2, fsdp=2, tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
}
CHANGES = {
    "optimizer.warmup_share": 0.0,
    "optimizer.learning_rate": 3e-3,
    "model.vision.layers": 2,
    "model.text.layers": 1,
}

NEIGHBOUR = {
    "model.masking.kind": "none",
    "model.masking.ratio": 0.0,
    "model.pruning.layers": (),
    "model.selection.frames": 0,
    "loss.mvm": 0.0,
    "model.vision.positions": "relative",
    "model.vision.pool": "mean",
}
RECIPES = {
    "smaug": {},
    "smaug, a row at a time": {"similarity_rows": 1},
    "groups": {"loss.vtm_group": 2},
    # All that is set by parameter path, beside it: adapters are split as the rest, their average teaches.
    "taught": {
        "loss.distill": 0.4,
        "optimizer.ema_decay": 0.5,
        "optimizer.multipliers": ((".*/adapter_.*", 3.0),),
        "optimizer.layer_decay": 0.5,
        "model.adapters.reduction": 4,
    },
    "singularity": {**NEIGHBOUR, "recipe": "singularity", "model.temporal.layers": 1},
    "vindlu": {**NEIGHBOUR, "recipe": "vindlu", "model.vision.temporal_attention": "zero_init"},
    "features": {
        **{**NEIGHBOUR, "model.selection.frames": 2, "model.vision.positions": "none"},
        **{"input.features.path": "features", "input.features.width": 24, "input.features.regions": 3},
        **{"input.features.boxes": 4, "model.vision.feature_projection": "mlp"},
    },
}
RECIPES["taught, a row at a time"] = {**RECIPES["taught"], "similarity_rows": 1}
# The neighbours share nearly every part: one mesh that uses all axes is enough for them.
CASES = [("smaug", mesh) for mesh in MESHES]
CASES += [("smaug, a row at a time", "data=2, fsdp=2, tensor=2")]
CASES += [("taught", "one device"), ("taught, a row at a time", "data=2, fsdp=2, tensor=2")]
# Groups of two lie on one device each where four share the examples, and on two where eight do.
CASES += [("groups", mesh) for mesh in ("one device", "data=2, fsdp=2, tensor=2", "data=8")]
CASES += [
    (name, mesh)
    for name in ("singularity", "vindlu", "features")
    for mesh in ("one device", "data=2, fsdp=2, tensor=2")
]

SCRIPT = """
import json, math, sys, types
import jax, numpy as np
from flax import nnx
from vlp_jax import config as config_lib, sharding, state as state_lib
from vlp_jax.types import Batch

jax.config.update("jax_disable_most_optimizations", True)
assert len(jax.devices()) == 8
job = json.load(sys.stdin)
out = {}
for name, (text, axes) in job["cases"].items():
    config = config_lib.from_json(text)
    config_lib.update(config, {"mesh.data": 1, **{f"mesh.{axis}": size for axis, size in axes.items()}})
    mesh = sharding.make_mesh(config, jax.devices()[: math.prod(axes.values())])
    run = state_lib.setup(config, types.SimpleNamespace(**job["tokenizer"]), mesh, 10)
    result = out[name] = {"steps": [], "places": []}
    with sharding.use_mesh(mesh):
        state = run.create()
        for path, leaf in nnx.to_flat_state(state.params):
            array = leaf.get_value()
            result["places"].append({
                "path": ".".join(map(str, path)),
                "names": leaf.get_metadata().get("out_sharding"),
                "shape": array.shape,
                "shard": array.addressable_shards[0].data.shape,
            })
        moments = jax.tree.leaves(state.opt_state)
        result["held"] = sum(leaf.addressable_shards[0].data.size for leaf in moments) / sum(x.size for x in moments)
        step = state_lib.train_step(run)
        for number in range(job["steps"]):
            rng = np.random.default_rng(number)
            size, i, (form, dtype) = config.batch_size, config.input, config_lib.clip_form(config.input)
            batch = Batch(
                video=rng.integers(0, 256, (size, *form), np.uint8).astype(dtype),
                text_ids=rng.integers(5, 64, (size, i.max_text_tokens)).astype(np.int32),
                text_mask=np.arange(i.max_text_tokens)[None] < rng.integers(3, i.max_text_tokens, size)[:, None],
                valid=np.arange(size) != 5,
                index=np.arange(size, dtype=np.int32) + size * number,
                positive_id=np.arange(size, dtype=np.int32) % 7,
            )
            state, metrics = step(state, sharding.to_global(batch, mesh), np.asarray(True))
            # Forced host devices deadlock with many steps in flight: wait for each.
            metrics = jax.device_get(jax.block_until_ready(metrics))
            pairs = {**metrics["terms"], **metrics["measurements"]}
            numbers = {key: float(metrics[key]) for key in ("loss", "grad_norm", "finite")}
            for key, pair in pairs.items():
                numbers |= {f"{key} sum": float(pair[0]), f"{key} count": float(pair[1])}
            result["steps"].append(numbers)
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def results(tiny_config, fake_tokenizer, on_eight_devices):
    configs = {name: tiny_config({**CHANGES, **changes}) for name, changes in RECIPES.items()}
    for config in configs.values():
        validation.validate(config)

    def run(cases):
        texts = {name: config_lib.to_json(config) for name, config in configs.items()}
        job = {
            "cases": {f"{name}|{mesh}": (texts[name], MESHES[mesh]) for name, mesh in cases},
            "tokenizer": vars(fake_tokenizer),
            "steps": STEPS,
        }
        return on_eight_devices(SCRIPT, job)

    # Compiling keeps one core busy: two processes share the cases.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        done = list(pool.map(run, (CASES[::2], CASES[1::2])))
    found: dict = {}
    for part in done:
        found |= part
    return {tuple(case.split("|")): result for case, result in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), [case for case in CASES if case[1] != "one device"])
def test_losses_and_metrics_over_three_steps_are_those_of_one_device(results, name, mesh):
    steps = results[name.partition(",")[0], "one device"]["steps"], results[name, mesh]["steps"]
    for number, (one, many) in enumerate(zip(*steps)):
        assert one.keys() == many.keys()
        for key in one:
            np.testing.assert_allclose(many[key], one[key], rtol=1e-4, err_msg=f"{key} of step {number}")
    assert len(steps[1]) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smaug", "singularity", "vindlu", "features"])
def test_the_steps_really_train(results, name):
    steps = results[name, "one device"]["steps"]
    assert len({step["loss"] for step in steps}) == STEPS
    assert all(step["finite"] for step in steps)
    assert all(step["vtc count"] == 7 for step in steps)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_every_parameter_is_split_along_its_mapped_axes_and_only_these(results, name, mesh):
    rules = dict(config_lib.defaults().mesh.rules)
    split = 0
    for place in results[name, mesh]["places"]:
        names = place["names"] or [None] * len(place["shape"])
        assert len(names) == len(place["shape"])
        ways = [MESHES[mesh].get(rules.get(axis, ""), 1) for axis in names]
        expected = [size // way for size, way in zip(place["shape"], ways)]
        assert place["shard"] == expected, place
        split += expected != place["shape"]
    kernels = [place for place in results[name, mesh]["places"] if place["path"].endswith((".kernel", ".embedding"))]
    if "fsdp" in MESHES[mesh]:
        # No matrix is left whole by forgetting to name its dimensions.
        assert [k["path"] for k in kernels if k["shard"] == k["shape"]] == []
    else:
        assert split == 0


@pytest.mark.slow
def test_the_optimisers_moments_are_split_as_the_parameters(results):
    places = results["smaug", "fsdp=8"]["places"]
    parameters = sum(np.prod(p["shard"]) for p in places) / sum(np.prod(p["shape"]) for p in places)
    assert parameters < 0.2
    np.testing.assert_allclose(results["smaug", "fsdp=8"]["held"], parameters, rtol=0.02)
