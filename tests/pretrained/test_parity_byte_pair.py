"""Byte-level BPE against transformers' tokenizers of the same small vocabularies: equal ids on odd strings."""

import pytest

from tests.byte_pairs import encoded, train, write_pair
from tests.input.odd_strings import ALPHABETS, odd_strings
from vlp_jax.input.tokenizer import open_tokenizer, read

transformers = pytest.importorskip("transformers")

LENGTH = 40_002
TEXTS = odd_strings(500, seed=1, any_character=True) + [
    *("it's they'll I'D we've ''s 'S", "2024 is 20 24", "  two  spaces \n\n lines\t\t", "naïve nai\u0308ve ŒUVRE ΑΣ İ"),
    *("!!!???...", "snake_case camelCase", "a\u00a0b", "\u180e|\u200b|\ufeff", "<s", "|endoftext|", "</w>", "a</w> b"),
]
SPELLED = ["<s>red</s>", "a <mask> b", "<|startoftext|>red<|endoftext|>", "<pad><unk>"]
CLASSES = {"roberta": "RobertaTokenizer", "clip": "CLIPTokenizer"}


@pytest.fixture(scope="module", params=CLASSES)
def files(request, tmp_path_factory):
    """The layout, and a folder with its tokenizer.json, its vocab.json and its merges.txt."""
    folder = tmp_path_factory.mktemp(request.param)
    file = train(request.param, [*ALPHABETS, *odd_strings(200, seed=2, any_character=False)], size=1200)
    write_pair(folder, file)
    (folder / "tokenizer.json").write_bytes(encoded(file))
    return request.param, folder


def ids_of(tokenizer, texts):
    ids, mask, cut = tokenizer.encode(texts)
    assert cut == 0
    return [row[tokens].tolist() for row, tokens in zip(ids, mask)]


def differences(ours, theirs, texts):
    """The texts whose ids differ, with both."""
    expected = [theirs(text) for text in texts]
    return [(text[:80], a, b) for text, a, b in zip(texts, ids_of(ours, texts), expected) if a != b]


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_parity_of_ids_with_transformers_own_class(files, name):
    layout, folder = files
    kind = getattr(transformers, CLASSES[layout])
    theirs = kind.from_pretrained(folder)
    ours = open_tokenizer(folder / name, LENGTH)
    assert not differences(ours, lambda text: theirs(text)["input_ids"], TEXTS)
    roles = (theirs.pad_token_id, theirs.unk_token_id, theirs.mask_token_id, len(theirs))
    assert (ours.pad_id, ours.unk_id, ours.mask_id, ours.vocab_size) == roles
    # What a text spells of special pieces are words here.
    assert not differences(ours, lambda text: theirs(text, split_special_tokens=True)["input_ids"], SPELLED)


def test_parity_of_the_file_that_is_kept_of_two(files, tmp_path):
    _, folder = files
    (tmp_path / "tokenizer.json").write_bytes(read(folder / "vocab.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = open_tokenizer(folder / "tokenizer.json", LENGTH)
    assert not differences(ours, lambda text: theirs(text)["input_ids"], TEXTS)


def test_parity_of_decoding(files):
    layout, folder = files
    theirs = getattr(transformers, CLASSES[layout]).from_pretrained(folder)
    ours = open_tokenizer(folder / "tokenizer.json", LENGTH)
    for text, ids in zip(TEXTS, ids_of(ours, TEXTS)):
        expected = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        assert ours.decode(ids) == expected, text[:80]
