"""How processes find each other: which flags and environments make a job, and what is refused."""

import jax
import pytest

from vlp_jax import distributed, sharding
from vlp_jax.types import UserError

JOBS = [
    {"JAX_COORDINATOR_ADDRESS": "host:1"},
    {"SLURM_STEP_NUM_TASKS": "2"},
    {"TPU_WORKER_HOSTNAMES": "a,b"},
    {"MEGASCALE_NUM_SLICES": "2"},
]
ALONE = [
    {},
    {"SLURM_STEP_NUM_TASKS": "1"},
    {"SLURM_NTASKS": "4"},  # a batch script, before srun
    {"TPU_WORKER_HOSTNAMES": "localhost"},
    {"MEGASCALE_NUM_SLICES": "1"},
]


@pytest.fixture
def calls(monkeypatch):
    """Arguments of the calls of jax.distributed.initialize, in an environment without any job."""
    made = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: made.append(args))
    for name in {name for environment in JOBS + ALONE for name in environment}:
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.mark.parametrize("environment", JOBS)
def test_an_environment_of_several_processes_is_joined(calls, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize("auto", None, None, None)
    assert calls == [(None, None, None)]
    distributed.initialize("off", None, None, None)
    assert len(calls) == 1


@pytest.mark.parametrize("environment", ALONE)
def test_any_other_environment_is_a_process_alone(calls, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize("auto", None, None, None)
    assert calls == []
    distributed.initialize("on", None, None, None)
    assert calls == [(None, None, None)]


def test_flags_are_passed_on(calls):
    distributed.initialize("auto", "host:1", 4, 3)
    assert calls == [("host:1", 4, 3)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("auto", "host:1", None, None), "--processes, --process_id missing"),
        (("auto", None, 2, 0), "--coordinator missing"),
        (("auto", "host:1", 2, 2), "--process_id=2: expected a number from 0 to 1"),
        (("off", "host:1", 2, 0), "--distributed=off with --"),
        (("maybe", None, None, None), "--distributed=maybe: expected one of auto, on, off"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(calls, arguments, words):
    with pytest.raises(UserError, match=words):
        distributed.initialize(*arguments)
    assert calls == []


def test_what_jax_says_becomes_one_message(monkeypatch):
    def fails(*_):
        raise ValueError("coordinator_address should be defined.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(UserError, match=r"coordinator_address should be defined\.; give --coordinator"):
        distributed.initialize("on", None, None, None)


def test_alone_a_vote_counts_at_once_and_gathering_gives_ones_own(tiny_config):
    vote = distributed.Vote(sharding.make_mesh(tiny_config(), jax.devices()[:1]))
    assert vote.alone and vote.result == 0
    for number in (2, 0):
        vote.cast(number)
        assert vote.result == number
    assert distributed.gather({"a": 1}) == [{"a": 1}]
