"""The estimate of a step's time against sums made by hand."""

import pytest

from vlp_jax.planning import hlo, program, roofline
from vlp_jax.telemetry.chips import CHIPS

KIND = program.StepKind("4 frames", 4, True, 1.0)


def step(collectives=(), *, sizes=None, slices=None, flops=0.0, executed=None, traffic=0):
    ones = {"replica": 1, "data": 1, "fsdp": 1, "tensor": 1}
    return program.Compiled(
        kind=KIND,
        fits=True,
        memory={},
        total=0.0,
        limit=0.0,
        sizes=ones | (sizes or {}),
        slices=ones | (slices or {}),
        model_flops=flops,
        matmul_flops=0.75 * flops,
        executed_flops=flops if executed is None else executed,
        traffic=traffic,
        collectives=list(collectives),
        seconds=0.0,
    )


def gather(size, axes, times=1, total=1e9):
    """An all-gather of `total` bytes over `size` devices: each sends (size - 1) / size of it."""
    return hlo.Collective("all-gather", total, size, axes, times, "")


def test_arithmetic_and_memory_run_beside_each_other_and_the_slower_one_counts():
    chip = CHIPS["h200"]
    fast = roofline.estimate(step(flops=4 * 989e12, traffic=int(2.4e12)), chip, 4)
    assert fast.compute == pytest.approx(1.0) and fast.memory == pytest.approx(0.5)
    assert fast.seconds == pytest.approx(1.0) and fast.mfu == pytest.approx(0.75)
    slow = roofline.estimate(step(flops=4 * 989e12, traffic=int(9.6e12)), chip, 4)
    assert slow.seconds == pytest.approx(2.0) and slow.mfu == pytest.approx(0.375)


def test_what_is_computed_twice_takes_time_and_is_no_utilisation():
    again = roofline.estimate(step(flops=197e12, executed=1.25 * 197e12), CHIPS["v5e"], 1)
    assert again.seconds == pytest.approx(1.25) and again.mfu == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("chip", "axes", "share"),
    [
        ("v5e", ("fsdp",), 1 / 2),
        ("v5e", ("data", "fsdp"), 1.0),
        ("v5p", ("fsdp",), 1 / 3),
        ("v5p", ("data", "fsdp"), 2 / 3),
        ("h200", ("fsdp",), 1.0),
    ],
)
def test_a_collective_has_the_dimensions_of_the_torus_that_its_axes_take_or_the_whole_switch(chip, axes, share):
    sizes = dict.fromkeys(axes, 4)
    one = gather(4 ** len(axes), axes, times=3)
    got = roofline.estimate(step([one], sizes=sizes), CHIPS[chip], 16)
    sent = 3e9 * (one.size - 1) / one.size
    assert got.network == got.seconds == pytest.approx(sent / (CHIPS[chip].links * share))


def test_between_hosts_every_gpu_of_a_group_carries_its_share_of_what_crosses():
    chip = CHIPS["h200"]
    sent = 1e9 * 31 / 32
    wide = roofline.estimate(step([gather(32, ("fsdp",))], sizes={"fsdp": 32}, slices={"fsdp": 4}), chip, 32)
    assert wide.network == pytest.approx(sent / chip.links + sent / (8 * chip.network))
    alone = roofline.estimate(step([gather(4, ("data",))], sizes={"data": 4}, slices={"data": 4}), chip, 32)
    assert alone.network == pytest.approx(0.75e9 / chip.network)
