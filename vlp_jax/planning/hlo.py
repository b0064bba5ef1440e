"""The text of a compiled program: its operations and how often each runs, and its collectives.

XLA's own cost analysis counts the body of a loop once, so the text of the optimised program is read here instead.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
# Make or rename values without touching memory, or are counted by what they call.
_FREE = frozenset(
    """
    parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id
    opt-barrier async-start send recv domain iota
    """.split()
)
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      shape: as written, layout included.
      rest: attributes, as written.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: one of COLLECTIVES.
      bytes: on each device, of the larger of what goes in and what comes out.
      size: devices that take part together.
      axes: of the mesh, that these devices lie along; () where they are no axes' groups.
      times: how often it runs.
      source: the operation of the program that it comes from.
    """

    kind: str
    bytes: int
    size: int
    axes: tuple[str, ...]
    times: int
    source: str

    @property
    def traffic(self) -> float:
        """Bytes that each device sends, all runs together, in the best known algorithm."""
        if self.kind == "collective-permute":
            return float(self.bytes * self.times)
        share = (self.size - 1) / self.size
        return self.bytes * share * self.times * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Visit:
    """An instruction where it runs: its computation, the instructions there by name, how often, whether in a fusion."""

    instruction: Instruction
    computation: str
    own: dict[str, Instruction]
    times: int
    fused: bool


class Program:
    """The text of an optimised program, as `compiled.as_text()` gives it.

    Args:
      mesh_shape: axis -> size, in order, of the mesh that it was compiled for.
    """

    def __init__(self, text: str, mesh_shape: dict[str, int]):
        self._mesh = mesh_shape
        self.computations: dict[str, list[Instruction]] = {}
        self._entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head:
                current = self.computations[head[2]] = []
                self._entry = head[2] if head[1] else self._entry
            elif " = " in line and line.startswith("  "):
                current.append(_parse(line))
        if not self._entry:
            raise ValueError(f"no program: {text[:80]!r}")

    def collectives(self) -> list[Collective]:
        """All collectives that really join devices, those with the most traffic first.

        On TPUs one that runs beside arithmetic stands in each fusion that it passes through, from the one that starts
        it to the one that waits for it, all with one chain_id: it is counted once, as often as the rarest of them runs.
        """
        found: list[Collective] = []
        chains: dict[str, Collective] = {}
        for step in self.walk():
            if not _kind(step.instruction.opcode):
                continue
            one, chain = self._collective(step), chain_of(step.instruction)
            if not chain:
                found.append(one)
            elif chain not in chains or one.times < chains[chain].times:
                chains[chain] = one
        return sorted((c for c in (*found, *chains.values()) if c.size > 1), key=lambda c: -c.traffic)

    def walk(self) -> Iterator[Visit]:
        """All operations, those inside loops, calls and fusions too."""

        def visit(name, times, fused):
            own = {i.name: i for i in self.computations[name]}
            for i in own.values():
                yield Visit(i, name, own, times, fused)
                called = called_by(i)
                if i.opcode == "while":
                    yield from visit(called["body"][0], times * self._trips(i, called["condition"][0]), fused)
                elif i.opcode == "conditional":
                    # Of which branch is taken nothing is known: all are looked at.
                    for branch in itertools.chain.from_iterable(called.values()):
                        yield from visit(branch, times, fused)
                elif i.opcode in ("fusion", "call", "async-start"):
                    for inner in called.get("calls", ()) + called.get("to_apply", ()):
                        yield from visit(inner, times, fused or i.opcode == "fusion")

        yield from visit(self._entry, 1, False)

    def _trips(self, loop: Instruction, condition: str) -> int:
        """How often the body of a loop runs: counted by XLA, or by the condition of one that counts up from 0."""
        known = re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', loop.rest)
        if known:
            return int(known[1])
        own = {i.name: i for i in self.computations[condition]}
        compare = next((i for i in own.values() if i.opcode == "compare"), None)
        if compare is not None and "direction=LT" in compare.rest:
            limit = own.get(compare.operands[1])
            value = re.match(r"(\d+)\)", limit.rest) if limit and limit.opcode == "constant" else None
            if value:
                return int(value[1])
        raise ValueError(f"cannot tell how often loop {loop.name} runs: its condition {condition} is no plain count")

    def _collective(self, step: Visit) -> Collective:
        i = step.instruction
        # On TPUs a reduce-scatter is an all-reduce and a slice, in a computation of that name.
        kind = "reduce-scatter" if "reduce-scatter" in step.computation else _kind(i.opcode)
        parts = [step.own[name].shape for name in i.operands if name in step.own]
        size = max(array_bytes(result_shape(i)), sum(map(array_bytes, parts)), 1)
        groups = _groups(i.rest)
        if groups is None:
            groups = np.arange(math.prod(self._mesh.values()))[None]
        source = re.search(r'op_name="([^"]*)"', i.rest)
        return Collective(kind, size, groups.shape[1], self._axes(groups), step.times, source[1] if source else "")

    def _axes(self, groups: np.ndarray) -> tuple[str, ...]:
        """The mesh axes along which the devices of each group lie."""
        shape = tuple(self._mesh.values())
        if groups.max() >= math.prod(shape):
            return ()
        at = np.stack(np.unravel_index(groups[0], shape))
        varies = (at != at[:, :1]).any(1)
        axes = tuple(axis for axis, v in zip(self._mesh, varies) if v)
        full = math.prod(self._mesh[axis] for axis in axes) == groups.shape[1]
        return axes if full or not axes else ()


def _kind(opcode: str) -> str:
    """The collective that an operation is, or starts; '' for any other."""
    name = opcode.removesuffix("-start")
    return name if name in COLLECTIVES else ""


def result_shape(i: Instruction) -> str:
    """The shape of what an operation makes, without the inputs that what starts one names beside it."""
    if not i.shape.startswith("("):
        return i.shape
    parts = elements(i.shape)
    if i.opcode in ("all-gather-start", "collective-permute-start"):
        return parts[1]
    # Any other start names its operands as a tuple first, then what it makes, then what it is waited for by.
    if i.opcode.endswith("-start") and parts[0].startswith("("):
        return parts[1]
    return parts[0] if i.opcode == "copy-start" else i.shape


def is_free(opcode: str) -> bool:
    """Whether an operation touches no memory, or is the rest of one that was counted where it started."""
    rest = opcode.endswith("-done") or (opcode.endswith("-update") and not opcode.startswith("dynamic"))
    return opcode in _FREE or rest


def chain_of(i: Instruction) -> str:
    """What a TPU's collective has in common in all fusions that it passes through; '' where it is in one place."""
    found = re.search(r'chain_id="(\w+)"', i.rest) if _kind(i.opcode) else None
    return found[1] if found else ""


def aliases(i: Instruction) -> str:
    """Which parts of a fusion's result are its operands, as written; ''."""
    start = i.rest.find("output_to_operand_aliasing=")
    if start < 0:
        return ""
    start = i.rest.index("{", start)
    return i.rest[start : _closing(i.rest.replace("{", "(").replace("}", ")"), start) + 1]


def _parse(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    close = _closing("(" + rest, 0) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:close]))
    # What a constant or a parameter has between its brackets is kept.
    return Instruction(name.lstrip("%"), shape, opcode.strip(), operands, rest if not operands else rest[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the bracket at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    raise ValueError(f"brackets that do not close: {text[start : start + 80]!r}")


def called_by(i: Instruction) -> dict[str, tuple[str, ...]]:
    """Attribute -> computations that it names."""
    out: dict[str, tuple[str, ...]] = {}
    for key in ("body", "condition", "calls", "to_apply", "true_computation", "false_computation"):
        match = re.search(rf"\b{key}=%?([\w.\-]+)", i.rest)
        if match:
            out[key] = (match[1],)
    branches = re.search(r"branch_computations=\{([^}]*)\}", i.rest)
    if branches:
        out["branch_computations"] = tuple(re.findall(r"[\w.\-]+", branches[1]))
    return out


def elements(shape: str) -> list[str]:
    """The members of a tuple's shape."""
    out, depth, start = [], 0, 1
    for at, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or not depth:
            out.append(shape[start:at].strip())
            start = at + 1
        if not depth:
            break
    return out


def array_bytes(shape: str, *, in_memory: bool = False) -> int:
    """Bytes of an array, or of all arrays of a tuple.

    Args:
      in_memory: leaves out arrays that are kept on the chip (memory space 1 of TPUs).
    """
    total = 0
    for kind, dims, layout in _ARRAY.findall(shape):
        if in_memory and "S(1)" in layout:
            continue
        bits = _BITS.get(kind)
        if bits is None:
            bits = int(re.sub(r"\D", "", kind.partition("e")[0] if kind.startswith("f8") else kind))
        total += math.prod(int(n) for n in dims.split(",") if n) * bits // 8
    return total


def element_count(shape: str) -> int:
    """Elements of an array, or of all arrays of a tuple."""
    return sum(math.prod(int(n) for n in dims.split(",") if n) for _, dims, _ in _ARRAY.findall(shape))


def _groups(rest: str) -> np.ndarray | None:
    """The groups of devices of a collective, `[groups, devices]`; None where it joins all."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]+\},?)+)\}", rest)
    if listed:
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    tiled = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if tiled:
        return _iota(tiled[2], tiled[3]).reshape(_numbers(tiled[1]))
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", rest
    )
    if named:
        sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        shape = tuple(sizes.values())
        ids = _iota(named[2], named[3]) if named[2] else np.arange(math.prod(shape))
        along = [list(sizes).index(axis) for axis in re.findall(r"'(\w+)'", named[4])]
        others = [n for n in range(len(shape)) if n not in along]
        count = math.prod(shape[n] for n in along)
        return ids.reshape(shape).transpose([*others, *along]).reshape(-1, count)
    return None


def _iota(dims: str, order: str | None) -> np.ndarray:
    shape = _numbers(dims)
    ids: Any = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))
