"""The costs of a run, on a clock that the test moves; its FLOPs against XLA's count of the unrolled step."""

import json

import jax
import numpy as np
import pytest

from benchmarks.step_time import WORDS, random_batch
from configs import singularity, smaug, vindlu
from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax import state as state_lib
from vlp_jax.telemetry import chips, costs, flops

ONE = flops.Flops(matmul=900, other=100, scopes={})


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def make(clock, saved=None, kind="H200"):
    return costs.Costs(8, peak=50.0, kind=kind, devices=2, saved=saved, clock=clock)


def test_flops_and_examples_count_every_step_and_mfu_only_those_timed():
    clock = Clock()
    run = make(clock)
    for seconds in (60, 10, 20):  # the first step was compiled
        clock.now += seconds
        run.step(ONE)
    assert (run.totals.flops, run.totals.examples) == (3000, 24)
    assert run.totals.mfu == pytest.approx(2 * 900 / (30 * 2 * 50))
    run.pass_time()
    assert run.totals.device_hours == pytest.approx(90 * 2 / 3600)


def test_pauses_and_compilations_are_in_the_hours_and_not_in_mfu():
    clock = Clock()
    run = make(clock)
    run.step(ONE)
    clock.now += 1000  # an evaluation, with no step in flight
    run.resume()
    clock.now += 10
    run.step(ONE)
    clock.now += 500
    run.interrupt()  # another kind of step was compiled
    run.step(ONE)
    clock.now += 10
    run.step(ONE)
    assert run.totals.mfu == pytest.approx(2 * 900 / (20 * 2 * 50))
    run.pass_time()
    assert run.totals.device_seconds == {"H200": 1520 * 2}


def test_a_run_that_goes_on_elsewhere_adds_to_what_its_checkpoint_says():
    clock = Clock()
    first = make(clock)
    for _ in range(3):
        clock.now += 10
        first.step(ONE)
    saved = json.loads(json.dumps(first.to_json()))
    clock.now += 10_000  # between the two processes nothing is paid for
    second = make(clock, saved, kind="CPU")
    for _ in range(2):
        clock.now += 20
        second.step(ONE)
    second.pass_time()
    assert second.totals.device_seconds == {"H200": 60, "CPU": 80}
    assert (second.totals.flops, second.totals.examples, second.totals.seconds) == (5000, 40, 70)
    assert second.totals.mfu == pytest.approx((2 * 900 + 900) / ((20 + 20) * 2 * 50))


def test_the_lines_of_metrics_hold_sums_so_far_and_the_mfu_since_the_last_line():
    clock = Clock()
    run = make(clock)
    run.step(ONE)
    assert run.scalars() == {"flops": 1000, "device_hours": 0}
    for seconds, mfu in ((10, 0.9), (20, 0.45)):
        clock.now += seconds
        run.step(ONE)
        assert run.scalars()["mfu"] == pytest.approx(mfu)
    assert run.scalars() == {"flops": 3000, "device_hours": pytest.approx(60 / 3600)}


def test_the_summary_is_one_line_with_every_kind_of_device():
    totals = costs.Totals(
        flops=1.23e18,
        examples=5_500_000,
        seconds=4000.0,
        device_seconds={"H200": 11_160.0, "TPU v5e": 3600.0},
        waited_seconds=40.0,
        timed_flops=41.0,
        possible_flops=100.0,
    )
    assert costs.summary("smaug-base", totals) == (
        "smaug-base: 1.2e+18 FLOPs, 3.1 H200-hours, 1 TPU v5e-hours, 41% MFU, 5,500,000 examples, data wait 1%"
    )
    assert "MFU" not in costs.summary("smaug-base", costs.Totals())


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (smaug.get_config("base"), {}),
        (smaug.get_config("base"), {"model.remat": "full", "accumulate_steps": 2}),
        (singularity.get_config("base_stage2"), {}),
        (vindlu.get_config("tiny"), {}),
        (smaug.get_config("tiny_features"), {"input.features.width": 512}),
    ],
    ids=["smaug base", "recomputed, in two parts", "singularity base", "vindlu tiny", "precomputed features"],
)
def test_the_flops_of_a_step_are_within_3_percent_of_xlas_count_of_the_unrolled_one(config, changes):
    shared = {"batch_size": 8, "mesh.data": 1, "compute_dtype": "float32"}
    config = config_lib.update(config, {**shared, **changes})
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), random_batch(config))
    counted, new = costs.StepFlops(state_lib.setup(config, WORDS, mesh, 10), WORDS, 10)(True, batch)
    assert new
    unrolled = config_lib.update(config, {"model.unroll": True, "model.remat": "none", "accumulate_steps": 1})
    run = state_lib.setup(unrolled, WORDS, mesh, 10)
    with sharding.use_mesh(mesh):
        step = state_lib.train_step(run)
        xla = flops.xla_count(step, run.abstract, batch, jax.ShapeDtypeStruct((), bool))
    np.testing.assert_allclose(counted.total, xla, rtol=0.03)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("cpu", None),
    ],
)
def test_chips_are_found_by_the_name_that_jax_gives_them(kind, name):
    chip = chips.by_kind(kind)
    assert (chip and chip.name) == name


def test_a_cpu_is_one_device_whose_peak_is_measured(tiny_config):
    kind, count, peak, source = costs.devices_of(tiny_config())
    assert (kind, count) == ("CPU", 1) and peak > 1e8 and "measured" in source
