"""The algebra of split names: which parts of one dataset two of them mean, and whether these can meet.

A checkpoint chosen, or a number reported, on clips that the model trained on says nothing. Names are all that is known
before a source is opened: two slices of one split that may share clips count as sharing them.
"""

import re
from typing import Any

from vlp_jax import config as config_lib

# Ends of a split's name: a part of its clips that training leaves to the choice of a checkpoint, and the rest.
HELD_OUT, KEPT = "[held_out]", "[kept]"
PARTS = tuple(suffix.strip("[]") for suffix in (HELD_OUT, KEPT))
# As TFDS reads it: one unit for both ends; a number may have underscores, a percentage a fraction.
_SLICE = re.compile(
    r"(?P<name>[\w.\-]+)(?:\[(?P<low>-?[\d_.]+)?(?P<unit_low>%|shard)?:(?P<high>-?[\d_.]+)?(?P<unit_high>%|shard)?\])?"
)
_SHARDS = re.compile(r"shards=(\d+)\.\.(\d+)")


def parse(split: str) -> tuple[str, str]:
    """Splits `train[kept]` into `train` and `kept`; the part is '' where the split names none."""
    for part in PARTS:
        if split.endswith(f"[{part}]"):
            return split.removesuffix(f"[{part}]"), part
    return split, ""


def may_meet(kind: str, one: str, other: str) -> bool:
    """Whether two splits of one dataset may have clips in common.

    They cannot where they are the two parts, `[held_out]` and `[kept]`, of one split; have other names (kind tfds);
    are slices of one split of which one ends where the other begins, or before (`train[:80%]`, `train[80%:]`); choose
    other values of one column (kind table); or other shards (kind shards). Annotation tables, and rows of other values,
    may be about the same clips all the same: `sources.shared_clips` looks.

    Args:
      kind: `config.input.kind`.
      one, other: as `config.input.split`.
    """
    (whole, part), (other_whole, other_part) = parse(one), parse(other)
    if whole == other_whole:
        return not (part and other_part and part != other_part)
    meet = {"tfds": _slices_meet, "table": _choices_meet, "shards": _shards_meet}[kind]
    return meet(whole, other_whole)


def held_out_of_training(config: Any, split: str) -> bool:
    """Whether `split`, of `config.input.path`, is the part of a training split that the run does not train on."""
    whole, part = parse(split)
    own = config_lib.training_inputs(config).values()
    return part == "held_out" and any((i.path, i.split) == (config.input.path, whole + KEPT) for i in own)


def _slices_meet(one: str, other: str) -> bool:
    return any(_terms_meet(a, b) for a in one.split("+") for b in other.split("+"))


def _terms_meet(one: str, other: str) -> bool:
    a, b = _SLICE.fullmatch(one.strip()), _SLICE.fullmatch(other.strip())
    if not a or not b:
        return True
    if "all" in (a["name"], b["name"]):
        return True
    return a["name"] == b["name"] and not (_ends_before(a, b) or _ends_before(b, a))


def _ends_before(a: re.Match[str], b: re.Match[str]) -> bool:
    """Whether slice `a` certainly ends where `b` begins, or before.

    Ends of one unit and one sign are compared: how many records lie before the last 10, or 10%, is not known here, as
    TFDS rounds either.
    """
    high, low = a["high"], b["low"]
    unit = lambda x: x["unit_low"] or x["unit_high"] or ""
    if high is None or low is None or unit(a) != unit(b):
        return False
    end, begin = (float(x.replace("_", "")) for x in (high, low))
    return (high[0] == "-") == (low[0] == "-") and end <= begin


def _choices_meet(one: str, other: str) -> bool:
    if not all(split == "all" or "=" in split for split in (one, other)):
        return False  # a name that a table cannot have, such as the default of config.evaluation.split
    if "all" in (one, other):
        return True
    (column, _, values), (other_column, _, other_values) = one.partition("="), other.partition("=")
    return column != other_column or not set(values.split("|")).isdisjoint(other_values.split("|"))


def _shards_meet(one: str, other: str) -> bool:
    a, b = _SHARDS.fullmatch(one), _SHARDS.fullmatch(other)
    if not all(split == "all" or match for split, match in ((one, a), (other, b))):
        return False  # as above
    if not a or not b:
        return True
    return int(a[1]) <= int(b[2]) and int(b[1]) <= int(a[2])
