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

_NAME = re.compile(r"(\w+):([1-9]\d*(?:x[1-9]\d*)*)(?: ?x([1-9]\d*))?")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as it was asked for.
      devices: abstract ones of TPUs and GPUs, real (forced) ones of a CPU.
      chip: what they can do; None for a CPU.
      compiler_options: of XLA, that compiling for devices that are not there needs.
      slices: of TPUs, or hosts of GPUs: groups of devices that only the data-centre network connects.
    """

    name: str
    devices: list[Any]
    chip: chips.Chip | None
    slices: int = 1
    compiler_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def room(self) -> float:
        """Bytes of a device's memory that programs may use: of a GPU's the share that JAX takes, 75% unless
        XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; 0 where nothing is known."""
        if self.chip is None:
            return 0.0
        share = 1.0 if self.chip.dimensions else float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or 0.75)
        return share * self.chip.hbm


def find(name: str) -> Topology:
    """The devices of a name: `v5e:16x16`, `v5p:4x4x4`, `v5e:16x16 x2` (two slices), `h200:8 x4` (four hosts), `cpu:8`.

    Call it before anything asks JAX for devices.

    Raises:
      UserError: no such kind, a shape that the kind does not have, or the package that compiles for it is missing.
    """
    match = _NAME.fullmatch(name.strip())
    kinds = ", ".join(["cpu", *chips.CHIPS])
    if not match or match[1] not in (*chips.CHIPS, "cpu") or (match[1] == "cpu" and match[3]):
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
    if "x" in shape:
        raise UserError(
            f"--topology={name}: expected {kind}:GPUS of one host, such as {kind}:8, or '{kind}:8 x4' for 4"
        )
    # Without the GPU there is no tuning of Triton's matrix products, and XLA's guesses of their tiles can fail: cuBLAS.
    return Topology(name, _gpus(chip, int(shape), slices), chip, slices, {"xla_gpu_enable_triton_gemm": False})


def _tpus(kind: str, shape: str, slices: int) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"compiling for {kind}:{shape} needs libtpu, and no TPU: pip install -e .[tpu], or `make tpu`, and set "
            "JAX_PLATFORMS=cpu"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if kind == "v4":
        more["chip_config_name"] = "megacore"  # one device a chip, as a job sees it; without, one for each core
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **more)
    except Exception as error:  # what libtpu refuses comes as errors of several kinds
        raise UserError(f"--topology={kind}:{shape}: libtpu refuses it: {str(error).splitlines()[0]}") from error
    return list(found.devices)


# What XLA asks of a GPU: compute capability, multiprocessors, GHz and MB of L2 (NVIDIA's data sheets).
_GPUS = {
    "a100": ((8, 0), 108, 1.41, 40),
    "h100": ((9, 0), 132, 1.98, 50),
    "h200": ((9, 0), 132, 1.98, 50),
    "a6000": ((8, 6), 84, 1.80, 6),
    "l4": ((8, 9), 58, 2.04, 48),
}
# Of a multiprocessor, by capability: KiB of shared memory, threads, float32 units (CUDA programming guide, table of
# technical specifications).
_MULTIPROCESSORS = {
    (8, 0): (164, 2048, 64),
    (8, 6): (100, 1536, 128),
    (8, 9): (100, 1536, 128),
    (9, 0): (228, 2048, 128),
}

_GPU = """
gpu_device_info {{
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
  core_count: {cores}
  clock_rate_ghz: {ghz}
  l2_cache_size: {l2}
  fpus_per_core: {units}
  shared_memory_per_core: {shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {optin}
  threads_per_core_limit: {threads}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
}}
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: 9 minor: 8 }}
platform_name: "CUDA"
device_description_str: "{name}"
"""


def _gpus(chip: chips.Chip, count: int, hosts: int) -> list[Any]:
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError(
            f"compiling for {chip.name}:{count} needs JAX's CUDA plugin, and no GPU: pip install --no-deps "
            f"jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__}, or `make gpu`, and set "
            "JAX_PLATFORMS=cpu"
        )
    capability, cores, ghz, megabytes = _GPUS[chip.name]
    kibibytes, threads, units = _MULTIPROCESSORS[capability]
    target = _GPU.format(
        capability=capability,
        cores=cores,
        ghz=ghz,
        l2=megabytes * 2**20,
        units=units,
        shared=kibibytes * 2**10,
        optin=(kibibytes - 1) * 2**10,
        threads=threads,
        bandwidth=int(chip.hbm_bandwidth),
        memory=int(chip.hbm),
        name=chip.label,
    )
    found = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=target, topology=f"{hosts}x1x{count}"
    )
    return list(found.devices)
