"""Byte-level BPE: merges against an oracle, the two layouts, vocab.json with merges.txt, files that are malformed."""

import copy
import itertools
import pickle
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.byte_pairs import CLIP, ROBERTA, encoded, train, write_pair
from vlp_jax.input.byte_pair import BytePair
from vlp_jax.input.tokenizer import open_tokenizer, read
from vlp_jax.types import UserError

TEXTS = [
    "A small red square moves left, then 2 large circles grow; it's the circle's third move, they'll see.",
    "Squares moved  twice.\n\nThe small square isn't red! Ein grüner Kreis wächst: 日本語, 日本。 🙂🙂",
] * 5
LAYOUTS = {layout: train(layout, TEXTS) for layout in ("roberta", "clip")}
DATA = {layout: encoded(file) for layout, file in LAYOUTS.items()}
# Python's own tables tell letters and digits from the rest, where a character has been assigned.
CHARACTERS = st.characters(exclude_categories=("Cs", "Cn"))
ANY_TEXT = st.text(st.one_of(CHARACTERS, st.sampled_from("  \n\t'strevmld09redsquaremoves.,")), max_size=60)


def pieces_of(tokenizer, text):
    """The ids of `text`, without the frame."""
    ids, mask, cut = tokenizer.encode([text])
    assert cut == 0
    return ids[0, 1 : mask[0].sum() - 1].tolist()


@pytest.fixture(scope="module")
def made():
    return {layout: BytePair(data, 1024) for layout, data in DATA.items()}


@pytest.fixture(scope="module")
def roberta(made):
    return made["roberta"]


@pytest.fixture(scope="module")
def clip(made):
    return made["clip"]


# --- Pieces -----------------------------------------------------------------------------------------------------------

SPACES = {*"\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000", *map(chr, range(0x2000, 0x200B))}
WORDS = {
    "roberta": r"'(?:[stmd]|re|ve|ll)| ?[Lstmdrevl]+| ?0+| ?['.]+|\s+(?!\S)|\s+",
    "clip": r"'(?:[stmd]|re|ve|ll)|[Lstmdrevl]+|0|['.]+",
}


def kind(character):
    """What a pattern of WORDS sees: L for a letter, 0 for a number, a line end for other white space, . for others."""
    if character in SPACES:
        return " " if character == " " else "\n"
    if character in "'stmdrevl":
        return character
    return {"L": "L", "N": "0"}.get(unicodedata.category(character)[0], ".")


def oracle(layout, text):
    """Ids by the definition: of each word's neighbours those of the lowest rank become one, again and again."""
    if layout == "clip":
        text = re.sub(f"[{''.join(SPACES)}]+", " ", unicodedata.normalize("NFC", text))
        text = "".join(character.lower() for character in text)
    model = LAYOUTS[layout]["model"]
    ranks = {tuple(merge): rank for rank, merge in enumerate(model["merges"])}
    out = []
    for word in re.finditer(WORDS[layout], "".join(map(kind, text))):
        shown = [SHOWN[byte] for byte in text[word.start() : word.end()].encode()]
        shown[-1] += "</w>" if layout == "clip" else ""
        while pairs := [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(shown)) if pair in ranks]:
            _, i = min(pairs)
            shown[i : i + 2] = ["".join(shown[i : i + 2])]
        out += [model["vocab"][piece] for piece in shown]
    return out


def shown_as():
    """GPT-2's character for each byte: those that cannot be seen come after U+00FF, in their order."""
    visible = "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
    visible += bytes([*range(161, 173), *range(174, 256)]).decode("latin-1")
    hidden = [chr(byte) for byte in range(256) if chr(byte) not in visible]
    return [chr(256 + hidden.index(chr(b))) if chr(b) in hidden else chr(b) for b in range(256)]


SHOWN = shown_as()


@pytest.mark.parametrize("layout", LAYOUTS)
@given(text=ANY_TEXT)
def test_pieces_are_those_of_the_lowest_merges_of_each_word(made, layout, text):
    assert pieces_of(made[layout], text) == oracle(layout, text)


@given(text=st.text(max_size=80))
def test_decoding_gives_every_text_back(roberta, text):
    assert roberta.decode(roberta.encode([text])[0][0]) == text.strip()


@given(text=ANY_TEXT)
def test_decoding_gives_clips_words_back(clip, text):
    squeeze = lambda x: "".join(c for c in x if c not in SPACES)
    text = f"({text})"  # ends that are not stripped
    clean = "".join(character.lower() for character in unicodedata.normalize("NFC", text))
    assert squeeze(clip.decode(clip.encode([text])[0][0])) == squeeze(clean)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  A  RED\tcafe\u0301's 2024\u3000", "a red café 's 2 0 2 4"),
        ("IT'S RED!!! (really)", "it 's red !!! ( really )"),
        ("red🙂🙂, red", "red 🙂🙂, red"),
        ("\u00a0\n ", ""),
    ],
)
def test_clip_lower_cases_composes_and_splits_as_clip_does(clip, text, expected):
    assert clip.decode(clip.encode([text])[0][0]) == expected


def test_a_space_is_of_the_word_behind_it(roberta):
    pieces = sorted(LAYOUTS["roberta"]["model"]["vocab"].items(), key=lambda item: item[1])
    found = [pieces[i][0] for i in pieces_of(roberta, "small red  square\ngrows")]
    assert "".join(found) == "smallĠredĠĠsquareĊgrows" and "Ġred" in found


@pytest.mark.parametrize("text", ["ab" * 100_000, "日本" * 30_000, " " * 100_000, "ab " * 60_000])
def test_long_words_and_long_texts_come_back_whole(text):
    t = BytePair(DATA["roberta"], 400_000)
    assert t.decode(t.encode([f"x{text}x"])[0][0]) == f"x{text}x"


# --- Layouts ----------------------------------------------------------------------------------------------------------


def test_robertas_mask_is_last_and_no_random_word_is_special(roberta):
    size = len(LAYOUTS["roberta"]["model"]["vocab"])
    assert (roberta.cls_id, roberta.pad_id, roberta.sep_id, roberta.unk_id) == (0, 1, 2, 3)
    assert roberta.mask_id == size - 1 == roberta.end_word_id and roberta.vocab_size == size
    assert roberta.first_word_id == 4
    ids, mask, _ = BytePair(DATA["roberta"], 8).encode(["red"])
    assert ids[0, 0] == 0 and ids[0, mask[0]][-1] == 2 and (ids[0, ~mask[0]] == 1).all() and (~mask).any()


def test_pieces_that_no_text_gives_are_not_drawn_as_random_words():
    file = copy.deepcopy(LAYOUTS["roberta"])
    vocabulary = file["model"]["vocab"]
    vocabulary.pop("<mask>")
    end = len(vocabulary)
    for piece in ("madeupword0000", "<|endoftext|>", "<mask>"):
        vocabulary[piece] = len(vocabulary)
    file["added_tokens"][-1]["id"] = vocabulary["<mask>"]
    t = BytePair(encoded(file), 16)
    assert (t.first_word_id, t.end_word_id, t.mask_id, t.vocab_size) == (4, end, end + 2, end + 3)
    assert t.decode([end]) == "madeupword0000"


def test_clip_is_framed_by_its_own_pieces_and_has_no_mask(clip):
    size = len(LAYOUTS["clip"]["model"]["vocab"])
    assert (clip.cls_id, clip.sep_id, clip.pad_id, clip.unk_id) == (size - 2, size - 1, size - 1, size - 1)
    assert clip.mask_id is None and clip.starts_word is None
    assert (clip.first_word_id, clip.end_word_id) == (0, size - 2)
    ids, mask, _ = BytePair(DATA["clip"], 8).encode(["red"])
    assert ids[0, 0] == size - 2 and (ids[0, mask[0].sum() - 1 :] == size - 1).all()


def test_gpt2_has_one_special_piece():
    file = copy.deepcopy(LAYOUTS["roberta"])
    vocabulary = file["model"]["vocab"]
    kept = [piece for piece in sorted(vocabulary, key=vocabulary.__getitem__) if piece not in (*ROBERTA, "<mask>")]
    file["model"]["vocab"] = {piece: i for i, piece in enumerate([*kept, "<|endoftext|>"])}
    file["added_tokens"] = []
    t = BytePair(encoded(file), 512)
    assert t.pad_id == t.unk_id == t.cls_id == t.sep_id == t.end_word_id == len(kept) and t.mask_id is None
    assert t.decode(t.encode(["A small <|endoftext|>"])[0][0]) == "A small <|endoftext|>"


@given(text=ANY_TEXT)
def test_no_text_spells_a_special_piece(roberta, clip, text):
    text += "<s><mask> <pad></s><unk> <|startoftext|><|endoftext|>"
    for t in (roberta, clip):
        assert all(t.first_word_id <= i < t.end_word_id for i in pieces_of(t, text))
    assert roberta.decode(pieces_of(roberta, text)) == text.strip()


def test_words_begin_at_white_space(roberta):
    found = np.array(pieces_of(roberta, "red squares\ngrow, slowly"))
    words = np.split(found, np.flatnonzero(roberta.starts_word[found]))
    assert [roberta.decode(word) for word in words if len(word)] == ["red", "squares", "grow,", "slowly"]
    assert all(roberta.starts_word[i] for i in (0, 1, 2, 3, roberta.mask_id))


def test_the_mask_stays_visible_between_words(roberta):
    row = roberta.encode(["a small red square"])[0][0]
    at = pieces_of(roberta, "a small red square").index(pieces_of(roberta, "a red")[-1]) + 1
    row[at] = roberta.mask_id
    assert roberta.decode(row) == "a small [MASK] square"


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_two_files_are_the_same_tokenizer_as_one_and_are_kept_as_one(layout, end, tmp_path):
    path = write_pair(tmp_path, LAYOUTS[layout])
    merges = tmp_path / "merges.txt"
    merges.write_bytes(merges.read_text(encoding="utf-8").replace("\n", end).encode())
    pair, one = open_tokenizer(path, 256), open_tokenizer(DATA[layout], 256)
    kept = pair.serialized()
    assert kept == read(path) != path.read_bytes() and pair.file_name == "tokenizer.json"
    path.unlink()
    merges.unlink()
    for other in (one, open_tokenizer(kept, 256), pickle.loads(pickle.dumps(pair))):
        np.testing.assert_array_equal(other.encode(TEXTS[:2])[0], pair.encode(TEXTS[:2])[0])
        assert (other.mask_id, other.pad_id, other.vocab_size) == (pair.mask_id, pair.pad_id, pair.vocab_size)


def test_a_files_truncation_padding_and_frame_are_not_used(roberta):
    file = copy.deepcopy(LAYOUTS["roberta"])
    file["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file["padding"] = {
        **{"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None},
        **{"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"},
    }
    frame = {"sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True, "add_prefix_space": False}
    file["post_processor"] = {"type": "RobertaProcessing", **frame}
    np.testing.assert_array_equal(BytePair(encoded(file), 1024).encode(TEXTS)[0], roberta.encode(TEXTS)[0])


def test_merges_may_be_lines_or_pairs(roberta):
    file = copy.deepcopy(LAYOUTS["roberta"])
    file["model"]["merges"] = [" ".join(merge) for merge in file["model"]["merges"]]
    np.testing.assert_array_equal(BytePair(encoded(file), 1024).encode(TEXTS)[0], roberta.encode(TEXTS)[0])


def spoil(change, layout="roberta"):
    file = copy.deepcopy(LAYOUTS[layout])
    change(file, file["model"])
    return encoded(file)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f, m: m.update(type="WordPiece"), "model.type is 'WordPiece': expected .*'BPE'.* of BERT give the voc"),
        (lambda f, m: f.pop("model"), "model.type is None"),
        (lambda f, m: f.update(model=[1]), "model.type is None"),
        (lambda f, m: m.update(dropout=0.1), "model.dropout = 0.1"),
        (lambda f, m: m.update(ignore_merges=True), "model.ignore_merges = True"),
        (lambda f, m: m.update(continuing_subword_prefix="##"), "model.continuing_subword_prefix = '##'"),
        (lambda f, m: f.update(pre_tokenizer={"type": "Metaspace"}), "BPE over characters"),
        (lambda f, m: f.update(pre_tokenizer=None), "BPE over characters"),
        (lambda f, m: m["merges"].append(["r", "我"]), r"of 'r' and '我', but '我' is not among its \d+ pieces"),
        (lambda f, m: m["merges"].insert(0, "z z"), r"merge 0 is of 'z' and 'z', but 'zz' is not among its"),
        (lambda f, m: m["merges"].append("z"), r"merge \d+ is 'z': expected two pieces"),
        (lambda f, m: m.update(merges=None), "model.merges is no list"),
        (lambda f, m: m.update(vocab=["a"]), "model.vocab is no table"),
        (lambda f, m: m["vocab"].update(a="1"), "model.vocab is no table"),
        (lambda f, m: m["vocab"].update(a=m["vocab"]["b"]), "expected each of 0 to .* once"),
        (lambda f, m: m["vocab"].update(more=10**9), "expected each of 0 to .* once"),
        (lambda f, m: f["added_tokens"][0].pop("id"), "added_tokens: KeyError"),
        (lambda f, m: f["added_tokens"][0].update(id="0"), r"added_tokens: their ids are \['0', 1, .* whole numbers"),
        (lambda f, m: f.update(pre_tokenizer={"type": "Sequence", "pretokenizers": 5}), "BPE over characters"),
        (lambda f, m: f["added_tokens"][0].update(special=False), "not special, such as '<s>'"),
        (lambda f, m: m["vocab"].update({"<s>x": m["vocab"].pop("<s>")}) or f.update(added_tokens=[]), "lacks <s>"),
        (lambda f, m: m["vocab"].update({"none": m["vocab"].pop("Ń")}), r"lacks pieces of single bytes, 1 of 256.*'Ń'"),
        (lambda f, m: f.update(normalizer={"type": "unheard of"}), "cannot be read"),
    ],
)
def test_a_malformed_file_says_what_is_wrong_with_it(tmp_path, change, expected):
    path = tmp_path / "any name"
    path.write_bytes(spoil(change))
    with pytest.raises(UserError, match=expected) as caught:
        open_tokenizer(path, 16)
    assert str(path) in str(caught.value)


def test_clips_ends_of_words_need_clips_frame_and_every_end_of_a_word():
    def roberta_names(f, m):
        names = dict(zip(CLIP, ["<s>", "</s>"]))
        m["vocab"] = {names.get(piece, piece): i for piece, i in m["vocab"].items()}
        f["added_tokens"] = []

    with pytest.raises(UserError, match=r"lacks <\|endoftext\|>, <\|startoftext\|>: expected RoBERTa's .*CLIP's"):
        BytePair(spoil(roberta_names, "clip"), 16)
    lost = lambda f, m: m["vocab"].update({"none": m["vocab"].pop("Ń</w>")})
    with pytest.raises(UserError, match=r"lacks pieces of single bytes, 1 of 512"):
        BytePair(spoil(lost, "clip"), 16)


def test_a_special_piece_that_texts_could_spell_is_refused():
    def spell(f, m):
        for piece in ("<m", "<ma", "<mas", "<mask"):
            m["vocab"][piece] = len(m["vocab"])
        m["merges"] += ["< m", "<m a", "<ma s", "<mas k", "<mask >"]

    with pytest.raises(UserError, match=r"texts could spell \['<mask>'\]"):
        BytePair(spoil(spell), 16)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"model": ', "is no JSON"),
        (b'{"caf\xe9": 1}', "is no JSON"),
        (b"{}", "model.type is None"),
        (b'{"a": "b"}', "model.type is None"),
    ],
)
def test_json_that_is_broken_or_something_else_is_named(tmp_path, content, expected):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=f"tokenizer.json is .*{expected}|{expected}"):
        open_tokenizer(tmp_path / "tokenizer.json", 16)


def test_a_vocabulary_needs_its_merges_beside_it(tmp_path):
    path = write_pair(tmp_path, LAYOUTS["roberta"])
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8")
    for text, expected in (
        (None, r"is a vocab.json, but there is no .*merges.txt"),
        (merges + "a b c\n", r"merges.txt, line \d+: 'a b c': expected two pieces"),
        (merges + "z z\n", r"vocab.json: merge \d+ is of 'z' and 'z', but 'zz' is not among"),
    ):
        (tmp_path / "merges.txt").unlink()
        if text is not None:
            (tmp_path / "merges.txt").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=expected):
            open_tokenizer(path, 16)
        (tmp_path / "merges.txt").touch()
