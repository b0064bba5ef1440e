"""MSVD in miniature: four clips named by YouTube ids, one of which begins with a minus sign."""

import json

import pytest

from data import prepare
from data.corpora import msvd
from vlp_jax.input.sources import TfdsSource
from vlp_jax.types import UserError

CAPTIONS = {
    "-4wsuPCjDBc_5_15": ["a squirrel is eating", "a chipmunk eats it s nut"],
    "-8y1Q0rA3n8_108_115": ["a man slices a bottle"],
    "00jrXRMlZOY_0_10": ["kids play", "children play football", "a team plays"],
    "zzit5b_-ukg_5_20": ["a cat jumps"],
}
CLIPS = list(CAPTIONS)


def question(number, clip, text, answer):
    return {"answer": answer, "id": number, "question": text, "video_id": clip}


@pytest.fixture
def root(tmp_path, put, put_videos):
    root = tmp_path / "msvd"
    put(root / "captions_msvd.json", CAPTIONS)
    put(root / "train_list.txt", f"{CLIPS[2]}\n{CLIPS[0]}\n")
    put(root / "val_list.txt", CLIPS[1])
    put(root / "test_list.txt", f"{CLIPS[3]}\n\n")
    put(root / "msvd_qa/train_qa.json", [question(0, 1, "what is eating?", "squirrel")])
    put(root / "msvd_qa/val_qa.json", [question(1, 2, "who slices?", "man")])
    put(root / "msvd_qa/test_qa.json", [question(2, 4, "what jumps?", "cat"), question(3, 3, "where?", "field")])
    put(root / "msvd_qa/youtube_mapping.txt", "".join(f"{clip} vid{i}\n" for i, clip in enumerate(CLIPS, 1)))
    put_videos(root / "videos/YouTubeClips", [f"{clip}.avi" for clip in CLIPS])
    return root


def pairs(*clips):
    return [{"clip_id": clip, "caption": text} for clip in clips for text in CAPTIONS[clip]]


def test_lists_and_mapping_give_each_clip_all_its_captions_and_its_questions(root):
    corpus = msvd.read(root)
    assert {clip.clip_id: clip.path.name for clip in corpus.splits["clips"]} == {c: f"{c}.avi" for c in CLIPS}
    rows = corpus.annotations
    assert rows["train"] == pairs(CLIPS[2], CLIPS[0])
    assert rows["validation"] == pairs(CLIPS[1])
    assert rows["test"] == pairs(CLIPS[3])
    assert [(r["question_id"], r["clip_id"], r["answer"], r["type"]) for r in rows["qa_test"]] == [
        ("2", CLIPS[3], "cat", "what"),
        ("3", CLIPS[2], "field", "where"),
    ]
    assert rows["qa_answers"] == [{"answer": "squirrel", "count": 1}]
    assert "train lists 2 clips where the full set has 1,200." in corpus.notes


def test_the_description_file_and_split_captions_say_the_same(root, put):
    expected = msvd.read(root).annotations
    (root / "captions_msvd.json").unlink()
    # As json of raw-captions.pkl, which holds each caption as a list of words.
    put(root / "captions.json", {clip: [text.split() for text in texts] for clip, texts in CAPTIONS.items()})
    assert msvd.read(root).annotations == expected
    (root / "captions.json").unlink()
    lines = "".join(f"{clip} {text}\n" for clip, texts in CAPTIONS.items() for text in texts)
    put(root / "AllVideoDescriptions.txt", "# Research Video Description Corpus\n#\n\n" + lines)
    assert msvd.read(root).annotations == expected


def test_questions_alone_and_captions_alone_are_enough(root):
    (root / "captions_msvd.json").unlink()
    corpus = msvd.read(root)
    assert sorted(corpus.annotations) == ["qa_answers", "qa_test", "qa_train", "qa_validation"]
    assert "Retrieval left out: no captions_msvd.json or captions.json" in corpus.notes
    (root / "captions_msvd.json").write_text(json.dumps(CAPTIONS))
    for split in ("train", "val", "test"):
        (root / f"msvd_qa/{split}_qa.json").unlink()
    (root / "val_list.txt").unlink()
    corpus = msvd.read(root)
    assert sorted(corpus.annotations) == ["test", "train"]
    assert "validation left out: no val_list.txt" in corpus.notes
    assert "qa_test left out: no test_qa.json" in corpus.notes


def test_a_wrong_folder_is_told_what_was_expected_and_where_it_comes_from(tmp_path, put):
    with pytest.raises(UserError, match=r"captions_msvd\.json or .*AllVideoDescriptions\.txt; .*nothing.*cs\.utexas"):
        msvd.read(tmp_path)
    put(tmp_path / "captions.json", CAPTIONS)
    with pytest.raises(UserError, match=r"train_list\.txt or val_list\.txt or test_list\.txt"):
        msvd.read(tmp_path)


@pytest.mark.parametrize(
    "name, text, message",
    (
        ("test_list.txt", "unknown_1_2", r"test_list\.txt: 1 of 1 ids are not in .*captions_msvd\.json, 'unknown_1_2'"),
        ("test_list.txt", f"{CLIPS[0]}\n{CLIPS[0]}", "more than once"),
        ("captions_msvd.json", '["a"]', "expected an object from each clip"),
        ("msvd_qa/youtube_mapping.txt", "a vid1\nb vid1\n", "each number once, got 'b vid1'"),
        ("msvd_qa/youtube_mapping.txt", "a b c\n", "got 'a b c'"),
        ("msvd_qa/youtube_mapping.txt", f"{CLIPS[0]} vid1\n", "'vid2'"),
    ),
)
def test_files_that_do_not_fit_are_refused(root, put, name, text, message):
    put(root / name, text)
    with pytest.raises(UserError, match=message):
        msvd.read(root)


def test_a_missing_mapping_is_told_with_the_questions_source(root):
    (root / "msvd_qa/youtube_mapping.txt").unlink()
    with pytest.raises(UserError, match=r"expected the file youtube_mapping\.txt.*video-question-answering"):
        msvd.read(root)


def test_the_prepared_set_holds_every_caption_of_a_clip_beside_one_copy_of_it(root, tmp_path):
    out = tmp_path / "out"
    prepare.prepare(prepare.Settings("msvd", str(root)), out)
    source = TfdsSource(str(out), "train")
    assert [source[i].caption for i in range(len(source))] == [row["caption"] for row in pairs(CLIPS[2], CLIPS[0])]
    assert source[4].video == (root / f"videos/YouTubeClips/{CLIPS[0]}.avi").read_bytes()
    assert len((out / "clips.txt").read_text().split()) == 4
