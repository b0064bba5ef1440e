"""Meshes by name: `--config.mesh=v5e_256` stands for the sizes of its axes.

A name sets `config.mesh.replica`, `.data`, `.fsdp` and `.tensor`; flags behind it change single sizes. One of GPUs also
sets `config.model.unroll` where no flag does. What Google calls v4-8 and v5p-128 counts TensorCores, two to a chip; v5e
and v6e count chips.
"""

import dataclasses
import difflib

from vlp_jax.telemetry import chips
from vlp_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class NamedMesh:
    """Sizes of the axes for a number of devices.

    Attributes:
      topology: of the devices, as `vlp_jax.plan` and libtpu name it: `v5e:16x16`, `h200:8`, `cpu:8`; slices behind an x
        for several connected by the data-centre network, `v5e:16x16 x2`.
    """

    topology: str
    replica: int = 1
    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in ("replica", "data", "fsdp", "tensor")}

    @property
    def unroll(self) -> bool:
        """Whether layers are better written out than scanned.

        As the compilers write the step of `base`, a scan over layers moves 1.4 times the bytes of layers written out on
        an H200, and 0.8 times on a TPU, where it compiles sooner too (benchmarks/RESULTS.md, Plans).
        """
        chip = chips.CHIPS.get(self.topology.partition(":")[0])
        return chip is not None and not chip.dimensions


# Parameters are spread over up to 16 chips, a row of the larger slices, and copied to the others.
MESHES: dict[str, NamedMesh] = {
    "cpu1": NamedMesh("cpu:1"),
    "cpu8": NamedMesh("cpu:8", data=2, fsdp=2, tensor=2),  # uses every axis: for tests on forced host devices
    "gpu1": NamedMesh("h200:1"),
    "gpu8": NamedMesh("h100:8", fsdp=8),
    "h200x8": NamedMesh("h200:8", data=8),
    "v4_8": NamedMesh("v4:2x2x1", fsdp=4),
    "v5e_16": NamedMesh("v5e:4x4", fsdp=16),
    "v5e_256": NamedMesh("v5e:16x16", data=16, fsdp=16),
    "v5e_256x2": NamedMesh("v5e:16x16 x2", replica=2, data=16, fsdp=16),
    "v5p_128": NamedMesh("v5p:4x4x4", data=4, fsdp=16),
    "v6e_256": NamedMesh("v6e:16x16", data=16, fsdp=16),
}


def find(name: str) -> NamedMesh:
    """The mesh of a name.

    Raises:
      UserError: there is none of that name.
    """
    if name not in MESHES:
        near = difflib.get_close_matches(name, MESHES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"--config.mesh={name}: expected one of {', '.join(MESHES)}{hint}")
    return MESHES[name]


def names(argv: list[str]) -> list[str]:
    """The names that a command line gives to `--config.mesh`."""
    words, out = iter(argv), []
    for word in words:
        flag, equals, name = word.partition("=")
        if flag.startswith("-") and flag.lstrip("-") == "config.mesh":
            out.append(name if equals else next(words, ""))
    return out


def expand(argv: list[str]) -> list[str]:
    """Replaces `--config.mesh=NAME` (or `--config.mesh NAME`) in a command line by the flags that the name stands for.

    Raises:
      UserError: there is no such name.
    """
    out, words = [], iter(argv)
    asked = any(word.lstrip("-").partition("=")[0] == "config.model.unroll" for word in argv if word.startswith("-"))
    for word in words:
        flag, equals, name = word.partition("=")
        if flag.lstrip("-") != "config.mesh" or not flag.startswith("-"):
            out.append(word)
            continue
        mesh = find(name if equals else next(words, ""))
        out += [f"--config.mesh.{axis}={size}" for axis, size in mesh.sizes.items()]
        if mesh.unroll and not asked:
            out.append("--config.model.unroll=True")
    return out
