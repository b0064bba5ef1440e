"""Retrieval, questions and multiple choice after equal pre-training, `python -m benchmarks.downstream`.

Takes the runs that `benchmarks.cost_quality` has pre-trained, one of each system and seed, and measures on
moving_shapes, with 95% bootstrap intervals: zero-shot retrieval and multiple choice, then, each fine-tuned from the
same checkpoint by `configs/finetune/`, retrieval, question answering and multiple choice, by the checkpoint that the
validation split chooses. SMAUG is compared with each other system of the same seed by the paired bootstrap. What is
done is not done again. Prints the table and ends with one JSON line; `--results FILE` replaces the section of that
file between the lines `<!-- downstream -->`.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

from benchmarks.cost_quality import BOOTSTRAP, SYSTEMS, Plan, call, replace_section
from vlp_jax import launch
from vlp_jax.files import write_atomically

MARKER = "<!-- downstream -->"
# Task -> epochs: its config in configs/finetune is that of moving_shapes.
TUNED = {"retrieval": 1.0, "question_answering": 0.4, "multiple_choice": 1.0}


def evaluate(workdir: pathlib.Path, out: pathlib.Path, *flags: str) -> dict[str, Any]:
    """Runs the evaluation binary, copies its result to `out`, and returns it."""
    if not out.exists():
        command = [sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}", *flags]
        log = workdir.with_suffix(".log")
        call(command, log)
        said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("every query: ")]
        write_atomically(out, pathlib.Path(said[-1].removeprefix("every query: ")).read_bytes())
    return json.loads(out.read_text())


def fine_tune(task: str, start: pathlib.Path, workdir: pathlib.Path, seed: int, data: str) -> None:
    """Trains `task` from the checkpoint of `start`, or goes on with it."""
    flags = {"init_from": start, "input.path": data, "epochs": TUNED[task], "seed": seed}
    command = [sys.executable, "-m", "vlp_jax.train", f"--config=configs/finetune/{task}.py:moving_shapes"]
    call(
        [*command, f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in flags.items())],
        workdir.with_suffix(".log"),
    )


def measure(start: pathlib.Path, out: pathlib.Path, seed: int, data: str) -> dict[str, pathlib.Path]:
    """Result file of every column for one pre-trained run."""
    files = {}
    for column, flags in {
        "retrieval, zero-shot": ("--task=retrieval", "--split=test"),
        "multiple choice, zero-shot": ("--task=multiple_choice", "--split=mc_test"),
    }.items():
        files[column] = out / f"{start.name}-zero_shot-{flags[0].partition('=')[2]}.json"
        evaluate(start, files[column], *flags, f"--input_path={data}", f"--bootstrap={BOOTSTRAP}")
    for task in TUNED:
        workdir = out / f"{start.name}-{task}"
        files[f"{task.replace('_', ' ')}, fine-tuned"] = result = out / f"{workdir.name}.json"
        if not result.exists():
            fine_tune(task, start, workdir, seed, data)
            evaluate(workdir, result, "--checkpoint=best")
    return files


def cell(path: pathlib.Path) -> str:
    """A result's main number with its interval."""
    result = json.loads(path.read_text())
    if "accuracy" in result:
        low, high = result["intervals"]["accuracy"]
        return f"{result['accuracy']:.1f} ({low:.1f} to {high:.1f})"
    parts = []
    for direction in ("text_to_video", "video_to_text"):
        low, high = result["intervals"][f"{direction}/R@1"]
        parts.append(f"{result[direction]['R@1']:.1f} ({low:.1f} to {high:.1f})")
    return " / ".join(parts)


def main() -> None:
    launch.use_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="datasets/moving_shapes")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/cost_quality"))
    parser.add_argument("--budget", type=int, default=900, help="seconds of pre-training (%(default)s)")
    parser.add_argument("--seeds", default="0", help="comma-separated (%(default)s)")
    parser.add_argument("--systems", default="SMAUG,Singularity,VindLU", help=f"some of {', '.join(SYSTEMS)}")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/downstream"))
    parser.add_argument("--results", type=pathlib.Path, help="file whose section is replaced")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, int], dict[str, pathlib.Path]] = {}
    for seed in map(int, given.seeds.split(",")):
        for system in given.systems.split(","):
            start = Plan(system, given.budget, seed, (1,)).workdirs(given.runs)[-1]
            if not start.is_dir():
                parser.error(f"{start} is not there: run `python -m benchmarks.cost_quality` first")
            found[system, seed] = measure(start, given.out, seed, given.data)
    columns = list(next(iter(found.values())))
    lines = [f"| system, seed | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for (system, seed), files in found.items():
        lines.append(f"| {system}, {seed} | {' | '.join(cell(files[column]) for column in columns)} |")
    lines.append("")
    for (system, seed), files in found.items():
        if system == "SMAUG" or ("SMAUG", seed) not in found:
            continue
        for column in columns:
            log = given.out / f"compare-{files[column].stem}.log"
            log.unlink(missing_ok=True)
            call([sys.executable, "-m", "vlp_jax.compare", str(files[column]), str(found["SMAUG", seed][column])], log)
            compared = json.loads(log.read_text().splitlines()[-1])
            for name, row in compared["metrics"].items():
                if name.endswith("R@1") or name == "accuracy":
                    lines.append(
                        f"    {column}, {name}, seed {seed}: SMAUG - {system} = {row['difference']:+.1f} "
                        f"({row['low']:+.1f} to {row['high']:+.1f}), p = {row['p']:.3f}"
                    )
    text = "\n".join(lines)
    print(text)
    if given.results:
        replace_section(given.results, MARKER, text)
    results = {f"{system}, {seed}": {c: str(f) for c, f in files.items()} for (system, seed), files in found.items()}
    print(json.dumps({"benchmark": "downstream", "results": results}))


if __name__ == "__main__":
    main()
