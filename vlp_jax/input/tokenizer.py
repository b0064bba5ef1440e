"""Captions to token ids with SentencePiece."""

import os
import pathlib
from collections.abc import Iterable

import numpy as np
import sentencepiece

from vlp_jax.types import UserError


class Tokenizer:
    """A SentencePiece model with the special tokens [CLS], [SEP] and [MASK]; picklable.

    Args:
      model: path of a .model file made by data/train_tokenizer.py, or such a file's bytes.
      max_tokens: L, at least 3.

    Attributes:
      pad_id, unk_id, cls_id, sep_id, mask_id: special ids, as the model defines them.
      vocab_size: V.
      first_word_id: ids below it are special; random replacement draws from `[first_word_id, vocab_size)`.
      max_tokens: L.

    Raises:
      UserError: no such file, not a SentencePiece model, a model without one of the special tokens, or L below 3.
    """

    def __init__(self, model: str | os.PathLike | bytes, max_tokens: int):
        if isinstance(model, bytes):
            name = f"the tokenizer ({len(model)} bytes)"
        else:
            if not pathlib.Path(model).is_file():
                raise UserError(
                    f"config.input.tokenizer = {str(model)!r}: no such file; "
                    "`python -m data.train_tokenizer --input DATASET --output FILE.model` makes one"
                )
            name, model = str(model), pathlib.Path(model).read_bytes()
        if max_tokens < 3:
            raise UserError(
                f"config.input.max_text_tokens = {max_tokens}: expected at least 3, [CLS], a word and [SEP]"
            )
        self._load(model, max_tokens, name)

    def _load(self, model: bytes, max_tokens: int, name: str) -> None:
        self._model = model
        self._name = name
        self.max_tokens = max_tokens
        self._processor = sp = sentencepiece.SentencePieceProcessor()
        try:
            sp.LoadFromSerializedProto(model)
        except RuntimeError as e:
            raise UserError(f"{name} is not a SentencePiece model: {e}; make one with data/train_tokenizer.py") from e
        self.vocab_size: int = sp.GetPieceSize()
        self.pad_id: int = sp.pad_id()
        self.unk_id: int = sp.unk_id()
        self.cls_id, self.sep_id, self.mask_id = (self._special(piece) for piece in ("[CLS]", "[SEP]", "[MASK]"))
        missing = [
            piece
            for piece, i in (
                ("<pad>", self.pad_id),
                ("[CLS]", self.cls_id),
                ("[SEP]", self.sep_id),
                ("[MASK]", self.mask_id),
            )
            if i < 0
        ]
        if missing:
            raise UserError(
                f"{name} has no {', '.join(missing)}: expected pad 0, unk 1, [CLS] 2, [SEP] 3, [MASK] 4; "
                "make the model with data/train_tokenizer.py"
            )
        special = [self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id]
        special += [i for i in range(self.vocab_size) if sp.IsControl(i) or sp.IsByte(i)]
        self.first_word_id: int = 1 + max(special)
        if self.first_word_id >= self.vocab_size:
            raise UserError(
                f"{name}: id {self.first_word_id - 1} is special and the last of {self.vocab_size}; expected the "
                "special tokens before the words; make the model with data/train_tokenizer.py"
            )

    def _special(self, piece: str) -> int:
        """Id of a special token, -1 where the model lacks it (SentencePiece answers with the unknown id)."""
        i = self._processor.PieceToId(piece)
        return i if self._processor.IdToPiece(i) == piece else -1

    def __getstate__(self) -> tuple[bytes, int, str]:
        return self._model, self.max_tokens, self._name

    def __setstate__(self, state: tuple[bytes, int, str]) -> None:
        self._load(*state)

    def serialized(self) -> bytes:
        """The model file's bytes; `Tokenizer(serialized, L)` restores it."""
        return self._model

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns `[CLS] pieces [SEP]`, padded or cut to L.

        Returns:
          ids int32 `[B, L]`; mask bool `[B, L]`, True on tokens, specials included; how many texts were cut.
        """
        ids = np.full((len(texts), self.max_tokens), self.pad_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        room = self.max_tokens - 2
        cut = 0
        for row, text in enumerate(texts):
            pieces = self._processor.EncodeAsIds(text)
            cut += len(pieces) > room
            tokens = [self.cls_id, *pieces[:room], self.sep_id]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask, cut

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; [CLS], [SEP] and padding vanish, [MASK] stays visible, the unknown is `⁇`."""
        text: list[str] = []
        words: list[int] = []
        for i in [int(i) for i in ids]:
            if i == self.mask_id:
                text += [self._processor.DecodeIds(words), "[MASK]"]
                words = []
            elif i not in (self.pad_id, self.cls_id, self.sep_id):
                words.append(i)
        return " ".join(part.strip() for part in [*text, self._processor.DecodeIds(words)] if part.strip())
