"""What a second of pre-training buys: SMAUG against Singularity and VindLU, `python -m benchmarks.cost_quality`.

Three steps, each of which skips what is done, so that the same command goes on after an interruption:

1. `speeds`: the speed of every system's steps, input included, in rounds of one system after the other in this process;
   the fastest counts. Nothing else should run.
2. `train`: every run trains, by the training binary, the steps that fill its budget of seconds at that speed, schedule
   and all: what else the machine does meanwhile changes no result. SMAUG and Singularity spend twice as many steps on
   one frame as then on four, as Singularity's authors do. Retrieval on the validation split is measured on the way and
   not timed.
3. `report`: zero-shot retrieval of the test split with 95% intervals, a curve as PNG, and for each mark of R@1 the
   seconds that SMAUG and Singularity need to reach it: budgets are interpolated, in their logarithm, between runs.

    python -m benchmarks.cost_quality --out runs/cost_quality --budgets 112,225,450,900 --seeds 0,1,2

The largest budget is trained with every seed, smaller ones with the first; systems of `--one-seed` with the first and
the largest budget alone. Prints the table and ends with one JSON line; `--results FILE` replaces the section of that
file between the lines `<!-- cost_quality -->`.
"""

import argparse
import dataclasses
import importlib
import itertools
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
from typing import Any

import jax

from benchmarks.timed_run import Run, Speeds, fastest
from vlp_jax import config as config_lib
from vlp_jax import launch, validation
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
    "SMAUG, 256 patches": (
        Stage("smaug.py:small_stage1", 2 / 3, MASKED_FINE),
        Stage("smaug.py:small_stage2", 1 / 3, MASKED_FINE),
    ),
    "Singularity, 256 patches": (
        Stage("singularity.py:small_stage1", 2 / 3, FINE),
        Stage("singularity.py:small_stage2", 1 / 3, FINE),
    ),
}
# Whose times to a mark are compared.
RIVALS = (("SMAUG", "Singularity"), ("SMAUG, 256 patches", "Singularity, 256 patches"))


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


def load_config(stage: Stage, data: str) -> Any:
    file, _, argument = stage.config.partition(":")
    config = importlib.import_module(f"configs.{file.removesuffix('.py')}").get_config(argument)
    where = {"input.path": data, "input.tokenizer": f"{data}/tokenizer.model"}
    config = config_lib.update(config, {**dict(stage.changes), **where, "epochs": 0.0, "steps": PLANNED})
    validation.validate(config)
    return config


def measure_speeds(path: pathlib.Path, systems: list[str], data: str, rounds: int) -> dict[str, Speeds]:
    """Stage's name -> the fastest of `rounds` measurements, those that `path` holds included."""
    known: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    stages = {stage.name: stage for system in systems for stage in SYSTEMS[system]}
    for count, stage in itertools.product(range(1, rounds + 1), stages.values()):
        measured = known.setdefault(stage.name, [])
        if len(measured) < count:
            speeds = Run(load_config(stage, data), PLANNED).speeds()
            jax.clear_caches()
            measured.append(dataclasses.asdict(speeds))
            write_atomically(path, json.dumps(known, indent=1).encode())
            print(
                f"{stage.name:28} {speeds.first:.3f} s a step, cached {speeds.cached:.3f}, unmasked "
                f"{speeds.unmasked:.3f}; {speeds.flops / 1e9:.1f} GFLOP",
                flush=True,
            )
    return {name: fastest([Speeds(**values) for values in measured]) for name, measured in known.items()}


def make_plan(system: str, budget: int, seed: int, speeds: dict[str, Speeds]) -> Plan:
    """The most steps, in the stages' shares, that the budget holds."""
    stages = SYSTEMS[system]

    def split(steps: int) -> tuple[int, ...]:
        return tuple(max(1, round(stage.share * steps)) for stage in stages)

    def seconds(steps: int) -> float:
        return sum(speeds[stage.name].seconds(n, n) for stage, n in zip(stages, split(steps)))

    steps = 1
    while seconds(steps + 1) <= budget:
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


def time_to(mark: float, ends: dict[int, list[float]]) -> float | None:
    """Seconds of the run that ends at R@1 = `mark`, interpolated in log seconds; None outside what was trained.

    Args:
      ends: budget -> R@1 at the end of its runs.
    """
    curve = [(budget, statistics.mean(values)) for budget, values in sorted(ends.items())]
    for (t0, r0), (t1, r1) in itertools.pairwise(curve):
        if r0 <= mark <= r1 and r0 < r1:
            return math.exp(math.log(t0) + (mark - r0) / (r1 - r0) * (math.log(t1) - math.log(t0)))
    return None


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """The curves: full runs as points joined by lines, what was measured on the way as faint ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    colors = {system: f"C{i}" for i, system in enumerate(SYSTEMS)}
    for key, axis, label in zip(("budget", "flops"), axes, ("pre-training time, s (2 CPU cores)", "training FLOPs")):
        for system in dict.fromkeys(row["system"] for row in rows):
            mine = [row for row in rows if row["system"] == system]
            budgets = sorted({row["budget"] for row in mine})
            ends = [[row for row in mine if row["budget"] == budget] for budget in budgets]
            x = [statistics.mean(row[key] for row in group) for group in ends]
            y = [statistics.mean(row["R@1"] for row in group) for group in ends]
            axis.plot(x, y, "-o", color=colors[system], label=system)
            for row in mine:
                axis.plot(row[key], row["R@1"], ".", color=colors[system], alpha=0.6)
                if key == "budget":
                    axis.plot(*zip(*row["curve"]), color=colors[system], alpha=0.25, linewidth=1)
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("zero-shot R@1, %, mean of both directions")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def report(plans: list[Plan], out: pathlib.Path, speeds: dict[str, Speeds]) -> tuple[str, list[dict[str, Any]]]:
    """The section for RESULTS.md and the rows behind it."""
    rows: list[dict[str, Any]] = []
    for plan in plans:
        workdir, steps = plan.workdirs(out)[-1], plan.steps[-1]
        test = evaluated(workdir, steps, "test")
        stages = list(zip(SYSTEMS[plan.system], plan.steps))
        rows.append(
            {
                "system": plan.system,
                "budget": plan.budget,
                "seed": plan.seed,
                "steps": sum(plan.steps),
                "flops": sum(speeds[stage.name].total_flops(n, n) for stage, n in stages),
                "R@1": recall_at_1(test),
                "intervals": [test["intervals"][f"{d}/R@1"] for d in ("text_to_video", "video_to_text")],
                "compositional": recall_at_1(evaluated(workdir, steps, "test_compositional")),
                "curve": on_the_way(plan, out, speeds),
            }
        )
    names = "system,seconds,seed,steps,PFLOP,R@1,95% text to video,95% video to text,unseen pairings".split(",")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        spans = [f"{low:.1f} to {high:.1f}" for low, high in row["intervals"]]
        lines.append(
            f"| {row['system']} | {row['budget']} | {row['seed']} | {row['steps']} | {row['flops'] / 1e15:.2f} | "
            f"{row['R@1']:.1f} | {spans[0]} | {spans[1]} | {row['compositional']:.1f} |"
        )
    ends: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        ends.setdefault(row["system"], {}).setdefault(row["budget"], []).append(row["R@1"])
    lines += ["", "R@1 is the mean of both directions.", ""]
    for ours, theirs in RIVALS:
        pair = (ours, ends.get(ours, {})), (theirs, ends.get(theirs, {}))
        lines += [line for mark in MARKS if (line := mark_line(mark, *pair))]
    return "\n".join(lines), rows


def mark_line(mark: float, ours: tuple[str, dict[int, list[float]]], theirs: tuple[str, dict[int, list[float]]]) -> str:
    """What both need to reach a mark, and the ratio; '' for marks that neither's curve holds.

    Args:
      ours, theirs: name, and `ends` as of `time_to`.
    """

    def said(ends):
        seconds = time_to(mark, ends)
        if seconds is not None:
            return seconds, f"{seconds:.0f} s"
        if ends and mark < statistics.mean(ends[min(ends)]):
            return None, f"under {min(ends)} s"
        return None, "not reached"

    (own, own_text), (other, other_text) = said(ours[1]), said(theirs[1])
    if own is None and other is None:
        return ""
    ratio = "none"
    if own and other:
        ratio = f"{other / own:.2f}"
    elif other and own_text.startswith("under"):
        ratio = f"over {other / min(ours[1]):.2f}"
    elif own and other_text.startswith("under"):
        ratio = f"under {min(theirs[1]) / own:.2f}"
    elif own and theirs[1]:
        ratio = f"over {max(theirs[1]) / own:.2f}"
    return f"    time to R@1 = {mark:g}: {ours[0]} {own_text}, {theirs[0]} {other_text}, ratio {ratio}"


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
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each speed (%(default)s)")
    parser.add_argument("--systems", default="SMAUG,Singularity,VindLU", help=f"some of {', '.join(SYSTEMS)}")
    parser.add_argument(
        "--one-seed", default="VindLU,SMAUG 4 frames,Singularity 4 frames", help="systems (%(default)s)"
    )
    parser.add_argument("--results", type=pathlib.Path, help="file whose section is replaced")
    parser.add_argument("--picture", type=pathlib.Path, help="PNG to write; OUT/cost_quality.png by default")
    given = parser.parse_args()
    systems = given.systems.split(",")
    unknown = set(systems) - set(SYSTEMS) | set(given.steps) - {"speeds", "train", "report"}
    if unknown:
        parser.error(f"unknown {unknown}: expected systems of {list(SYSTEMS)} and steps of speeds, train, report")
    wanted = set(given.steps or ("speeds", "train", "report"))
    budgets, seeds = sorted(map(int, given.budgets.split(","))), list(map(int, given.seeds.split(",")))
    one_seed = given.one_seed.split(",")
    given.out.mkdir(parents=True, exist_ok=True)
    speeds = measure_speeds(given.out / "speeds.json", systems, given.data, given.rounds)
    if wanted == {"speeds"}:
        return
    plans = [
        make_plan(system, budget, seed, speeds)
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
    text, rows = report(plans, given.out, speeds)
    print(text)
    picture = given.picture or given.out / "cost_quality.png"
    draw(rows, picture)
    print(f"picture: {picture}")
    if given.results:
        replace_section(given.results, MARKER, text)
    print(json.dumps({"benchmark": "cost_quality", "runs": rows}))


if __name__ == "__main__":
    main()
