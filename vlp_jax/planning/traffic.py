"""Bytes that a compiled program reads from its device's memory and writes to it.

Each operation, and each fusion of operations, reads what it needs of its operands and writes its result once: of an
array that it only takes a slice of, the slice; of one that it updates a slice of in place, as a loop does that stacks
what each layer leaves, the update. On TPUs what stays on the chip does not count. It is the least that a program moves:
what a kernel reads again is not known; of a conditional all branches count.
"""

import dataclasses
import re
from typing import Any

from vlp_jax.planning.hlo import (
    Instruction,
    Program,
    aliases,
    array_bytes,
    called_by,
    chain_of,
    element_count,
    elements,
    is_free,
    result_shape,
)

Computations = dict[str, list[Instruction]]

_SLICES = frozenset("slice dynamic-slice gather slice-start dynamic-slice-start".split())
_RENAMING = frozenset("bitcast reshape".split())
# Each element of the result needs one of an operand at most; any other operation may need all of them.
_ELEMENT_BY_ELEMENT = frozenset(
    """
    abs add and atan2 bitcast bitcast-convert broadcast cbrt ceil clamp compare complex concatenate convert copy
    cosine count-leading-zeros divide erf exponential exponential-minus-one floor get-tuple-element imag is-finite
    log log-plus-one logistic maximum minimum multiply negate not or pad popcnt power real reduce-precision
    remainder reshape reverse round-nearest-afz round-nearest-even rsqrt select shift-left shift-right-arithmetic
    shift-right-logical sign sine sqrt subtract tan tanh transpose xor
    """.split()
)


def memory_traffic(program: Program) -> int:
    """Bytes read and written, on each device, loops counted as often as they run."""
    return sum(
        of_operation(step.instruction, step.own, program.computations) * step.times
        for step in program.walk()
        if not step.fused and not is_free(step.instruction.opcode)
    )


def of_operation(i: Instruction, own: dict[str, Instruction], computations: Computations) -> int:
    """Bytes of one run of an operation that stands outside of fusions."""
    if i.opcode == "custom-call" and 'custom_call_target="AllocateBuffer"' in i.rest:
        return 0  # room, which nothing is written to yet
    if i.opcode == "custom-call" and i.shape.startswith("(") and 'custom_call_target="__cu' in i.rest:
        # NVIDIA's libraries say last what they may write to in between, if they need it.
        i = dataclasses.replace(i, shape=f"({', '.join(part for part in elements(i.shape) if part[:3] != 's8[')})")
    operands = [own[name].shape if name in own else "" for name in i.operands]
    if i.opcode == "fusion":
        return _of_fusion(i, operands, computations)
    result = result_shape(i)
    if i.opcode == "dynamic-update-slice":
        return 2 * array_bytes(operands[1], in_memory=True)
    read = [array_bytes(shape, in_memory=True) for shape in operands]
    if i.opcode in _SLICES:
        read[0] = min(read[0], array_bytes(result))
    return sum(read) + array_bytes(result, in_memory=True)


def _of_fusion(i: Instruction, operands: list[str], computations: Computations) -> int:
    body = computations[called_by(i)["calls"][0]]
    shares = _shares_read(body, computations)
    read = [share * array_bytes(shape, in_memory=True) for share, shape in zip(shares, operands)]
    parts = elements(i.shape) if i.shape.startswith("(") else [i.shape]
    written = [
        share * array_bytes(part, in_memory=True) for share, part in zip(_shares_written(body, computations), parts)
    ]
    if any(map(chain_of, body)):
        # What a collective is on its way with is handed from fusion to fusion in place.
        for part, operand in re.findall(r"\{(\d+)\}: \((\d+), \{\}", aliases(i)):
            written[int(part)] = read[int(operand)] = 0
    return round(sum(read) + sum(written))


def _shares_read(body: list[Instruction], computations: Computations) -> list[float]:
    """What share of each parameter of a fusion is needed for its results, [0, 1]."""
    own = {i.name: i for i in body}
    # Elements wanted of each value: the most that any user wants, or all the slices together that are taken of it.
    wanted: dict[str, dict[Any, float]] = {i.name: {} for i in body}
    wanted[body[-1].name][None] = element_count(body[-1].shape)

    def needed(name):
        others, slices = wanted[name].get(None, 0), sum(n for key, n in wanted[name].items() if key)
        return min(max(others, slices), element_count(own[name].shape))

    for i in reversed(body):
        total = needed(i.name)
        if not total or i.opcode == "parameter":
            continue
        inner = _shares_read(computations[called_by(i)["calls"][0]], computations) if i.opcode == "fusion" else []
        for number, name in enumerate(i.operands):
            if name not in own:
                continue
            size, key, want = element_count(own[name].shape), None, 0.0
            if i.opcode == "fusion":
                want = inner[number] * size
            elif i.opcode in _SLICES and number == 0:
                key, want = (i.operands[1:], i.rest.partition("metadata=")[0]), total
            elif i.opcode in _ELEMENT_BY_ELEMENT:
                want = min(size, total)
            elif i.opcode == "dynamic-update-slice" and number == 0 and _is_parameter(name, own):
                # In place where it is a result; of one that is worked on, all but what is updated is read.
                want = 0 if _is_result(i, own, body) else size - element_count(own[i.operands[1]].shape)
            elif i.opcode != "tuple" or not _is_parameter(name, own):  # one that is handed on as it is, is not read
                want = size
            wanted[name][key] = max(wanted[name].get(key, 0), want)
    parameters = sorted((int(i.rest.partition(")")[0]), i) for i in body if i.opcode == "parameter")
    return [needed(i.name) / max(element_count(i.shape), 1) for _, i in parameters]


def _shares_written(body: list[Instruction], computations: Computations) -> list[float]:
    """What share of each of a fusion's results is written, [0, 1]."""
    own, root = {i.name: i for i in body}, body[-1]
    if root.opcode != "tuple" and root.shape.startswith("("):  # what starts a collective
        return [1.0] * len(elements(root.shape))
    out = []
    for name in root.operands if root.opcode == "tuple" else (root.name,):
        i = _renamed(name, own)
        share = 1.0
        if i.opcode == "parameter":
            share = 0.0
        elif i.opcode == "dynamic-update-slice" and _is_parameter(i.operands[0], own) and _is_result(i, own, body):
            share = element_count(own[i.operands[1]].shape) / max(element_count(i.shape), 1)
        elif i.opcode == "fusion" and not i.shape.startswith("("):
            (share,) = _shares_written(computations[called_by(i)["calls"][0]], computations)
        out.append(share)
    return out


def _is_result(i: Instruction, own: dict[str, Instruction], body: list[Instruction]) -> bool:
    """Whether a value of a fusion is a result of it, under whatever shape, and nothing else."""
    users = [user for user in body if i.name in user.operands]
    return all(user.opcode == "tuple" or (user.opcode in _RENAMING and _is_result(user, own, body)) for user in users)


def _is_parameter(name: str, own: dict[str, Instruction]) -> bool:
    """Whether a value is a parameter of its fusion, under whatever shape."""
    return _renamed(name, own).opcode == "parameter"


def _renamed(name: str, own: dict[str, Instruction]) -> Instruction:
    """What a value is before it got another shape."""
    while own[name].opcode in _RENAMING:
        name = own[name].operands[0]
    return own[name]
