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
import time
from typing import Any

import jax
import numpy as np

from configs import smaug
from vlp_jax import config as config_lib
from vlp_jax import launch, sharding, validation
from vlp_jax import state as state_lib
from vlp_jax.evaluation import retrieval
from vlp_jax.input import mixture, pipeline, sources
from vlp_jax.input import tokenizer as tokenizer_lib

TIMED = 15  # steps that measure a variant's speed
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


class Run:
    """A variant's compiled step and evaluator; `train` starts from scratch each time."""

    def __init__(self, variant: str, data: str, seed: int, steps: int):
        self.config, self.steps = configure(variant, data, seed, steps), steps
        c = self.config
        self.mixture = mixture.open_mixture(c)
        self.tokenizer = tokenizer_lib.open_tokenizer(c.input.tokenizer, c.input.max_text_tokens, c.input.lowercase)
        self.mesh = sharding.make_mesh(c, jax.devices()[:1])
        self.setup = state_lib.setup(c, self.tokenizer, self.mesh, steps)
        self.step_at = state_lib.train_steps(self.setup, steps)

    def batches(self, steps: int):
        """Global batches of the first `steps` steps."""
        stream = pipeline.train_batches(self.config, self.mixture, self.tokenizer, start_step=0, stop_step=steps)
        return (sharding.to_global(item.batch, self.mesh) for item in stream)

    def warm_up(self) -> dict[bool, Any]:
        """Compiles the masked and, where the run has them, the unmasked step on a throw-away state."""
        switch = config_lib.masked_steps(self.config, self.steps)
        functions = {masked: self.step_at(at) for masked, at in ((True, 0), (False, switch)) if at < self.steps}
        batch = next(self.batches(1))
        for function in functions.values():
            jax.block_until_ready(function(self.setup.create(), batch, np.asarray(True)))
        return functions

    def steps_in(self, seconds: float) -> int:
        """Steps that take `seconds`, input included, in the run's mix of masked and unmasked ones.

        Clips are decoded in the first epoch and found in the cache afterwards; both speeds are measured.
        """
        with sharding.use_mesh(self.mesh):
            functions, state = self.warm_up(), self.setup.create()
            epoch = min(-(-len(self.mixture) // self.config.batch_size), self.steps // 2)
            plan = [True] * (epoch + TIMED) + [False] * (TIMED if False in functions else 0)
            took, start = [], time.perf_counter()
            for masked, batch in zip(plan, self.batches(len(plan))):
                state, metrics = functions[masked](state, batch, np.asarray(True))
                jax.block_until_ready(metrics)
                took.append(time.perf_counter() - start)
                start = time.perf_counter()
        first, warm = sum(took[:epoch]), statistics.median(took[epoch : epoch + TIMED])
        share = self.config.model.masking.unmasked_share
        last = statistics.median(took[epoch + TIMED :]) if share else 0.0
        # seconds = first + (steps - epoch - share * steps) * warm + share * steps * last
        steps = (seconds - first + epoch * warm) / ((1 - share) * warm + share * last)
        print(f"{self.config.name:16} {first / epoch:.3f} s a step, cached {warm:.3f}, unmasked {last:.3f}", flush=True)
        if steps * (1 - share) < epoch:
            raise SystemExit(f"--seconds {seconds:g} is less than an epoch of {self.config.name}: give more")
        return round(steps)

    def train(self) -> tuple[Any, float]:
        """Trains to the end; returns the state and the seconds without compilation."""
        with sharding.use_mesh(self.mesh):
            self.warm_up()
            state, start = self.setup.create(), time.perf_counter()
            for number, batch in enumerate(self.batches(self.steps)):
                state, metrics = self.step_at(number)(state, batch, np.asarray(True))
                jax.block_until_ready(metrics)
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
    for name in [] if planned else names:
        planned[name] = Run(name, given.data, 0, PLANNED).steps_in(given.seconds)
        jax.clear_caches()
    rows: dict[str, dict[str, list[float]]] = {name: {"R@1": [], "compositional": [], "steps": []} for name in names}
    for seed, name in itertools.product(map(int, given.seeds.split(",")), names):
        run = Run(name, given.data, seed, planned[name])
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
