"""The queries of retrieval: what captions a source has, of which clips, and what tokens."""

from typing import Any

import numpy as np

from vlp_jax.evaluation import ranking
from vlp_jax.types import UserError


class Captions:
    """The queries of a source: its captions, which clip each is of, and their tokens.

    Attributes:
      texts: Q captions, in the source's order.
      ids: Q names, `clip_id:number`, the number counting the captions of that clip from 0.
      clip_Q: int32, number of each caption's clip, of a shared one the first; clips are numbered as they first occur.
      group_Q, group_C: int32; a caption and a clip of one group are right for each other.
      clip_ids: C names.
      records: int `[C]`, the record that each clip is read from: its first one.
      valid_Q: bool, False for empty captions, which find nothing and are found by nothing.
      token_ids, token_mask: `[U, L]`, of the U distinct texts. A text is encoded once, so that equal captions tie.
      text_Q: which of them each caption is.
      cut: captions longer than L.
    """

    def __init__(self, source: Any, tokenizer: Any, shared: bool = False):
        annotations = [source.annotation(i) for i in range(len(source))]
        self.texts = [a.caption for a in annotations]
        numbers: dict[str, int] = {}
        self.clip_Q = np.array([numbers.setdefault(a.clip_id, len(numbers)) for a in annotations], np.int32)
        self.clip_ids = list(numbers)
        self.count_C = np.bincount(self.clip_Q)
        self.valid_Q = np.array([bool(text.strip()) for text in self.texts])
        seen = [0] * len(numbers)
        self.ids = []
        for clip in self.clip_Q.tolist():
            self.ids.append(f"{self.clip_ids[clip]}:{seen[clip]}")
            seen[clip] += 1
        self.records = np.unique(self.clip_Q, return_index=True)[1]
        self.group_Q, self.group_C = self.clip_Q, np.arange(len(numbers), dtype=np.int32)
        self.shared = shared
        if shared:
            self._share()
        ids, mask, self.cut = tokenizer.encode(self.texts)
        rows = np.concatenate([ids, mask], axis=1)
        _, first, text_Q = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        self.token_ids, self.token_mask, self.text_Q = ids[first], mask[first], text_Q.reshape(-1)

    def _share(self) -> None:
        """Makes equal captions one query, right for all clips that have it."""
        text_C = [""] * len(self.clip_ids)
        for text, clip in zip(self.texts, self.clip_Q.tolist()):
            text = text.strip()
            if text and text_C[clip] not in ("", text):
                raise UserError(
                    f"clip {self.clip_ids[clip]!r} has the captions {text_C[clip]!r} and {text!r}, but "
                    "config.input.positives = 'caption' means one caption for many clips; expected one a clip, or "
                    "config.input.positives = 'clip'"
                )
            text_C[clip] = text_C[clip] or text
        numbers: dict[str, int] = {}
        self.group_C = np.array([numbers.setdefault(text, len(numbers)) for text in text_C], np.int32)
        first: dict[str, int] = {}
        for row, (text, clip) in enumerate(zip(self.texts, self.clip_Q.tolist())):
            if text.strip() == text_C[clip]:
                first.setdefault(text.strip(), row)
        rows = [first[text] for text in numbers]
        self.texts, self.ids = [self.texts[row] for row in rows], [self.ids[row] for row in rows]
        self.clip_Q, self.valid_Q = self.clip_Q[rows], self.valid_Q[rows]
        self.group_Q, self.count_C = np.arange(len(rows), dtype=np.int32), np.ones_like(self.count_C)

    def rows(self) -> list[tuple[str, int, int]]:
        """`(name, clip, caption)` of every pair that belongs together: of each caption, or of each clip if shared."""
        if self.shared:
            return [(f"{name}:0", clip, int(self.group_C[clip])) for clip, name in enumerate(self.clip_ids)]
        return list(zip(self.ids, self.clip_Q.tolist(), range(len(self.texts))))

    def with_missed(self, rank_Q: np.ndarray, rank_C: np.ndarray, valid_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ranks of captions and of clips, beyond everything where a clip did not decode or a caption has no words: that
        has found nothing and is found by nothing.

        Args:
          valid_C: bool, which clips decoded.
        """
        has_text_C = np.isin(self.group_C, self.group_Q[self.valid_Q])
        has_clip_Q = np.isin(self.group_Q, self.group_C[valid_C])
        return (
            np.where(has_clip_Q & self.valid_Q, rank_Q, max(len(self.group_C) + 1, ranking.MISSED)),
            np.where(valid_C & has_text_C, rank_C, max(len(self.texts) + 1, ranking.MISSED)),
        )

    @property
    def drawn_together(self) -> tuple[Any, Any]:
        """`groups_Q` of `statistics.interval` for captions and clips: clips of one caption, and captions of one clip,
        are drawn together."""
        return (None, self.group_C) if self.shared else (self.clip_Q, None)

    def described(self) -> dict[str, Any]:
        """What kind of queries these are: captions a clip, clips a caption, and the median of the words a caption."""
        clips_Q = np.bincount(self.group_C)[self.group_Q]
        return {
            "captions_per_clip": {"min": int(self.count_C.min()), "max": int(self.count_C.max())},
            "clips_per_caption": {"min": int(clips_Q.min()), "max": int(clips_Q.max())},
            "words_per_caption": float(np.median([len(text.split()) for text in self.texts])),
        }
