"""MSR-VTT in miniature: videos 0-3 train, 4 validate, 5-8 test, three captions each."""

import json

import pytest

from data import prepare
from data.corpora import msrvtt
from vlp_jax.input import video
from vlp_jax.input.sources import TfdsSource
from vlp_jax.types import UserError

CLIPS = [f"video{i}" for i in range(9)]


def data_json():
    split = lambda i: "train" if i < 4 else "validate" if i < 5 else "test"
    # The official file lists sentences out of order.
    sentences = [
        {"caption": f"caption {k} of {i}", "video_id": f"video{i}", "sen_id": 3 * i + k}
        for k in (2, 0, 1)
        for i in reversed(range(9))
    ]
    videos = [
        {"category": 9, "url": "https://x", "video_id": f"video{i}", "start time": 0.0, "end time": 9.0}
        | {"split": split(i), "id": i}
        for i in range(9)
    ]
    return {"info": {"year": "2016"}, "videos": videos, "sentences": sentences}


def question(number, clip, text, answer):
    return {"answer": answer, "category_id": 3, "id": number, "question": text, "video_id": clip}


@pytest.fixture
def root(tmp_path, put, put_videos):
    root = tmp_path / "msrvtt"
    put(root / "MSRVTT_data.json", data_json())
    put(root / "MSRVTT_train.9k.csv", "video_id\nvideo3\nvideo0\nvideo4\n")
    put(root / "MSRVTT_train.7k.csv", "video_id\r\nvideo0\r\n")
    put(
        root / "MSRVTT_JSFUSION_test.csv",
        'key,vid_key,video_id,sentence\nret0,msr8,video8,"a man, singing"\nret1,msr5,video5,a dog runs\n',
    )
    put(root / "msrvtt_qa/train_qa.json", [question(0, 0, "what is it?", "dog"), question(1, 1, "who sings?", "man")])
    put(root / "msrvtt_qa/val_qa.json", [question(2, 4, "is it red?", "yes")])
    put(root / "msrvtt_qa/test_qa.json", [question(3, 6, "How many?", "two"), question(4, 6, "what?", "dog")])
    put(root / "msrvtt_qa/answer_list.json", ["dog", "man", "cat"])
    mc = [{"qid": f"q{i}", "clip_name": f"video{i}", "answer": i - 5, "options": list("abcde")} for i in (5, 6)]
    put(root / "msrvtt_mc_test.jsonl", "".join(json.dumps(row) + "\n" for row in mc))
    put_videos(root / "videos", [f"{'TrainVal' if i < 5 else 'Test'}Video/video{i}.mp4" for i in range(9)])
    return root


def captions(*clips):
    return [{"clip_id": f"video{i}", "caption": f"caption {k} of {i}"} for i in clips for k in range(3)]


def test_every_annotation_has_the_clips_of_its_list_and_all_their_captions(root):
    corpus = msrvtt.read(root)
    assert sorted(clip.clip_id for clip in corpus.splits["clips"]) == CLIPS
    assert all(clip.path.stem == clip.clip_id and clip.path.is_file() for clip in corpus.splits["clips"])
    rows = corpus.annotations
    assert rows["train"] == captions(0, 1, 2, 3)
    assert rows["validation"] == captions(4)
    assert rows["test"] == captions(5, 6, 7, 8)
    assert rows["train_9k"] == captions(3, 0, 4)
    assert rows["train_7k"] == captions(0)
    assert rows["test_1ka"] == [
        {"clip_id": "video8", "caption": "a man, singing"},
        {"clip_id": "video5", "caption": "a dog runs"},
    ]
    assert [(r["question_id"], r["clip_id"], r["answer"], r["type"]) for r in rows["qa_test"]] == [
        ("3", "video6", "two", "how"),
        ("4", "video6", "dog", "what"),
    ]
    assert [r["type"] for r in rows["qa_train"] + rows["qa_validation"]] == ["what", "who", "other"]
    assert [(r["answer"], r["count"]) for r in rows["qa_answers"]] == [("dog", 1), ("man", 1), ("cat", 0)]
    assert [(r["question_id"], r["clip_id"], r["answer"], r["options"]) for r in rows["mc_test"]] == [
        ("q5", "video5", 0, list("abcde")),
        ("q6", "video6", 1, list("abcde")),
    ]
    assert corpus.missing == []
    assert "test_1ka lists 2 clips where the full set has 1,000 and 2 rows" in corpus.notes


def test_the_challenges_two_files_say_the_same_as_the_merged_one(root, put):
    merged = msrvtt.read(root)
    data = data_json()
    for name, splits in (("train_val", ("train", "validate")), ("test", ("test",))):
        videos = [v for v in data["videos"] if v["split"] in splits]
        ids = {v["video_id"] for v in videos}
        part = {"videos": videos, "sentences": [s for s in data["sentences"] if s["video_id"] in ids]}
        put(root / f"{name}_videodatainfo.json", part)
    (root / "MSRVTT_data.json").unlink()
    assert msrvtt.read(root).annotations == merged.annotations


def test_absent_parts_are_named_and_the_rest_is_read(root):
    for name in ("MSRVTT_JSFUSION_test.csv", "MSRVTT_train.7k.csv", "msrvtt_qa/val_qa.json", "msrvtt_mc_test.jsonl"):
        (root / name).unlink()
    corpus = msrvtt.read(root)
    assert {"train", "train_9k", "qa_train", "qa_test", "qa_answers"} < set(corpus.annotations)
    for part in ("test_1ka", "train_7k", "qa_validation", "mc_test"):
        assert part not in corpus.annotations
        assert f"{part} left out: no " in corpus.notes


def test_a_wrong_folder_is_told_what_was_expected_and_where_it_comes_from(tmp_path):
    (tmp_path / "holiday.mp4").touch()
    with pytest.raises(UserError, match=r"expected the file MSRVTT_data\.json; .* holds holiday\.mp4.*xpool"):
        msrvtt.read(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        msrvtt.read(tmp_path / "nowhere")


def test_missing_videos_are_named_and_may_be_allowed(root):
    (root / "videos/TestVideo/video8.mp4").unlink()
    with pytest.raises(
        UserError, match=r"1 of 9 .*video8; expected each as ROOT/videos/<video_id>\.mp4.*ms-multimedia"
    ):
        msrvtt.read(root)
    corpus = msrvtt.read(root, allow_share=0.2)
    assert corpus.missing == ["video8"]
    assert [row["clip_id"] for row in corpus.annotations["test_1ka"]] == ["video5"]
    assert "test_1ka: 1 of 2 rows left out" in corpus.notes


@pytest.mark.parametrize(
    "name, text, message",
    (
        ("MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo0\n", r"train\.9k\.csv: 1 ids occur more than once, 'video0'"),
        ("MSRVTT_train.9k.csv", "video_id\nvideo77\n", r"1 of 1 ids are not in .*MSRVTT_data\.json, 'video77'"),
        ("MSRVTT_train.9k.csv", "id\nvideo0\n", "'video_id'; it holds 'id'"),
        ("MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\nret0,msr9,video99,x\n", "'video99'"),
        ("msrvtt_mc_test.jsonl", '{"qid": 1, "clip_name": "video0", "answer": 5, "options": []}', "the options"),
        ("msrvtt_qa/val_qa.json", json.dumps([question(0, 12, "what?", "x")]), "'video12'"),
        ("msrvtt_qa/val_qa.json", json.dumps([question(0, 1, "what?", "")]), "the answer ''"),
    ),
)
def test_ids_and_answers_that_do_not_fit_are_refused(root, put, name, text, message):
    put(root / name, text)
    with pytest.raises(UserError, match=message):
        msrvtt.read(root)


def test_an_unknown_split_and_a_video_without_captions_are_refused(root, put):
    data = data_json()
    data["videos"][0]["split"] = "dev"
    put(root / "MSRVTT_data.json", data)
    with pytest.raises(UserError, match="split 'dev', expected one of train, validate, test"):
        msrvtt.read(root)
    data = data_json()
    data["sentences"] = [s for s in data["sentences"] if s["video_id"] != "video2"]
    put(root / "MSRVTT_data.json", data)
    with pytest.raises(UserError, match="'video2'"):
        msrvtt.read(root)


def test_the_prepared_set_gives_each_caption_with_its_own_clip(root, tmp_path):
    out = tmp_path / "out"
    prepare.prepare(prepare.Settings("msrvtt", str(root)), out)
    assert (out / "clips.txt").read_text().split() == [c.clip_id for c in msrvtt.read(root).splits["clips"]]
    source = TfdsSource(str(out), "test_1ka")
    assert [(source[i].clip_id, source[i].caption) for i in range(len(source))] == [
        ("video8", "a man, singing"),
        ("video5", "a dog runs"),
    ]
    for record in (source[0], source[1]):
        assert record.video == (root / f"videos/TestVideo/{record.clip_id}.mp4").read_bytes()
        assert video.decode(record.video, frames=2, size=16).shape == (2, 16, 16, 3)
    questions = [json.loads(line) for line in (out / "qa_test.jsonl").read_text().splitlines()]
    assert [q["answer"] for q in questions] == ["two", "dog"]
