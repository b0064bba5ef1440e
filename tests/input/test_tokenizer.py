import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from vlp_jax.input.tokenizer import Tokenizer
from vlp_jax.types import UserError

CAPTION = "a small red square moves left, then a large circle grows"


def test_special_ids_are_those_of_the_model(model):
    t = Tokenizer(model, 16)
    assert (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id, t.first_word_id) == (0, 1, 2, 3, 4, 5)
    assert t.vocab_size == sentencepiece.SentencePieceProcessor(model_proto=model).GetPieceSize() > 20


def test_encoding_is_cls_pieces_sep_padding(model):
    t = Tokenizer(model, 64)
    ids, mask, cut = t.encode([CAPTION, ""])
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model).EncodeAsIds(CAPTION)
    assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == mask.shape == (2, 64) and cut == 0
    assert ids[0].tolist() == [2, *pieces, 3] + [0] * (62 - len(pieces))
    assert ids[1].tolist() == [2, 3] + [0] * 62
    np.testing.assert_array_equal(mask, np.arange(64) < np.array([[len(pieces) + 2], [2]]))


def test_long_captions_are_cut_before_sep_and_counted(model):
    whole = Tokenizer(model, 64).encode([CAPTION])[0][0]
    ids, mask, cut = Tokenizer(model, 6).encode([CAPTION, "red", CAPTION])
    assert cut == 2 and mask[0].all()
    assert ids[0].tolist() == [*whole[:5], 3]


def test_a_caption_that_just_fits_is_not_counted_as_cut(model):
    length = int(Tokenizer(model, 64).encode([CAPTION])[1].sum())
    assert Tokenizer(model, length).encode([CAPTION])[2] == 0
    assert Tokenizer(model, length - 1).encode([CAPTION])[2] == 1


@given(st.lists(st.sampled_from(["a", "small", "red", "blue", "square", "circle", "spins", "grows"]), min_size=1))
def test_decoding_gives_the_words_back(model, words):
    t = Tokenizer(model, 512)
    assert t.decode(t.encode([" ".join(words)])[0][0]) == " ".join(words)


def test_decoding_shows_masks_and_hides_padding(model):
    t = Tokenizer(model, 16)
    ids = t.encode(["red square"])[0][0]
    ids[-4] = t.mask_id
    assert t.decode(ids) == "red square [MASK]"


@given(st.text(max_size=40))
def test_no_caption_produces_a_special_token(model, text):
    t = Tokenizer(model, 64)
    ids, mask, _ = t.encode([text + " [MASK] [CLS] [SEP] <pad>"])
    words = ids[0, 1 : mask[0].sum() - 1]
    assert not set(words.tolist()) & {t.pad_id, t.cls_id, t.sep_id, t.mask_id}


def test_copies_by_pickle_and_by_bytes_encode_alike(model, tmp_path):
    (tmp_path / "t.model").write_bytes(model)
    t = Tokenizer(tmp_path / "t.model", 24)
    assert t.serialized() == model
    for copy in (
        pickle.loads(pickle.dumps(t)),
        Tokenizer(t.serialized(), 24),
        Tokenizer(str(tmp_path / "t.model"), 24),
    ):
        np.testing.assert_array_equal(copy.encode([CAPTION])[0], t.encode([CAPTION])[0])


@pytest.mark.parametrize("lacking", ["[CLS]", "[SEP]", "[MASK]"])
def test_a_model_without_a_special_token_is_refused_by_name(make_model, lacking):
    kept = [p for p in ("[CLS]", "[SEP]", "[MASK]") if p != lacking]
    with pytest.raises(UserError) as caught:
        Tokenizer(make_model([CAPTION], controls=kept), 16)
    assert f"has no {lacking}:" in str(caught.value)


def test_a_model_without_padding_is_refused(make_model):
    with pytest.raises(UserError, match="has no <pad>"):
        Tokenizer(make_model([CAPTION], pad_id=-1), 16)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"config.input.tokenizer = '.*none.model': no such file"):
        Tokenizer(str(tmp_path / "none.model"), 16)
    (tmp_path / "t.model").write_text("hello")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        Tokenizer(str(tmp_path / "t.model"), 16)


def test_fewer_than_three_tokens_are_refused(model):
    with pytest.raises(UserError, match=r"config.input.max_text_tokens = 2: expected at least 3"):
        Tokenizer(model, 2)
