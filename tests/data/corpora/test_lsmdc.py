"""LSMDC in miniature: tab-separated without a header, quotation marks as plain characters."""

import pytest

from data.corpora import lsmdc
from vlp_jax.types import UserError

CLIPS = [
    "0001_American_Beauty_00.00.51.926-00.00.54.129",
    "1012_Unbreakable_00.05.16.065-00.05.21.941",
    "3001_21_JUMP_STREET_00.03.07.077-00.03.07.559",
]
TIMES = ("00.00.51.926", "00.00.54.129", "00.00.51.826", "00.00.54.229")


def row(clip, *texts):
    return (CLIPS[clip], *TIMES, *texts)


@pytest.fixture
def root(tmp_path, put_table, put_videos):
    root = tmp_path / "lsmdc"
    put_table(root / "LSMDC16_annos_training.csv", [row(0, 'SOMEONE says "no.'), row(0, "SOMEONE nods."), row(1, "x")])
    put_table(root / "LSMDC16_annos_val.csv", [row(1, "He sits.")])
    put_table(root / "LSMDC16_challenge_1000_publictect.csv", [row(2, "A car stops.")], end="\r\n")
    put_table(root / "LSMDC16_multiple_choice_train.csv", [row(0, *"vwxyz"), row(0, *"VWXYZ")])
    put_table(root / "LSMDC16_multiple_choice_test_randomized.csv", [row(2, *"abcde", 5), row(1, *"fghij", 1)])
    put_videos(root / "videos", [f"{clip.split('_00.')[0]}/{clip}.avi" for clip in CLIPS])
    return root


def test_a_clip_keeps_all_its_sentences_and_choices_count_from_zero(root):
    corpus = lsmdc.read(root)
    rows = corpus.annotations
    assert rows["train"] == [
        {"clip_id": CLIPS[0], "caption": 'SOMEONE says "no.'},
        {"clip_id": CLIPS[0], "caption": "SOMEONE nods."},
        {"clip_id": CLIPS[1], "caption": "x"},
    ]
    assert rows["test_1k"] == [{"clip_id": CLIPS[2], "caption": "A car stops."}]
    assert [(r["clip_id"], "".join(r["options"]), r["answer"]) for r in rows["mc_test"]] == [
        (CLIPS[2], "abcde", 4),
        (CLIPS[1], "fghij", 0),
    ]
    # Two questions about one clip; the right sentence is the first of the file.
    assert [("".join(r["options"]), r["answer"]) for r in rows["mc_train"]] == [("vwxyz", 0), ("VWXYZ", 0)]
    assert len({r["question_id"] for r in rows["mc_train"]}) == 2
    assert [clip.clip_id for clip in corpus.splits["clips"]] == CLIPS
    for name in ("test", "mc_validation"):
        assert f"{name} left out: no LSMDC16_" in corpus.notes


def test_a_wrong_folder_is_told_what_was_expected_and_where_it_comes_from(tmp_path):
    with pytest.raises(UserError, match=r"LSMDC16_annos_training\.csv or .*nothing.*permission.*describingmovies"):
        lsmdc.read(tmp_path)


def test_missing_clips_are_named(root):
    (root / "videos/3001_21_JUMP_STREET" / f"{CLIPS[2]}.avi").unlink()
    with pytest.raises(UserError, match=r"1 of 3 .*3001_21_JUMP_STREET_.*; expected each as ROOT/videos/<movie>"):
        lsmdc.read(root)


@pytest.mark.parametrize(
    "name, rows, message",
    (
        ("LSMDC16_annos_val.csv", [row(1, "a", "b")], r"1 of 1 lines are malformed.*7 cells, not 6"),
        ("LSMDC16_challenge_1000_publictect.csv", [row(1, "a"), row(1, "b")], "more than once"),
        ("LSMDC16_multiple_choice_test_randomized.csv", [row(1, *"abcde", 6)], "the answer 5, expected 0 to 4"),
        ("LSMDC16_multiple_choice_test_randomized.csv", [row(1, *"abcde", "e")], "the answer 'e', expected 1 to 5"),
    ),
)
def test_rows_that_do_not_fit_are_refused(root, put_table, name, rows, message):
    put_table(root / name, rows)
    with pytest.raises(UserError, match=message):
        lsmdc.read(root)


def test_a_few_malformed_lines_of_many_are_left_out_and_counted(root, put_table):
    put_table(root / "LSMDC16_annos_val.csv", [row(1, f"sentence {i}") for i in range(200)] + [row(1)])
    corpus = lsmdc.read(root)
    assert len(corpus.annotations["validation"]) == 200
    assert "1 of 201 lines are malformed and left out" in corpus.notes
