"""Checks of what functions are called with."""

from typing import Any

import numpy as np

from vlp_jax.types import UserError


def numbers(name: str, given: Any, count: int, of: str) -> list[int]:
    """Numbers from 0 to below `count`, of a sequence or of one alone.

    Args:
      name: of the argument.
      of: what they are numbers of.

    Raises:
      UserError: one is no integer (a bool is none), or out of range.
    """
    listed = list(given) if np.iterable(given) else [given]
    if odd := [number for number in listed if not (_is_integer(number) and 0 <= number < count)]:
        raise UserError(f"{name} = {odd[:5]}: expected 0 to {count - 1}, integers, the numbers {of}")
    return [int(number) for number in listed]


def check_positive(name: str, given: Any) -> None:
    """Raises UserError where an argument is no integer above 0."""
    if not (_is_integer(given) and given > 0):
        raise UserError(f"{name} = {given!r}: expected an integer above 0")


def _is_integer(given: Any) -> bool:
    return isinstance(given, (int, np.integer)) and not isinstance(given, bool)
