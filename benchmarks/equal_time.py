"""Zero-shot retrieval after equal wall time, SMAUG against dense: `python -m benchmarks.equal_time`.

Every variant trains `configs/smaug.py:tiny` on moving_shapes for the same seconds, in one process, one after the other,
once for each seed. The speed of every variant is measured before any of them trains, input included, and each trains
the number of steps, schedule and all, that fill the time at that speed: what else the machine does later changes no
result. `--steps` gives the numbers instead, for going on after such a measurement. Compilation is not counted. Prints
R@1 of the unseen test clips, both directions averaged, and, last, one JSON line.
"""

import argparse
import itertools
import json
import statistics
from typing import Any

import jax

from benchmarks.timed_run import Run, measure, middle
from configs import smaug
from vlp_jax import config as config_lib
from vlp_jax import launch, validation

ROUNDS = 3  # measurements of each speed
PLANNED = 1000  # length of the run whose first steps are measured; its schedule does not matter

# Changes to `tiny`; "dense" is `tiny_dense`.
VARIANTS: dict[str, dict[str, Any]] = {
    "smaug": {},
    "dense": {},
    "mask 0.6": {"model.masking.ratio": 0.6},
    "mask 0.75": {"model.masking.ratio": 0.75},
    "keep 0.5": {"model.pruning.keep_rate": 0.5},
    "no pruning": {"model.pruning.layers": ()},
    "3 frames kept": {"model.selection.frames": 3},
    "all frames kept": {"model.selection.frames": 0},
    "no MVM": {"loss.mvm": 0.0},
    "decode survivors": {"model.decoder.source": "survivors"},
}


def configure(variant: str, data: str, seed: int, steps: int) -> Any:
    """The config of one run."""
    config = smaug.get_config("tiny_dense" if variant == "dense" else "tiny")
    fixed = {"input.path": data, "input.tokenizer": f"{data}/tokenizer.model", "seed": seed, "epochs": 0.0}
    config_lib.update(config, {**fixed, "name": variant, "steps": steps, **VARIANTS[variant]})
    validation.validate(config)
    return config


def main() -> None:
    launch.use_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="datasets/moving_shapes")
    parser.add_argument("--seconds", type=float, default=90, help="training time of each run (%(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (%(default)s)")
    parser.add_argument("--steps", default="", help="steps of each variant, comma-separated, instead of measuring")
    parser.add_argument("--variants", default="smaug,dense", help="comma-separated, or all: " + ", ".join(VARIANTS))
    given = parser.parse_args()
    names = list(VARIANTS) if given.variants == "all" else given.variants.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        parser.error(f"unknown variants {unknown}: expected some of {list(VARIANTS)}")
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; {given.seconds:.0f} s of training each")
    planned = dict(zip(names, map(int, given.steps.split(",")))) if given.steps else {}
    if planned and len(planned) != len(names):
        parser.error(f"--steps {given.steps}: expected {len(names)} numbers, one for each variant")
    if not planned:
        runs = {name: Run(configure(name, given.data, 0, PLANNED), PLANNED) for name in names}
        for name, speeds in middle(list(measure(runs, ROUNDS))).items():
            print(f"{name:16} {speeds.first:.3f} s a step, cached {speeds.cached:.3f}, unmasked {speeds.unmasked:.3f}")
            planned[name] = speeds.steps_in(given.seconds)
        jax.clear_caches()
    rows: dict[str, dict[str, list[float]]] = {name: {"R@1": [], "compositional": [], "steps": []} for name in names}
    for seed, name in itertools.product(map(int, given.seeds.split(",")), names):
        run = Run(configure(name, given.data, seed, planned[name]), planned[name])
        state, seconds = run.train()
        row = rows[name]
        row["steps"].append(run.steps)
        row["R@1"].append(run.recall(state, "test"))
        row["compositional"].append(run.recall(state, "test_compositional"))
        print(
            f"seed {seed}  {name:16} {run.steps:5} steps in {seconds:5.1f} s   R@1 {row['R@1'][-1]:5.1f}   "
            f"compositional {row['compositional'][-1]:5.1f}",
            flush=True,
        )
        jax.clear_caches()
    print(f"\n{'':18}{'steps':>7}{'R@1 mean':>10}{'min':>7}{'max':>7}{'compositional':>15}")
    for name, row in rows.items():
        print(
            f"{name:18}{statistics.mean(row['steps']):7.0f}{statistics.mean(row['R@1']):10.1f}{min(row['R@1']):7.1f}"
            f"{max(row['R@1']):7.1f}{statistics.mean(row['compositional']):15.1f}"
        )
    print(json.dumps({"benchmark": "equal_time", "seconds": given.seconds, "variants": rows}))


if __name__ == "__main__":
    main()
