"""Plans side by side, `python -m benchmarks.plans slices|scaling|levers`: no accelerator is needed.

Each row is one `python -m vlp_jax.plan --json`, in a process of its own, of the real training step of SMAUG in
bfloat16, compiled for devices that need not be there:

- `slices`: base and large, 16 clips a chip, on v5e-16, v5e-256, v5p-128 and v6e-256, with hard negatives of each chip's
  own clips.
- `scaling`: base, 16 clips a chip, on 16 to 256 chips of v5e, with hard negatives of each chip's own clips and with
  those of the whole batch: what a chip computes should stay the same, and what it sends too, but for the tokens of
  clips that go round with the negatives of all.
- `levers`: base on one H200 and on eight, with each memory lever alone.

Finished rows are kept in `--out` and not compiled again. Prints the table and ends with one JSON line; `--results FILE`
replaces the section of that file between two lines `<!-- plans TABLE -->`.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from benchmarks.cost_quality import replace_section
from vlp_jax.files import write_atomically

GB = 1e9
A_CHIP = 16  # clips
SLICES = {"v5e_16": 16, "v5e_256": 256, "v5p_128": 64, "v6e_256": 256}  # named mesh -> chips
SCALING = {"v5e:4x4": 16, "v5e:8x8": 64, "v5e:16x16": 256}
ONE, EIGHT = ("--topology=h200:1", "--config.batch_size=256"), ("--topology=h200:8", "--config.batch_size=2048")
LEVERS: dict[str, tuple[str, ...]] = {
    "one H200, 256 clips": ONE,
    "float32": (*ONE, "--config.compute_dtype=float32"),
    "layers written out": (*ONE, "--config.model.unroll=True"),
    "remat dots": (*ONE, "--config.model.remat=dots"),
    "remat full": (*ONE, "--config.model.remat=full"),
    "gradients of 4 x 64": (*ONE, "--config.accumulate_steps=4"),
    "8 H200, 2048 clips, data 8": (*EIGHT, "--config.mesh.data=8"),
    "fsdp 8": (*EIGHT, "--config.mesh.fsdp=8", "--config.mesh.data=1"),
    "similarities of 64 rows": (*EIGHT, "--config.mesh.data=8", "--config.similarity_rows=64"),
}


def rows_of(table: str) -> dict[str, list[str]]:
    """Name -> flags of `vlp_jax.plan`."""
    if table == "slices":
        return {
            f"{size}, {mesh}": [
                f"--config=configs/smaug.py:{size}",
                f"--config.mesh={mesh}",
                f"--config.batch_size={A_CHIP * chips}",
                f"--config.loss.vtm_group={A_CHIP}",
                "--config.model.remat=dots",
            ]
            for size in ("base", "large")
            for mesh, chips in SLICES.items()
        }
    if table == "scaling":
        return {
            f"{chips} chips, negatives of {whose}": [
                "--config=configs/smaug.py:base",
                f"--topology={topology}",
                "--config.mesh.fsdp=16",
                f"--config.mesh.data={chips // 16}",
                f"--config.batch_size={A_CHIP * chips}",
                "--config.model.remat=dots",
                f"--config.loss.vtm_group={group}",
            ]
            for whose, group in (("a chip", A_CHIP), ("all", 0))
            for topology, chips in SCALING.items()
        }
    return {name: ["--config=configs/smaug.py:base", *flags] for name, flags in LEVERS.items()}


def plan(flags: list[str], path: pathlib.Path, limit: float) -> dict[str, Any]:
    """The JSON object of a plan, from `path` where it was made before; `{"why": text}` where there is none."""
    if path.exists():
        return json.loads(path.read_text())
    command = [sys.executable, "-m", "vlp_jax.plan", *flags, "--clips=5500000", "--json"]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        )
    except subprocess.TimeoutExpired:
        return {"why": f"not compiled within {limit:.0f} s"}
    lines = done.stdout.splitlines()
    if done.returncode not in (0, 1) or not lines or not lines[-1].startswith("{"):
        return {"why": (done.stderr.splitlines() or ["no output"])[-1]}
    result = {**json.loads(lines[-1]), "seconds": time.monotonic() - start}
    write_atomically(path, json.dumps(result).encode())
    return result


def line(name: str, result: dict[str, Any]) -> str:
    """A row of the table."""
    if "why" in result:
        return f"| {name} | {result['why']} |" + " |" * 9
    memory = result["memory"]
    held = sum(size for kind, size in memory.items() if kind != "temporary")
    seconds = result["step_seconds"]
    return (
        f"| {name} | {'yes' if result['fits'] else 'no'} | {held / GB:.2f} | {memory['temporary'] / GB:.2f} | "
        f"{result['flops_per_device'] / 1e12:.2f} | {result['memory_traffic_bytes'] / GB:.1f} | "
        f"{result['collective_bytes'] / GB:.3f} | {'' if seconds is None else f'{seconds:.3f}'} | "
        f"{'' if seconds is None else format(result['mfu_bound'], '.0%')} | "
        f"{'' if seconds is None else format(result['examples_per_second'], ',.0f')} | "
        f"{result['compile_seconds']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("slices", "scaling", "levers"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/plans"))
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one row (%(default)s)")
    parser.add_argument("--results", type=pathlib.Path, help="file whose section is replaced")
    given = parser.parse_args()
    (given.out / given.table).mkdir(parents=True, exist_ok=True)
    head = (
        "|fits|GB held|GB temporary|TFLOP|GB to and from memory|GB sent|s/step at best|MFU at most|clips/s|compile s|"
    )
    lines, results = [f"| {head}", "|" + "---|" * 11], {}
    rows = rows_of(given.table)
    for number, (name, flags) in enumerate(rows.items(), 1):
        path = given.out / given.table / f"{name.replace(' ', '_').replace(',', '')}.json"
        results[name] = plan(flags, path, given.limit)
        lines.append(line(name, results[name]))
        print(f"{number}/{len(rows)} {lines[-1]}", flush=True)
    text = "\n".join([*lines, "", "Sizes, FLOPs and bytes are of one device and step."])
    print(text)
    if given.results:
        replace_section(given.results, f"<!-- plans {given.table} -->", text)
    print(json.dumps({"benchmark": f"plans {given.table}", "results": results}))


if __name__ == "__main__":
    main()
