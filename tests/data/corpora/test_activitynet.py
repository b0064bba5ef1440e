"""ActivityNet Captions and ActivityNet-QA in miniature."""

import pytest

from data import prepare
from data.corpora import activitynet
from vlp_jax.input.sources import TfdsSource
from vlp_jax.types import UserError

TRAIN = {
    "v_aa": {
        "duration": 82.73,
        "timestamps": [[0.83, 19.86], [17.37, 83.0], [60.81, 56.26]],
        "sentences": ["A woman sits.", " She bounces.", " She stops. "],
    },
    "v_b-b": {"duration": 10.0, "timestamps": [[0, 10.0]], "sentences": [" A dog jumps."]},
}
VAL_1 = {"v_cc": {"duration": 5.5, "timestamps": [[0, 3]], "sentences": ["A man cooks."]}}


def questions(*answers, first=0):
    ids = [f"v_aa_{i}" for i in range(first, first + len(answers))]
    asked = [{"video_name": "aa", "question": f"is it {i}", "question_id": i} for i in ids]
    # The answers' order is their own.
    answered = [{"answer": a, "type": t, "question_id": i} for i, (a, t) in reversed(list(zip(ids, answers)))]
    return asked, answered


@pytest.fixture
def root(tmp_path, put, put_videos):
    root = tmp_path / "activitynet"
    put(root / "captions/train.json", TRAIN)
    put(root / "captions/val_1.json", VAL_1)
    train = questions(("yes", 3), ("no", 3), ("yes", 3), ("dance", 0))
    test = questions(*((str(kind), kind) for kind in range(9)), first=4)
    for split, (asked, answered) in {"train": train, "test": test}.items():
        put(root / f"activitynet_qa/{split}_q.json", asked)
        put(root / f"activitynet_qa/{split}_a.json", answered)
    put_videos(root / "videos", ["v1-2/train/v_aa.mp4", "v1-3/train_val/v_b-b.webm", "v1-2/val/v_cc.mp4"])
    return root


def test_a_paragraph_joins_all_sentences_and_moments_keep_their_times(root):
    corpus = activitynet.read(root)
    rows = corpus.annotations
    assert rows["train"] == [
        {"clip_id": "v_aa", "caption": "A woman sits. She bounces. She stops."},
        {"clip_id": "v_b-b", "caption": "A dog jumps."},
    ]
    assert rows["val_1"] == [{"clip_id": "v_cc", "caption": "A man cooks."}]
    assert rows["moments_train"] == [
        {"clip_id": "v_aa", "caption": "A woman sits.", "start": 0.83, "end": 19.86},
        {"clip_id": "v_aa", "caption": "She bounces.", "start": 17.37, "end": 82.73},  # cut to the video's length
        {"clip_id": "v_b-b", "caption": "A dog jumps.", "start": 0.0, "end": 10.0},
    ]
    assert "moments_train: 1 of 4 sentences left out" in corpus.notes
    assert "val_2 left out: no val_2.json" in corpus.notes
    assert [clip.clip_id for clip in corpus.splits["clips"]] == ["v_aa", "v_b-b", "v_cc"]


def test_questions_meet_their_answers_by_id_and_types_have_the_official_names(root):
    rows = activitynet.read(root).annotations
    assert {r["clip_id"] for r in rows["qa_test"]} == {"v_aa"}
    # dataset/README.md: 0 motion, 1 spatial and 2 temporal relationship, then the answer types of free questions.
    names = "motion spatial temporal yes_no color object location number other".split()
    assert [(r["answer"], r["type"]) for r in rows["qa_test"]] == [(str(i), name) for i, name in enumerate(names)]
    assert rows["qa_answers"] == [
        {"answer": "yes", "count": 2},
        {"answer": "dance", "count": 1},
        {"answer": "no", "count": 1},
    ]


def test_questions_without_an_answer_file_are_left_out_by_name(root):
    (root / "activitynet_qa/test_a.json").unlink()
    corpus = activitynet.read(root)
    assert "qa_test" not in corpus.annotations and "qa_train" in corpus.annotations
    assert "qa_test left out: no test_a.json" in corpus.notes


def test_a_wrong_folder_is_told_what_was_expected_and_where_it_comes_from(tmp_path):
    with pytest.raises(UserError, match=r"train\.json or .*train_q\.json.*nothing.*densevid.*activitynet-qa"):
        activitynet.read(tmp_path)


def test_missing_videos_are_named(root):
    (root / "videos/v1-2/val/v_cc.mp4").unlink()
    with pytest.raises(UserError, match=r"1 of 3 .*v_cc; expected each as ROOT/videos/v_<id>\.mp4"):
        activitynet.read(root)
    assert activitynet.read(root, allow_share=0.5).annotations["val_1"] == []


@pytest.mark.parametrize(
    "part, change, message",
    (
        ("q", lambda rows: rows + rows[:1], "more than once"),
        ("a", lambda rows: rows + rows[:1], "more than once"),
        ("a", lambda rows: rows[1:], "are not in .*train_a.json"),
        ("q", lambda rows: rows[1:], "are not in .*train_q.json"),
        ("a", lambda rows: [rows[0] | {"type": 9}, *rows[1:]], "type 9, expected 0 to 8"),
        ("a", lambda rows: [{"answer": "x"}], "expected an object with type, question_id"),
    ),
)
def test_questions_and_answers_that_do_not_fit_are_refused(root, put, part, change, message):
    asked, answered = questions(("yes", 3), ("no", 3), ("yes", 3), ("dance", 0))
    put(root / f"activitynet_qa/train_{part}.json", change(asked if part == "q" else answered))
    with pytest.raises(UserError, match=message):
        activitynet.read(root)


def test_sentences_without_timestamps_are_refused(root, put):
    put(root / "captions/val_1.json", {"v_cc": VAL_1["v_cc"] | {"timestamps": []}})
    with pytest.raises(UserError, match="v_cc: 1 sentences and 0 timestamps"):
        activitynet.read(root)


def test_half_a_character_is_written_as_its_replacement(root, put, tmp_path):
    cut = VAL_1["v_cc"] | {"sentences": ["cut \ud83d"]}
    put(root / "captions/val_1.json", {"v_cc": cut})  # json.dumps writes \\ud83d
    assert prepare.main(["activitynet", f"--root={root}", f"--out={tmp_path / 'out'}"]) == 0
    assert TfdsSource(str(tmp_path / "out"), "val_1")[0].caption == "cut \ufffd"


def test_the_prepared_set_reads_paragraphs_whole_and_moments_as_spans(root, tmp_path):
    out = tmp_path / "out"
    prepare.prepare(prepare.Settings("activitynet", str(root)), out)
    moments, paragraphs = TfdsSource(str(out), "moments_train"), TfdsSource(str(out), "train")
    assert (len(moments), len(paragraphs)) == (3, 2)
    assert moments[1].span == (17.37, 82.73) and paragraphs[0].span is None
    assert moments[1].video == paragraphs[0].video == (root / "videos/v1-2/train/v_aa.mp4").read_bytes()
