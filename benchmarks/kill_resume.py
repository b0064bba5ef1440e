"""Kills a training run at random moments and checks that nothing is lost: `python -m benchmarks.kill_resume`.

An uninterrupted run is compared with one that gets SIGKILL again and again, at random moments: a quarter of them during
start-up, the others in the steps, checkpoint writes included (one is written every second step here). Each restart must
continue from the newest checkpoint that was committed, and every logged loss must equal the uninterrupted run's to the
last bit. Ends with status 1 where either fails. Prints one JSON line last.
"""

import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

from vlp_jax.telemetry.writers import read_metrics

UNSTABLE = {"examples_per_second", "data_wait_share", "bad_clips", "device_hours", "mfu"}
SMALL = {
    "epochs": 0.0,
    "steps": 120,
    "batch_size": 8,
    "log_every": 1,
    "input.image_size": 16,
    "model.vision.width": 32,
    "model.text.width": 32,
    "model.text.layers": 1,
    "model.decoder.width": 16,
    "checkpoint.every_steps": 2,
}


def losses(workdir: pathlib.Path) -> list[dict]:
    """The metrics of a run without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in UNSTABLE} for line in read_metrics(workdir)]


def committed(workdir: pathlib.Path) -> int:
    """The newest committed step, 0 where there is none."""
    folder = workdir / "checkpoints"
    names = [p.name.split(".")[0] for p in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def unfinished(workdir: pathlib.Path) -> set[tuple[str, int]]:
    """What a process left that was killed in a checkpoint write: names, and what tells two of one name apart."""
    return {(p.name, p.stat().st_ino) for p in (workdir / "checkpoints").glob("unfinished-*")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="datasets/moving_shapes")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    changes = {**SMALL, "input.path": given.data, "input.tokenizer": f"{given.data}/tokenizer.model"}
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(root / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

        def start(workdir):
            flags = [f"--config.{key}={value}" for key, value in changes.items()]
            command = [sys.executable, "-m", "vlp_jax.train", "--config=configs/smaug.py:tiny", f"--workdir={workdir}"]
            return subprocess.Popen([*command, *flags], env=environment, stderr=subprocess.PIPE, text=True)

        def uninterrupted(workdir):
            """Seconds to the first logged step, and from there to the end."""
            begin, process = time.monotonic(), start(workdir)
            while process.poll() is None and not (workdir / "metrics.jsonl").exists():
                time.sleep(0.05)
            first = time.monotonic()
            errors = process.communicate()[1]
            if process.returncode:
                sys.exit(f"the uninterrupted run failed:\n{errors}")
            return first - begin, time.monotonic() - first

        uninterrupted(root / "whole")
        starting, running = uninterrupted(root / "timed")  # nothing is compiled any more, as in the runs to come
        print(f"uninterrupted: {starting:.1f} s to the first step, {changes['steps']} steps in {running:.1f} s")
        workdir, during_save = root / "killed", 0
        lost: list[int] = []
        wrong_starts: list[tuple[int, int]] = []
        for number in range(given.kills):
            before, leftover = committed(workdir), unfinished(workdir)
            process = start(workdir)
            # The lives after start-up add up to about one run.
            in_steps = rng.random() < 0.75
            time.sleep(starting + rng.uniform(0, 2.6 * running / given.kills) if in_steps else rng.uniform(0, starting))
            finished = process.poll() is not None
            process.kill()
            said = re.search(r"continuing .* from step (\d+)", process.communicate()[1])
            if said and int(said[1]) != before:
                wrong_starts.append((before, int(said[1])))
            saving = bool(unfinished(workdir) - leftover)  # the next save removes what an earlier kill has left
            during_save += saving
            lines = read_metrics(workdir) if (workdir / "metrics.jsonl").exists() else []
            logged = max((line["step"] for line in lines), default=0)
            lost.append(max(0, logged - committed(workdir)))
            state = "finished before" if finished else "in a checkpoint write" if saving else "killed"
            print(f"kill {number + 1:2}: {state}; steps {before} to {committed(workdir)}", flush=True)
        last = start(workdir)
        errors = last.communicate()[1]
        if last.returncode:
            sys.exit(f"the run could not be continued:\n{errors}")
        expected, got = losses(root / "whole"), losses(workdir)
        differing = [a["step"] for a, b in zip(expected, got) if a != b]
        equal = len(expected) == len(got) and not differing
    result = {
        "benchmark": "kill_resume",
        "kills": given.kills,
        "during_save": during_save,
        "steps_lost_max": max(lost),
        "equal": equal,
        "wrong_starts": wrong_starts,
        "first_difference": differing[:1],
    }
    print(json.dumps(result))
    sys.exit(not equal or bool(wrong_starts))


if __name__ == "__main__":
    main()
