"""TGIF-QA in miniature: the four tasks' files with their headers, and GIFs."""

import json

import pytest

from data import prepare
from data.corpora import tgif_qa
from vlp_jax.input import video
from vlp_jax.input.sources import TfdsSource
from vlp_jax.types import UserError

GIFS = ["tumblr_a1_250", "tumblr_b2_400", "tumblr_c3_500"]
CHOICE = ("gif_name", "question", "a1", "a2", "a3", "a4", "a5", "answer", "vid_id", "key")
COUNT = ("gif_name", "question", "answer", "vid_id", "key")
FRAME = ("gif_name", "question", "answer", "type", "vid_id", "key", "description")

FILES = {
    "Train_frameqa": [
        FRAME,
        (GIFS[0], "what is blue ?", "ball", 0, "FRAMEQA1", 1, "a blue ball ."),
        (GIFS[0], "how many dogs ?", "two", 1, "FRAMEQA2", 1, "two dogs ."),
        (GIFS[1], "what color is it ?", "ball", 2, "FRAMEQA3", 2, "x"),
    ],
    "Test_frameqa": [FRAME, (GIFS[2], "where is the man ?", "kitchen", 3, "FRAMEQA4", 3, "x")],
    "Test_count": [COUNT, (GIFS[1], "How many times does he wave ?", 4, "COUNT9", 2)],
    "Test_action": [CHOICE, (GIFS[0], "What does he do 3 times ?", *"vwxyz", 4, "ACTION4", 1)],
    # The released files quote as CSV does.
    "Test_transition": [CHOICE, (GIFS[2], "What after ?", "a", '"respond ""no"""', *"cde", 0, "TRANS1", 3)],
}


@pytest.fixture
def root(tmp_path, put_table, put_videos):
    root = tmp_path / "tgif"
    for name, rows in FILES.items():
        put_table(root / f"dataset/{name}_question.csv", rows, end="\r\n")
    put_videos(root / "videos/gifs", [f"{name}.gif" for name in GIFS])
    return root


def test_each_task_has_its_rows_with_the_types_of_the_official_readme(root):
    corpus = tgif_qa.read(root)
    rows = corpus.annotations
    assert [(r["question_id"], r["clip_id"], r["answer"], r["type"]) for r in rows["frameqa_train"]] == [
        ("FRAMEQA1", GIFS[0], "ball", "object"),
        ("FRAMEQA2", GIFS[0], "two", "number"),
        ("FRAMEQA3", GIFS[1], "ball", "color"),
    ]
    assert rows["frameqa_test"][0]["type"] == "location"
    assert rows["frameqa_answers"] == [{"answer": "ball", "count": 2}, {"answer": "two", "count": 1}]
    assert (rows["count_test"][0]["answer"], rows["count_test"][0]["type"]) == ("4", "count")
    assert rows["action_test"] == [
        {
            "question_id": "ACTION4",
            "clip_id": GIFS[0],
            "question": "What does he do 3 times ?",
            "options": list("vwxyz"),
            "answer": 4,
        }
    ]
    assert rows["transition_test"][0]["options"] == ["a", 'respond "no"', "c", "d", "e"]
    assert sorted(clip.path.name for clip in corpus.splits["clips"]) == [f"{name}.gif" for name in GIFS]
    assert "transition_train left out: no Train_transition_question.csv" in corpus.notes
    assert "action_test lists 1 rows where the full set has 2,274" in corpus.notes


def test_videos_made_of_the_gifs_serve_as_well(root, put_videos):
    for name in GIFS:
        (root / f"videos/gifs/{name}.gif").unlink()
    put_videos(root, [f"videos/{name}.mp4" for name in GIFS])
    assert {clip.path.suffix for clip in tgif_qa.read(root).splits["clips"]} == {".mp4"}


def test_a_wrong_folder_is_told_what_was_expected_and_where_it_comes_from(tmp_path):
    with pytest.raises(UserError, match=r"Train_frameqa_question\.csv or .*nothing.*YunseokJANG/tgif-qa"):
        tgif_qa.read(tmp_path)


def test_missing_gifs_are_named(root):
    (root / f"videos/gifs/{GIFS[1]}.gif").unlink()
    with pytest.raises(UserError, match=rf"1 of 3 .*{GIFS[1]}; expected each as ROOT/videos/<gif_name>\.gif"):
        tgif_qa.read(root)


@pytest.mark.parametrize(
    "name, column, value, message",
    (
        ("Test_action", "answer", "5", "'ACTION4' has the answer 5, expected 0 to 4"),
        ("Test_action", "answer", "z", "'ACTION4' has the answer 'z'"),
        ("Test_frameqa", "type", "4", "'FRAMEQA4' has the type '4', expected 0 to 3"),
        ("Test_frameqa", "answer", "", "'FRAMEQA4' has the answer ''"),
        ("Test_count", "answer", "many", "'COUNT9' has the answer 'many', expected a number"),
    ),
)
def test_answers_outside_the_task_are_refused(root, put_table, name, column, value, message):
    header, row = FILES[name]
    changed = [value if key == column else cell for key, cell in zip(header, row)]
    put_table(root / f"dataset/{name}_question.csv", [header, changed])
    with pytest.raises(UserError, match=message):
        tgif_qa.read(root)


def test_a_question_id_twice_and_a_missing_column_are_refused(root, put_table):
    path = root / "dataset/Test_count_question.csv"
    put_table(path, [*FILES["Test_count"], FILES["Test_count"][1]])
    with pytest.raises(UserError, match="more than once, 'COUNT9'"):
        tgif_qa.read(root)
    put_table(path, [row[1:] for row in FILES["Test_count"]])
    with pytest.raises(UserError, match="expected a header with 'gif_name'"):
        tgif_qa.read(root)


def test_the_prepared_set_holds_gifs_that_decode_and_the_questions(root, tmp_path):
    out = tmp_path / "out"
    prepare.prepare(prepare.Settings("tgif_qa", str(root)), out)
    clips = TfdsSource(str(out), "clips")
    assert [clips[i].clip_id for i in range(len(clips))] == (out / "clips.txt").read_text().split()
    assert video.decode(clips[0].video, frames=3, size=16).shape == (3, 16, 16, 3)
    (row,) = [json.loads(line) for line in (out / "action_test.jsonl").read_text().splitlines()]
    assert row["options"][row["answer"]] == "z"
