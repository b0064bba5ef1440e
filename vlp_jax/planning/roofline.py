"""How long a compiled step takes at best: its arithmetic, memory traffic and collectives against a chip's peaks.

Assumptions, all optimistic but the last: matrix products run at the chip's bfloat16 peak; memory traffic at its full
bandwidth, and beside the arithmetic; a collective along one axis of the mesh uses one dimension of the torus in both
directions (all links of a switch), one along several axes as many dimensions; what crosses between slices or hosts does
so once for all devices of a group in a slice, each with its share of the hosts' network; collectives do not overlap
with anything.
"""

import dataclasses
import math

from vlp_jax.planning.program import Compiled
from vlp_jax.telemetry.chips import Chip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one step.

    Attributes:
      compute, memory, network: by what they need.
      mfu: share of the peak that the model's matrix products make in `seconds`.
    """

    compute: float
    memory: float
    network: float
    mfu: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory) + self.network


def estimate(step: Compiled, chip: Chip, devices: int) -> Estimate:
    """The estimate for one step on `devices` chips."""
    compute = step.executed_flops / devices / chip.bfloat16
    memory = step.traffic / chip.hbm_bandwidth
    network = 0.0
    for one in step.collectives:
        crossing = math.prod(step.slices[axis] for axis in one.axes)
        group = math.prod(step.sizes[axis] for axis in one.axes) // crossing  # devices in each slice
        if group > 1 or crossing == 1:
            share = min(max(len(one.axes), 1), chip.dimensions) / chip.dimensions if chip.dimensions else 1.0
            network += one.traffic / (chip.links * share)
        if crossing > 1:
            network += one.traffic / (group * chip.network)
    seconds = max(compute, memory) + network
    return Estimate(compute, memory, network, step.matmul_flops / devices / chip.bfloat16 / seconds)
