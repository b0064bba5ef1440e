"""Byte-level byte-pair encoding (arXiv 1508.07909; over bytes, GPT-2), as RoBERTa's and CLIP's text encoders read."""

import json
import pathlib
import re
from typing import Any

import numpy as np
import tokenizers

from vlp_jax.input.subwords import Tokenizer
from vlp_jax.types import UserError

_END = "</w>"  # CLIP marks the end of a word; the others mark its beginning, by the space before it
# Of each layout the pieces for padding, the unknown, [CLS], [SEP] and [MASK].
_ROBERTA = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
_CLIP = ("<|endoftext|>", "<|endoftext|>", "<|startoftext|>", "<|endoftext|>", "")
_GPT2 = ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "")
# Options of the model with the values under which pieces come from merges alone, and always the same ones.
_ONLY: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0),
    "ignore_merges": (None, False),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, "", _END),
}
# How CLIP splits text: contractions, letters, single digits, and other signs together.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _alphabet() -> dict[str, bytes]:
    """The character that stands for each byte in a piece: itself where it can be seen, else one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in seen]
    return {chr(b): bytes([b]) for b in seen} | {chr(256 + n): bytes([b]) for n, b in enumerate(other)}


_BYTES = _alphabet()


class BytePair(Tokenizer):
    """A byte-level BPE in the layout of RoBERTa, CLIP or GPT-2; see `Tokenizer`.

    Text is cleaned and split as the file says: RoBERTa's and GPT-2's keep every byte, white space too; CLIP's composes
    accents, lower-cases and collapses white space (not the mending of broken text, ftfy, of its first release). Of each
    word the merges of the lowest rank are made first. Every byte has a piece, so nothing is unknown.

    Ids equal those of `transformers`' tokenizers, except that a text cannot spell a special token: its "<mask>" is some
    words.

    RoBERTa: [CLS] `<s>`, [SEP] `</s>`, padding `<pad>`, [MASK] `<mask>`; a word begins at a piece that begins with
    white space, or behind [CLS]. CLIP: [CLS] `<|startoftext|>`, [SEP] and padding `<|endoftext|>`. GPT-2: all three
    `<|endoftext|>`. CLIP and GPT-2 have no [MASK], so that `mask_id` is None and a recipe refuses masked language
    modelling; nor can CLIP's pieces, which tell where words end, give `starts_word`, which is None, too.

    Args:
      data: the bytes of Hugging Face's `tokenizer.json`; its frame, truncation and padding are not used.
      max_tokens: L, at least 3.
      name: the file's name, for messages.

    Raises:
      UserError: no byte-level BPE, merges or ids that do not fit the vocabulary, bytes or special pieces that it lacks,
        options or added tokens that are not supported, or L below 3.
    """

    file_name = "tokenizer.json"

    def __init__(self, data: bytes, max_tokens: int, name: str = "the tokenizer"):
        super().__init__(data, max_tokens, name)
        file = _parse(data, name)
        model = file.get("model")
        kind = model.get("type") if isinstance(model, dict) else None
        if not isinstance(model, dict) or kind != "BPE":
            raise UserError(
                f"{name} is JSON whose model.type is {kind!r}: expected a tokenizer.json of a byte-level 'BPE', such "
                "as RoBERTa's; of BERT give the vocab.txt, of a SentencePiece model the .model"
            )
        for key, values in _ONLY.items():
            if model.get(key) not in values:
                raise UserError(f"{name}: model.{key} = {model[key]!r}: of byte-level BPE only {values} are supported")
        if not _has_byte_level(file.get("pre_tokenizer")):
            raise UserError(
                f"{name} is a BPE over characters: its pre_tokenizer has no ByteLevel; only those over bytes, such as "
                "RoBERTa's, are supported; of others give a SentencePiece .model"
            )
        suffix = model.get("end_of_word_suffix") or ""
        ids = _ids(model, file.get("added_tokens") or [], name)
        reached = {char + end for char in _BYTES for end in {"", suffix}}
        missing = sorted(reached - set(ids))
        if missing:
            raise UserError(
                f"{name} lacks pieces of single bytes, {len(missing)} of {len(reached)}, such as {missing[0]!r}: texts "
                "with them would lose characters; expected all, as where the initial alphabet was ByteLevel's"
            )
        reached |= _products(model, suffix, name)
        pad, unk, cls, sep, mask = special = _special(ids, suffix, name)
        if reached & set(special):
            raise UserError(f"{name}: texts could spell {sorted(reached & set(special))}, which are special pieces")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = ids[pad], ids[unk], ids[cls], ids[sep]
        self.mask_id = ids[mask] if mask else None
        self.vocab_size = len(ids)

        pieces = sorted(ids, key=ids.__getitem__)
        # RoBERTa has pieces besides the special ones that no text is split into, madeupword0000 among them.
        self._set_word_range(np.array([piece in reached for piece in pieces]))
        split = {key: file.get(key) for key in ("normalizer", "pre_tokenizer")}
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(
                json.dumps({"version": "1.0", "added_tokens": [], **split, "model": model})
            )
        except Exception as error:  # the only type that it has
            raise UserError(f"{name} cannot be read ({error}); fetch it anew") from error
        self._bytes = [b"" if piece in special else _spell(piece, suffix) for piece in pieces]
        starts = [piece in special or raw[:1].isspace() for piece, raw in zip(pieces, self._bytes)]
        self.starts_word = None if suffix else np.array(starts)

    def _split(self, text: str) -> list[int]:
        # One text at a time: encode_batch starts threads of its own, beside those of the input pipeline.
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _join(self, ids: list[int]) -> str:
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", "replace")


def is_json(data: bytes) -> bool:
    """Whether a file is a JSON object, well-formed or not; a vocab.txt whose first piece is a brace is none."""
    return re.match(rb'(\xef\xbb\xbf)?\s*\{\s*["}]', data) is not None


def whole(data: bytes, path: pathlib.Path) -> bytes:
    """The tokenizer.json that `data` is; or, where it is a vocab.json, that of it and the merges.txt beside it.

    The two files do not say how text is split: as CLIP does where there is `<|startoftext|>`, else as RoBERTa and
    GPT-2 do.

    Args:
      data: the bytes of `path`.

    Raises:
      UserError: no JSON, or no merges.txt beside a vocab.json.
    """
    vocabulary = _parse(data, str(path))
    if not vocabulary or not all(type(i) is int for i in vocabulary.values()):
        return data
    beside = path.parent / "merges.txt"
    if not beside.is_file():
        raise UserError(
            f"config.input.tokenizer = {str(path)!r} is a vocab.json, but there is no {beside}: put the model's "
            "merges.txt there, or give its tokenizer.json"
        )
    clip = _CLIP[2] in vocabulary
    clean = [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"}]
    words = {"type": "Split", "pattern": {"Regex": _CLIP_WORDS}, "behavior": "Removed", "invert": True}
    _, _, cls, sep, mask = special = _special(vocabulary, _END if clip else "", str(path))
    flags = {"single_word": False, "rstrip": False, "normalized": False, "special": True}
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocabulary[piece], "content": piece, "lstrip": piece == mask, **flags}
            for piece in sorted({*special} & {*vocabulary}, key=vocabulary.__getitem__)
        ],
        "normalizer": {"type": "Sequence", "normalizers": clean} if clip else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, _LEVEL]} if clip else _LEVEL,
        "post_processor": {
            **{"type": "RobertaProcessing", "sep": [sep, vocabulary[sep]], "cls": [cls, vocabulary[cls]]},
            **{"trim_offsets": not clip, "add_prefix_space": False},
        },
        "decoder": _LEVEL,
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": ""},
            **{"end_of_word_suffix": _END if clip else "", "fuse_unk": False, "byte_fallback": False},
            **{"ignore_merges": False, "vocab": vocabulary, "merges": _merges(beside)},
        },
    }
    return json.dumps(file).encode()


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        file = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(
            f"{name} is no JSON ({error}): expected a tokenizer.json, or a vocab.json; fetch it anew"
        ) from None
    if not isinstance(file, dict):
        raise UserError(
            f"{name} is JSON, but no object: expected a tokenizer.json, or a vocab.json with its merges.txt"
        )
    return file


def _merges(path: pathlib.Path) -> list[str]:
    """The lines of a merges.txt, but for the first where it tells the version."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); fetch it anew") from None
    start = lines[0].startswith("#version")
    for number, line in enumerate(lines[start:], start + 1):
        if line and len(line.split(" ")) != 2:
            raise UserError(f"{path}, line {number}: {line!r}: expected two pieces with a space between; fetch it anew")
    return [line for line in lines[start:] if line]


def _has_byte_level(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    parts = part.get("pretokenizers")
    return part.get("type") == "ByteLevel" or (isinstance(parts, list) and any(map(_has_byte_level, parts)))


def _ids(model: dict[str, Any], added: Any, name: str) -> dict[str, int]:
    """Piece -> id, the added ones included."""
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
        raise UserError(f"{name}: model.vocab is no table of pieces and their ids; fetch the file anew")
    try:
        own = {token["content"]: token["id"] for token in added}
        plain = [token["content"] for token in added if not token["special"]]
    except (TypeError, KeyError) as error:
        raise UserError(f"{name}: added_tokens: {error!r}: expected content, id and special of each") from None
    if not all(type(i) is int for i in own.values()):
        raise UserError(f"{name}: added_tokens: their ids are {list(own.values())}: expected whole numbers")
    if plain:
        raise UserError(f"{name}: added tokens that are not special, such as {plain[0]!r}, are not supported")
    ids = ids | own
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(
            f"{name}: the ids of its {len(ids)} pieces lie in [{min(ids.values())}, {max(ids.values())}]: expected "
            f"each of 0 to {len(ids) - 1} once; fetch the file anew"
        )
    return ids


def _products(model: dict[str, Any], suffix: str, name: str) -> set[str]:
    """The pieces that merges make."""
    merges, ids, out = model.get("merges"), model["vocab"], set()
    if not isinstance(merges, list):
        raise UserError(f"{name}: model.merges is no list; expected the merges by their rank; fetch the file anew")
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(piece, str) for piece in pair):
            raise UserError(f"{name}: merge {rank} is {merge!r}: expected two pieces; fetch the file anew")
        for piece in (*pair, "".join(pair)):
            if piece not in ids:
                raise UserError(
                    f"{name}: merge {rank} is of {pair[0]!r} and {pair[1]!r}, but {piece!r} is not among its "
                    f"{len(ids)} pieces: vocabulary and merges are of different models; fetch both anew"
                )
        out.add("".join(pair))
    return out


def _special(ids: dict[str, int], suffix: str, name: str) -> tuple[str, ...]:
    """Names of padding, unknown, [CLS], [SEP] and [MASK], '' where the layout has none."""
    layout = _CLIP if suffix else _GPT2 if _GPT2[2] in ids and _ROBERTA[2] not in ids else _ROBERTA
    missing = [piece for piece in dict.fromkeys(layout) if piece and piece not in ids]
    if missing:
        raise UserError(
            f"{name} lacks {', '.join(missing)}: expected RoBERTa's {', '.join(_ROBERTA)}, or, where pieces end in "
            f"{_END}, CLIP's {_CLIP[2]}, {_CLIP[3]}"
        )
    return layout


def _spell(piece: str, suffix: str) -> bytes:
    """The bytes of a piece; an end of a word is a space."""
    end = b" " if suffix and piece.endswith(suffix) else b""
    text = piece.removesuffix(suffix) if end else piece
    return b"".join(_BYTES.get(character, character.encode()) for character in text) + end
