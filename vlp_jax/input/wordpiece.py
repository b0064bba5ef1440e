"""WordPiece from a `vocab.txt`, as BERT splits text (arXiv 1810.04805; google-research/bert, tokenization.py)."""

import io

import numpy as np
import tokenizers

from vlp_jax.input.subwords import Tokenizer
from vlp_jax.types import UserError

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MAX_WORD = 100  # characters; a longer word is unknown, as in BERT
_CONTINUES = "##"
# A cased vocabulary has capitals in a third of its tokens; an uncased one may have some stray ones.
_CAPITALS = 0.05


class WordPiece(Tokenizer):
    """A vocabulary of BERT's layout; see `Tokenizer`.

    Text is cleaned of control characters, split at white space, punctuation and CJK characters, and each word into the
    longest pieces from its left; a word that cannot be split, or has more than 100 characters, is one [UNK].

    Ids equal those of `transformers`' BertTokenizer, except that a caption cannot spell a special token: its "[MASK]"
    is three words. BertTokenizerLegacy (Python) also agrees, but for characters newer than Unicode 8, where it asks
    Python's table, for unassigned ones, which it drops, and for decomposed accents in cased text, which it composes.

    Args:
      vocabulary: the bytes of a `vocab.txt`: UTF-8, a token a line, the id is the line's number from 0. [PAD], [UNK],
        [CLS], [SEP] and [MASK] may stand anywhere. Of a token that occurs twice the later line counts.
      max_tokens: L, at least 3.
      name: the file's name, for messages.
      lowercase: lower-cases text and strips its accents, for uncased vocabularies.

    Raises:
      UserError: a special token is missing, no line is a word, a cased vocabulary with `lowercase`, or L below 3.
    """

    file_name = "vocab.txt"

    def __init__(self, vocabulary: bytes, max_tokens: int, name: str = "the tokenizer", lowercase: bool = True):
        super().__init__(vocabulary, max_tokens, name)
        self._lowercase = lowercase
        # Lines end as in a text file of any system; str.splitlines would also cut at U+2028 and others.
        lines = io.TextIOWrapper(io.BytesIO(vocabulary), encoding="utf-8-sig")
        self._pieces = [line.rstrip("\n") for line in lines]
        ids = {piece: i for i, piece in enumerate(self._pieces)}
        missing = [piece for piece in _SPECIAL if piece not in ids]
        if missing:
            raise UserError(
                f"{name} is neither a SentencePiece model (it is text) nor a tokenizer.json nor a WordPiece vocab.txt "
                f"(no line is {', '.join(missing)}): it is text of {len(self._pieces)} lines; expected a token a line, "
                f"with {', '.join(_SPECIAL)}"
            )
        self.vocab_size = len(self._pieces)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[piece] for piece in _SPECIAL)
        # No text gives a token in brackets, a special one or BERT's [unused7], as brackets are words of their own.
        is_word_V = np.array([not (len(x) > 2 and x[0] == "[" and x[-1] == "]") for x in self._pieces])
        self._set_word_range(is_word_V)
        self.starts_word = np.array([not x.startswith(_CONTINUES) for x in self._pieces])

        cased = [x for x, is_word in zip(self._pieces, is_word_V) if is_word and x != x.lower()]
        if lowercase and len(cased) > _CAPITALS * is_word_V.sum():
            raise UserError(
                f"{name} is a cased vocabulary: {len(cased)} of its {is_word_V.sum()} words have capitals, such as "
                f"{cased[len(cased) // 2]!r}, but config.input.lowercase = True; set config.input.lowercase=False"
            )

        self._tokenizer = tokenizers.Tokenizer(
            tokenizers.models.WordPiece(
                ids, unk_token="[UNK]", max_input_chars_per_word=_MAX_WORD, continuing_subword_prefix=_CONTINUES
            )
        )
        self._tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
        )
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        self._decoder = tokenizers.decoders.WordPiece(prefix=_CONTINUES, cleanup=True)

    def __reduce__(self):
        return type(self), (self._data, self.max_tokens, self._name, self._lowercase)

    def _split(self, text: str) -> list[int]:
        # One text at a time: encode_batch starts threads of its own, beside those of the input pipeline.
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _join(self, ids: list[int]) -> str:
        return self._decoder.decode([self._pieces[i] for i in ids])
