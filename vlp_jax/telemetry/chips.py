"""What accelerators can do at most, from their makers' data sheets; for MFU and for plans.

Numbers are those of one device as JAX sees it, dense (without structured sparsity). Sources: docs.cloud.google.com/tpu
pages "TPU v4", "v5e", "v5p", "v6e"; NVIDIA's data sheets of A100, H100 (SXM), H200 (SXM), RTX A6000 and L4.
"""

import dataclasses
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      kind: regular expression that JAX's `device_kind` matches in full, of any case.
      bfloat16: peak FLOP/s of bfloat16 matrix products with float32 sums.
      hbm: bytes of memory.
      hbm_bandwidth: bytes/s.
      links: bytes/s that leave the device over all its links to others of its slice, or its NVLink domain.
      network: bytes/s of the data-centre network for each device, between slices or hosts.
      dimensions: of the torus that these links make; 0 for a switch, which connects every two devices at full speed.
    """

    name: str
    kind: str
    bfloat16: float
    hbm: float
    hbm_bandwidth: float
    links: float
    network: float
    dimensions: int = 0

    @property
    def label(self) -> str:
        """As it is called in print: H200, TPU v5e."""
        return f"TPU {self.name}" if self.kind.startswith("TPU") else self.name.upper()


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 275e12, 32 * GIB, 1.2e12, 300e9, 6.25e9, 3),
        Chip("v5e", "TPU v5 ?(lite|e)", 197e12, 16 * GIB, 0.819e12, 200e9, 3.125e9, 2),
        Chip("v5p", "TPU v5p?", 459e12, 95 * GIB, 2.765e12, 600e9, 6.25e9, 3),
        Chip("v6e", "TPU v6 ?(lite|e)", 918e12, 32 * GIB, 1.6e12, 400e9, 12.5e9, 2),
        Chip("a100", "NVIDIA A100.*80GB.*", 312e12, 80e9, 2.039e12, 300e9, 25e9),
        Chip("h100", "NVIDIA H100 80GB HBM3", 989e12, 80e9, 3.35e12, 450e9, 50e9),
        Chip("h200", "NVIDIA H200", 989e12, 141e9, 4.8e12, 450e9, 50e9),
        Chip("a6000", "NVIDIA RTX A6000", 154.8e12, 48e9, 0.768e12, 56e9, 12.5e9),
        Chip("l4", "NVIDIA L4", 121e12, 24e9, 0.3e12, 32e9, 12.5e9),
    )
}


def by_kind(device_kind: str) -> Chip | None:
    """The chip of JAX's `device.device_kind`; None for what the table does not know."""
    return next((c for c in CHIPS.values() if re.fullmatch(c.kind, device_kind, re.IGNORECASE)), None)
