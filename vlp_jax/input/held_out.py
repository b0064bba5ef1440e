"""A part of a split's clips set apart by a hash of their ids, where a set has no validation split.

`train_9k[held_out]` and `train_9k[kept]`: choosing a checkpoint by the split that is reported would flatter it, so that
it is chosen by clips of the training split that training does not see. All rows about a clip fall on one side.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlp_jax.input import arrow_cache
from vlp_jax.input.sources import Annotated, Record
from vlp_jax.types import UserError

SHARE = 0.05  # of the clips that are held out, about
_SCHEMA = pa.schema([("number", pa.int64())])


def fraction(clip_id: str) -> float:
    """A number in `[0, 1)` that is the same in every process and run; clips below SHARE are held out."""
    digest = hashlib.blake2b(clip_id.encode(), digest_size=6).digest()  # 48 bits are exact in a float
    return int.from_bytes(digest, "big") / 2**48


def chosen(ids: Iterable[pa.Array]) -> set[str]:
    """The clips that are held out: those whose fraction is below SHARE, or the one with the lowest."""
    out: set[str] = set()
    lowest: tuple[float, str] | None = None
    for block in ids:
        for clip_id in pc.unique(block).to_pylist():
            own = fraction(clip_id), clip_id
            if own[0] < SHARE:
                out.add(clip_id)
            lowest = own if lowest is None else min(own, lowest)
    return out or ({lowest[1]} if lowest else set())


class Part:
    """The records of a source whose clips are held out, or those of the others; they keep their order.

    Which they are is found once, and cached: what a process holds is a memory-mapped list of their numbers.

    Args:
      source: whose records; it is asked for the ids of all clips.
      part: one of `splits.PARTS`.

    Raises:
      UserError: nothing is left, as the source has a single clip.
    """

    def __init__(self, source: Annotated, part: str):
        self.name = f"{source.name}[{part}]"
        self.columns = source.columns
        self._source, self._part = source, part
        key = ["held_out", SHARE, part, source.identity]
        self._numbers = arrow_cache.open_rows(key, _SCHEMA, self._find)
        if not len(self._numbers):
            raise UserError(
                f"{self.name} is empty: all {len(source)} rows of {source.name} are about one clip, which is held out; "
                "expected rows about two clips or more"
            )

    def _find(self) -> arrow_cache.Blocks:
        blocks = list(self._source.column("video"))  # ids alone, of tables memory-mapped
        out = pa.array(sorted(chosen(blocks)), pa.string())
        first = 0
        for block in blocks:
            mine = pc.is_in(block, value_set=out)
            mine = mine if self._part == "held_out" else pc.invert(mine)
            numbers = pc.add(pc.indices_nonzero(mine).cast(pa.int64()), first)
            first += len(block)
            yield pa.record_batch([numbers], schema=_SCHEMA)
        return {}

    @property
    def identity(self) -> list[Any]:
        """As `sources.Annotated`."""
        return ["held_out", self._numbers.digest]

    @property
    def lists_clips(self) -> bool:
        """As `sources.Annotated`."""
        return self._source.lists_clips

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        return self._source[self._numbers[index]["number"]]

    def annotation(self, index: int) -> Record:
        """As `sources.Source`."""
        return self._source.annotation(self._numbers[index]["number"])

    def column(self, name: str) -> Iterator[pa.Array]:
        """As `sources.Annotated`."""
        numbers = pa.chunked_array(self._numbers.column("number"))
        yield from pa.chunked_array(self._source.column(name)).take(numbers).chunks
