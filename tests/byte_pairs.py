"""Small byte-level BPEs of RoBERTa's and of CLIP's layout, trained on the spot."""

import json

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>"]  # first, as in the published one; <mask> is last
CLIP = ["<|startoftext|>", "<|endoftext|>"]  # last
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(layout, texts, size=500):
    """A Hugging Face file, as a dict: `roberta` or `clip`, with every byte and about so many pieces."""
    end = "</w>" if layout == "clip" else ""
    marked = {"end_of_word_suffix": end} if end else {}
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = tokenizers.Tokenizer(models.BPE(**marked))
    made.pre_tokenizer = level
    if end:
        clean = [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
        made.normalizer = normalizers.Sequence(clean)
        words = pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), "removed", invert=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([words, level])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[] if end else ROBERTA,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **marked,
    )
    made.train_from_iterator(texts, trainer)
    file = json.loads(made.to_str())
    vocabulary = file["model"]["vocab"]
    # Of the ends of words the trainer takes only those that it sees.
    more = [f"{c}{end}" for c in sorted(pre_tokenizers.ByteLevel.alphabet())] + CLIP if end else ["<mask>"]
    for piece in more:
        vocabulary.setdefault(piece, len(vocabulary))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    file["added_tokens"] = [
        {"id": vocabulary[piece], "content": piece, **flags, "special": True}
        for piece in sorted(CLIP if end else [*ROBERTA, "<mask>"], key=vocabulary.__getitem__)
    ]
    return file


def encoded(file):
    """The bytes of a tokenizer.json."""
    return json.dumps(file).encode()


def write_pair(folder, file):
    """Writes vocab.json and merges.txt, as older folders have them; returns the former's path."""
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in file["model"]["merges"]]
    (folder / "merges.txt").write_text("".join(f"{line}\n" for line in ["#version: 0.2", *merges]), encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(file["model"]["vocab"]))
    return folder / "vocab.json"
