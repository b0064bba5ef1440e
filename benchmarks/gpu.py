"""What a GPU makes of pre-training, in one call: `python -m benchmarks.gpu`.

For each size, SMAUG and dense, in bfloat16: the step's time, clips/s, MFU, the process's peak memory so far and the
first step's loss (of variants with equal batches they agree to bfloat16's precision, or a kernel is wrong), with layers
in a scan or written out, XLA's or cuDNN's attention, with and without recomputation, each at the largest batch of
`--batches` that fits; then where the time of the fastest SMAUG step goes, by kind of operation, and VideoMAE-base
pre-training against `transformers` (torch) at equal shapes. No new variant begins once 60% of `--minutes` are over, and
nothing else once all are; what was left out is printed. Ends with one JSON line. Without an accelerator it refuses,
unless `--anyway`, which is for trying the script itself.
"""

import argparse
import collections
import gzip
import json
import os
import pathlib
import re
import statistics
import tempfile
import time
from typing import Any

# Torch needs room on the same device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from benchmarks.step_time import Step, versus_transformers
from vlp_jax.telemetry import chips

# In the order of what is expected of them (benchmarks/RESULTS.md, Plans): the time may end before the last. Each says
# all that it is about, because the sizes differ in it.
WRITTEN_OUT = {"model.unroll": True, "model.remat": "none"}
VARIANTS: dict[str, dict[str, Any]] = {
    "unrolled, cuDNN": {**WRITTEN_OUT, "model.attention_kernel": "cudnn"},
    "unrolled": WRITTEN_OUT,
    "scan": {"model.unroll": False, "model.remat": "none"},
    "unrolled, dots": {"model.unroll": True, "model.remat": "dots"},
}
FOR_VARIANTS = 0.6  # of the minutes; the rest is for the profile and the comparison with torch
PAIRS = 5_500_000 * 10  # the goal's: 5.5M pairs, 10 epochs


class Measured:
    """One variant, timed at the largest batch that fits.

    Raises:
      MemoryError: none of the batches does.
    """

    def __init__(self, size: str, changes: dict[str, Any], batches: list[int], steps: int):
        self.step: Any = None
        for batch in batches:
            try:
                self.step = Step(size, batch, changes)
                self.step.run()  # compiles
                self.loss = float(self.step.metrics["loss"])
                break
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                self.step = None  # frees what it holds before the next batch is tried
        if self.step is None:
            raise MemoryError(f"no batch of {batches} fits")
        self.compile_seconds = self.step.seconds.pop()
        for _ in range(steps + 2):
            self.step.run()
        del self.step.seconds[:2]

    def row(self) -> dict[str, Any]:
        step, device = self.step, jax.devices()[0]
        chip = chips.by_kind(device.device_kind)
        batch, seconds = step.config.batch_size, step.median
        memory = device.memory_stats() or {}
        return {
            "batch": batch,
            "seconds": seconds,
            "spread": [min(step.seconds), max(step.seconds)],
            "clips_per_second": batch / seconds,
            "tflops": step.flops.matmul / seconds / 1e12,
            "mfu": step.flops.matmul / seconds / chip.bfloat16 if chip else None,
            "hours": PAIRS / (batch / seconds) / 3600,
            "peak_gib_so_far": memory.get("peak_bytes_in_use", 0) / 2**30,
            "compile_seconds": self.compile_seconds,
            "first_loss": self.loss,
        }


def profile(step: Step, steps: int = 3) -> list[tuple[str, float]]:
    """Kind of operation -> its share of the device's busy time, the largest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(steps):
                step.run()
        (path,) = pathlib.Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    spent: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and "/device:" in names.get(event["pid"], ""):
            kind = re.sub(r"[.\d]+$", "", event["name"]).partition("<")[0][:60]
            spent[kind] += event["dur"]
    total = sum(spent.values())
    return [(kind, value / total) for kind, value in spent.most_common(20)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="base,large", help="comma-separated (%(default)s)")
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser.add_argument(
        "--batches", type=numbers, default="512,256,128,64,32", help="tried in this order (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each (%(default)s)")
    parser.add_argument("--minutes", type=float, default=9.0, help="nothing begins later (%(default)s)")
    parser.add_argument(
        "--versus", type=int, default=16, help="clips of the comparison with torch, 0 for none (%(default)s)"
    )
    parser.add_argument("--anyway", action="store_true", help="also without an accelerator")
    given = parser.parse_args()
    device = jax.devices()[0]
    if device.platform == "cpu" and not given.anyway:
        raise SystemExit("no accelerator here: benchmarks.step_time is for CPUs; --anyway runs all the same")
    start = time.monotonic()
    over = lambda share=1.0: time.monotonic() - start > 60 * given.minutes * share
    print(f"{device.device_kind}, jax {jax.__version__}", flush=True)
    heads = "".join(f"{head:>9}" for head in ("s/step", "clips/s", "TFLOP/s", "MFU", "GiB max", "compile", "loss"))
    print(f"{'':32}{'batch':>6}{heads}")
    dtype = {"compute_dtype": "bfloat16" if device.platform != "cpu" else "float32"}
    rows: dict[str, Any] = {}
    left, failed, fastest = [], {}, None
    cases = [
        (f"{size}{suffix}", name) for size in given.sizes.split(",") for name in VARIANTS for suffix in ("", "_dense")
    ]
    for size, name in cases:
        title = f"{size}, {name}"
        changes = {**dtype, **VARIANTS[name]}
        no_kernel = device.platform != "gpu" and changes.get("model.attention_kernel") == "cudnn"
        if no_kernel or over(FOR_VARIANTS):
            left.append(title)
            continue
        try:
            measured = Measured(size, changes, given.batches, given.steps)
        except Exception as error:  # a variant that fails must not cost the others, nor the machine's time
            failed[title] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{title:32} {failed[title]}", flush=True)
            jax.clear_caches()
            continue
        row = rows[title] = measured.row()
        share = f"{row['mfu']:.0%}" if row["mfu"] is not None else "?"
        print(
            f"{title:32}{row['batch']:6}{row['seconds']:9.4f}{row['clips_per_second']:9.0f}{row['tflops']:9.1f}"
            f"{share:>9}{row['peak_gib_so_far']:9.1f}{row['compile_seconds']:9.1f}"
            f"{row['first_loss']:9.4f}",
            flush=True,
        )
        if "dense" not in size and (fastest is None or row["clips_per_second"] > fastest[0]):
            fastest = (row["clips_per_second"], size, changes, row["batch"])
        del measured
        jax.clear_caches()
    result: dict[str, Any] = {"benchmark": "gpu", "device": device.device_kind, "jax": jax.__version__, "rows": rows}
    result["failed"] = failed
    try:
        if not fastest or over():
            left.append("the profile")
        else:
            _, size, changes, batch = fastest
            step = Step(size, batch, changes)
            step.run()
            result["profile"] = profile(step)
            print(f"\n{size}, {batch} clips: {statistics.median(step.seconds):.4f} s; share of the device's time:")
            for kind, share in result["profile"]:
                print(f"  {share:6.1%} {kind}")
            del step
            jax.clear_caches()
        if not given.versus or over():
            left.append("VideoMAE against torch")
        else:
            result |= versus_transformers(given.versus, given.steps, {**dtype, "model.unroll": True})
    finally:  # what was measured is told, whatever happens after
        if left:
            print(f"left out, not asked for, no time or no such kernel here: {'; '.join(left)}")
        print(json.dumps(result))


if __name__ == "__main__":
    main()
