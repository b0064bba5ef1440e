"""What a second of pre-training buys: SMAUG against Singularity and VindLU, `python -m benchmarks.cost_quality`.

Three steps, each of which skips what is done, so that the same command goes on after an interruption:

1. `speeds`: the seconds of every system's steps, in rounds of one system after the other in this process, and of
   decoding a batch, which every system is charged alike; medians count. Nothing else should run. A system that is added
   is measured together with all others, anew.
2. `train`: every run trains, by the training binary, the steps that fill its budget of seconds at that speed, schedule
   and all: what else the machine does meanwhile changes no result. SMAUG and Singularity spend twice as many steps on
   one frame as then on four, as Singularity's authors do. Retrieval on the validation split is measured on the way and
   not timed.
3. `report`: retrieval of the test split, without fine-tuning, with 95% intervals, a curve as PNG, and for each mark of
   R@1 the seconds and the FLOPs that SMAUG and Singularity need to reach it: interpolated, in their logarithm, between
   runs.
   A run has taken what its steps take at the measured speeds, which need not be those that it was planned with; a ratio
   of seconds is followed by the smallest and the largest that a single round of measurements gives.

    python -m benchmarks.cost_quality --out runs/cost_quality --budgets 112,225,450,900 --seeds 0,1,2

The largest budget is trained with every seed, smaller ones with the first; systems of `--one-seed` with the first and
the largest budget alone. Prints the table and ends with one JSON line; `--results FILE` replaces the section of that
file between the lines `<!-- cost_quality -->`.
"""

import argparse
import dataclasses
import importlib
import json
import math
import operator
import os
import pathlib
import re
import statistics
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from benchmarks.marks import ends_of, mark_lines, pair_of
from benchmarks.timed_run import Run, Speeds, measure, middle
from vlp_jax import config as config_lib
from vlp_jax import launch, validation
from vlp_jax.evaluation import statistics as statistics_lib
from vlp_jax.files import write_atomically
from vlp_jax.telemetry.writers import read_metrics

PLANNED = 1000  # length of the run whose first steps are timed; its schedule does not matter
POINTS = 10  # measurements of the validation split on the way
MARKS = tuple(range(10, 100, 10))
BOOTSTRAP = 1000  # resamples behind an interval
MARKER = "<!-- cost_quality -->"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training run of a system: a config, its share of the system's steps, and changes to the config."""

    config: str
    share: float = 1.0
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return " ".join([self.config, *(f"{key.rpartition('.')[2]}={value}" for key, value in self.changes)])


FINE: tuple[tuple[str, Any], ...] = (("model.vision.patch_size", 4),)
MASKED_FINE = (*FINE, ("model.masking.ratio", 0.6))

SYSTEMS: dict[str, tuple[Stage, ...]] = {
    "SMAUG": (Stage("smaug.py:small_stage1", 2 / 3), Stage("smaug.py:small_stage2", 1 / 3)),
    "Singularity": (Stage("singularity.py:small_stage1", 2 / 3), Stage("singularity.py:small_stage2", 1 / 3)),
    "VindLU": (Stage("vindlu.py:small"),),
    # Their second stages alone, from random parameters.
    "SMAUG 4 frames": (Stage("smaug.py:small"),),
    "Singularity 4 frames": (Stage("singularity.py:small_stage2"),),
    # As many patches a frame as the paper has, of whose steps text is a small part.
    "SMAUG 256 patches": (
        Stage("smaug.py:small_stage1", 2 / 3, MASKED_FINE),
        Stage("smaug.py:small_stage2", 1 / 3, MASKED_FINE),
    ),
    "Singularity 256 patches": (
        Stage("singularity.py:small_stage1", 2 / 3, FINE),
        Stage("singularity.py:small_stage2", 1 / 3, FINE),
    ),
}
# Whose times to a mark are compared.
RIVALS = (("SMAUG", "Singularity"), ("SMAUG 256 patches", "Singularity 256 patches"))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run of a system: the folder of each stage's workdir and its steps."""

    system: str
    budget: int
    seed: int
    steps: tuple[int, ...]

    def workdirs(self, out: pathlib.Path) -> list[pathlib.Path]:
        name = re.sub(r"\W+", "_", self.system.lower())
        stem = f"{name}-{self.budget}s-seed{self.seed}"
        last = len(self.steps) - 1
        return [out / (stem if i == last else f"{stem}-stage{i + 1}") for i in range(len(self.steps))]

    def seconds(self, speeds: dict[str, Speeds]) -> float:
        """What its steps take at these speeds."""
        return sum(speeds[stage.name].seconds(n, n) for stage, n in zip(SYSTEMS[self.system], self.steps))

    def flops(self, speeds: dict[str, Speeds]) -> float:
        return sum(speeds[stage.name].total_flops(n, n) for stage, n in zip(SYSTEMS[self.system], self.steps))


def load_config(stage: Stage, data: str) -> Any:
    file, _, argument = stage.config.partition(":")
    config = importlib.import_module(f"configs.{file.removesuffix('.py')}").get_config(argument)
    where = {"input.path": data, "input.tokenizer": f"{data}/tokenizer.model"}
    config = config_lib.update(config, {**dict(stage.changes), **where, "epochs": 0.0, "steps": PLANNED})
    validation.validate(config)
    return config


def measure_speeds(path: pathlib.Path, systems: list[str], data: str, rounds: int) -> list[dict[str, Speeds]]:
    """Rounds of stage's name -> its speeds; those of `path` where they have all stages of these systems."""
    known: list[dict[str, dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else []
    stages = {stage.name: stage for system in systems for stage in SYSTEMS[system]}
    if not known or not stages.keys() <= known[0].keys():
        everything = {stage.name: stage for stages in SYSTEMS.values() for stage in stages}
        wanted = [name for name in everything if name in stages or (known and name in known[0])]
        runs = {name: Run(load_config(everything[name], data), PLANNED) for name in wanted}
        known = []
        for number, found in enumerate(measure(runs, rounds), 1):
            known.append({name: dataclasses.asdict(speeds) for name, speeds in found.items()})
            for name, speeds in found.items():
                print(
                    f"{number}/{rounds} {name:28} {speeds.cached:.3f} s a step, whole clips {speeds.unmasked:.3f}, "
                    f"decoding {speeds.decode:.3f}; {speeds.flops / 1e9:.1f} GFLOP",
                    flush=True,
                )
        write_atomically(path, json.dumps(known, indent=1).encode())
        jax.clear_caches()
    return [{name: Speeds(**values) for name, values in found.items()} for found in known]


def make_plan(system: str, budget: int, seed: int, speeds: dict[str, Speeds], out: pathlib.Path) -> Plan:
    """The most steps, in the stages' shares, that the budget holds; those of a run that was begun."""
    stages = SYSTEMS[system]
    files = [workdir / "config.json" for workdir in Plan(system, budget, seed, (0,) * len(stages)).workdirs(out)]
    if all(file.is_file() for file in files):
        return Plan(system, budget, seed, tuple(json.loads(file.read_text())["steps"] for file in files))

    def split(steps: int) -> tuple[int, ...]:
        return tuple(max(1, round(stage.share * steps)) for stage in stages)

    steps = 1
    while Plan(system, budget, seed, split(steps + 1)).seconds(speeds) <= budget:
        steps += 1
    return Plan(system, budget, seed, split(steps))


def train(plan: Plan, out: pathlib.Path, data: str) -> None:
    """Trains the run's stages by the training binary, which goes on where it stopped."""
    before = None
    every = math.ceil(sum(plan.steps) / POINTS)
    for stage, steps, workdir in zip(SYSTEMS[plan.system], plan.steps, plan.workdirs(out)):
        values = {
            **dict(stage.changes),
            "input.path": data,
            "input.tokenizer": f"{data}/tokenizer.model",
            "epochs": 0.0,
            "steps": steps,
            "seed": plan.seed,
            "log_every": every,
            "evaluation.every_steps": every,
            "evaluation.bootstrap": 0,
            "checkpoint.every_steps": 200,
            "checkpoint.keep": 1,
            **({"init_from": before} if before else {}),
        }
        flags = [f"--config.{key}={value}" for key, value in values.items()]
        command = [sys.executable, "-m", "vlp_jax.train", f"--config=configs/{stage.config}", f"--workdir={workdir}"]
        call([*command, *flags], workdir.with_suffix(".log"))
        before = workdir


def call(command: list[str], log: pathlib.Path) -> None:
    """Runs a binary, its output going to a file; ends this process where it fails."""
    with log.open("ab") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ)
    if done.returncode:
        tail = log.read_text(errors="replace").splitlines()[-5:]
        raise SystemExit("\n".join([f"{' '.join(command)} ended with {done.returncode}; {log}:", *tail]))


def evaluated(workdir: pathlib.Path, steps: int, split: str) -> dict[str, Any]:
    """The result of retrieval on a split, from the evaluation binary."""
    path = workdir / "evaluation" / f"retrieval_{split}_{steps}.json"
    if not path.exists():
        command = [sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}", "--task=retrieval"]
        # The runs themselves were told to draw no intervals on the way.
        call([*command, f"--split={split}", f"--bootstrap={BOOTSTRAP}"], workdir.with_suffix(".log"))
    return json.loads(path.read_text())


def recall_at_1(result: dict[str, Any]) -> float:
    """Mean of both directions, percent."""
    return (result["text_to_video"]["R@1"] + result["video_to_text"]["R@1"]) / 2


def on_the_way(plan: Plan, out: pathlib.Path, speeds: dict[str, Speeds]) -> list[tuple[float, float]]:
    """`(seconds, R@1 of the validation split)` during a run."""
    points, before = [], 0.0
    for stage, steps, workdir in zip(SYSTEMS[plan.system], plan.steps, plan.workdirs(out)):
        speed = speeds[stage.name]
        for line in read_metrics(workdir):
            if "validation/text_to_video/R1" in line:
                mean = (line["validation/text_to_video/R1"] + line["validation/video_to_text/R1"]) / 2
                points.append((before + speed.seconds(line["step"], steps), mean))
        before += speed.seconds(steps, steps)
    return points


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """The curves: full runs as points joined by lines, what was measured on the way as faint ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    colors = {system: f"C{i}" for i, system in enumerate(SYSTEMS)}
    for key, axis, label in zip(("seconds", "flops"), axes, ("pre-training time, s (2 CPU cores)", "training FLOPs")):
        for system in dict.fromkeys(row["system"] for row in rows):
            mine = [row for row in rows if row["system"] == system]
            ends = sorted(ends_of(rows, system, operator.itemgetter(key)).items())
            x, y = [cost for cost, _ in ends], [statistics.mean(values) for _, values in ends]
            axis.plot(x, y, "-o", color=colors[system], label=system)
            for row in mine:
                axis.plot(row[key], row["R@1"], ".", color=colors[system], alpha=0.6)
                if key == "seconds":
                    axis.plot(*zip(*row["curve"]), color=colors[system], alpha=0.25, linewidth=1)
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("R@1, %, mean of both directions, not fine-tuned")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def interval_of_both(result: dict[str, Any]) -> tuple[float, float]:
    """95% interval of the mean of both directions' R@1, clips being resampled."""
    rows = result["per_query"]
    hits = np.asarray([[row[f"{d}_rank"] == 1 for d in ("text_to_video", "video_to_text")] for row in rows])
    return statistics_lib.interval(
        hits, lambda drawn: 100 * drawn.mean(), groups_Q=[row["clip_id"] for row in rows], samples=BOOTSTRAP, seed=0
    )


def report(plans: list[Plan], out: pathlib.Path, rounds: list[dict[str, Speeds]]) -> tuple[str, list[dict[str, Any]]]:
    """The section for RESULTS.md and the rows behind it."""
    rows: list[dict[str, Any]] = []
    speeds = middle(rounds)
    for plan in plans:
        workdir, steps = plan.workdirs(out)[-1], plan.steps[-1]
        test = evaluated(workdir, steps, "test")
        rows.append(
            {
                "system": plan.system,
                "seed": plan.seed,
                "steps": sum(plan.steps),
                "seconds": plan.seconds(speeds),
                "seconds_by_round": [plan.seconds(one) for one in rounds],
                "flops": plan.flops(speeds),
                "R@1": recall_at_1(test),
                "interval": interval_of_both(test),
                "compositional": recall_at_1(evaluated(workdir, steps, "test_compositional")),
                "curve": on_the_way(plan, out, speeds),
            }
        )
    names = "system,steps,seconds,PFLOP,seed,R@1,95%,unseen pairings".split(",")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        low, high = row["interval"]
        lines.append(
            f"| {row['system']} | {row['steps']} | {row['seconds']:.0f} | {row['flops'] / 1e15:.2f} | {row['seed']} | "
            f"{row['R@1']:.1f} | {low:.1f} to {high:.1f} | {row['compositional']:.1f} |"
        )
    lines += ["", "R@1 is the mean of both directions.", ""]
    seconds, petaflop = (lambda cost: f"{cost:.0f} s"), (lambda cost: f"{cost / 1e15:.3f} PFLOP")
    of_round = lambda pair, number: pair_of(rows, pair, lambda row: row["seconds_by_round"][number])
    for pair in RIVALS:
        time, flops = (pair_of(rows, pair, operator.itemgetter(key)) for key in ("seconds", "flops"))
        each = [of_round(pair, number) for number in range(len(rounds))]
        for mark in MARKS:
            lines += mark_lines("time", mark, time, seconds, each) + mark_lines("FLOPs", mark, flops, petaflop)
    return "\n".join(lines), rows


def replace_section(path: pathlib.Path, marker: str, text: str) -> None:
    """Replaces what stands between the two lines `marker` of a file; ends this process where they are not there."""
    parts = path.read_text().split(marker)
    if len(parts) != 3:
        raise SystemExit(f"{path} holds the line {marker} {len(parts) - 1} times: expected twice, around the section")
    write_atomically(path, f"{parts[0]}{marker}\n\n{text}\n\n{marker}{parts[2]}".encode())


def main() -> None:
    launch.use_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help="speeds, train, report; all of them by default")
    parser.add_argument("--data", default="datasets/moving_shapes")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/cost_quality"))
    parser.add_argument("--budgets", default="112,225,450,900", help="seconds, comma-separated (%(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each speed (%(default)s)")
    parser.add_argument("--systems", default="SMAUG,Singularity,VindLU", help=f"some of {', '.join(SYSTEMS)}")
    parser.add_argument(
        "--one-seed", default="VindLU,SMAUG 4 frames,Singularity 4 frames", help="systems (%(default)s)"
    )
    parser.add_argument("--results", type=pathlib.Path, help="file whose section is replaced")
    parser.add_argument("--picture", type=pathlib.Path, help="PNG to write; OUT/cost_quality.png by default")
    given = parser.parse_args()
    systems = given.systems.split(",")
    one_seed = given.one_seed.split(",")
    unknown = (set(systems) | set(one_seed)) - set(SYSTEMS) | set(given.steps) - {"speeds", "train", "report"}
    if unknown:
        parser.error(f"unknown {unknown}: expected systems of {list(SYSTEMS)} and steps of speeds, train, report")
    wanted = set(given.steps or ("speeds", "train", "report"))
    budgets, seeds = sorted(map(int, given.budgets.split(","))), list(map(int, given.seeds.split(",")))
    given.out.mkdir(parents=True, exist_ok=True)
    rounds = measure_speeds(given.out / "speeds.json", systems, given.data, given.rounds)
    speeds = middle(rounds)
    if wanted == {"speeds"}:
        return
    plans = [
        make_plan(system, budget, seed, speeds, given.out)
        # The runs that matter most first, the seeds of the systems in turn.
        for budget in reversed(budgets)
        for seed in (seeds if budget == budgets[-1] else seeds[:1])
        for system in systems
        if (system not in one_seed or (seed == seeds[0] and budget == budgets[-1]))
    ]
    if "train" in wanted:
        for number, plan in enumerate(plans, 1):
            print(f"{number}/{len(plans)}: {plan}", flush=True)
            train(plan, given.out, given.data)
    if "report" not in wanted:
        return
    text, rows = report(plans, given.out, rounds)
    print(text)
    picture = given.picture or given.out / "cost_quality.png"
    draw(rows, picture)
    print(f"picture: {picture}")
    if given.results:
        replace_section(given.results, MARKER, text)
    print(json.dumps({"benchmark": "cost_quality", "runs": rows}))


if __name__ == "__main__":
    main()
