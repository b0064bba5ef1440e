"""The tokenizer's special ids, its vocabulary on small and large corpora, and what it reads."""

import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data import array_record
from data.moving_shapes import builder
from data.train_tokenizer import main, read_captions, train
from vlp_jax.types import UserError

ROOT = Path(__file__).parents[2]
CAPTIONS = [
    f"a {size} {color} {shape} {motion}"
    for size in ("small", "large")
    for color in ("red", "blue", "yellow")
    for shape in ("circle", "square")
    for motion in ("moves left", "grows", "spins")
]


def load(model):
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.fixture(scope="module")
def processor():
    return load(train(CAPTIONS))


def test_special_ids_are_fixed(processor):
    assert (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, -1, -1)
    assert [processor.piece_to_id(piece) for piece in ("[CLS]", "[SEP]", "[MASK]")] == [2, 3, 4]
    assert all(processor.is_control(i) for i in (0, 2, 3, 4))
    assert not any(processor.is_control(i) or processor.is_unknown(i) for i in range(5, processor.vocab_size()))


@pytest.mark.parametrize("text", ["[MASK]", "[CLS] a [SEP]", "<pad>", "<unk>", "[mask]▁[MASK]"])
def test_text_cannot_produce_a_control_symbol(processor, text):
    assert not {0, 2, 3, 4} & set(processor.encode(text))
    assert not {0, 2, 3, 4} & set(load(train([*CAPTIONS, text] * 3)).encode(text))


def test_each_word_of_the_captions_is_one_piece(processor):
    for caption in CAPTIONS:
        assert processor.encode(caption, out_type=str) == ["▁" + word for word in caption.split()]


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.sampled_from(" ".join(CAPTIONS).split()), min_size=1, max_size=20))
def test_any_order_of_known_words_survives_a_round_trip(processor, words):
    text = " ".join(words)
    ids = processor.encode(text)
    assert processor.decode(ids) == text and len(ids) == len(words)


@settings(max_examples=50, deadline=None)
@given(text=st.text("abcdefghijklmnopqrstuvwxyz0123456789 .,?!'", min_size=1))
def test_english_never_seen_in_training_is_spelled_not_unknown(processor, text):
    assert processor.unk_id() not in processor.encode(text)
    assert processor.decode(processor.encode(text)) == " ".join(text.split())


def test_case_and_width_do_not_matter(processor):
    assert processor.encode("A Small RED cｉrcle") == processor.encode("a small red circle")


def test_the_same_captions_give_the_same_bytes():
    assert train(CAPTIONS) == train(list(CAPTIONS))


@pytest.mark.parametrize("size", [60, 75, 100])
def test_vocabulary_size_is_kept_where_the_corpus_supports_it(size):
    processor = load(train(CAPTIONS, size))
    assert processor.vocab_size() == size
    assert all(processor.decode(processor.encode(caption)) == caption for caption in CAPTIONS)


@pytest.mark.parametrize("captions", [["a"], ["walks"], ["A man falls down.", "", "A man sits, then stands up."]])
def test_tiny_corpora_give_a_smaller_vocabulary(captions):
    processor = load(train(captions, 8000))
    assert processor.vocab_size() < 300
    assert all(processor.decode(processor.encode(c)) == c.lower() for c in captions)


@settings(max_examples=30, deadline=None)
@given(captions=st.lists(st.text(st.characters(categories=["L", "N", "P", "Zs"])), min_size=1, max_size=5))
def test_captions_of_any_script_train(captions):
    if any(map(str.strip, captions)):
        assert load(train([*captions, "a"])).piece_to_id("[MASK]") == 4
    else:
        with pytest.raises(UserError, match="no text"):
            train(captions)


def test_a_caption_with_line_breaks_or_of_great_length_is_not_dropped():
    processor = load(train(["one\ntwo\r\nthree", "long " * 20_000 + "tail"]))
    assert processor.encode("two three tail", out_type=str) == ["▁two", "▁three", "▁tail"]


def test_too_small_a_vocabulary_is_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"--vocab-size 20: expected at least \d\d"):
        train(CAPTIONS, 20)


# --- Inputs -----------------------------------------------------------------------------------------------------------


def test_tfds_and_folder_give_the_captions_of_the_training_split_alone(tmp_path):
    for kind in ("tfds", "folder"):
        builder.prepare(tmp_path / kind, builder.Settings(train=8, validation=2, test=2, compositional=2, format=kind))
    from_tfds, from_csv = read_captions(tmp_path / "tfds"), read_captions(tmp_path / "folder" / "clips.csv")
    assert from_tfds == from_csv and len(from_csv) == 8
    assert len(read_captions(tmp_path / "folder" / "clips.csv", split="all")) == 14
    some = read_captions(tmp_path / "folder" / "clips.csv", split="split=test|validation")
    assert len(some) == 4 and not set(some) & set(from_csv)
    with pytest.raises(UserError, match=r"'dev': .* has .*validation"):
        read_captions(tmp_path / "tfds", split="dev")
    with pytest.raises(UserError, match=r"'split=dev' matches no row .*test_compositional"):
        read_captions(tmp_path / "folder" / "clips.csv", split="split=dev")


def test_csv_and_text_give_the_same_model(tmp_path):
    (tmp_path / "captions.txt").write_text("a man falls, then stands\na man sits\n", encoding="utf-8")
    table = 'clip,sentence\n1,"a man falls, then stands"\n2,a man sits\n'
    (tmp_path / "captions.csv").write_text("\ufeff" + table, encoding="utf-8")
    text = read_captions(tmp_path / "captions.txt")
    assert text == read_captions(tmp_path / "captions.csv", caption_column="sentence")


@pytest.mark.parametrize(
    ("name", "content", "arguments", "expected"),
    [
        ("none.txt", None, [], "does not exist"),
        ("empty.txt", "\n \n", [], "has no caption"),
        ("empty.csv", "video,caption\n", [], "has no caption"),
        ("blank.csv", "", [], "no column 'caption'"),
        ("a.csv", "video,captions\n1,x\n", [], "did you mean 'captions'"),
        ("a.csv", "video,caption\n1,x\n", ["--split", "fold=1"], "--split: .*no column 'fold'"),
        ("a.csv", "video,caption\n1,x\n", ["--split", "train"], "expected all or column=value"),
        ("a.txt", "x\n", ["--split", "train"], "no splits"),
        ("a.txt", "x\n", ["--vocab-size", "-1"], "--vocab-size -1"),
        ("latin.txt", b"caf\xe9", [], "expected UTF-8"),
        ("folder", "", [], "no dataset_info.json"),
    ],
)
def test_inputs_that_cannot_be_used_end_with_status_2_and_one_line(
    tmp_path, capsys, name, content, arguments, expected
):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    output = tmp_path / "out" / "tokenizer.model"
    assert main(["--input", str(path), "--output", str(output), *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert re.search(expected, message), message
    assert not output.exists()


def test_the_command_writes_the_model_and_one_line(tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")
    output = tmp_path / "new" / "tokenizer.model"
    command = [sys.executable, "-m", "data.train_tokenizer", "--input", str(tmp_path / "captions.txt")]
    done = subprocess.run([*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    size = load(output.read_bytes()).vocab_size()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {output}: {size} pieces from {len(CAPTIONS)} captions\n"


def test_tables_and_shards_give_the_captions_that_training_reads(tmp_path, capsys):
    captions = ['a "red" circle, then', "two squares", "caf\u00e9"]
    rows = [{"clip": f"{i}.mp4", "text": text, "split": "train"} for i, text in enumerate(captions)]
    lines = [json.dumps(row) for row in rows] + [json.dumps({"clip": "9.mp4", "text": "unseen", "split": "test"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    table = "clip\ttext\n" + "".join(f"{i}.mp4\t{text}\n" for i, text in enumerate(captions))
    (tmp_path / "a.tsv").write_bytes(table.encode() + b"9.mp4\tcaf\xe9\n")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, text in enumerate(captions):
            for name, content in ((f"{i}.mp4", b"-"), (f"{i}.json", json.dumps({"text": text}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert read_captions(tmp_path / "a.jsonl", "text") == captions
    assert read_captions(tmp_path / "a.jsonl", "text", "split=test") == ["unseen"]
    assert capsys.readouterr().err == ""
    assert read_captions(tmp_path / "a.tsv", "text") == captions
    assert "1 captions are not UTF-8 and left out" in capsys.readouterr().err
    assert read_captions(tmp_path / "a.tar", caption_key="text") == captions
    with pytest.raises(UserError, match="no column 'caption', only clip, text, split"):
        read_captions(tmp_path / "a.jsonl")


def test_an_evaluation_sets_captions_are_said_to_be_in_its_tables(tmp_path):
    out = tmp_path / "set"
    array_record.write(tmp_path, "some", "1.0.0", {"clips": lambda: [{"video": b"-", "caption": "", "clip_id": "a"}]})
    (tmp_path / "some" / "1.0.0").rename(out)
    (out / "clips.txt").write_text("a\n")
    (out / "missing.jsonl").write_text('{"clip_id": "b"}\n')
    (out / "val.jsonl").write_text('{"clip_id": "a", "caption": "a cat"}\n')
    with pytest.raises(UserError, match=r"has clips; .* in tables: --input \S*val\.jsonl$"):
        read_captions(out)
    assert read_captions(out / "val.jsonl") == ["a cat"]


def test_words_of_questions_are_pieces_where_they_are_given(tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    (tmp_path / "qa.jsonl").write_text('{"question": "what color is the object?", "answer": "red"}\n' * 3)
    pieces = []
    for more in ([], ["--questions", str(tmp_path / "qa.jsonl")]):
        output = tmp_path / "out.model"
        assert main(["--input", str(tmp_path / "captions.txt"), "--output", str(output), *more]) == 0
        pieces.append(load(output.read_bytes()).encode("what color is the object?", out_type=str))
    assert len(pieces[1]) < len(pieces[0]) and "▁color" in pieces[1]
    assert main(["--input", str(tmp_path / "captions.txt"), "--output", "x", "--questions", "nowhere.jsonl"]) == 2
