"""Finding the nearest windows: one product of a matrix and a vector, and the best of it.

At 100,000 windows of width 128 that takes 1.3 ms (median) on two cores, FAISS's exact search 1.5 ms, and of width 256
2.5 and 4.2 ms (benchmarks/RESULTS.md): another package would win nothing.
"""

import dataclasses

import numpy as np

from vlp_jax.indexing.store import Entry
from vlp_jax.indexing.windows import Span


@dataclasses.dataclass(frozen=True)
class Hit:
    """A window that was found.

    Attributes:
      score: dot product of the embeddings, the cosine of their angle where the model's have unit length.
      path: relative to the folder of videos.
      span: `(start, end)`, seconds.
    """

    score: float
    path: str
    span: Span


class Gallery:
    """The windows of an index in memory.

    Args:
      entries: files with windows, in the order of their paths.
      matrix: float32 `[windows, E]`, theirs in turn.
    """

    def __init__(self, entries: list[Entry], matrix: np.ndarray):
        self._entries, self._matrix = entries, matrix
        counts_F = np.array([len(entry.spans) for entry in entries], np.int64)
        self._first_F = np.cumsum(counts_F) - counts_F
        self._number = {entry.path: number for number, entry in enumerate(entries)}

    def __len__(self) -> int:
        return len(self._matrix)

    def __contains__(self, path: str) -> bool:
        return path in self._number

    @property
    def files(self) -> int:
        """How many there are."""
        return len(self._entries)

    def mean(self, path: str) -> np.ndarray | None:
        """float32 `[E]`, the mean of a file's windows; None where the file has none here."""
        if path not in self:
            return None
        first = self._first_F[self._number[path]]
        return self._matrix[first : first + len(self._entries[self._number[path]].spans)].mean(0)

    def nearest(self, query_E: np.ndarray, top: int, *, every_window: bool = False, without: str = "") -> list[Hit]:
        """Returns the `top` windows of highest score, the best first; equal ones in the order of paths and times.

        Args:
          query_E: float32 `[E]`.
          every_window: False takes the best window of each file alone.
          without: path of a file that is left out.
        """
        if not len(self):
            return []
        score_N = self._matrix @ np.asarray(query_E, np.float32)
        if without in self:
            number = self._number[without]
            first = self._first_F[number]
            score_N[first : first + len(self._entries[number].spans)] = -np.inf
        if every_window:
            rows = _best(score_N, top)
        else:
            files = _best(np.maximum.reduceat(score_N, self._first_F), top)
            ends = self._first_F[files] + [len(self._entries[number].spans) for number in files]
            rows = np.array([f + score_N[f:e].argmax() for f, e in zip(self._first_F[files], ends)], np.int64)
        numbers = np.searchsorted(self._first_F, rows, side="right") - 1
        found = []
        for row, number in zip(rows.tolist(), numbers.tolist()):
            entry = self._entries[number]
            found.append(Hit(float(score_N[row]), entry.path, entry.spans[row - int(self._first_F[number])]))
        return found


def _best(score_N: np.ndarray, top: int) -> np.ndarray:
    """Numbers of the `top` highest finite scores, the highest first; of equal ones the lowest number first."""
    candidates = np.arange(len(score_N))
    if top < len(score_N):
        least = -np.partition(-score_N, top - 1)[top - 1]
        candidates = np.flatnonzero(score_N >= least)
    candidates = candidates[np.isfinite(score_N[candidates])]
    return candidates[np.argsort(-score_N[candidates], kind="stable")][:top]
