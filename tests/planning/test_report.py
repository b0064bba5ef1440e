"""Which batches and meshes the plan tries, and what it says of them; the compiler is a stand-in."""

import json
import math

import pytest

from configs import smaug
from vlp_jax import config as config_lib
from vlp_jax.planning import program, report, topology
from vlp_jax.telemetry.chips import CHIPS
from vlp_jax.types import UserError

SLICE = topology.Topology("v5e:4x4", [object()] * 16, CHIPS["v5e"])


@pytest.fixture
def config():
    return config_lib.update(smaug.get_config("base"), {"batch_size": 1024, "mesh.data": 4, "mesh.fsdp": 4})


@pytest.fixture
def compiled(monkeypatch):
    """Sets what a compiled step needs, from its config; returns the configs that were compiled."""
    seen = []

    def use(need, flops=lambda config: config.batch_size * 1e12):
        def compile_step(config, place, kind, vocabulary):
            seen.append(config)
            total = need(config)
            sizes = {axis: config.mesh[axis] for axis in ("replica", "data", "fsdp", "tensor")}
            ones = dict.fromkeys(sizes, 1)
            work = flops(config)
            fits = total <= place.chip.hbm
            return program.Compiled(kind, fits, {"all": total}, total, 0.0, sizes, ones, work, work, work, 0, [], 0.1)

        monkeypatch.setattr(program, "compile_step", compile_step)
        return seen

    return use


def test_the_largest_batch_that_fits_is_found_by_halving(config, compiled):
    compiled(lambda c: c.batch_size * 2**26)  # 64 MiB an example: 256 of them are 16 GiB
    assert report.largest_batch(config, SLICE, 100) == 256


def test_a_batch_that_does_not_divide_when_halved_is_cut_to_what_does(config, compiled):
    config.batch_size = 768
    config.accumulate_steps = 4  # with 16 devices: multiples of 64
    seen = compiled(lambda c: c.batch_size * 2**27)
    assert report.largest_batch(config, SLICE, 100) == 64
    assert [c.batch_size for c in seen][:: len(program.kinds_of(config))] == [384, 192, 64]


def test_a_gpus_room_is_the_share_of_its_memory_that_jax_takes(monkeypatch):
    one = topology.Topology("h200:1", [object()], CHIPS["h200"])
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert one.room == 0.75 * CHIPS["h200"].hbm and SLICE.room == CHIPS["v5e"].hbm
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert one.room == 0.9 * CHIPS["h200"].hbm


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 26.5G of 15.75G hbm.", (26.5, 15.75)),
        ("RESOURCE_EXHAUSTED: Allocation (size=3221225472) would exceed memory (size=2147483648) ::", (3, 2)),
        ("It needs 100 bytes (98.58G) where there are (94.74G)", (98.58, 94.74)),
    ],
)
def test_what_the_compiler_lacks_is_read_from_every_form_of_its_message(message, found):
    assert program._out_of_memory(message) == tuple(round(gib * 2**30) for gib in found)


def test_a_message_without_numbers_is_an_error_that_quotes_it():
    with pytest.raises(UserError, match="does not say by how much: 'RESOURCE_EXHAUSTED: too much"):
        program._out_of_memory("RESOURCE_EXHAUSTED: too much")


def test_no_batch_may_fit_at_all(config, compiled):
    compiled(lambda c: 2**40)
    assert report.largest_batch(config, SLICE, 100) == 0


def test_halved_batches_are_cut_to_what_the_rows_of_similarities_divide(config, compiled):
    config.batch_size, config.similarity_rows = 16 * 32 * 3, 32
    seen = compiled(lambda c: 2**40)
    assert report.largest_batch(config, SLICE, 100) == 0
    assert {c.batch_size for c in seen} == {16 * 32}


def test_the_search_ranks_what_fits_by_clips_a_second_and_tries_whole_meshes_only(config, compiled, capsys):
    # Tensor parallelism saves memory and, here, takes twice the work.
    need = lambda c: c.batch_size * 2**26 / (2 if c.model.remat == "full" else 1) / c.mesh.tensor
    seen = compiled(need, lambda c: c.batch_size * 1e12 * c.mesh.tensor)
    config.batch_size = 256
    assert report.search(config, SLICE, 100, None, True)
    assert all(math.prod(c.mesh[axis] for axis in ("replica", "data", "fsdp", "tensor")) == 16 for c in seen)
    assert {c.model.remat for c in seen} == {"none", "dots", "full"} and {c.batch_size for c in seen} == {128, 256, 512}
    lines = capsys.readouterr().out.splitlines()
    ranked = [line for line in lines if line.startswith("batch ")]
    rates = [float(line[48:].split()[0].replace(",", "")) for line in ranked]
    assert rates == sorted(rates, reverse=True) and "tensor 4" in ranked[-1]
    assert not [line for line in ranked if "batch 512, remat none" in line and "tensor" not in line]
    tried = json.loads(lines[-1])["search"]
    assert len(tried) > len(ranked) and {one["fits"] for one in tried} == {True, False}


def test_a_search_in_which_nothing_fits_is_a_failure(config, compiled):
    compiled(lambda c: 2**40)
    assert not report.search(config, SLICE, 100, None, True)


def test_a_search_on_a_cpu_is_refused(config):
    with pytest.raises(UserError, match="known peaks"):
        report.search(config, topology.Topology("cpu:8", [object()] * 8, None), 100, None, False)
