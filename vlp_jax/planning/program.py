"""The real training step, compiled for devices that need not be there."""

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np

from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax import state as state_lib
from vlp_jax.planning import hlo, topology, traffic
from vlp_jax.telemetry import costs, flops
from vlp_jax.types import Batch, UserError

GIB = 2**30


class Vocabulary:
    """What a recipe reads of a tokenizer, of one that has `size` pieces."""

    pad_id, unk_id, cls_id, sep_id, mask_id = range(5)
    first_word_id = 5

    def __init__(self, size: int):
        self.vocab_size = self.end_word_id = size
        self.starts_word = np.ones(size, bool)


@dataclasses.dataclass(frozen=True)
class StepKind:
    """One kind of step of a run.

    Attributes:
      frames: of its clips.
      masked: whether it trains on masked clips.
      share: of the run's steps.
    """

    name: str
    frames: int
    masked: bool
    share: float


@dataclasses.dataclass
class Compiled:
    """A step, compiled; sizes are bytes on each device.

    Attributes:
      fits: whether the compiler found room.
      memory: kind -> bytes: parameters, optimiser, average, batch, and temporary (activations, gradients, buffers).
      total: of memory; where it does not fit, what the compiler would have needed.
      limit: what the compiler lets a program have; 0 where it did not say.
      sizes, slices: of the mesh's axes: their devices, and over how many slices or hosts these are spread.
      model_flops: of the model as written, over all devices; `matmul_flops` of its matrix products, which MFU counts;
        `executed_flops` of everything, with what is computed twice.
      traffic: bytes to and from memory.
      seconds: of compilation.
    """

    kind: StepKind
    fits: bool
    memory: dict[str, int]
    total: float
    limit: float
    sizes: dict[str, int]
    slices: dict[str, int]
    model_flops: float
    matmul_flops: float
    executed_flops: float
    traffic: int
    collectives: list[hlo.Collective]
    seconds: float


def kinds_of(config: Any) -> list[StepKind]:
    """The kinds of steps that a run has: by the frames of its sources, masked and whole."""
    weights = {
        name: (config_lib.source_input(config, name).frames, config.mixture[name].weight) for name in config.mixture
    } or {"": (config.input.frames, 1.0)}
    total = sum(weight for _, weight in weights.values())
    by_frames: dict[int, float] = {}
    for frames, weight in weights.values():
        by_frames[frames] = by_frames.get(frames, 0.0) + weight / total
    whole = config.model.masking.unmasked_share
    out = []
    for frames, share in sorted(by_frames.items(), reverse=True):
        out.append(StepKind(f"{frames} frames", frames, True, share * (1 - whole)))
        if whole:
            out.append(StepKind(f"{frames} frames, whole clips", frames, False, share * whole))
    return out


def abstract_batch(config: Any, mesh: Any, frames: int) -> Batch:
    """Shapes and places of a global pre-training batch."""
    size, length = config.batch_size, config.input.max_text_tokens
    form, dtype = config_lib.clip_form(config.input, frames)
    place = sharding.batch_sharding(mesh)
    of = lambda dtype, *shape: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=place)
    return Batch(
        video=of(dtype, *form),
        text_ids=of(np.int32, length),
        text_mask=of(bool, length),
        valid=of(bool),
        index=of(np.int32),
        positive_id=of(np.int32),
    )


def compile_step(config: Any, place: topology.Topology, kind: StepKind, vocabulary: int) -> Compiled:
    """Compiles one kind of step of `config` for these devices; allocates nothing.

    Raises:
      UserError: the mesh does not fit the devices, or the model or the batch does not divide over it.
    """
    mesh = sharding.make_mesh(config, place.devices)
    sharding.check_batch(config, mesh)
    places = dict(mesh.shape), sharding.slices_along(mesh)
    run = state_lib.setup(config, Vocabulary(vocabulary), mesh, 1000)
    batch, good = abstract_batch(config, mesh, kind.frames), jax.ShapeDtypeStruct((), bool)
    memory = {
        "parameters": _on_a_device(run.abstract.params),
        "optimiser": _on_a_device(run.abstract.opt_state),
        "average": 0 if run.abstract.ema is None else _on_a_device(run.abstract.ema),
        "batch": _on_a_device(batch),
    }
    model = costs.StepFlops(run, Vocabulary(vocabulary), 1000)(kind.masked, batch)[0]
    flops_of = model.total, model.matmul
    step: Any = state_lib.train_step(run, kind.masked)
    with sharding.use_mesh(mesh):
        executed = flops.count(step, run.abstract, batch, good).total
        lowered = step.lower(run.abstract, batch, good)
        start = time.monotonic()
        try:
            compiled = lowered.compile(compiler_options=place.compiler_options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            memory["temporary"], limit = _out_of_memory(str(error))
            spent = time.monotonic() - start
            return Compiled(
                kind, False, memory, sum(memory.values()), limit, *places, *flops_of, executed, 0, [], spent
            )
        spent = time.monotonic() - start
    analysis = compiled.memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory["temporary"] = analysis.temp_size_in_bytes + held - sum(memory.values())
    program = hlo.Program(compiled.as_text(), dict(mesh.shape))
    total = sum(memory.values())
    return Compiled(
        kind,
        place.chip is None or total <= place.room,
        memory,
        total,
        0.0,
        *places,
        *flops_of,
        executed,
        traffic.memory_traffic(program),
        program.collectives(),
        spent,
    )


def flops_error(config: Any, kind: StepKind, vocabulary: int) -> float:
    """Our count of a step over XLA's count of the same step with its loops written out, less 1: on a batch of 8."""
    changes = {
        "batch_size": 8,
        "accumulate_steps": 1,
        "similarity_rows": 0,
        "model.unroll": True,
        "model.remat": "none",
        "compute_dtype": "float32",
        "mesh.replica": 1,
        "mesh.data": 1,
        "mesh.fsdp": 1,
        "mesh.tensor": 1,
    }
    small = config_lib.update(config.copy_and_resolve_references(), changes)
    mesh = sharding.make_mesh(small, jax.local_devices(backend="cpu")[:1])
    run = state_lib.setup(small, Vocabulary(vocabulary), mesh, 1000)
    batch, good = abstract_batch(small, mesh, kind.frames), jax.ShapeDtypeStruct((), bool)
    with sharding.use_mesh(mesh):
        step = state_lib.train_step(run, kind.masked)
        ours = flops.count(step, run.abstract, batch, good).total
        return ours / flops.xla_count(step, run.abstract, batch, good) - 1


def _out_of_memory(message: str) -> tuple[int, int]:
    """Bytes of temporaries that a program needs, and of all memory that there is, as the compiler says it."""
    size = r"([\d.]+)([KMG]?)"
    forms = (rf"Used {size} of {size} hbm", rf"\(size={size}\).*\(size={size}\)", rf"\({size}\).*?\({size}\)")
    found = next(filter(None, (re.search(form, message, flags=re.S) for form in forms)), None)
    if found is None:
        raise UserError(
            f"the step does not fit, and the compiler does not say by how much: {message[:300]!r}; try a smaller "
            "config.batch_size, config.model.remat=dots or full, or more devices"
        )
    unit = {"": 1, "K": 2**10, "M": 2**20, "G": GIB}
    need, limit = (round(float(found[i]) * unit[found[i + 1]]) for i in (1, 3))
    return need, limit


def _on_a_device(tree: Any) -> int:
    """Bytes of the largest share of these arrays that a device holds."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
