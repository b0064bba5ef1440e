"""EgoClip and EgoMCQ in miniature: spans of long videos, whole or in pieces of 600 s."""

import pytest

from data import prepare
from data.corpora import egoclip
from vlp_jax.input.sources import TfdsSource
from vlp_jax.types import UserError

UIDS = ["001e3e4e-2743", "ffd8a1b2-0c0c"]
HEADER = (
    "video_uid video_dur narration_source narration_ind narration_time clip_start clip_end clip_text tag_verb tag_noun"
).split()


def row(video, start, end, text, verbs="[93]", nouns="[192, 115]"):
    return (UIDS[video], 1900.5, "narration_pass_1", 0, (start + end) / 2, start, end, text, verbs, nouns)


def span(video, start, end):
    return {"video_uid": UIDS[video], "clip_start": start, "clip_end": end, "clip_text": "#C C x", "tag_verb": "[1]"}


QUESTIONS = {
    "0": {
        "query": span(0, 2.0, 3.0) | {"clip_text": "#C C picks a bag"},
        "choices": {str(i): span(i % 2, 10.0 * i, 10.0 * i + 2) for i in range(5)},
        "answer": 3,
        "types": 1,
    },
    "1": {
        "query": span(1, 2.0, 3.0),
        "choices": {str(i): span(1, 700.0 + i, 700.5 + i) for i in range(5)},
        "answer": 0,
        "types": 2,
    },
}
NARRATIONS = [
    row(0, -0.4, 0.9, "#C C looks around", nouns="[]"),
    row(0, 598.0, 604.0, "#C C opens the door", verbs="[4, 93]"),
    row(1, 1201.25, 1202.5, "#O man Y laughs"),
]


@pytest.fixture
def root(tmp_path, put, put_table):
    root = tmp_path / "ego"
    put_table(root / "egoclip.csv", [HEADER, *NARRATIONS])
    put(root / "egomcq.json", QUESTIONS)
    return root


@pytest.fixture
def whole(root, put_videos):
    put_videos(root / "videos", [f"{uid}.mp4" for uid in UIDS])
    return root


@pytest.fixture
def pieces(root, put_videos):
    put_videos(root / "videos", [f"{uid}/{i}.mp4" for uid in UIDS for i in range(4)])
    return root


def test_rows_are_spans_of_whole_videos_each_of_which_is_one_clip(whole):
    corpus = egoclip.read(whole)
    assert [clip.clip_id for clip in corpus.splits["clips"]] == UIDS
    assert corpus.annotations["train"] == [
        # A narration near the beginning starts before the video.
        {"clip_id": UIDS[0], "caption": "#C C looks around", "start": 0.0, "end": 0.9, "verbs": (93,), "nouns": ()},
        {
            "clip_id": UIDS[0],
            "caption": "#C C opens the door",
            "start": 598.0,
            "end": 604.0,
            "verbs": (4, 93),
            "nouns": (192, 115),
        },
        {
            "clip_id": UIDS[1],
            "caption": "#O man Y laughs",
            "start": 1201.25,
            "end": 1202.5,
            "verbs": (93,),
            "nouns": (192, 115),
        },
    ]
    assert "cross the border" not in corpus.notes


def test_a_question_chooses_among_five_spans(whole):
    first, second = egoclip.read(whole).annotations["egomcq"]
    assert (first["question_id"], first["caption"], first["answer"]) == ("0", "#C C picks a bag", 3)
    assert (first["type"], second["type"]) == ("inter-video", "intra-video")
    assert first["options"][3] == {"clip_id": UIDS[1], "start": 30.0, "end": 32.0}
    assert len(first["options"]) == len(second["options"]) == 5


def test_in_pieces_a_span_is_one_of_the_piece_that_holds_its_middle(pieces):
    corpus = egoclip.read(pieces)
    spans = [(r["clip_id"], r["start"], r["end"]) for r in corpus.annotations["train"]]
    assert spans == [(f"{UIDS[0]}/0", 0.0, 0.9), (f"{UIDS[0]}/1", 0.0, 4.0), (f"{UIDS[1]}/2", 1.25, 2.5)]
    assert corpus.annotations["egomcq"][1]["options"][0] == {"clip_id": f"{UIDS[1]}/1", "start": 100.0, "end": 100.5}
    assert "1 spans cross the border of two pieces of 600 s" in corpus.notes
    paths = {clip.clip_id: clip.path for clip in corpus.splits["clips"]}
    assert paths[f"{UIDS[0]}/1"] == pieces / f"videos/{UIDS[0]}/1.mp4"
    assert f"{UIDS[0]}/3" not in paths  # nothing is told of it


def test_one_file_alone_is_read_and_the_other_named(whole):
    (whole / "egoclip.csv").unlink()
    corpus = egoclip.read(whole)
    assert list(corpus.annotations) == ["egomcq"]
    assert "train left out: no egoclip.csv" in corpus.notes


def test_a_wrong_folder_is_told_what_was_expected_and_where_it_comes_from(tmp_path):
    with pytest.raises(UserError, match=r"egoclip\.csv or egomcq\.json; .*nothing.*showlab/EgoVLP.*ego4d"):
        egoclip.read(tmp_path)


def test_missing_videos_and_missing_pieces_are_named(pieces):
    (pieces / f"videos/{UIDS[0]}/1.mp4").unlink()
    with pytest.raises(UserError, match=rf"{UIDS[0]}/1; expected each as ROOT/videos/<video_uid>"):
        egoclip.read(pieces)
    for path in (pieces / f"videos/{UIDS[0]}").iterdir():
        path.unlink()
    (pieces / f"videos/{UIDS[0]}").rmdir()
    with pytest.raises(UserError, match=rf"missing.*{UIDS[0]}; expected"):
        egoclip.read(pieces)
    corpus = egoclip.read(pieces, allow_share=0.9)
    # A question that lacks one of its options is left out, too.
    assert [q["question_id"] for q in corpus.annotations["egomcq"]] == ["1"]


def test_a_few_malformed_narrations_of_many_are_left_out_and_counted(whole, put_table):
    sound = [row(0, float(i), i + 1.0, "#C C x") for i in range(300)]
    put_table(whole / "egoclip.csv", [HEADER, *sound, row(0, 5.0, 5.0, "x"), row(0, 5.0, 6.0, "x", verbs="nan")])
    corpus = egoclip.read(whole)
    assert len(corpus.annotations["train"]) == 300
    assert "2 of 302 lines are malformed and left out" in corpus.notes
    put_table(whole / "egoclip.csv", [HEADER, *sound[:20], row(0, 5.0, 5.0, "x")])
    with pytest.raises(UserError, match="1 of 21 lines are malformed"):
        egoclip.read(whole)


@pytest.mark.parametrize(
    "change, message",
    (
        ({"answer": 5}, "question '0' has the answer 5, expected 0 to 4"),
        ({"types": 3}, "question 0: types 3, expected 1"),
        ({"choices": {"0": span(0, 1, 2)}}, "not 5"),
        ({"choices": {"0": {"video_uid": "x"}}}, "question 0, choices.*clip_start, clip_end"),
        ({"choices": {"0": span(0, 5, 2)}}, "question 0, choices: clip_start 5 and clip_end 2"),
        ({"query": {}}, "question 0, query.*clip_text"),
    ),
)
def test_questions_that_do_not_fit_are_refused(whole, put, change, message):
    put(whole / "egomcq.json", QUESTIONS | {"0": QUESTIONS["0"] | change})
    with pytest.raises(UserError, match=message):
        egoclip.read(whole)


def test_the_prepared_set_reads_narrations_as_spans_of_one_copy_of_a_video(whole, tmp_path):
    out = tmp_path / "out"
    prepare.prepare(prepare.Settings("egoclip", str(whole)), out)
    source = TfdsSource(str(out), "train")
    assert [(source[i].caption, source[i].span) for i in range(3)] == [
        ("#C C looks around", (0.0, 0.9)),
        ("#C C opens the door", (598.0, 604.0)),
        ("#O man Y laughs", (1201.25, 1202.5)),
    ]
    assert source[0].video == source[1].video == (whole / f"videos/{UIDS[0]}.mp4").read_bytes()
    assert (out / "clips.txt").read_text().split() == UIDS
