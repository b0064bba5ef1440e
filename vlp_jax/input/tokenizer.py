"""Captions to token ids: opening a tokenizer by its content."""

import os
import pathlib

from vlp_jax.input import byte_pair
from vlp_jax.input.byte_pair import BytePair
from vlp_jax.input.sentence_piece import SentencePiece
from vlp_jax.input.subwords import Tokenizer
from vlp_jax.input.wordpiece import WordPiece
from vlp_jax.types import UserError

# What a workdir keeps a tokenizer under.
FILE_NAMES = (SentencePiece.file_name, WordPiece.file_name, BytePair.file_name)


def open_tokenizer(source: str | os.PathLike | bytes, max_tokens: int, lowercase: bool = True) -> Tokenizer:
    """Opens a SentencePiece model, a WordPiece `vocab.txt` or a byte-level BPE; the content tells which, not the name.

    Args:
      source: the file's path, as `read` takes it, or the bytes that `read` gives.
      max_tokens: L, at least 3.
      lowercase: WordPiece only, see `WordPiece`; others treat text as their file says.

    Raises:
      UserError: no such file, no kind of tokenizer, one that cannot be used, or L below 3.
    """
    if isinstance(source, bytes):
        data, name = source, f"the tokenizer ({len(source)} bytes)"
    else:
        data, name = read(source), str(source)
    if byte_pair.is_json(data):
        return BytePair(data, max_tokens, name)
    if _is_text(data):
        return WordPiece(data, max_tokens, name, lowercase)
    return SentencePiece(data, max_tokens, name)


def read(source: str | os.PathLike) -> bytes:
    """The one file that a tokenizer is kept in: that of `source`, or, of a vocab.json, its whole tokenizer.json.

    Raises:
      UserError: no such file, or a vocab.json without its merges.txt.
    """
    path = pathlib.Path(source)
    if not path.is_file():
        raise UserError(
            f"config.input.tokenizer = {str(source)!r}: no such file; expected a SentencePiece model, a WordPiece "
            "vocab.txt, or a tokenizer.json (or vocab.json) of a byte-level BPE; "
            "`python -m data.train_tokenizer --input DATASET --output FILE.model` makes a SentencePiece model"
        )
    data = path.read_bytes()
    return byte_pair.whole(data, path) if byte_pair.is_json(data) else data


def _is_text(data: bytes) -> bool:
    # A SentencePiece model stores its pieces' scores as binary floats, 0.0 among them.
    if b"\0" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
