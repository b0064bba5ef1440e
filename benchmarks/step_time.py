"""Time and FLOPs of a training step, dense against SMAUG: `python -m benchmarks.step_time --size base`.

Both train the same batch in turn, in one process, with the machine's own large matrix product timed in between, so
that a busy machine slows all three alike; medians are printed. FLOPs are those of the whole step, counted on its
jaxpr, a scan's body as often as it runs. SMAUG's step is the masked one; `tiny` and `small` train the last fifth of a
run on whole clips, which costs more. The last line is one JSON object:

  flops_ratio    SMAUG's FLOPs over dense
  wall_ratio     SMAUG's median seconds over dense
  matmul_share   SMAUG's matmul FLOP/s over the machine's large-matmul FLOP/s (matmul_share_dense: dense)

`--versus transformers` times `transformers.VideoMAEForPreTraining` (torch, SDPA attention) against our encoder and
decoder at the same shapes and mask, forward and backward (needs `pip install -e .[versus]`).
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import smaug
from vlp_jax import config as config_lib
from vlp_jax import launch, sharding, validation
from vlp_jax import state as state_lib
from vlp_jax.planning.program import Vocabulary
from vlp_jax.telemetry import costs, flops
from vlp_jax.types import Batch

BATCH = {"tiny": 128, "small": 32, "base": 4}
MATMUL = 4096  # side of the matrices that measure the machine
# Stands in for a tokenizer of BERT's size; the words themselves do not matter here.
WORDS = Vocabulary(30_522)


def random_batch(config: Any, seed: int = 0) -> Batch:
    """A full batch of noise: every caption as long as the model allows."""
    rng = np.random.default_rng(seed)
    size, length = config.batch_size, config.input.max_text_tokens
    form, dtype = config_lib.clip_form(config.input)
    return Batch(
        video=rng.integers(0, 256, (size, *form), np.uint8).astype(dtype),
        text_ids=rng.integers(5, WORDS.vocab_size, (size, length)).astype(np.int32),
        text_mask=np.ones((size, length), bool),
        valid=np.ones(size, bool),
        index=np.arange(size, dtype=np.int32),
        positive_id=np.arange(size, dtype=np.int32),
    )


class Step:
    """A compiled training step with its state and a batch on the device."""

    def __init__(self, argument: str, batch_size: int, changes: dict[str, Any]):
        self.config = smaug.get_config(argument)
        fixed = {"batch_size": batch_size, "compute_dtype": "float32", "input.path": "random", "mesh.data": 1}
        config_lib.update(self.config, {**fixed, **changes})
        validation.validate(self.config)
        mesh = sharding.make_mesh(self.config, jax.devices()[:1])
        with sharding.use_mesh(mesh):
            setup = state_lib.setup(self.config, WORDS, mesh, 1000)
            self.state = setup.create()
            self.step = state_lib.train_step(setup)
            self.batch = sharding.to_global(random_batch(self.config), mesh)
        self.parameters = sum(x.size for x in jax.tree.leaves(self.state.params))
        self.flops = costs.StepFlops(setup, WORDS, 1000)(True, self.batch)[0]  # the model's, whatever the kernel
        self.mesh = mesh
        self.seconds: list[float] = []
        self.metrics: dict[str, Any] = {}  # of the last step

    def run(self) -> None:
        """One step, to the end; its seconds are kept."""
        with sharding.use_mesh(self.mesh):
            start = time.perf_counter()
            self.state, self.metrics = self.step(self.state, self.batch, np.asarray(True))
            jax.block_until_ready((self.state, self.metrics))
            self.seconds.append(time.perf_counter() - start)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def matmul_timer() -> Callable[[], float]:
    """Returns a function that measures the FLOP/s of one large float32 matrix product."""
    x = jnp.ones((MATMUL, MATMUL), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()

    def measure():
        start = time.perf_counter()
        product(x).block_until_ready()
        return 2 * MATMUL**3 / (time.perf_counter() - start)

    return measure


def compare(size: str, batch_size: int, steps: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Times dense and SMAUG in turn; prints the table and returns the JSON object."""
    runs = {"dense": Step(f"{size}_dense", batch_size, changes), "SMAUG": Step(size, batch_size, changes)}
    measure = matmul_timer()
    for run in runs.values():
        run.run()
        compile_seconds = run.seconds.pop()
        print(
            f"{run.config.name}: {run.parameters / 1e6:.1f}M parameters, first step {compile_seconds:.1f} s", flush=True
        )
    peak = []
    for _ in range(steps):
        peak.append(measure())
        for run in runs.values():
            run.run()
    machine = statistics.median(peak)
    c = runs["SMAUG"].config
    shape = f"{batch_size} clips x {c.input.frames} frames x {c.input.image_size} px, {c.input.max_text_tokens} words"
    print(f"\n{size}: {shape}")
    print(f"{'':8}{'GFLOP':>10}{'s/step':>10}{'min':>8}{'max':>8}{'GFLOP/s':>10}{'of matmul':>11}")
    for name, run in runs.items():
        speed = run.flops.matmul / run.median
        print(
            f"{name:8}{run.flops.total / 1e9:10.1f}{run.median:10.3f}{min(run.seconds):8.3f}{max(run.seconds):8.3f}"
            f"{speed / 1e9:10.1f}{speed / machine:11.2f}"
        )
    dense, sparse = runs["dense"], runs["SMAUG"]
    pairs = sorted(s / d for s, d in zip(sparse.seconds, dense.seconds))
    result = {
        "benchmark": "step_time",
        "size": size,
        "batch_size": batch_size,
        "steps": steps,
        "flops_ratio": sparse.flops.total / dense.flops.total,
        "wall_ratio": statistics.median(pairs),
        "wall_ratio_min": pairs[0],
        "wall_ratio_max": pairs[-1],
        "matmul_share": sparse.flops.matmul / sparse.median / machine,
        "matmul_share_dense": dense.flops.matmul / dense.median / machine,
        "matmul_gflops": machine / 1e9,
        "seconds": sparse.median,
        "seconds_dense": dense.median,
    }
    print(
        f"large matmul {machine / 1e9:.0f} GFLOP/s; FLOPs ratio {result['flops_ratio']:.3f}, "
        f"wall ratio {result['wall_ratio']:.3f} ({pairs[0]:.3f} to {pairs[-1]:.3f})"
    )
    return result


def versus_transformers(batch_size: int, steps: int, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """VideoMAE-base pre-training, forward and backward, ours against `transformers`', in turn, on the same device.

    Args:
      changes: to our config; with `compute_dtype` bfloat16 theirs runs under autocast to it.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise SystemExit(
            f"--versus transformers needs torch and transformers ({error}): pip install -e .[versus]"
        ) from None

    videomae = {
        "input.frames": 16,
        "model.vision.tubelet": 2,
        "model.vision.attention": "joint",
        "model.masking.kind": "tube",
        "model.masking.ratio": 0.9,
        "model.pruning.layers": (),
        "model.decoder.attention": "joint",
        "model.decoder.share": 1.0,
        "loss.vtc": 0.0,
        "loss.vtm": 0.0,
        "loss.mlm": 0.0,
    }
    ours = Step("base", batch_size, {**videomae, **(changes or {})})
    setup = state_lib.setup(ours.config, WORDS, ours.mesh, 1000)
    loss = lambda params, batch: state_lib.merge(setup, params).loss(batch, jax.random.key(0)).loss
    gradient = jax.jit(jax.value_and_grad(loss))
    ours_flops = flops.count(gradient, ours.state.params, ours.batch).matmul

    sdpa: dict[str, Any] = {"attn_implementation": "sdpa"}
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    half = ours.config.compute_dtype == "bfloat16"
    theirs: Any = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**sdpa))
    theirs.to(device)
    theirs.train()
    pixels = torch.randn(batch_size, 16, 3, 224, 224, device=device)
    # The same tube mask ratio; which patches are hidden changes no shape.
    hidden = round(0.9 * 196)
    frame = torch.zeros(196, dtype=torch.bool)
    frame[torch.randperm(196)[:hidden]] = True
    mask = frame.repeat(8)[None].expand(batch_size, -1).to(device)

    def run_ours():
        with sharding.use_mesh(ours.mesh):
            jax.block_until_ready(gradient(ours.state.params, ours.batch))

    def run_theirs():
        theirs.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = theirs(pixels, bool_masked_pos=mask).loss
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for i in range(steps + 1):
        for name, run in (("ours", run_ours), ("transformers", run_theirs)):
            # Training repeats one step; the first after the other library's finds its memory and caches cold.
            run()
            start = time.perf_counter()
            run()
            if i:  # the first round compiles
                seconds[name].append(time.perf_counter() - start)
    print(f"\nVideoMAE-base pre-training, forward and backward, {batch_size} x 16 frames, torch {torch.__version__}")
    for name, values in seconds.items():
        print(f"{name:14}{statistics.median(values):8.3f} s  ({min(values):.3f} to {max(values):.3f})")
    pairs = [a / b for a, b in zip(seconds["ours"], seconds["transformers"])]
    return {
        "versus_transformers": statistics.median(pairs),
        "videomae_seconds": statistics.median(seconds["ours"]),
        "videomae_seconds_transformers": statistics.median(seconds["transformers"]),
        "videomae_gflops": ours_flops / statistics.median(seconds["ours"]) / 1e9,
    }


def main() -> None:
    launch.use_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(BATCH), default="base")
    parser.add_argument("--batch", type=int, default=0, help="clips a step (tiny 128, small 32, base 4)")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each (%(default)s)")
    parser.add_argument("--versus", choices=("transformers",), help="also compare VideoMAE-base pre-training")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a config knob, as JSON")
    given = parser.parse_args()
    changes = {key: json.loads(value) for key, _, value in (item.partition("=") for item in given.set)}
    where = f"{jax.devices()[0].device_kind}, {platform.machine()}, Python {platform.python_version()}"
    print(f"jax {jax.__version__} on {where}")
    result = compare(given.size, given.batch or BATCH[given.size], given.steps, changes)
    if given.versus:
        result |= versus_transformers(2, given.steps)
    print(json.dumps({**result, "jax": jax.__version__}))


if __name__ == "__main__":
    main()
