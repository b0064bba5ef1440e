"""A training run without checkpoints and logs, and how long its steps take: for benchmarks at equal wall time."""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax import state as state_lib
from vlp_jax.evaluation import retrieval
from vlp_jax.input import mixture, pipeline, sources
from vlp_jax.input import tokenizer as tokenizer_lib
from vlp_jax.telemetry import costs
from vlp_jax.types import UserError

TIMED = 3  # steps of each kind in a round
DECODED = 12  # batches that measure decoding


@dataclasses.dataclass(frozen=True)
class Speeds:
    """How long a run's steps take and what they compute.

    Clips are decoded in the first epoch and found in the cache afterwards. At the end, a run may see whole clips.

    Attributes:
      epoch: steps of the first epoch.
      decode: seconds to decode a batch, which the steps of the first epoch take longer.
      cached: seconds of a step.
      unmasked: seconds of one on whole clips; as `cached` where the run has none.
      unmasked_share: share of the run's steps that see whole clips.
      flops, unmasked_flops: of one step, forward and backward.
    """

    epoch: int
    decode: float
    cached: float
    unmasked: float
    unmasked_share: float
    flops: float
    unmasked_flops: float

    @property
    def first(self) -> float:
        """Seconds of a step of the first epoch."""
        return self.decode + self.cached

    def steps_in(self, seconds: float) -> int:
        """Steps of a run, schedule and all, that takes `seconds`."""
        # seconds = first + (steps - epoch - share * steps) * cached + share * steps * unmasked
        share, first = self.unmasked_share, self.first * self.epoch
        steps = (seconds - first + self.epoch * self.cached) / ((1 - share) * self.cached + share * self.unmasked)
        if steps * (1 - share) >= self.epoch:
            return round(steps)
        # Shorter than an epoch: every masked step decodes.
        return max(1, round(seconds / ((1 - share) * self.first + share * self.unmasked)))

    def seconds(self, step: int, steps: int) -> float:
        """Seconds that the first `step` steps of a run of `steps` take."""
        masked = min(step, steps - round(steps * self.unmasked_share))
        first = min(masked, self.epoch)
        return first * self.first + (masked - first) * self.cached + (step - masked) * self.unmasked

    def total_flops(self, step: int, steps: int) -> float:
        """FLOPs of the first `step` steps of a run of `steps`."""
        masked = min(step, steps - round(steps * self.unmasked_share))
        return masked * self.flops + (step - masked) * self.unmasked_flops


def middle(rounds: list[dict[str, Speeds]]) -> dict[str, Speeds]:
    """The median of each time over the rounds."""
    median = lambda name, key: statistics.median(getattr(speeds[name], key) for speeds in rounds)
    times = ("decode", "cached", "unmasked")
    return {
        name: dataclasses.replace(one, **{key: median(name, key) for key in times}) for name, one in rounds[0].items()
    }


def measure(runs: "dict[str, Run]", rounds: int) -> Iterator[dict[str, Speeds]]:
    """Yields a round's speeds of all runs: one run after the other, in this process, with nothing else beside it.

    Decoding is the same work whatever is trained: it is timed by itself, once a round for each number of frames, and
    every run of that many is charged the same.
    """
    prepared = {}
    for name, run in runs.items():
        with sharding.use_mesh(run.mesh):
            batch, functions = next(run.batches(1)), run.warm_up()
        count = costs.StepFlops(run.setup, run.tokenizer, run.steps)
        prepared[name] = batch, functions, {masked: count(masked, batch)[0].total for masked in functions}
    by_frames = {run.config.input.frames: run for run in runs.values()}
    for _ in range(rounds):
        decode = {frames: run.decoding() for frames, run in by_frames.items()}
        found = {}
        for name, run in runs.items():
            batch, functions, counted = prepared[name]
            seconds = {}
            with sharding.use_mesh(run.mesh):
                state = run.setup.create()
                for masked, step in functions.items():
                    took = []
                    # One step more than is counted: memory that was another's is cold.
                    for _ in range(TIMED + 1):
                        start = time.perf_counter()
                        state, metrics = step(state, batch, np.asarray(True))
                        jax.block_until_ready(metrics)
                        took.append(time.perf_counter() - start)
                    seconds[masked] = statistics.median(took[1:])
            del state
            c = run.config
            found[name] = Speeds(
                epoch=-(-len(run.mixture) // c.batch_size),
                decode=decode[c.input.frames],
                cached=seconds[True],
                unmasked=seconds.get(False, seconds[True]),
                unmasked_share=c.model.masking.unmasked_share,
                flops=counted[True],
                unmasked_flops=counted.get(False, counted[True]),
            )
        yield found


class Run:
    """A run's compiled steps and evaluator; `train` starts from scratch each time."""

    def __init__(self, config: Any, steps: int):
        self.config, self.steps = config, steps
        self.mixture = mixture.open_mixture(config)
        self.tokenizer = tokenizer_lib.open_tokenizer(
            config.input.tokenizer, config.input.max_text_tokens, config.input.lowercase
        )
        self.mesh = sharding.make_mesh(config, jax.devices()[:1])
        self.setup = state_lib.setup(config, self.tokenizer, self.mesh, steps)
        self.step_at = state_lib.train_steps(self.setup, steps)

    def batches(self, steps: int):
        """Global batches of the first `steps` steps."""
        stream = pipeline.train_batches(self.config, self.mixture, self.tokenizer, start_step=0, stop_step=steps)
        return (sharding.to_global(item.batch, self.mesh) for item in stream)

    def functions(self) -> dict[bool, Any]:
        """The masked and, where the run has them, the unmasked step."""
        switch = config_lib.masked_steps(self.config, self.steps)
        return {masked: self.step_at(at) for masked, at in ((True, 0), (False, switch)) if at < self.steps}

    def warm_up(self) -> dict[bool, Any]:
        """As `functions`, compiled on a throw-away state."""
        batch, functions = next(self.batches(1)), self.functions()
        for function in functions.values():
            jax.block_until_ready(function(self.setup.create(), batch, np.asarray(True)))
        return functions

    def decoding(self) -> float:
        """Seconds to decode a batch when nothing trains."""
        batches = self.batches(DECODED)
        next(batches)
        start = time.perf_counter()
        for _ in batches:
            pass
        return (time.perf_counter() - start) / (DECODED - 1)

    def train(self) -> tuple[Any, float]:
        """Trains to the end; returns the state and the seconds without compilation."""
        with sharding.use_mesh(self.mesh):
            self.warm_up()
            state, start = self.setup.create(), time.perf_counter()
            for number, batch in enumerate(self.batches(self.steps)):
                state, metrics = self.step_at(number)(state, batch, np.asarray(True))
                jax.block_until_ready(metrics)
            if not metrics["finite"]:
                raise UserError(f"{self.config.name} diverged: {metrics['terms']}")
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
