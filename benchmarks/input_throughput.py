"""Clips a second, from the file to the train step: `python -m benchmarks.input_throughput --versus-python PATH`.

The clips are 10 s of 320 x 240 at 30 frames/s in H.264, with a key frame every 250 and every 30 frames; they are made
once and kept in `--clips`. Tables:

  strategies  4 and 8 frames to 224 px: decode all, in-filter scaling, seek per frame, ours, and ours after the
              `--fps 2 --short-side 224` preparation; decord 0.6 and OpenCV where `--versus-python` names a Python
              that has them (`--make-versus DIR` makes one). In turn, on one core.
  formats     ours from a folder of mp4 with a table, from tar shards and from ArrayRecord.
  pipeline    training batches with 0, 1 and 2 worker processes against decoding alone with as many threads, in turn;
              and into the training step of configs/smaug.py:tiny.

Clips a second and core are clips over CPU seconds, medians of rounds, so that other work on the machine counts little;
the pipeline is in wall time, with medians of rounds' ratios. The last line is one JSON object:

  vs_decord           ours over decord, the least of the four combinations of key frames and frames; null without it
  pipeline_share      pipeline over decoding alone, wall time, the least over 0, 1 and 2 worker processes
  pipeline_cpu_share  the same in clips over CPU seconds of all processes: what is left of it on a busy machine
  fps2_ratio          prepared clips, over decoding all of the originals: the least of the four combinations
  fps2_ratio_to_ours  prepared clips, over our decoding of the originals: the least of the four
"""

import argparse
import collections
import csv
import functools
import io
import itertools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Callable
from typing import Any

from benchmarks import input_pipeline as piping
from benchmarks import input_strategies as strategies
from data.corpora.reencode import reencode
from data.shards_to_array_record import convert
from vlp_jax.input import video

INTERVALS, FRAMES = (250, 30), (4, 8)
RECORDS = 64  # in the sources that are read from
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()


def pin(cores) -> None:
    """Keeps this thread on these cores, where the system can."""
    if CORES:
        os.sched_setaffinity(0, cores)


class Versus:
    """A process of another Python that decodes with decord and OpenCV, and waits idle in between."""

    def __init__(self, python: str, core: int):
        script = pathlib.Path(__file__).with_name("input_versus.py")
        command = [python, str(script), str(core)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions: dict[str, str] = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of --versus-python ended with {self._process.wait()}")
        return json.loads(line)

    def time(self, tool: str, path: str, indices: list[int]) -> float:
        """CPU seconds of one clip."""
        assert self._process.stdin
        request = {"tool": tool, "path": path, "indices": indices, "size": strategies.SIZE}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()["cpu"]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def make_versus(folder: pathlib.Path) -> str:
    """Makes an environment with decord 0.6 and OpenCV; returns its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        packages = ["decord==0.6.0", "opencv-python-headless", "numpy"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return str(python)


def cpu_seconds(function: Callable, *args) -> float:
    start = time.process_time()
    function(*args)
    return time.process_time() - start


# --- Strategies -------------------------------------------------------------------------------------------------------


def compare_strategies(
    clips: dict[int, list[str]], prepared: dict[int, list[str]], rounds: int, versus: Versus | None
) -> dict[str, dict[tuple[int, int], float]]:
    """Clips a second and core, by strategy and (key-frame interval, frames); all take turns, clip by clip."""

    def timed(decode: Callable, paths: dict[int, list[str]], gop: int, frames: int, i: int) -> float:
        return cpu_seconds(decode, paths[gop][i], frames)

    def elsewhere(tool: str, gop: int, frames: int, i: int) -> float:
        assert versus
        return versus.time(tool, clips[gop][i], strategies.wanted(frames))

    runs: dict[str, Callable[[int, int, int], float]] = {
        name: functools.partial(timed, decode, clips) for name, decode in strategies.STRATEGIES.items()
    }
    runs["ours, 2 fps 224 px"] = functools.partial(timed, strategies.ours, prepared)
    runs |= {tool: functools.partial(elsewhere, tool) for tool in (versus.versions if versus else ())}
    seconds: dict[str, dict[tuple[int, int], list[float]]] = {
        name: {case: [] for case in itertools.product(INTERVALS, FRAMES)} for name in runs
    }
    for gop, frames in itertools.product(INTERVALS, FRAMES):
        for round_ in range(rounds + 1):
            for i in range(len(clips[gop])):
                for name, run in runs.items():
                    taken = run(gop, frames, i)
                    if round_:  # the first one warms up
                        seconds[name][gop, frames].append(taken)
    return {name: {case: 1 / statistics.median(s) for case, s in by.items()} for name, by in seconds.items()}


# --- Formats ----------------------------------------------------------------------------------------------------------


def write_formats(folder: pathlib.Path, clips: list[str]) -> dict[str, tuple[str, str]]:
    """Writes the clips as a table of files, a tar shard and a dataset; returns (kind, path) by name."""
    table = folder / "clips.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "caption"])
        rows.writerows([path, f"word{i % 100}"] for i, path in enumerate(clips))
    shard = folder / "00000.tar"
    with tarfile.open(shard, "w") as tar:
        for i, path in enumerate(clips):
            for suffix, data in (("mp4", pathlib.Path(path).read_bytes()), ("txt", b"word%d" % (i % 100))):
                member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    convert(str(shard), str(folder / "dataset"))
    paths = {
        "mp4 folder": ("table", table),
        "tar shards": ("shards", shard),
        "ArrayRecord": ("tfds", folder / "dataset"),
    }
    return {name: (kind, str(path)) for name, (kind, path) in paths.items()}


def compare_formats(written: dict[str, tuple[str, str]], rounds: int) -> dict[str, float]:
    """Clips a second and core of reading and decoding 4 frames, by format."""
    opened = {name: piping.open_format(*place) for name, place in written.items()}
    seconds = collections.defaultdict(list)
    for round_ in range(rounds + 1):
        for i in range(8):
            for name, source in opened.items():
                taken = cpu_seconds(lambda: video.decode(source[i].video, frames=4, size=strategies.SIZE))  # noqa: B023
                if round_:
                    seconds[name].append(taken)
    return {name: 1 / statistics.median(s) for name, s in seconds.items()}


# --- The report -------------------------------------------------------------------------------------------------------


def print_table(title: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    """Prints rows under a title."""
    width = max(map(len, rows)) + 2
    print(f"\n{title}\n{'':{width}}" + "".join(f"{c:>16}" for c in columns))
    for name, cells in rows.items():
        print(f"{name:{width}}" + "".join(f"{c:>16}" for c in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer clips and rounds: under 3 minutes")
    parser.add_argument("--clips", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "vlp_jax_clips")
    parser.add_argument("--versus-python", default="", help="a Python that has decord 0.6 and OpenCV")
    parser.add_argument("--make-versus", type=pathlib.Path, help="make an environment with both there, and use it")
    options = parser.parse_args()
    count, rounds = (2, 1) if options.quick else (4, 5)

    clips = {gop: strategies.make_clips(options.clips, gop, count) for gop in INTERVALS}
    prepared: dict[int, list[str]] = {gop: [] for gop in INTERVALS}
    work = pathlib.Path(tempfile.mkdtemp(prefix="vlp_jax_input_"))
    try:
        for gop, paths in clips.items():
            for i, path in enumerate(paths):
                prepared[gop].append(str(work / f"prepared_{gop}_{i}.mp4"))
                pathlib.Path(prepared[gop][-1]).write_bytes(reencode(path, short_side=strategies.SIZE, fps=2))
        result = measure(clips, prepared, work, options, rounds)
    finally:
        shutil.rmtree(work)
    print(json.dumps(result))


def measure(clips, prepared, work: pathlib.Path, options, rounds: int) -> dict[str, Any]:
    """Runs everything, prints the tables and returns the JSON object."""
    size = {gop: [os.path.getsize(p) for p in paths] for gop, paths in clips.items()}
    small = {gop: [os.path.getsize(p) for p in paths] for gop, paths in prepared.items()}
    for gop in INTERVALS:
        kbit = statistics.mean(size[gop]) * 8 / strategies.SECONDS / 1000
        less = statistics.mean(small[gop]) / statistics.mean(size[gop])
        print(f"key frame every {gop}: {kbit:.0f} kbit/s; prepared, {less:.2f} of the bytes")
    python = make_versus(options.make_versus) if options.make_versus else options.versus_python
    core = max(CORES, default=0)
    versus = Versus(python, core) if python else None
    if versus is None:
        print("decord and OpenCV are left out: neither --versus-python nor --make-versus is given")
    else:
        print("against " + ", ".join(f"{tool} {version}" for tool, version in versus.versions.items()))
    pin([core] if CORES else [])
    speeds = compare_strategies(clips, prepared, rounds, versus)
    if versus:
        versus.close()
    cases = list(itertools.product(INTERVALS, FRAMES))
    print_table(
        f"clips/s and core, to {strategies.SIZE} px",
        [f"gop {gop}, {frames}" for gop, frames in cases],
        {name: [f"{by[case]:.1f}" for case in cases] for name, by in speeds.items()},
    )
    # Several times over: the order of a set of four would cost more to compute than that of a real one.
    every = [path for gop in INTERVALS for path in clips[gop]] * (RECORDS // (len(INTERVALS) * len(clips[gop])))
    written = write_formats(work, every)
    by_format = compare_formats(written, rounds)
    print_table("clips/s and core, 4 frames, both intervals", ["ours"], {k: [f"{v:.1f}"] for k, v in by_format.items()})
    pin(CORES)
    place = written["ArrayRecord"]
    piped = piping.compare_pipeline(place, 2 if options.quick else 7, 6 if options.quick else 24)
    print_table(
        f"training batches of {piping.BATCH}, {piping.THREADS} decoding threads in all, clips/s",
        ["pipeline", "decoding alone", "share", "by CPU time"],
        {
            f"{workers} worker processes": [
                *(f"{r[name]:.1f}" for name in ("pipeline", "alone")),
                *(f"{r[name]:.3f}" for name in ("share", "cpu_share")),
            ]
            for workers, r in piped.items()
        },
    )
    trained = piping.into_the_step(place, 4 if options.quick else 24)
    print_table(
        "into the training step of smaug.py:tiny at 224 px",
        ["clips/s", "waits for data"],
        {f"{workers} worker processes": [f"{r['clips']:.1f}", f"{r['wait']:.0%}"] for workers, r in trained.items()},
    )
    ours, ready = speeds["ours"], speeds["ours, 2 fps 224 px"]

    def least(over: dict[tuple[int, int], float], under: dict[tuple[int, int], float]) -> float:
        return round(min(over[case] / under[case] for case in cases), 3)

    return {
        "vs_decord": least(ours, speeds["decord"]) if "decord" in speeds else None,
        "pipeline_share": round(min(r["share"] for r in piped.values()), 3),
        "pipeline_cpu_share": round(min(r["cpu_share"] for r in piped.values()), 3),
        "fps2_ratio": least(ready, speeds["decode all"]),
        "fps2_ratio_to_ours": least(ready, ours),
        "clips_per_second_and_core": {
            name: {f"gop {gop}, {frames} frames": round(by[gop, frames], 2) for gop, frames in cases}
            for name, by in speeds.items()
        },
        "formats": {name: round(value, 2) for name, value in by_format.items()},
        "pipeline": piped,
        "training": trained,
        "load_average": os.getloadavg()[0],
        "python": sys.version.split()[0],
    }


if __name__ == "__main__":
    main()
