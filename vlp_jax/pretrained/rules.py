"""How names and shapes of a published family become ours, and back: tables of rules, no code for any one tensor.

Our parameters of a stack of layers are one array with a leading axis of layers; kernels map inputs to outputs, and
those of attention keep the heads apart. Theirs have a tensor for each layer, and weights `[outputs, inputs]`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlp_jax import tables
from vlp_jax.pretrained.weights import Tensors
from vlp_jax.types import UserError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How some of their tensors are one of ours.

    Attributes:
      take: (their tensors, shape of ours) -> ours.
      give: ours -> their tensors; what it returns says which shapes theirs must have.
      rows: the first axis may be longer or shorter there: a table of positions, of which the first rows are taken.
      note: what a report says of it.
    """

    take: Callable[[Sequence[np.ndarray], Shape], np.ndarray]
    give: Callable[[np.ndarray], list[np.ndarray]]
    rows: bool = False
    note: str = ""


SAME = Transform(lambda x, shape: x[0], lambda x: [x])
LINEAR = Transform(lambda x, shape: x[0].T, lambda x: [x.T])
# Query, key and value: theirs `[A Dh, D]` each, ours `[D, 3, A, Dh]`.
QKV = Transform(
    lambda x, shape: np.stack([w.T.reshape(shape[0], *shape[2:]) for w in x], axis=1),
    lambda x: [x[:, i].reshape(x.shape[0], -1).T for i in range(3)],
)
QKV_BIAS = Transform(
    lambda x, shape: np.stack([b.reshape(shape[1:]) for b in x]), lambda x: [x[i].reshape(-1) for i in range(3)]
)
# BEiT's, whose keys have no bias: softmax would not see it.
QV_BIAS = Transform(
    lambda x, shape: np.stack([x[0].reshape(shape[1:]), np.zeros(shape[1:], x[0].dtype), x[1].reshape(shape[1:])]),
    lambda x: [x[0].reshape(-1), x[2].reshape(-1)],
)
# A convolution over patches of one frame: theirs `[D, 3, side, side]`, ours `[side side 3, D]`.
PATCHES = Transform(
    lambda x, shape: x[0].transpose(2, 3, 1, 0).reshape(-1, x[0].shape[0]),
    lambda x: [x.reshape(_side(x), _side(x), 3, x.shape[-1]).transpose(3, 2, 0, 1)],
)
# One over patches of two frames: theirs `[D, 3, 2, side, side]`, ours `[2 side side 3, D]`.
TUBES_OF_2 = Transform(
    lambda x, shape: x[0].transpose(2, 3, 4, 1, 0).reshape(-1, x[0].shape[0]),
    lambda x: [x.reshape(2, _side(x[::2]), _side(x[::2]), 3, x.shape[-1]).transpose(4, 3, 0, 1, 2)],
)
# The logarithm of one over the temperature.
LOG_SCALE = Transform(lambda x, shape: np.exp(-x[0]), lambda x: [-np.log(x)])
VECTOR = Transform(lambda x, shape: x[0].reshape(shape), lambda x: [x.reshape(1, 1, -1)])  # theirs `[1, 1, D]`
GRID = Transform(lambda x, shape: x[0].reshape(shape), lambda x: [x[None]])  # theirs `[1, 1 + N, D]`


def _side(kernel: np.ndarray) -> int:
    return round((kernel.shape[0] / 3) ** 0.5)


# The map out of the heads: theirs `[D, A Dh]`, ours `[A, Dh, D]`.
OUT = Transform(lambda x, shape: x[0].T.reshape(shape), lambda x: [x.reshape(-1, x.shape[-1]).T])


def fused(how: Transform) -> Transform:
    """As `how`, of whose three tensors theirs is one, `[3 A Dh, ..]`."""
    return Transform(
        lambda x, shape: how.take(np.split(x[0], 3), shape), lambda x: [np.concatenate(how.give(x))], note=how.note
    )


def positions(offset: int = 0, types: int = 0) -> Transform:
    """A table of learned positions, to which that of the first token type is added: a single text has no other.

    Args:
      offset: rows of theirs before the first position.
      types: rows of their table of token types; 0 where there is none.
    """

    def take(x, shape):
        table = x[0][offset : offset + shape[0]]
        return table + x[1][:1] if types else table

    def give(x):
        table = np.concatenate([np.zeros((offset, x.shape[1]), x.dtype), x]) if offset else x
        return [table, np.zeros((types, x.shape[1]), x.dtype)] if types else [table]

    return Transform(take, give, rows=True)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One of our parameters and what it is made of.

    Attributes:
      ours: path, `text/blocks/mlp/up/kernel`.
      theirs: names; `{i}` in them is the number of a layer, and ours then has a leading axis of layers.
      how: of one layer.
      first: their number of our layer 0.
    """

    ours: str
    theirs: tuple[str, ...]
    how: Transform = SAME
    first: int = 0

    def names(self, shape: Shape) -> list[tuple[str, ...]]:
        """Their names, of each of our layers, or of the one array; `shape` is ours."""
        if "{i}" not in self.theirs[0]:
            return [self.theirs]
        return [tuple(name.format(i=self.first + layer) for name in self.theirs) for layer in range(shape[0])]

    def own(self, shape: Shape) -> Shape:
        """Our shape without the axis of layers."""
        return shape[1:] if "{i}" in self.theirs[0] else shape

    def stored(self, own: Shape) -> list[Shape]:
        """Shapes of theirs that make ours of shape `own`."""
        return [x.shape for x in self.how.give(np.broadcast_to(np.float32(1), own))]

    def origin(self, own: Shape, found: Shape) -> Shape:
        """`own` with the rows that a table of positions has there (`tables`), stored in shape `found`; `own` where it
        is no table, or none that can be interpolated."""
        for rows in found:
            there = (*own[:-2], rows, *own[-1:])
            if tables.can_resize(self.ours, there, own) and self.stored(there)[0] == found:
                return there
        return own


def layer_rules(tower: str, stack: str) -> Callable[..., Rule]:
    """Makes rules of one layer: `(part of our block, *their names, how=)`.

    Args:
      tower: ours, `text` or `vision`.
      stack: what precedes the number of a layer in their names, `encoder.layer`.
    """

    def rule(part: str, *theirs: str, how: Transform = SAME) -> Rule:
        return Rule(f"{tower}/blocks/{part}", tuple(f"{stack}.{{i}}.{name}" for name in theirs), how)

    return rule


def moved(rules: Sequence[Rule], changes: Mapping[str, str], first: int) -> list[Rule]:
    """The rules of a stack of layers for another one of ours: parts of its paths renamed, from another layer on."""
    out = []
    for rule in rules:
        ours = rule.ours
        for before, after in changes.items():
            ours = ours.replace(before, after)
        out.append(dataclasses.replace(rule, ours=ours, first=first))
    return out


def check(rules: Sequence[Rule], shapes: Mapping[str, Shape], tensors: Tensors, rename: Callable[[str], str]) -> None:
    """Refuses what a rule cannot take: a tensor that is missing, of another shape, or no floating-point numbers.

    Args:
      shapes: of our parameters.
      rename: a name in the file -> the one that the rules use.

    Raises:
      UserError: all that is wrong, with names and both shapes.
    """
    there = {rename(name): name for name in tensors.names()}
    wrong = []
    for rule in rules:
        shape = shapes[rule.ours]
        own = rule.own(shape)
        wanted = rule.stored(own)
        for names in rule.names(shape):
            for number, (name, expected) in enumerate(zip(names, wanted)):
                if name not in there:
                    wrong.append(f"{name}, which {rule.ours} needs, is missing")
                    continue
                found, dtype = tensors.describe(there[name])
                if dtype.kind != "f" and dtype.name != "bfloat16":
                    wrong.append(f"{name} is of type {dtype}, expected floating-point numbers")
                elif rule.how.rows and number == 0:
                    if found[1:] != expected[1:] or found[0] < expected[0]:
                        wrong.append(f"{name} is {list(found)}, {rule.ours} needs {list(expected)} or more rows")
                elif found != expected and (number or rule.origin(own, found) == own):
                    table = tables.kind(rule.ours)
                    other = f", or a table of other {table.unit}, in a square grid" if table else ""
                    wrong.append(f"{name} is {list(found)}, {rule.ours} needs {list(expected)}{other}")
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; ... ({len(wrong)} in all)" if len(wrong) > 8 else "")
        raise UserError(shown)


def take(rule: Rule, shape: Shape, tensors: Tensors, there: Mapping[str, str]) -> np.ndarray:
    """Our parameter, float32, of tensors that `check` has passed; a table of positions interpolated to ours.

    Args:
      shape: ours.
      there: the name that rules use -> the one in the file.

    Raises:
      UserError: a value is nan or infinite.
    """
    own, pieces = rule.own(shape), []
    for names in rule.names(shape):
        values = [_finite(name, tensors.read(there[name]).astype(np.float32)) for name in names]
        origin = rule.origin(own, values[0].shape)
        piece = rule.how.take(values, origin)
        pieces.append(piece if origin == own else tables.resize(rule.ours, piece, own[-2]))
    return np.stack(pieces) if "{i}" in rule.theirs[0] else pieces[0]


def _finite(name: str, tensor: np.ndarray) -> np.ndarray:
    if not np.isfinite(tensor).all():
        raise UserError(f"{name} holds values that are nan or infinite: the file is damaged; fetch it anew")
    return tensor


def give(rules: Sequence[Rule], params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters under their names, float32."""
    out: dict[str, np.ndarray] = {}
    for rule in rules:
        value = np.asarray(params[rule.ours], np.float32)
        for layer, names in enumerate(rule.names(value.shape)):
            pieces = rule.how.give(value[layer] if "{i}" in rule.theirs[0] else value)
            out.update(zip(names, (np.array(piece, order="C") for piece in pieces)))
    return out


def matches(patterns: Sequence[str], name: str) -> bool:
    """Whether one of the regular expressions is the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)
