"""Memory and start-up time of long tables: `python -m benchmarks.table_memory --rows 5000000`.

Writes a CSV of synthetic captions, opens it twice (parsed, then from the cache), and starts worker processes that hold
the pickled source and read random rows of it. Each is compared with a worker that imports the same modules and holds
nothing. `private` is what a process shares with no other (Private_Clean + Private_Dirty of /proc/PID/smaps_rollup);
mapped pages that several processes have read count in the RSS of each, and exist once.

The last line is one JSON object:

  open_first_s, open_again_s   seconds until the source can be read
  worker_rss_mib               largest RSS of a worker after its reads; idle_rss_mib: of one without a table
  worker_private_mib           largest private memory of a worker; idle_private_mib: of one without a table
  csv_mib, cache_mib           sizes of the table and of its cached file
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import pickle
import platform
import sys
import tempfile
import time
from typing import Any

import numpy as np

from vlp_jax.input import arrow_cache
from vlp_jax.input.tables import TableSource

READS = 20_000
WORDS = "a man woman dog child rides walks opens cooks red small old street kitchen river slowly with and on".split()


def write_table(path: pathlib.Path, rows: int, seed: int = 0) -> None:
    """Writes a CSV of WebVid's shape: an id in a folder, and a caption of 8 to 16 words."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, rows))))
    with path.open("w", encoding="utf-8") as f:
        f.write("video,caption\n")
        for start in range(0, rows, 100_000):
            count = min(100_000, rows - start)
            chosen = rng.integers(0, len(WORDS), (count, 16)).tolist()
            lengths = rng.integers(8, 17, count).tolist()
            f.writelines(
                f"{(start + i) % 1000:03d}/{start + i:010d}.mp4,{' '.join([WORDS[w] for w in words[:length]])}\n"
                for i, (words, length) in enumerate(zip(chosen, lengths))
            )


def memory() -> dict[str, float]:
    """RSS, PSS and private memory of this process, MiB."""
    values = {}
    for line in pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        values[name] = int(value.split()[0]) / 1024
    private = values["Private_Clean"] + values["Private_Dirty"]
    return {"rss": values["Rss"], "pss": values["Pss"], "private": private}


def work(source: Any, rows: int, seed: int, barrier: Any, results: Any) -> None:
    """A worker: reads random rows, and measures while the others are still there."""
    start = time.perf_counter()
    if source is not None:
        for i in np.random.default_rng(seed).integers(0, rows, READS):
            if not source[i].caption:
                raise AssertionError(f"row {i} has no caption")
    seconds = time.perf_counter() - start
    barrier.wait()
    results.put({**memory(), "reads_per_s": READS / seconds})
    barrier.wait()


def measure(source: Any, rows: int, workers: int) -> list[dict[str, float]]:
    """What `memory` says in each of `workers` processes that hold `source` at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=work, args=(source, rows, i, barrier, results)) for i in range(workers)]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ[arrow_cache.VARIABLE] = os.path.join(folder, "cache")
        table = pathlib.Path(folder) / "clips.csv"
        print(f"writing {given.rows} rows ...", file=sys.stderr)
        write_table(table, given.rows)
        opened = []
        for _ in range(2):
            start = time.perf_counter()
            source = TableSource(str(table))
            opened.append(time.perf_counter() - start)
        if len(source) != given.rows:
            raise AssertionError(f"{len(source)} rows of {given.rows}")
        parent = memory()
        idle = measure(None, given.rows, given.workers)
        busy = measure(source, given.rows, given.workers)
        cache = sum(file.stat().st_size for file in pathlib.Path(folder, "cache").iterdir())
        result = {
            "rows": given.rows,
            "workers": given.workers,
            "csv_mib": table.stat().st_size / 2**20,
            "cache_mib": cache / 2**20,
            "pickle_bytes": len(pickle.dumps(source)),
            "open_first_s": opened[0],
            "open_again_s": opened[1],
            "parent_private_mib": parent["private"],
            **{f"worker_{k}_mib": max(one[k] for one in busy) for k in ("rss", "pss", "private")},
            **{f"idle_{k}_mib": max(one[k] for one in idle) for k in ("rss", "pss", "private")},
            "reads_per_s": min(one["reads_per_s"] for one in busy),
        }
    print(f"{given.rows} rows, {result['csv_mib']:.0f} MiB of CSV, {result['cache_mib']:.0f} MiB cached")
    print(f"open: {opened[0]:.2f} s parsed, {opened[1]:.4f} s from the cache; pickled {result['pickle_bytes']} bytes")
    print(f"{'MiB of each worker':24}{'RSS':>10}{'PSS':>10}{'private':>10}")
    for name in ("idle", "worker"):
        label = "without a table" if name == "idle" else f"after {READS} reads"
        print(f"{label:24}" + "".join(f"{result[f'{name}_{k}_mib']:10.1f}" for k in ("rss", "pss", "private")))
    print(f"{result['reads_per_s']:.0f} random reads a second in each of {given.workers} workers")
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in result.items()} | machine))


if __name__ == "__main__":
    main()
