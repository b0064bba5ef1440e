"""Several processes, one for each host: how they find each other, tell each other things, and stop together.

Every process runs the same program; what they compute together are jax's global arrays. Everything here is called by
all of them, in the same order. In a single process all of it is trivial.
"""

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from vlp_jax.types import UserError

MODES = ("auto", "on", "off")

T = TypeVar("T")


def initialize(mode: str, coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of the job; call it before anything asks JAX for devices.

    Args:
      mode: `on` lets JAX find the others (Cloud TPU, SLURM, Open MPI, Kubernetes; of the three arguments those that are
        given hold); `auto` does so where the three arguments are given, or the environment is that of a job of several
        processes: `srun` with more than one task, a TPU slice of several hosts on GKE, JAX_COORDINATOR_ADDRESS. `off`
        is a process alone.
      coordinator: HOST:PORT of process 0.
      processes, process_id: how many there are, and this one's number from 0.

    Raises:
      UserError: arguments that do not fit together, or JAX finds no other processes.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process_id": process_id}
    missing = [flag for flag, value in given.items() if value is None]
    if mode not in MODES:
        raise UserError(f"--distributed={mode}: expected one of {', '.join(MODES)}")
    if mode == "off":
        if len(missing) < 3:
            raise UserError(
                f"--distributed=off with {', '.join(name for name in given if name not in missing)}: leave these out"
            )
        return
    if 0 < len(missing) < 3 and mode == "auto":
        raise UserError(f"{', '.join(missing)} missing: expected all of {', '.join(given)}, or none of them")
    if processes is not None and process_id is not None and not 0 <= process_id < processes:
        raise UserError(f"--process_id={process_id}: expected a number from 0 to {processes - 1} (--processes - 1)")
    if mode == "auto" and missing and not _in_a_job():
        return
    # A CPU runs programs that do not wait for each other's results at once, in any order. Processes of one job that
    # begin their collectives in different orders wait for each other for ever: a vote beside a step, for one.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(coordinator, processes, process_id)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the processes of this job do not find each other: {reason}; give --coordinator=HOST:PORT --processes=N "
            "--process_id=I to each, or --distributed=off to a process alone"
        ) from error


def _in_a_job() -> bool:
    """Whether the environment is that of one of several processes."""
    several = lambda name: int(os.environ.get(name) or 1) > 1
    tpu_hosts = [host for host in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    return (
        bool(os.environ.get("JAX_COORDINATOR_ADDRESS"))
        or several("SLURM_STEP_NUM_TASKS")  # set by srun alone: a batch script by itself is no process of the job
        or several("MEGASCALE_NUM_SLICES")
        or len(tpu_hosts) > 1
    )


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """What each process calls this with, by process; anything JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: len(data)] = data
    every = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(np.asarray(every), np.ravel(sizes))]


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns on the first process, anything JSON can hold, on every process; a UserError or OSError of it
    is a UserError of all.

    Only the first process looks: on a shared file system the others may not list yet what it wrote.
    """
    if jax.process_count() == 1:
        return make()
    said: dict[str, Any] = {}
    if is_first():
        try:
            said = {"value": make()}
        except (UserError, OSError) as error:
            said = {"error": str(error)}
    said = gather(said)[0]
    if "error" in said:
        raise UserError(said["error"])
    return said["value"]


def together(work: Callable[[], T]) -> T:
    """What `work` returns, on each process its own; a UserError or OSError of one is a UserError of all."""
    if jax.process_count() == 1:
        return work()
    said, value = "", None
    try:
        value = work()
    except (UserError, OSError) as error:
        said = str(error)
    for number, text in enumerate(gather(said)):
        if text:
            raise UserError(f"process {number}: {text}")
    return cast(T, value)


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"vlp_jax.{name}")


class Vote:
    """What one process wants, all do, at the same step: the largest number that any has cast.

    With several processes a vote is counted while the next step runs, so that it costs no waiting.

    Args:
      mesh: of all devices.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self.result = 0
        self.alone = jax.process_count() == 1
        self._counting: Any = None
        self._places = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._devices = mesh.size
        self._count = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def cast(self, number: int) -> None:
        """Sets `result`: alone, to this number; otherwise to what all cast the time before."""
        if self.alone:
            self.result = number
            return
        own = lambda index: np.full(len(range(*index[0].indices(self._devices))), number, np.int32)
        before = self._counting
        self._counting = self._count(jax.make_array_from_callback((self._devices,), self._places, own))
        self.result = 0 if before is None else int(before)
