"""What a plan says: the tables of compiled steps, the numbers of a whole run, and the search for a better one."""

import itertools
import json
import math
import sys
from typing import Any

from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax.planning import program, roofline, topology
from vlp_jax.types import UserError

_GIB = program.GIB
_SHOWN = 12  # kinds of collectives


def table(step: program.Compiled, place: topology.Topology) -> str:
    """What one kind of step needs of each device."""
    count = len(place.devices)
    lines = [f"\n{step.kind.name} ({step.kind.share:.0%} of the steps), compiled in {step.seconds:.1f} s"]
    for name, size in step.memory.items():
        if size:
            lines.append(f"  {name:12}{size / _GIB:10.3f} GiB")
    limit = step.limit or place.room
    room = f" of {limit / _GIB:.2f}" if limit else ""
    lines.append(f"  {'total':12}{step.total / _GIB:10.3f} GiB{room} a device")
    again = step.executed_flops / step.model_flops - 1
    twice = f", {again:.0%} more with what is computed twice" if again > 0.005 else ""
    lines.append(f"  {step.model_flops / count / 1e12:.3f} TFLOP a device{twice}")
    if not step.fits:
        return "\n".join(lines)
    lines.append(f"  {step.traffic / 1e9:.2f} GB to and from memory, {sent(step) / 1e9:.3f} GB sent in collectives:")
    groups = grouped(step)
    for one in groups[:_SHOWN]:
        axes = " x ".join(one["axes"]) or "devices of no axis"
        lines.append(f"    {one['kind']:19}{one['sent'] / 1e6:10.3f} MB in {one['times']:<5}{axes:14}{one['source']}")
    rest = groups[_SHOWN:]
    if rest:
        lines.append(f"    and {len(rest)} other kinds, {sum(one['sent'] for one in rest) / 1e6:.1f} MB")
    return "\n".join(lines)


def grouped(step: program.Compiled) -> list[dict[str, Any]]:
    """The collectives of a step by kind, axes, pass and operation, the largest first: bytes sent, and how often."""
    groups: dict[tuple, dict[str, Any]] = {}
    for one in step.collectives:
        name = one.source.rpartition("/")[2].rstrip(")") or "unnamed"
        source = f"{name}, backward" if "transpose(" in one.source else name
        found = groups.setdefault(
            (one.kind, one.axes, source),
            {"kind": one.kind, "axes": list(one.axes), "source": source, "sent": 0.0, "times": 0},
        )
        found["sent"] += one.traffic
        found["times"] += one.times
    return sorted(groups.values(), key=lambda one: -one["sent"])


def sent(step: program.Compiled) -> float:
    """Bytes that each device sends in the collectives of a step."""
    return sum(one.traffic for one in step.collectives)


def summary(config: Any, place: topology.Topology, steps: list[program.Compiled], clips: int | None) -> dict[str, Any]:
    """The numbers of the whole run, means over its kinds of steps, and what they come to, as `text`.

    Args:
      clips: of the run's data; None where that is not known.
    """
    mean = lambda of: sum(of(step) * step.kind.share for step in steps)
    devices = len(place.devices)
    result: dict[str, Any] = {
        "config": config.name,
        "topology": place.name,
        "devices": devices,
        "batch_size": config.batch_size,
        "remat": config.model.remat,
        "mesh": sharding.mesh_sizes(config, devices),
        "fits": all(step.fits for step in steps),
        "flops": mean(lambda step: step.model_flops),
        "flops_per_device": mean(lambda step: step.model_flops) / devices,
        "hbm_bytes": max(step.total for step in steps),
        "memory": max(steps, key=lambda step: step.total).memory,
        "memory_traffic_bytes": mean(lambda step: step.traffic),
        "collective_bytes": mean(sent),
        "collectives": {step.kind.name: grouped(step) for step in steps},
        "compile_seconds": sum(step.seconds for step in steps),
        "step_seconds": None,
    }
    if not result["fits"] or place.chip is None:
        result["text"] = "no peak of a CPU is known, so that there is no estimate of time"
        return result
    chip = place.chip
    each = [roofline.estimate(step, chip, devices) for step in steps]
    weighted = lambda of: sum(of(e) * step.kind.share for e, step in zip(each, steps))
    seconds = weighted(lambda e: e.seconds)
    mfu = weighted(lambda e: e.mfu * e.seconds) / seconds
    result |= {
        "step_seconds": seconds,
        "compute_seconds": weighted(lambda e: e.compute),
        "memory_seconds": weighted(lambda e: e.memory),
        "network_seconds": weighted(lambda e: e.network),
        "mfu_bound": mfu,
        "examples_per_second": config.batch_size / seconds,
    }
    text = (
        f"a step takes {seconds:.4f} s at best (arithmetic {result['compute_seconds']:.4f}, memory "
        f"{result['memory_seconds']:.4f} beside it, collectives {result['network_seconds']:.4f}): at most {mfu:.0%} "
        f"MFU, {result['examples_per_second']:,.0f} clips/s"
    )
    if clips or config.steps or config.examples:
        total = config_lib.total_steps(config, clips or 0)
        hours = total * seconds / 3600
        result |= {"steps": total, "hours": hours, "chip_hours": hours * devices}
        text += f"; {total:,} steps: {hours:.2f} hours, {hours * devices:,.1f} {chip.label}-hours"
    else:
        text += "; --clips=N says how long the run is"
    result["text"] = text
    return result


def largest_batch(config: Any, place: topology.Topology, vocabulary: int) -> int:
    """The largest of a half, a quarter ... of the config's batch that fits, each cut to what divides over the mesh; 0
    where none does."""
    mesh = sharding.mesh_sizes(config, len(place.devices))
    unit = (
        math.prod(mesh[axis] for axis in sharding.BATCH_AXES) * config.accumulate_steps * (config.similarity_rows or 1)
    )
    unit = math.lcm(unit, (config.loss.vtm_group or 1) * config.accumulate_steps)
    half = lambda batch: batch // 2 // unit * unit
    batch = half(config.batch_size)
    while batch:
        other = config_lib.update(config.copy_and_resolve_references(), {"batch_size": batch})
        kinds = program.kinds_of(other)
        if all(program.compile_step(other, place, kind, vocabulary).fits for kind in kinds):
            return batch
        batch = half(batch)
    return 0


def search(config: Any, place: topology.Topology, vocabulary: int, clips: int | None, as_json: bool) -> bool:
    """Tries batches, remat policies and meshes; prints them ranked, and returns whether any fits."""
    if place.chip is None:
        raise UserError("--search ranks by an estimate of time, which needs a chip with known peaks, not a CPU")
    devices = len(place.devices)
    splits = [sharding.mesh_sizes(config, devices)]
    for tensor, fsdp in itertools.product((1, 2, 4), (1, 4, 16, 64, devices // place.slices)):
        rest = devices // place.slices
        if rest % (tensor * fsdp) == 0 and fsdp <= rest:
            splits.append({"replica": place.slices, "data": rest // (tensor * fsdp), "fsdp": fsdp, "tensor": tensor})
    splits = [dict(items) for items in dict.fromkeys(tuple(split.items()) for split in splits)]
    tried, batches = [], config.batch_size
    cases = list(itertools.product(splits, ("none", "dots", "full"), sorted({batches // 2, batches, 2 * batches})))
    for number, (split, remat, batch) in enumerate(cases, 1):
        changes = {"model.remat": remat, "batch_size": batch, **{f"mesh.{axis}": n for axis, n in split.items()}}
        other = config_lib.update(config.copy_and_resolve_references(), changes)
        group = config.loss.vtm_group
        if group and batch % (group * config.accumulate_steps):
            continue  # no such run
        name = f"batch {batch}, remat {remat}, " + ", ".join(f"{axis} {n}" for axis, n in split.items() if n > 1)
        try:
            steps = [program.compile_step(other, place, kind, vocabulary) for kind in program.kinds_of(other)]
        except UserError as error:
            print(f"{number}/{len(cases)} {name}: {error}", file=sys.stderr, flush=True)
            continue
        result = summary(other, place, steps, clips)
        what = f"{result['examples_per_second']:,.0f} clips/s at most" if result["fits"] else "does not fit"
        print(f"{number}/{len(cases)} {name}: {what}", file=sys.stderr, flush=True)
        tried.append((name, result))
    fitting = sorted((t for t in tried if t[1]["fits"]), key=lambda t: -t[1]["examples_per_second"])
    print(f"{'':48}{'clips/s':>10}{'s/step':>9}{'MFU':>6}{'GiB':>8}{'GB sent':>9}")
    for name, r in fitting:
        print(
            f"{name:48}{r['examples_per_second']:10,.0f}{r['step_seconds']:9.4f}{r['mfu_bound']:6.0%}"
            f"{r['hbm_bytes'] / _GIB:8.2f}{r['collective_bytes'] / 1e9:9.3f}"
        )
    if as_json:
        print(json.dumps({"search": [{k: v for k, v in r.items() if k != "text"} for _, r in tried]}))
    return bool(fitting)
