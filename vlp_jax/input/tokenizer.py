"""Captions to token ids: the interface of a tokenizer, and opening one by its content."""

import os
import pathlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from vlp_jax.input.sentence_piece import SentencePiece
from vlp_jax.input.wordpiece import WordPiece
from vlp_jax.types import UserError

FILE_NAMES = (SentencePiece.file_name, WordPiece.file_name)  # what a workdir keeps a tokenizer under


class Tokenizer(Protocol):
    """What the rest of the code asks of a tokenizer; picklable, and safe to use from several threads.

    Attributes:
      file_name: the name under which a workdir keeps the file; one of FILE_NAMES.
      max_tokens: L.
      vocab_size: V, rows of an embedding table that holds every id, the special ones included.
      pad_id, unk_id, cls_id, sep_id, mask_id: special ids; no text is encoded to one of them, but for the unknown.
      first_word_id, end_word_id: the longest range of ids that holds only pieces of words; the random replacement of
        masked language modelling draws from `[first_word_id, end_word_id)`.
      starts_word: bool `[V]`, True where a piece begins a word; the pieces that follow it, up to the next True, are of
        the same word.
    """

    file_name: str
    max_tokens: int
    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    first_word_id: int
    end_word_id: int
    starts_word: np.ndarray

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns `[CLS] pieces [SEP]`, padded or cut to L.

        Returns:
          ids int32 `[B, L]`; mask bool `[B, L]`, True on tokens, specials included; how many texts were cut.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; [CLS], [SEP] and padding vanish, [MASK] stays visible."""
        ...

    def serialized(self) -> bytes:
        """The file's bytes; `open_tokenizer(serialized, L, lowercase)` restores the tokenizer."""
        ...


def open_tokenizer(source: str | os.PathLike | bytes, max_tokens: int, lowercase: bool = True) -> Tokenizer:
    """Opens a SentencePiece model or a WordPiece `vocab.txt`; the content tells which, not the name.

    Args:
      source: the file's path, or its bytes.
      max_tokens: L, at least 3.
      lowercase: WordPiece only, see `WordPiece`; a SentencePiece model normalises text as it was trained to.

    Raises:
      UserError: no such file, neither kind of tokenizer, one that cannot be used, or L below 3.
    """
    if isinstance(source, bytes):
        data, name = source, f"the tokenizer ({len(source)} bytes)"
    else:
        path, name = pathlib.Path(source), str(source)
        if not path.is_file():
            raise UserError(
                f"config.input.tokenizer = {name!r}: no such file; expected a SentencePiece model or a WordPiece "
                "vocab.txt; `python -m data.train_tokenizer --input DATASET --output FILE.model` makes one"
            )
        data = path.read_bytes()
    if _is_text(data):
        return WordPiece(data, max_tokens, name, lowercase)
    return SentencePiece(data, max_tokens, name)


def _is_text(data: bytes) -> bool:
    # A SentencePiece model stores its pieces' scores as binary floats, 0.0 among them.
    if b"\0" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
