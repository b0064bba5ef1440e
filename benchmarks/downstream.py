"""Retrieval, questions and multiple choice after equal pre-training, `python -m benchmarks.downstream`.

Takes the runs that `benchmarks.cost_quality` has pre-trained, one of each system and seed, and measures on
moving_shapes, with 95% bootstrap intervals: retrieval and multiple choice as they are, then, each fine-tuned from the
same checkpoint by `configs/finetune/`, retrieval, question answering and multiple choice, by the checkpoint that the
validation split chooses. Retrieval is measured by dual-encoder scores, and with the best 16 reranked. SMAUG is compared
with each other system of the same seed by the paired bootstrap: these are two checkpoints, and another seed may differ
by more than the interval says. What is done is not done again. Prints the table and ends with one JSON line;
`--results FILE` replaces the section of that file between the lines `<!-- downstream -->`.
"""

import argparse
import json
import pathlib
import re
import sys

from benchmarks.cost_quality import BOOTSTRAP, SYSTEMS, Plan, call, replace_section
from vlp_jax import launch
from vlp_jax.files import write_atomically

MARKER = "<!-- downstream -->"
# Task -> epochs: its config in configs/finetune is that of moving_shapes.
TUNED = {"retrieval": 1.0, "question_answering": 0.4, "multiple_choice": 1.0}
# Row of the table -> the task that is fine-tuned first, and flags of the evaluation.
MEASURED: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "retrieval, as pre-trained": (None, ("--task=retrieval", "--split=test", "--rerank=0")),
    "retrieval, as pre-trained, 16 reranked": (None, ("--task=retrieval", "--split=test", "--rerank=16")),
    "multiple choice, as pre-trained": (None, ("--task=multiple_choice", "--split=mc_test")),
    "retrieval, fine-tuned": ("retrieval", ("--rerank=0",)),
    "retrieval, fine-tuned, 16 reranked": ("retrieval", ("--rerank=16",)),
    "question answering, fine-tuned": ("question_answering", ()),
    "multiple choice, fine-tuned": ("multiple_choice", ()),
}


def evaluate(workdir: pathlib.Path, out: pathlib.Path, *flags: str) -> None:
    """Runs the evaluation binary and copies its result to `out`."""
    command = [sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}", *flags]
    log = workdir.with_suffix(".log")
    call(command, log)
    said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("every query: ")]
    write_atomically(out, pathlib.Path(said[-1].removeprefix("every query: ")).read_bytes())


def fine_tune(task: str, start: pathlib.Path, workdir: pathlib.Path, seed: int, data: str) -> None:
    """Trains `task` from the checkpoint of `start`, or goes on with it."""
    flags = {"init_from": start, "input.path": data, "epochs": TUNED[task], "seed": seed}
    command = [sys.executable, "-m", "vlp_jax.train", f"--config=configs/finetune/{task}.py:moving_shapes"]
    call(
        [*command, f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in flags.items())],
        workdir.with_suffix(".log"),
    )


def measure(start: pathlib.Path, out: pathlib.Path, seed: int, data: str) -> dict[str, pathlib.Path]:
    """Result file of every row for one pre-trained run."""
    files = {}
    for row, (task, flags) in MEASURED.items():
        files[row] = file = out / f"{start.name}-{re.sub(r'[^a-z0-9]+', '_', row)}.json"
        if file.exists():
            continue
        if task is None:
            evaluate(start, file, *flags, f"--input_path={data}", f"--bootstrap={BOOTSTRAP}")
        else:
            workdir = out / f"{start.name}-{task}"
            fine_tune(task, start, workdir, seed, data)
            evaluate(workdir, file, *flags, "--checkpoint=best")
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
    unknown = set(given.systems.split(",")) - set(SYSTEMS)
    if unknown:
        parser.error(f"unknown {unknown}: expected some of {list(SYSTEMS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, int], dict[str, pathlib.Path]] = {}
    for seed in map(int, given.seeds.split(",")):
        for system in given.systems.split(","):
            start = Plan(system, given.budget, seed, (1,)).workdirs(given.runs)[-1]
            if not start.is_dir():
                parser.error(f"{start} is not there: run `python -m benchmarks.cost_quality` first")
            found[system, seed] = measure(start, given.out, seed, given.data)
    lines = ["|".join(["", " ", *(f" {system}, seed {seed} " for system, seed in found), ""])]
    lines.append("|" + "---|" * (len(found) + 1))
    for row in MEASURED:
        lines.append("|".join(["", f" {row} ", *(f" {cell(files[row])} " for files in found.values()), ""]))
    lines.append("")
    for (system, seed), files in found.items():
        if system == "SMAUG" or ("SMAUG", seed) not in found:
            continue
        for row in MEASURED:
            log = given.out / f"compare-{files[row].stem}.log"
            log.unlink(missing_ok=True)
            call([sys.executable, "-m", "vlp_jax.compare", str(files[row]), str(found["SMAUG", seed][row])], log)
            compared = json.loads(log.read_text().splitlines()[-1])
            for name, values in compared["metrics"].items():
                if name.endswith("R@1") or name == "accuracy":
                    lines.append(
                        f"    {row}, {name}, seed {seed}: SMAUG - {system} = {values['difference']:+.1f} "
                        f"({values['low']:+.1f} to {values['high']:+.1f}), p of these two checkpoints {values['p']:.3f}"
                    )
    text = "\n".join(lines)
    print(text)
    if given.results:
        replace_section(given.results, MARKER, text)
    results = {f"{system}, {seed}": {c: str(f) for c, f in files.items()} for (system, seed), files in found.items()}
    print(json.dumps({"benchmark": "downstream", "results": results}))


if __name__ == "__main__":
    main()
