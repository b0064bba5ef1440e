"""What a run has cost so far: FLOPs of the model, device-hours, MFU, examples, time spent waiting for data.

FLOPs are those of the model (forward and backward, as written, without what `model.remat` computes twice), counted on
the jaxpr. MFU, model FLOPs utilisation (PaLM, appendix B), is the FLOP/s of the matrix products over the devices' peak
while steps run: compilation, evaluation and the writing of checkpoints are left out of it, but not out of the hours.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax import state as state_lib
from vlp_jax.telemetry import chips, flops
from vlp_jax.types import Batch

_SIDE = {"cpu": 2048}  # of the matrices that measure an unknown device
_LARGE = 8192


@dataclasses.dataclass
class Totals:
    """Sums over a run, all its processes so far included; a checkpoint holds them.

    Work that was repeated after a kill counts once: what a checkpoint does not know of is lost.

    Attributes:
      flops: of the model, all operations.
      examples: trained on.
      seconds: wall time, everything from the first step on included.
      device_seconds: kind of device -> such time times devices.
      waited_seconds: of the training loop for data.
      timed_flops: of the matrix products of the steps that were timed.
      possible_flops: what the devices' peak gives in their time.
    """

    flops: float = 0.0
    examples: int = 0
    seconds: float = 0.0
    device_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    waited_seconds: float = 0.0
    timed_flops: float = 0.0
    possible_flops: float = 0.0

    @property
    def device_hours(self) -> float:
        return sum(self.device_seconds.values()) / 3600

    @property
    def mfu(self) -> float | None:
        """In [0, 1] where the peak is right; None before a step was timed."""
        return self.timed_flops / self.possible_flops if self.possible_flops else None


class Costs:
    """Adds up the costs of a run's steps as they finish.

    Args:
      batch_size: examples a step.
      peak: FLOP/s of one device.
      kind, devices: what trains, and how many of them.
      saved: `to_json` of an earlier process of the same run; None at its start.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        peak: float,
        kind: str,
        devices: int,
        saved: dict[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.totals = Totals(**saved) if saved else Totals()
        self._batch_size, self._peak, self._kind, self._devices, self._clock = batch_size, peak, kind, devices, clock
        self._passed = clock()  # up to here device_seconds counts
        self._since: float | None = None  # start of the step that is next to finish; None where it is not timed
        self._shown = (self.totals.timed_flops, self.totals.possible_flops)  # at the last `scalars`

    def resume(self) -> None:
        """Steps start now, after a pause with none in flight: an evaluation, a checkpoint."""
        self._since = self._clock()

    def interrupt(self) -> None:
        """The step in flight is not timed: something was compiled meanwhile."""
        self._since = None

    def step(self, one: flops.Flops) -> None:
        """Counts a finished step."""
        now, totals = self._clock(), self.totals
        totals.flops += one.total
        totals.examples += self._batch_size
        if self._since is not None:
            seconds = now - self._since
            totals.timed_flops += one.matmul
            totals.possible_flops += seconds * self._devices * self._peak
        self._since = now

    def scalars(self) -> dict[str, float]:
        """For the metrics file: `flops` and `device_hours` so far; `mfu` since the last call, if steps were timed."""
        self.pass_time()
        timed, possible = self.totals.timed_flops, self.totals.possible_flops
        before, self._shown = self._shown, (timed, possible)
        mfu = {"mfu": (timed - before[0]) / (possible - before[1])} if possible > before[1] else {}
        return {"flops": self.totals.flops, "device_hours": self.totals.device_hours, **mfu}

    def pass_time(self) -> None:
        """Brings the device-hours up to date."""
        now = self._clock()
        totals, seconds = self.totals, now - self._passed
        totals.seconds += seconds
        totals.device_seconds[self._kind] = totals.device_seconds.get(self._kind, 0.0) + seconds * self._devices
        self._passed = now

    def to_json(self) -> dict[str, Any]:
        """For `saved` of a later process."""
        self.pass_time()
        return dataclasses.asdict(self.totals)


def summary(name: str, totals: Totals) -> str:
    """One line that a paper can quote."""
    hours = [f"{seconds / 3600:.2g} {kind}-hours" for kind, seconds in totals.device_seconds.items()]
    parts = [f"{totals.flops:.2g} FLOPs", *hours]
    if totals.mfu is not None:
        parts.append(f"{totals.mfu:.0%} MFU")
    parts.append(f"{totals.examples:,} examples")
    if totals.seconds:
        parts.append(f"data wait {totals.waited_seconds / totals.seconds:.0%}")
    return f"{name}: {', '.join(parts)}"


class StepFlops:
    """FLOPs of a run's steps, counted once for each kind of step and shape of batch.

    Args:
      run: its model is counted as written: recomputation (`model.remat`) is no work of the model's, and a fused
        attention kernel hides its work.
      tokenizer, steps, answers: as in `state.setup`.
    """

    def __init__(self, run: state_lib.Setup, tokenizer: Any, steps: int, answers: int = 0):
        plain = {"model.remat": "none", "model.attention_kernel": "xla"}
        config = config_lib.update(run.config.copy_and_resolve_references(), plain)
        self._run = state_lib.setup(config, tokenizer, run.mesh, steps, answers)
        self._known: dict[tuple[bool, tuple[int, ...]], flops.Flops] = {}

    def __call__(self, masked: bool, batch: Batch) -> tuple[flops.Flops, bool]:
        """FLOPs of one step on a global batch; and whether it is the first of its kind, which has to be compiled."""
        key = masked, batch.video.shape
        new = key not in self._known
        if new:
            shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
            step, good = state_lib.train_step(self._run, masked), jax.ShapeDtypeStruct((), bool)
            # On one device, whatever the run's mesh: what several compute twice belongs to no model.
            with sharding.use_mesh(sharding.first_device(self._run.mesh)):
                state = jax.tree.map(shape, self._run.abstract)
                self._known[key] = flops.count(step, state, jax.tree.map(shape, batch), good)
        return self._known[key], new


def devices_of(config: Any) -> tuple[str, int, float, str]:
    """What trains: `(kind, how many, peak FLOP/s of one, where that number is from)`.

    A CPU's devices, forced ones included, are one per process. The peak is a data sheet's for bfloat16 on a chip that
    `chips` knows, else that of a large matrix product, measured here.
    """
    device = jax.devices()[0]
    chip = chips.by_kind(device.device_kind)
    if device.platform == "cpu":
        kind, count = "CPU", jax.process_count()
    else:
        kind, count = chip.label if chip else device.device_kind, jax.device_count()
    if chip and config.compute_dtype == "bfloat16":
        return kind, count, chip.bfloat16, "data sheet"
    return kind, count, measure_peak(config.compute_dtype), f"{config.compute_dtype} matrix product, measured"


def measure_peak(dtype: str) -> float:
    """FLOP/s of the largest of a few matrix products on this process's first device."""
    device = jax.local_devices()[0]
    side = _SIDE.get(device.platform, _LARGE)
    x = jax.device_put(jnp.ones((side, side), dtype), device)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)
