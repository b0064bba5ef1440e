"""SentencePiece models (arXiv 1808.06226): those of data/train_tokenizer.py, and given ones such as T5's."""

import numpy as np
import sentencepiece

from vlp_jax.input.subwords import Tokenizer
from vlp_jax.types import UserError


class SentencePiece(Tokenizer):
    """A SentencePiece model; see `Tokenizer`.

    Padding, [CLS], [SEP] and [MASK] that the model lacks get the ids after its last piece, in this order: T5's model
    of 32,000 pieces (padding 0, `</s>` 1, unknown 2) gives [CLS] 32000, [SEP] 32001, [MASK] 32002, V = 32,003, and
    words in `[3, 32000)`. Other control symbols, such as its `</s>`, are not used.

    A word begins at a piece that begins with U+2581, SentencePiece's space. Text written without spaces, such as
    Chinese, is therefore one word up to its next space.

    Args:
      model: the bytes of a .model file.
      max_tokens: L, at least 3.
      name: the file's name, for messages.

    Raises:
      UserError: not a SentencePiece model, a model without words, or L below 3.
    """

    file_name = "tokenizer.model"

    def __init__(self, model: bytes, max_tokens: int, name: str = "the tokenizer"):
        super().__init__(model, max_tokens, name)
        self._processor = sp = sentencepiece.SentencePieceProcessor()
        try:
            sp.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise UserError(
                f"{name} is neither a SentencePiece model ({error}) nor a WordPiece vocab.txt (it is not UTF-8 text); "
                "make a model with data/train_tokenizer.py, or give a model's own file"
            ) from error
        size = sp.GetPieceSize()
        given = {"pad": sp.pad_id()} | {piece: self._special(piece) for piece in ("[CLS]", "[SEP]", "[MASK]")}
        missing = [piece for piece, i in given.items() if i < 0]
        ids = given | {piece: size + n for n, piece in enumerate(missing)}
        self.unk_id = sp.unk_id()
        self.pad_id, self.cls_id, self.sep_id, self.mask_id = ids.values()
        self.vocab_size = size + len(missing)
        # Not so the unknown: text may be encoded to it.
        self._reserved = frozenset(ids.values())

        pieces = range(size)
        # Byte pieces spell characters that are in no other piece; a random one among words would be no character.
        other = [i for i in pieces if sp.IsControl(i) or sp.IsByte(i) or sp.IsUnused(i)]
        is_word_V = np.arange(self.vocab_size) < size
        is_word_V[[*other, self.unk_id, *self._reserved]] = False
        self._set_word_range(is_word_V)
        self.starts_word = np.ones(self.vocab_size, bool)
        self.starts_word[:size] = [sp.IdToPiece(i).startswith("▁") or sp.IsControl(i) for i in pieces]

    def _special(self, piece: str) -> int:
        """Id of a special token, -1 where the model lacks it (SentencePiece answers with the unknown id)."""
        i = self._processor.PieceToId(piece)
        return i if self._processor.IdToPiece(i) == piece else -1

    def _split(self, text: str) -> list[int]:
        # Where [MASK] is an ordinary or user-defined piece, a caption can spell it.
        return [self.unk_id if i in self._reserved else i for i in self._processor.EncodeAsIds(text)]

    def _join(self, ids: list[int]) -> str:
        return self._processor.DecodeIds(ids)
