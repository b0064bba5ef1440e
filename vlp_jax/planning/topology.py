"""Devices that are not there, to compile for: TPU slices and GPUs by name, and the CPU's forced devices."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from vlp_jax.telemetry import chips
from vlp_jax.types import UserError

_NAME = re.compile(r"(\w+):(\d+(?:x\d+)*)(?: ?x(\d+))?")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as it was asked for.
      devices: abstract ones of TPUs and GPUs, real (forced) ones of a CPU.
      chip: what they can do; None for a CPU.
      slices: groups of devices that only the data-centre network connects.
    """

    name: str
    devices: list[Any]
    chip: chips.Chip | None
    slices: int = 1


def find(name: str) -> Topology:
    """The devices of a name: `v5e:16x16`, `v5p:4x4x4`, `v5e:16x16 x2` (two slices), `h200:8`, `cpu:8`.

    Call it before anything asks JAX for devices.

    Raises:
      UserError: no such kind, a shape that the kind does not have, or the package that compiles for it is missing.
    """
    match = _NAME.fullmatch(name.strip())
    kinds = ", ".join(["cpu", *chips.CHIPS])
    if not match or match[1] not in (*chips.CHIPS, "cpu"):
        raise UserError(
            f"--topology={name}: expected KIND:SHAPE such as v5e:16x16, h200:8 or cpu:8, KIND one of {kinds}"
        )
    kind, shape, slices = match[1], match[2], int(match[3] or 1)
    if kind == "cpu":
        count = math.prod(map(int, shape.split("x")))
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
        return Topology(name, list(jax.devices()), None)
    chip = chips.CHIPS[kind]
    if chip.dimensions:
        return Topology(name, _tpus(kind, shape, slices), chip, slices)
    raise UserError(f"--topology={name}: compiling for GPUs that are not there is not done yet; take a TPU topology")


def _tpus(kind: str, shape: str, slices: int) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"compiling for {kind}:{shape} needs libtpu, and no TPU: pip install -e .[tpu], or `make tpu`, and set "
            "JAX_PLATFORMS=cpu"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **more)
    except Exception as error:  # what libtpu refuses comes as errors of several kinds
        raise UserError(f"--topology={kind}:{shape}: libtpu refuses it: {str(error).splitlines()[0]}") from error
    return list(found.devices)
