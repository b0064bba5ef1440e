"""Tables of positions for other grids and clips: their rows interpolated, in NumPy.

What a table is says the last part of its path: `space` `[1 + N, D]`, the CLS first (`config.model.vision.positions`
learned); `relative` `[(2 side - 1)^2 + 3, A]`, the offsets between two patches, then three with the CLS (BEiT, arXiv
2106.08254); `time` `[T, D]`. Grids are square.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from vlp_jax.models import layers

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one kind of table is made for another size.

    Attributes:
      size: rows -> side of the grid, or slots; None where no such table has so many rows.
      text: that number as reports write it.
      unit, method: likewise.
      resize: (table `[.., rows, D]`, rows) -> the table of so many rows.
    """

    size: Callable[[int], int | None]
    text: str
    unit: str
    method: str
    resize: Callable[[np.ndarray, int], np.ndarray]


def kind(name: str) -> Kind | None:
    """The kind of table that a parameter is; None where it is none."""
    return _KINDS.get(name.rsplit("/", 1)[-1])


def can_resize(name: str, there: Shape, here: Shape) -> bool:
    """Whether the parameter `name` of shape `here` can be made of one of shape `there`, which differs in its rows."""
    found = kind(name)
    if found is None or len(there) < 2 or there[:-2] != here[:-2] or there[-1] != here[-1]:
        return False
    return found.size(there[-2]) is not None and found.size(here[-2]) is not None


def resize(name: str, table: np.ndarray, rows: int) -> np.ndarray:
    """The table `[.., rows there, D]` with so many rows, for shapes that `can_resize`."""
    found = kind(name)
    assert found is not None
    return found.resize(table, rows)


def described(name: str, there: Shape, here: Shape) -> tuple[str, str, str, str]:
    """Both sizes, what they count, and how it was interpolated: `('3 x 3', '4 x 4', 'patches', ', bicubic')`."""
    found = kind(name)
    assert found is not None
    before, after = (found.text.format(found.size(shape[-2])) for shape in (there, here))
    return before, after, found.unit, found.method and f", {found.method}"


def _grid(table, side: int, to: int, kernel: Callable[[np.ndarray], np.ndarray], reach: int):
    """`[.., side * side, D] -> [.., to * to, D]`: both axes interpolated, as PyTorch does with align_corners=False."""
    square = table.reshape(*table.shape[:-2], side, side, table.shape[-1]).astype(np.float64)
    weights = _weights(side, to, kernel, reach)
    out = np.einsum("yi,xj,...ijd->...yxd", weights, weights, square, optimize=True)
    return out.reshape(*table.shape[:-2], to * to, table.shape[-1]).astype(table.dtype)


def _weights(there: int, here: int, kernel: Callable[[np.ndarray], np.ndarray], reach: int) -> np.ndarray:
    """Share of each row there in each row here, `[here, there]`; rows beyond an end are that end's."""
    at = (np.arange(here) + 0.5) * there / here - 0.5
    out = np.zeros((here, there))
    for tap in range(1 - reach, 1 + reach):
        row = np.floor(at).astype(int) + tap
        np.add.at(out, (np.arange(here), np.clip(row, 0, there - 1)), kernel(np.abs(at - row)))
    return out


def _linear(distance):
    return 1 - distance


def _cubic(distance):
    """Keys' kernel with a = -0.75, which PyTorch has."""
    a, d = -0.75, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, far)


def _side(count: int) -> int | None:
    side = math.isqrt(max(count, 0))
    return side if side and side * side == count else None


def _space(table, rows):
    cls, patches = table[..., :1, :], table[..., 1:, :]
    old, new = _side(patches.shape[-2]), _side(rows - 1)
    assert old and new
    return np.concatenate([cls, _grid(patches, old, new, _cubic, 2)], axis=-2)


def _relative(table, rows):
    offsets, with_cls = table[..., :-3, :], table[..., -3:, :]
    old, new = _side(offsets.shape[-2]), _side(rows - 3)
    assert old and new
    return np.concatenate([_grid(offsets, old, new, _linear, 1), with_cls], axis=-2)


def _patches_of_relative(rows: int) -> int | None:
    span = _side(rows - 3)
    return (span + 1) // 2 if span and span % 2 else None


_KINDS = {
    # As DeiT's and timm's code, and transformers with interpolate_pos_encoding.
    "space": Kind(lambda rows: _side(rows - 1), "{0} x {0}", "patches", "bicubic", _space),
    # As transformers; BEiT's own code fits a spline to offsets that grow geometrically.
    "relative": Kind(_patches_of_relative, "{0} x {0}", "patches", "bilinear in their offsets", _relative),
    "time": Kind(lambda rows: rows or None, "{0}", "slots", "", layers.interpolate_time),
}
