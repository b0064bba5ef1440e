"""Every kind of tokenizer through their interface, SentencePiece models with and without special tokens, opening."""

import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from tests import byte_pairs
from vlp_jax.input.tokenizer import FILE_NAMES, open_tokenizer
from vlp_jax.types import UserError

CAPTION = "a small red square moves left, then a large circle grows"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB = "\n".join([*SPECIAL, *CAPTION.replace(",", " ,").split(), "##s", "grow", "move"]).encode()
BYTES = byte_pairs.encoded(byte_pairs.train("roberta", [CAPTION], 300))


def pieces_of(model, text):
    return sentencepiece.SentencePieceProcessor(model_proto=model).EncodeAsIds(text)


@pytest.fixture(params=["SentencePiece", "T5", "WordPiece", "RoBERTa"])
def data(request, model, t5_model):
    """The bytes of each kind of tokenizer."""
    return {"SentencePiece": model, "T5": t5_model, "WordPiece": VOCAB, "RoBERTa": BYTES}[request.param]


@pytest.fixture(scope="session")
def t5_model(make_model):
    """T5's layout: padding 0, `</s>` 1, unknown 2, no other special token; unigram, as T5."""
    return make_model([CAPTION] * 5, controls=(), pad_id=0, eos_id=1, unk_id=2)


# --- What holds for every kind ----------------------------------------------------------------------------------------


def test_an_encoding_is_framed_padded_and_cut(data):
    wide = open_tokenizer(data, 64)
    ids, mask, cut = wide.encode([CAPTION, "", "red"])
    assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == mask.shape == (3, 64) and cut == 0
    lengths = mask.sum(1)
    np.testing.assert_array_equal(mask, np.arange(64) < lengths[:, None])
    assert (ids[~mask] == wide.pad_id).all() and (ids[:, 0] == wide.cls_id).all()
    assert (ids[np.arange(3), lengths - 1] == wide.sep_id).all() and lengths[1] == 2

    narrow, mask, cut = open_tokenizer(data, 6).encode([CAPTION, "", CAPTION])
    assert cut == 2 and mask[0].all()
    assert narrow[0].tolist() == [*ids[0, :5], wide.sep_id]


def test_a_caption_that_just_fits_is_not_counted_as_cut(data):
    length = int(open_tokenizer(data, 64).encode([CAPTION])[1].sum())
    assert open_tokenizer(data, length).encode([CAPTION])[2] == 0
    assert open_tokenizer(data, length - 1).encode([CAPTION])[2] == 1


def test_copies_by_pickle_bytes_and_file_encode_alike(data, tmp_path):
    original = open_tokenizer(data, 24)
    assert original.serialized() == data and original.file_name in FILE_NAMES
    (tmp_path / "any name").write_bytes(data)
    for copy in (
        pickle.loads(pickle.dumps(original)),
        open_tokenizer(original.serialized(), 24),
        open_tokenizer(str(tmp_path / "any name"), 24),
        open_tokenizer(tmp_path / "any name", 24),
    ):
        assert type(copy) is type(original) and copy.max_tokens == 24
        np.testing.assert_array_equal(copy.encode([CAPTION])[0], original.encode([CAPTION])[0])
        np.testing.assert_array_equal(copy.starts_word, original.starts_word)


def test_decoding_gives_the_caption_back_shows_masks_and_hides_padding(data):
    t = open_tokenizer(data, 64)
    ids = t.encode([CAPTION])[0][0]
    assert t.decode(ids) == CAPTION
    ids = t.encode(["red square"])[0][0]
    ids[np.flatnonzero(ids == t.sep_id)] = t.mask_id
    assert t.decode(ids) == "red square [MASK]"


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_no_caption_produces_a_special_token(model, t5_model, text):
    for data in (model, t5_model, VOCAB, BYTES):
        t = open_tokenizer(data, 256)
        ids, mask, _ = t.encode([text + " [MASK] [CLS] [SEP] [PAD] <pad> </s>"])
        words = set(ids[0, 1 : mask[0].sum() - 1].tolist())
        assert not words & {t.pad_id, t.cls_id, t.sep_id, t.mask_id}
        assert all(t.first_word_id <= i < t.end_word_id or i == t.unk_id for i in words)


def test_the_special_ids_differ_and_are_outside_the_words(data):
    t = open_tokenizer(data, 16)
    special = {t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id}
    assert len(special) == 5 and max(special) < t.vocab_size
    assert not special & set(range(t.first_word_id, t.end_word_id))
    assert t.first_word_id < t.end_word_id <= t.vocab_size
    assert t.starts_word.shape == (t.vocab_size,) and t.starts_word.dtype == bool


def test_as_many_pieces_begin_a_word_as_the_caption_has_words(data):
    t = open_tokenizer(data, 64)
    ids, mask, _ = t.encode(["red squares grow", "a small left circles moves"])
    for row, tokens, count in zip(ids, mask, (3, 5)):
        pieces = row[tokens][1:-1]
        # The first word may begin by standing behind [CLS] alone.
        begins = t.starts_word[pieces] | (np.arange(len(pieces)) == 0)
        assert t.starts_word[t.cls_id] and begins.sum() == count < len(pieces)
        # Cut at the beginnings, the pieces spell the words one by one.
        words = np.split(pieces, np.flatnonzero(begins)[1:])
        assert " ".join(t.decode(word) for word in words) == t.decode(pieces)


def test_fewer_than_three_tokens_are_refused(data):
    with pytest.raises(UserError, match=r"config.input.max_text_tokens = 2: expected at least 3"):
        open_tokenizer(data, 2)


# --- SentencePiece ----------------------------------------------------------------------------------------------------


def test_special_ids_are_those_of_the_model(model):
    t = open_tokenizer(model, 16)
    assert (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id, t.first_word_id) == (0, 1, 2, 3, 4, 5)
    assert t.vocab_size == t.end_word_id == sentencepiece.SentencePieceProcessor(model_proto=model).GetPieceSize() > 20
    assert t.file_name == "tokenizer.model"


def test_the_pieces_are_those_of_the_model(model, t5_model):
    for data in (model, t5_model):
        t = open_tokenizer(data, 64)
        pieces = pieces_of(data, CAPTION)
        assert t.encode([CAPTION])[0][0].tolist() == [t.cls_id, *pieces, t.sep_id] + [0] * (62 - len(pieces))


@given(st.lists(st.sampled_from(["a", "small", "red", "blue", "square", "circle", "spins", "grows"]), min_size=1))
def test_decoding_gives_the_words_back(model, words):
    t = open_tokenizer(model, 512)
    assert t.decode(t.encode([" ".join(words)])[0][0]) == " ".join(words)


def test_special_tokens_that_a_model_lacks_follow_its_pieces(t5_model):
    t = open_tokenizer(t5_model, 16)
    size = sentencepiece.SentencePieceProcessor(model_proto=t5_model).GetPieceSize()
    assert (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id) == (0, 2, size, size + 1, size + 2)
    assert (t.vocab_size, t.first_word_id, t.end_word_id) == (size + 3, 3, size)


def test_a_model_without_padding_gets_an_id_for_it(make_model):
    data = make_model([CAPTION], pad_id=-1, unk_id=0)
    t = open_tokenizer(data, 8)
    size = sentencepiece.SentencePieceProcessor(model_proto=data).GetPieceSize()
    assert (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id) == (size, 0, 1, 2, 3)
    assert (t.vocab_size, t.first_word_id, t.end_word_id) == (size + 1, 4, size)
    assert t.encode([""])[0][0].tolist() == [1, 2] + [size] * 6


@pytest.mark.parametrize("lacking", ["[CLS]", "[SEP]", "[MASK]"])
def test_one_missing_special_token_is_the_only_one_that_is_added(make_model, lacking):
    data = make_model([CAPTION], controls=[p for p in ("[CLS]", "[SEP]", "[MASK]") if p != lacking])
    t = open_tokenizer(data, 16)
    size = sentencepiece.SentencePieceProcessor(model_proto=data).GetPieceSize()
    ids = {"[CLS]": t.cls_id, "[SEP]": t.sep_id, "[MASK]": t.mask_id}
    assert ids.pop(lacking) == size == t.end_word_id == t.vocab_size - 1
    assert sorted(ids.values()) == [2, 3]


def test_a_caption_cannot_spell_a_mask_that_is_an_ordinary_piece(make_model):
    data = make_model([CAPTION], controls=["[CLS]", "[SEP]"], user_defined_symbols=["[MASK]"])
    t = open_tokenizer(data, 16)
    assert t.mask_id in pieces_of(data, "red [MASK]")
    row = t.encode(["red [MASK]"])[0][0]
    assert t.mask_id not in row and t.unk_id in row


def test_bytes_spell_unknown_characters_inside_words_and_are_not_drawn(make_model):
    data = make_model([CAPTION], byte_fallback=True, vocab_size=400)
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    t = open_tokenizer(data, 32)
    assert not any(processor.IsByte(i) for i in range(t.first_word_id, t.end_word_id))
    pieces = pieces_of(data, "re日d")
    assert sum(map(processor.IsByte, pieces)) == 3
    assert t.starts_word[pieces].tolist() == [True] + [False] * (len(pieces) - 1)
    assert t.decode(t.encode(["re日d"])[0][0]) == "re日d"


# --- Opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.model", "vocab.txt"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"hello", r"neither a SentencePiece model \(it is text\) nor .*no line is \[PAD\], \[UNK\].* text of 1 lines"),
        (b"", r"no line is \[PAD\].* text of 0 lines"),
        (b'{"version": "1.0", "model": {}}', "is JSON whose model.type is None: expected a tokenizer.json"),
        (b"{\n[PAD]\n[UNK]\n[CLS]\n[MASK]\nred", r"no line is \[SEP\]\)"),
        (b"[PAD]\n[UNK]\n[CLS]\n[MASK]\nred", r"no line is \[SEP\]\)"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"neither a SentencePiece model \(.*\) nor .*not UTF-8 text"),
        (b"caf\xe9\nred", "neither a SentencePiece model"),
    ],
)
def test_a_file_that_is_neither_says_what_it_is_not(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        open_tokenizer(tmp_path / name, 16)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config.input.tokenizer = '.*none.model': no such file"):
        open_tokenizer(str(tmp_path / "none.model"), 16)


def test_a_vocabulary_without_words_is_refused():
    with pytest.raises(UserError, match="all of its 5 ids are special"):
        open_tokenizer("\n".join(SPECIAL).encode(), 16)
