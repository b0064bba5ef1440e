"""The whole input pipeline against decoding alone, and into the train step; for benchmarks/input_throughput.py."""

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import pathlib
import signal
import statistics
import time
from collections.abc import Generator, Iterator
from typing import Any

import grain
import jax
import numpy as np

from benchmarks import input_strategies as strategies
from configs import smaug
from vlp_jax import config as config_lib
from vlp_jax import runs, sharding
from vlp_jax import state as state_lib
from vlp_jax.input import mixture, pipeline, sources, video
from vlp_jax.input.tokenizer import open_tokenizer

THREADS = 2  # that decode, in all processes together
BATCH = 8
VOCABULARY = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + b"\n".join(b"word%d" % i for i in range(100))


def open_format(kind: str, path: str) -> sources.Source:
    """A source over what `input_throughput.write_formats` wrote."""
    config = config_lib.defaults()
    split = "train" if kind == "tfds" else "all"
    config_lib.update(config, {"input.kind": kind, "input.path": path, "input.split": split})
    return sources.open_source(config.input)


def training_config(kind: str, path: str, workers: int) -> Any:
    """The config of the pipeline's runs: batches of 8 clips, 4 frames of 224 px, random crops and flips."""
    config = smaug.get_config("tiny")
    split = "train" if kind == "tfds" else "all"
    changes = {"input.kind": kind, "input.path": path, "input.split": split, "batch_size": BATCH, "mesh.data": 1}
    changes |= {"input.workers": workers, "input.threads": THREADS // max(1, workers), "input.cache_gib": 0.0}
    changes |= {"input.crop_scale": (0.5, 1.0), "input.flip": True, "input.image_size": strategies.SIZE}
    return config_lib.update(config, {**changes, "model.vision.patch_size": 32, "model.unroll": False})


def decode_alone(config: Any, source: sources.Source, first: int) -> Generator[None, None, None]:
    """Decodes the clips of the pipeline's steps from `first` on, with as many threads and nothing else.

    Yields when a batch is done.
    """
    c = config.input
    order = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat()

    def batch(step: int) -> None:
        for g in range(step * BATCH, (step + 1) * BATCH):
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((config.seed, g))))
            how = {"frames": c.frames, "size": c.image_size, "crop_scale": tuple(c.crop_scale), "flip": c.flip}
            video.decode(source[order[g]].video, rng=rng, **how)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        ahead = collections.deque(pool.submit(batch, step) for step in range(first, first + 2 * THREADS))
        for step in itertools.count(first + 2 * THREADS):
            ahead.append(pool.submit(batch, step))
            yield ahead.popleft().result()


def cpu_of_all() -> float:
    """CPU seconds of this process and of those it has started that still run (Linux; elsewhere of this one)."""
    total = time.process_time()
    for process in multiprocessing.active_children():
        stat = pathlib.Path(f"/proc/{process.pid}/stat")
        if stat.exists():
            user, system = stat.read_text().rpartition(")")[2].split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def clips_per_second(batches: Iterator, warm: int, count: int) -> tuple[float, float]:
    """Speed of `count` batches after `warm` others, which empty what was decoded ahead: by wall and by CPU time."""
    for _ in range(warm):
        next(batches)
    start, cpu = time.perf_counter(), cpu_of_all()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.perf_counter() - start), count * BATCH / (cpu_of_all() - cpu)


@contextlib.contextmanager
def stopped(processes) -> Iterator[None]:
    """Lets processes rest."""
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process.pid, signal.SIGCONT)


def compare_pipeline(place: tuple[str, str], rounds: int, count: int) -> dict[int, dict[str, float]]:
    """By worker processes: clips/s of the pipeline and of decoding alone, and the medians of the rounds' ratios."""
    out = {}
    tokenizer = open_tokenizer(VOCABULARY, 16)
    for workers in (0, 1, 2):
        config = training_config(*place, workers)
        source = open_format(*place)
        parts = mixture.Mixture((mixture.Part("", config.input, source),))
        batches = pipeline.train_batches(config, parts, tokenizer, start_step=0, stop_step=10_000)
        next(batches)  # starts the processes
        speeds: dict[str, list[tuple[float, float]]] = {"pipeline": [], "alone": []}
        warm = 2 + config.input.prefetch + 2 * THREADS
        for first in range(1, 1 + rounds * (warm + count), warm + count):
            # Stopped processes neither compete nor decode ahead. What threads have decoded ahead is not counted.
            with stopped(multiprocessing.active_children()):
                alone = decode_alone(config, source, first + warm - 2 * THREADS)  # then both time the same clips
                speeds["alone"].append(clips_per_second(alone, 2 * THREADS, count))
                alone.close()
            speeds["pipeline"].append(clips_per_second(batches, warm, count))
        batches.close()
        by_wall, by_cpu = (
            statistics.median(p[i] / a[i] for p, a in zip(speeds["pipeline"], speeds["alone"])) for i in (0, 1)
        )
        out[workers] = {name: statistics.median(wall for wall, _ in s) for name, s in speeds.items()}
        out[workers] |= {"share": by_wall, "cpu_share": by_cpu}
    return out


def into_the_step(place: tuple[str, str], count: int) -> dict[int, dict[str, float]]:
    """By worker processes: clips/s of training, and the share of the time that the step waits for data."""
    out = {}
    tokenizer = open_tokenizer(VOCABULARY, 16)
    config = training_config(*place, 0)
    runs.set_precision(config)
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    with sharding.use_mesh(mesh):
        run = state_lib.setup(config, tokenizer, mesh, 1000)
        step = state_lib.train_step(run)
        for workers in (0, 1, 2):
            config = training_config(*place, workers)
            parts = mixture.Mixture((mixture.Part("", config.input, open_format(*place)),))
            batches = pipeline.train_batches(config, parts, tokenizer, start_step=0, stop_step=10_000)
            state, good = run.create(), np.asarray(True)
            waited = start = 0.0
            for i in range(count + 4):
                if i == 4:  # compiled, and the batches decoded meanwhile used up
                    jax.block_until_ready(state)
                    waited, start = 0.0, time.perf_counter()
                before = time.perf_counter()
                item = next(batches)
                waited += time.perf_counter() - before
                state, metrics = step(state, sharding.to_global(item.batch, mesh), good)
                jax.block_until_ready(metrics)
            wall = time.perf_counter() - start
            batches.close()
            out[workers] = {"clips": count * BATCH / wall, "wait": waited / wall}
    return out
