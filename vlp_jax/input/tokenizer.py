"""Captions to token ids: opening a tokenizer by its content."""

import os
import pathlib

from vlp_jax.input.sentence_piece import SentencePiece
from vlp_jax.input.subwords import Tokenizer
from vlp_jax.input.wordpiece import WordPiece
from vlp_jax.types import UserError

FILE_NAMES = (SentencePiece.file_name, WordPiece.file_name)  # what a workdir keeps a tokenizer under


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
