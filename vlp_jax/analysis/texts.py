"""Texts as the run's model reads them, and the words that their pieces make up."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlp_jax.types import UserError


def encode(loaded: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """int32 ids and bool mask `[P, L]` of texts.

    Raises:
      UserError: no text, an empty one, or one that is longer than the model reads.
    """
    if isinstance(texts, str) or not texts:
        raise UserError(f"texts = {texts!r}: expected a list of one text or more")
    tokenizer = loaded.run.tokenizer
    for text in texts:
        if not text.strip():
            raise UserError(f"texts = {list(texts)!r}: one of them is empty; expected words")
        if tokenizer.encode([text])[2]:
            raise UserError(
                f"text {text!r} is longer than the {tokenizer.max_tokens} pieces that {loaded.title} reads "
                "(config.input.max_text_tokens): give a shorter one"
            )
    ids, mask, _ = tokenizer.encode(list(texts))
    return ids, mask


def words(tokenizer: Any, ids_L: np.ndarray, mask_L: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    """The words of a text and the places of their pieces; [CLS], which stands for the whole text, and [SEP] as well.

    Where the tokenizer does not tell which pieces begin a word, each piece is one.
    """
    names: list[str] = []
    places: list[list[int]] = []
    marks = {tokenizer.sep_id: "[SEP]", tokenizer.cls_id: "[CLS]"}
    for place in np.flatnonzero(mask_L).tolist():
        piece = int(ids_L[place])
        begins = tokenizer.starts_word is None or bool(tokenizer.starts_word[piece])
        inner = bool(places) and int(ids_L[places[-1][-1]]) not in marks
        if piece in marks or begins or not inner:
            places.append([place])
            names.append(marks.get(piece, ""))
        else:
            places[-1].append(place)
    names = [name or tokenizer.decode(ids_L[where]).strip() for name, where in zip(names, places)]
    return names, [np.array(where) for where in places]
