"""What tokenizers are: the frame around a text's pieces, the way back, and the range of the words' ids."""

import abc
from collections.abc import Iterable

import numpy as np

from vlp_jax.types import UserError


class Tokenizer(abc.ABC):
    """Captions to ids and back, on top of `_split` and `_join`; picklable, and safe to use from several threads.

    Args:
      data: the tokenizer's file.
      max_tokens: L, at least 3.
      name: the file's name, for messages.

    Attributes:
      file_name: the name under which a workdir keeps the file.
      max_tokens: L.
      vocab_size: V, rows of an embedding table that holds every id, the special ones included.
      pad_id, unk_id, cls_id, sep_id, mask_id: special ids; no text is encoded to one of them, but for the unknown.
        `mask_id` is None where there is no [MASK]; others may be the same one.
      first_word_id, end_word_id: the longest range of ids that holds only pieces of words; the random replacement of
        masked language modelling draws from `[first_word_id, end_word_id)`.
      starts_word: bool `[V]`, True where a piece begins a word; the pieces that follow it, up to the next True, are of
        the same word. None where pieces do not tell; then there is no [MASK] either.

    Raises:
      UserError: L below 3.
    """

    file_name: str
    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int | None
    first_word_id: int
    end_word_id: int
    starts_word: np.ndarray | None

    def __init__(self, data: bytes, max_tokens: int, name: str):
        if max_tokens < 3:
            raise UserError(
                f"config.input.max_text_tokens = {max_tokens}: expected at least 3, [CLS], a word and [SEP]"
            )
        self._data, self.max_tokens, self._name = data, max_tokens, name

    @abc.abstractmethod
    def _split(self, text: str) -> list[int]:
        """Ids of a text's pieces, none of them special but the unknown."""

    @abc.abstractmethod
    def _join(self, ids: list[int]) -> str:
        """The text of pieces, none of them [CLS], [SEP], [MASK] or padding."""

    def __reduce__(self):
        return type(self), (self._data, self.max_tokens, self._name)

    def serialized(self) -> bytes:
        """The file's bytes; `open_tokenizer(serialized, L, lowercase)` restores the tokenizer."""
        return self._data

    def encode(self, texts: list[str], max_tokens: int | None = None) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns `[CLS] pieces [SEP]`, padded or cut to L.

        Args:
          texts: B of them.
          max_tokens: L, at least 3; that of the tokenizer by default.

        Returns:
          ids int32 `[B, L]`; mask bool `[B, L]`, True on tokens, specials included; how many texts were cut.
        """
        length = self.max_tokens if max_tokens is None else max_tokens
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        room = length - 2
        cut = 0
        for row, text in enumerate(texts):
            # A surrogate on its own, half of an emoji cut in two, is no character and has no UTF-8 form.
            pieces = self._split(text.encode("utf-8", "ignore").decode("utf-8"))
            cut += len(pieces) > room
            tokens = [self.cls_id, *pieces[:room], self.sep_id]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask, cut

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; [CLS], [SEP] and padding vanish, [MASK] stays visible."""
        text: list[str] = []
        words: list[int] = []
        for i in [int(i) for i in ids]:
            if i == self.mask_id:
                text += [self._join(words), "[MASK]"]
                words = []
            elif i not in (self.pad_id, self.cls_id, self.sep_id):
                words.append(i)
        return " ".join(part.strip() for part in [*text, self._join(words)] if part.strip())

    def _set_word_range(self, is_word_V: np.ndarray) -> None:
        """Sets `first_word_id` and `end_word_id` to the longest run of True; the special ids may lie anywhere."""
        if not is_word_V.any():
            raise UserError(
                f"{self._name}: all of its {len(is_word_V)} ids are special; expected words too: make a SentencePiece "
                "model with data/train_tokenizer.py, or give a tokenizer with words"
            )
        edges = np.flatnonzero(np.diff(np.concatenate([[False], is_word_V, [False]]).astype(np.int8)))
        starts, ends = edges[::2], edges[1::2]
        longest = int(np.argmax(ends - starts))
        self.first_word_id, self.end_word_id = int(starts[longest]), int(ends[longest])
