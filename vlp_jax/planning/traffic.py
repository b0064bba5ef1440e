"""Bytes that a compiled program reads from its device's memory and writes to it.

Each operation, and each fusion of operations, reads what it needs of its operands and writes its result once: of an
array that it only takes a slice of, the slice; of one that it updates a slice of in place, as a loop does that stacks
what each layer leaves, the update. On TPUs what stays on the chip does not count.
"""

import re

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
    needed: dict[str, float] = {body[-1].name: element_count(body[-1].shape)}  # elements, of each value
    for i in reversed(body):
        if i.name not in needed or i.opcode == "parameter":
            continue
        inner = _shares_read(computations[called_by(i)["calls"][0]], computations) if i.opcode == "fusion" else []
        for number, name in enumerate(i.operands):
            if name not in own:
                continue
            size = element_count(own[name].shape)
            if i.opcode == "tuple":  # a parameter that is handed on as it is, is not read
                want: float = 0 if own[name].opcode == "parameter" else size
            elif i.opcode == "fusion":
                want = inner[number] * size
            elif i.opcode == "dynamic-update-slice" and number == 0:
                want = 0 if _is_parameter(i.operands[0], own) else size
            elif i.opcode in _ELEMENT_BY_ELEMENT or (i.opcode in _SLICES and number == 0):
                want = min(size, needed[i.name])
            else:
                want = size
            needed[name] = max(needed.get(name, 0), want)
    parameters = sorted((int(i.rest.partition(")")[0]), i) for i in body if i.opcode == "parameter")
    return [needed.get(i.name, 0) / max(element_count(i.shape), 1) for _, i in parameters]


def _shares_written(body: list[Instruction], computations: Computations) -> list[float]:
    """What share of each of a fusion's results is written, [0, 1]."""
    own, root = {i.name: i for i in body}, body[-1]
    if root.opcode != "tuple" and root.shape.startswith("("):  # what starts a collective
        return [1.0] * len(elements(root.shape))
    out = []
    for name in root.operands if root.opcode == "tuple" else (root.name,):
        i = own[name]
        while i.opcode in _RENAMING:
            i = own[i.operands[0]]
        share = 1.0
        if i.opcode == "parameter":
            share = 0.0
        elif i.opcode == "dynamic-update-slice" and _is_parameter(i.operands[0], own):
            share = element_count(own[i.operands[1]].shape) / max(element_count(i.shape), 1)
        elif i.opcode == "fusion" and not i.shape.startswith("("):
            (share,) = _shares_written(computations[called_by(i)["calls"][0]], computations)
        out.append(share)
    return out


def _is_parameter(name: str, own: dict[str, Instruction]) -> bool:
    """Whether a value is a parameter of its fusion, under whatever shape."""
    while own[name].opcode in _RENAMING:
        name = own[name].operands[0]
    return own[name].opcode == "parameter"
