"""The ledger of bad clips: what did not decode, where it lies and why; and the limit past which a run stops."""

import collections
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vlp_jax.input.pipeline import HostBatch
from vlp_jax.types import UserError


def kind_of(error: str) -> str:
    """The error without what differs from clip to clip: numbers become N."""
    return re.sub(r"\d+(\.\d+)?", "N", error)


def count_kinds(errors: Iterable[tuple[str, int]], most: int = 5) -> str:
    """Lists `(error, examples)` pairs by kind, the most frequent first, each as it was met first:
    `12 x truncated: 3 of 8 frames are there (or other numbers)`."""
    kinds: collections.Counter[str] = collections.Counter()
    met: dict[str, list[str]] = {}  # kind -> its first error, and another one of that kind
    for error, count in errors:
        kind = kind_of(error)
        kinds[kind] += count
        seen = met.setdefault(kind, [error])
        if len(seen) == 1 and error != seen[0]:
            seen.append(error)
    other = lambda kind: " (or other numbers)" if len(met[kind]) > 1 else ""
    listed = [f"{count:,} x {met[kind][0]}{other(kind)}" for kind, count in kinds.most_common(most)]
    rest = len(kinds) - len(listed)
    return "; ".join(listed) + (f"; and {rest} other reasons" if rest > 0 else "")


def read(path: pathlib.Path) -> tuple[list[dict[str, Any]], int, int]:
    """What a ledger says, for those who only look: the last line of each clip, and the examples seen and bad so far.

    A last line that is being written, or was cut short, is left out.

    Raises:
      UserError: the file is not a ledger.
    """
    _, clips, seen, bad = _parse(path)
    return list(clips.values()), seen, bad


def _parse(path: pathlib.Path) -> tuple[int, dict[tuple[str, str], dict[str, Any]], int, int]:
    """Bytes of the whole lines, `(source, clip_id)` -> its last line, examples seen and bad."""
    clips: dict[tuple[str, str], dict[str, Any]] = {}
    seen = bad = 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            seen, bad = int(entry["seen"]), int(entry["bad"])
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(
                f"{path}, line {number}: {line[:80]!r} is not a line of a ledger; move the file away to start a new one"
            ) from e
        if "clip_id" in entry:
            # Ledgers of earlier versions name no source and count no examples.
            entry = {"source": "input", "count": 1} | entry
            clips[entry["source"], entry["clip_id"]] = entry
    return len(whole), clips, seen, bad


class Ledger:
    """Counts good and bad examples, and writes each bad clip to a JSON-lines file.

    A line holds `clip_id`, `origin` (path or dataset), `source` (its name in `config.mixture`, `input` where the run
    has a single one), `error`, `index` (the first example that met it), `count` (the examples so far that did), and
    the counts over all clips so far, `seen` and `bad`. A clip is written again when its count has doubled and at the
    run's end: its last line holds. A ledger opened on an existing file knows its clips and goes on from the last counts
    written. Lines with counts alone are written each time `seen` has doubled, so that a killed run forgets at most
    half of them.

    The rule: `add` raises once `bad > max_bad_share * seen` and at least `min_examples` were seen, so that one bad
    clip among the first few does not end a run; `finish` applies the limit whatever the number, for sets that are
    smaller than that. Both count since the ledger was opened, so that a run goes on once its clips are repaired.
    Several processes count each their own examples.

    Args:
      path: the file, created with the first line; None keeps the ledger in memory.
      max_bad_share: largest share of the examples seen that may be bad, [0, 1].
      min_examples: examples seen before `add` may raise; by default enough for four bad ones at the limit and at
        least 100, and 1 where no bad example is allowed.

    Raises:
      UserError: the existing file is not a ledger.
    """

    def __init__(self, path: str | pathlib.Path | None, max_bad_share: float, min_examples: int | None = None):
        if min_examples is None:
            min_examples = max(100, math.ceil(4 / max_bad_share)) if max_bad_share else 1
        self._path = None if path is None else pathlib.Path(path)
        self._max_bad_share = max_bad_share
        self._min_examples = min_examples
        self._clips: dict[tuple[str, str], dict[str, Any]] = {}  # (source, clip_id) -> its newest entry
        self._counted: dict[tuple[str, str], int] = {}  # `count` of its last line
        self.seen = 0  # examples, padding aside
        self.bad = 0  # of them, those that did not decode
        self._written = 0  # `seen` of the last line
        if self._path is not None and self._path.exists():
            self._resume(self._path)
        self._before = self.seen, self.bad  # what earlier processes saw, of clips that may have been repaired since

    def _resume(self, path: pathlib.Path) -> None:
        whole, self._clips, self.seen, self.bad = _parse(path)
        if whole < path.stat().st_size:
            # The run was killed inside its last line; cut it off, or the next line would be glued to it.
            with path.open("r+b") as f:
                f.truncate(whole)
        self._written = self.seen
        self._counted = {key: entry["count"] for key, entry in self._clips.items()}

    def add(self, host: HostBatch) -> None:
        """Counts a batch; padding rows count as nothing.

        Raises:
          UserError: the share of bad examples is over the limit.
        """
        real = ~np.asarray(host.is_padding)
        failed = real & ~np.asarray(host.batch.valid)
        self.seen += int(real.sum())
        self.bad += int(failed.sum())
        source = host.source or "input"
        for row in np.flatnonzero(failed):
            key = source, host.clip_ids[row]
            if key not in self._clips:
                self._clips[key] = {
                    "clip_id": host.clip_ids[row],
                    "origin": host.origins[row],
                    "source": source,
                    "error": host.errors[row],
                    "index": int(host.batch.index[row]),
                    "count": 0,
                }
            entry = self._clips[key]
            entry["count"] += 1
            if entry["count"] >= 2 * self._counted.get(key, 0):
                self._append_clip(key)
        if self._clips and self.seen >= 2 * self._written:
            self._append({})
        seen, bad = self._own()
        if seen >= self._min_examples:
            self._check(seen, bad)

    def finish(self, add_up: Callable[[tuple[int, int]], Iterable[int]] = lambda own: own) -> None:
        """Writes the final counts, and applies the limit whatever the number of examples.

        Args:
          add_up: this process's (seen, bad) -> those of all processes of the job, so that all come to one end.

        Raises:
          UserError: the share of bad examples is over the limit.
        """
        for key, entry in self._clips.items():
            if entry["count"] != self._counted[key]:
                self._append_clip(key)
        if self._clips:
            self._append({})
        self._check(*add_up(self._own()))

    def summary(self) -> str:
        """One line: how many examples and clips were bad, the five most frequent reasons, and where all are listed."""
        if not self.bad:
            return f"bad clips: none in {self.seen} examples"
        where = f", listed in {self._path}" if self._path else ""
        share = f"{self.bad / self.seen:.2%}"
        why = count_kinds((c["error"], c["count"]) for c in self._clips.values())
        return f"bad clips: {len(self._clips)}, {self.bad} of {self.seen} examples ({share}){where}: {why}"

    def _append_clip(self, key: tuple[str, str]) -> None:
        self._counted[key] = self._clips[key]["count"]
        self._append(self._clips[key])

    def _append(self, entry: dict[str, Any]) -> None:
        self._written = self.seen
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(entry | {"seen": self.seen, "bad": self.bad}, ensure_ascii=False) + "\n")

    def _own(self) -> tuple[int, int]:
        """Examples that this process saw, and the bad ones among them."""
        return self.seen - self._before[0], self.bad - self._before[1]

    def _check(self, seen: int, bad: int) -> None:
        if bad <= self._max_bad_share * seen:
            return
        examples = "; ".join(f"{c['clip_id']!r} ({c['origin']}): {c['error']}" for c in list(self._clips.values())[:3])
        where = f"all are listed in {self._path}" if self._path else "no ledger file is kept"
        raise UserError(
            f"{bad} of {seen} examples ({bad / seen:.1%}) "
            f"did not decode, over config.input.max_bad_share = {self._max_bad_share:g}: {examples}; {where}. "
            "Repair these clips and run the same command again, or raise config.input.max_bad_share"
        )
