"""Zero-shot retrieval after equal wall time, SMAUG's settings against dense: `python -m benchmarks.equal_time`.

Every variant trains `configs/smaug.py:tiny` on moving_shapes for the same seconds, in one process, one after the
other, once for each seed. A variant's speed is measured first, input included, and its schedule is planned so that it ends
when the time does; compilation is not counted. Prints R@1 of the unseen test clips, both directions averaged, and, last,
one JSON line.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import numpy as np

from configs import smaug
from vlp_jax import config as config_lib
from vlp_jax import launch, sharding
from vlp_jax import state as state_lib
from vlp_jax.evaluation import retrieval
from vlp_jax.input import pipeline, sources
from vlp_jax.input import tokenizer as tokenizer_lib

WARM_UP, TIMED = 4, 12  # steps that measure a variant's speed

# Changes to `tiny`; "dense" is `tiny_dense`.
VARIANTS: dict[str, dict[str, Any]] = {
    "smaug": {},
    "dense": {},
    "mask 0.4": {"model.masking.ratio": 0.4},
    "mask 0.75": {"model.masking.ratio": 0.75},
    "keep 0.5": {"model.pruning.keep_rate": 0.5},
    "no pruning": {"model.pruning.layers": ()},
    "1 frame kept": {"model.selection.frames": 1},
    "all frames kept": {"model.selection.frames": 0},
    "no MVM": {"loss.mvm": 0.0},
    "decode survivors": {"model.decoder.source": "survivors"},
}


def configure(variant: str, data: str, seed: int, steps: int) -> Any:
    """The config of one run."""
    config = smaug.get_config("tiny_dense" if variant == "dense" else "tiny")
    fixed = {"input.path": data, "input.tokenizer": f"{data}/tokenizer.model", "seed": seed, "epochs": 0.0}
    config_lib.update(config, {**fixed, "steps": steps, **VARIANTS[variant]})
    config_lib.validate(config)
    return config


class Run:
    """A variant's compiled step and evaluator; `train` starts from scratch each time."""

    def __init__(self, variant: str, data: str, seed: int, steps: int):
        self.config = c = configure(variant, data, seed, steps)
        self.source = sources.open_source(c.input)
        self.tokenizer = tokenizer_lib.Tokenizer(c.input.tokenizer, c.input.max_text_tokens)
        self.mesh = sharding.make_mesh(c, jax.devices()[:1])
        self.setup = state_lib.setup(c, self.tokenizer, self.mesh, steps)
        self.step = state_lib.train_step(self.setup)

    def train(self, steps: int, timed_from: int) -> tuple[Any, float]:
        """Trains `steps` steps; returns the state and the seconds from step `timed_from` on."""
        batches = pipeline.train_batches(self.config, self.source, self.tokenizer, start_step=0, stop_step=steps)
        good, start = np.asarray(True), time.perf_counter()
        with sharding.use_mesh(self.mesh):
            state = self.setup.create()
            for number, item in enumerate(batches):
                if number == timed_from:
                    start = time.perf_counter()
                state, metrics = self.step(state, sharding.to_global(item.batch, self.mesh), good)
                jax.block_until_ready(metrics)
                if number < timed_from:
                    start = time.perf_counter()
            if not metrics["finite"]:
                raise RuntimeError(f"{self.config.name} diverged: {metrics['terms']}")
        return state, time.perf_counter() - start

    def recall(self, state: Any, split: str) -> float:
        """R@1 in percent, mean of both directions."""
        c = self.config
        source = sources.open_source(c.input, split)
        evaluator = retrieval.Retrieval(
            self.setup.graph, self.setup.abstract.params, c, source, self.tokenizer, self.mesh
        )
        result = evaluator.run(state.params)
        return (result["text_to_video"]["R@1"] + result["video_to_text"]["R@1"]) / 2


def main() -> None:
    launch.use_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="datasets/moving_shapes")
    parser.add_argument("--seconds", type=float, default=90, help="training time of each run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", default="smaug,dense", help="comma-separated, or all: " + ", ".join(VARIANTS))
    given = parser.parse_args()
    names = list(VARIANTS) if given.variants == "all" else given.variants.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        parser.error(f"unknown variants {unknown}: expected some of {list(VARIANTS)}")
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; {given.seconds:.0f} s of training each")
    rows: dict[str, dict[str, list[float]]] = {name: {"R@1": [], "compositional": [], "steps": []} for name in names}
    for seed in range(given.seeds):
        for name in names:
            _, seconds = Run(name, given.data, seed, WARM_UP + TIMED).train(WARM_UP + TIMED, WARM_UP)
            steps = max(1, round(given.seconds / (seconds / TIMED)))
            run = Run(name, given.data, seed, steps)
            state, seconds = run.train(steps, 1)  # the first step compiles
            row = rows[name]
            row["steps"].append(steps)
            row["R@1"].append(run.recall(state, "test"))
            row["compositional"].append(run.recall(state, "test_compositional"))
            print(
                f"seed {seed}  {name:16} {steps:5} steps in {seconds:5.1f} s   R@1 {row['R@1'][-1]:5.1f}   "
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
    print(json.dumps({"benchmark": "equal_time", "seconds": given.seconds, "seeds": given.seeds, "variants": rows}))


if __name__ == "__main__":
    main()
