"""What the readers share: checks that fail with the offending value, answer lists, and rows joined with videos."""

import collections
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.corpora import rows
from vlp_jax.types import UserError

NAMES = st.sampled_from([f"clip{i}" for i in range(8)])


def test_an_answer_list_and_a_label_table_give_the_same_answers_with_training_counts(tmp_path):
    train = [{"answer": a} for a in ("yes", "no", "yes", "red")]
    (tmp_path / "answer_list.json").write_text(json.dumps(["yes", "blue", "no"]))
    (tmp_path / "train_ans2label.json").write_text(json.dumps({"no": 2, "yes": 0, "blue": 1}))
    notes = []
    expected = [{"answer": "yes", "count": 2}, {"answer": "blue", "count": 0}, {"answer": "no", "count": 1}]
    for name in ("answer_list.json", "train_ans2label.json"):
        assert rows.answer_rows(tmp_path / name, train, notes) == expected
    assert notes == []


@given(st.lists(st.sampled_from(["yes", "no", "red", "two", "dog"])))
def test_without_a_list_all_training_answers_are_taken_most_frequent_first(answers):
    notes = []
    found = rows.answer_rows(None, [{"answer": a} for a in answers], notes)
    assert {row["answer"]: row["count"] for row in found} == collections.Counter(answers)
    assert [row["count"] for row in found] == sorted((row["count"] for row in found), reverse=True)
    assert len(notes) == 1 and "answer list" in notes[0]


@pytest.mark.parametrize("content", ({"yes": 0, "no": 2}, {"yes": "a"}, [1, 2], "yes", ["yes", "yes"]))
def test_a_file_that_is_no_answer_list_is_refused(tmp_path, content):
    (tmp_path / "vocab.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"vocab\.json"):
        rows.answer_rows(tmp_path / "vocab.json", [], [])


@given(st.lists(st.builds(lambda i, t: {"clip_id": i, "caption": t}, NAMES, st.text())), st.sets(NAMES, min_size=1))
def test_rows_and_clips_fit_together_whatever_is_missing(listed, present):
    paths = {name: pathlib.Path(name) for name in sorted(present)}
    wanted = {row["clip_id"] for row in listed}
    if wanted and not wanted & present:
        with pytest.raises(UserError, match="missing"):
            _assemble({"train": listed}, paths, allow_share=1.0)
        return
    corpus = _assemble({"train": listed}, paths, allow_share=1.0)
    ids = [clip.clip_id for clip in corpus.splits["clips"]]
    assert len(ids) == len(set(ids)) and set(ids) == wanted & present
    assert corpus.annotations["train"] == [row for row in listed if row["clip_id"] in present]
    assert set(corpus.missing) == wanted - present
    lost = len(listed) - len(corpus.annotations["train"])
    assert (f"{lost} of {len(listed)} rows left out" in corpus.notes) == bool(lost)


def _assemble(annotations, paths, *, official=None, allow_share=0.0):
    return rows.assemble(
        "tiny",
        annotations,
        paths,
        expected="ROOT/x.mp4",
        where_from="From nowhere.",
        official=official or {},
        allow_share=allow_share,
    )


def test_missing_videos_stop_unless_allowed():
    listed = [{"clip_id": f"clip{i}", "caption": "x"} for i in range(4)]
    paths = {f"clip{i}": pathlib.Path() for i in range(3)}
    with pytest.raises(UserError, match=r"1 of 4 .*clip3.*ROOT/x\.mp4.*From nowhere"):
        _assemble({"train": listed}, paths)
    assert _assemble({"train": listed}, paths, allow_share=0.25).missing == ["clip3"]


def test_a_question_whose_option_is_missing_is_left_out():
    options = [{"clip_id": "a"}, {"clip_id": "b"}]
    corpus = _assemble(
        {"mcq": [{"options": options}, {"options": options[:1]}]}, {"a": pathlib.Path()}, allow_share=1.0
    )
    assert corpus.annotations["mcq"] == [{"options": options[:1]}]


def test_counts_that_differ_from_the_full_set_are_said_and_the_same_ones_are_not():
    listed = [{"clip_id": "a", "caption": "x"}, {"clip_id": "a", "caption": ""}]
    paths = {"a": pathlib.Path()}
    assert (
        "train lists 1 clips where the full set has 3"
        in _assemble({"train": listed}, paths, official={"train": (3, 2)}).notes
    )
    notes = _assemble({"train": listed}, paths, official={"train": (1, 2)}).notes
    assert "full set" not in notes
    assert "1 of 2 captions are empty" in notes


@pytest.mark.parametrize(
    "change, message",
    (
        ({"options": ["a", "b"]}, "not 5"),
        ({"options": "abcde"}, "not 5"),
        ({"answer": 5}, "answer 5, expected 0 to 4"),
        ({"answer": -1}, "answer -1, expected 0 to 4"),
        ({"answer": "2"}, "answer '2', expected 0 to 4"),
        ({"answer": True}, "answer True, expected 0 to 4"),
    ),
)
def test_a_choice_outside_its_options_is_refused(change, message):
    row = {"question_id": "q7", "options": list("abcde"), "answer": 4}
    assert rows.check_choices([row], 5, "mc.jsonl") == [row]
    with pytest.raises(UserError, match=f"mc.jsonl: question 'q7'.*{message}"):
        rows.check_choices([row | change], 5, "mc.jsonl")


def test_questions_are_refused_where_ids_repeat_or_answers_are_empty():
    row = {"question_id": "q1", "answer": "yes"}
    with pytest.raises(UserError, match="1 ids occur more than once, 'q1'"):
        rows.check_questions([row, row], "qa.json")
    with pytest.raises(UserError, match="'q1' has the answer ' '"):
        rows.check_questions([row | {"answer": " "}], "qa.json")


def test_malformed_lines_are_counted_and_too_many_refused():
    notes = []
    rows.report_malformed([], 0, "x.csv", notes)
    assert notes == []
    rows.report_malformed(["2 cells"], 100, "x.csv", notes)
    assert notes == ["x.csv: 1 of 100 lines are malformed and left out, the first: 2 cells."]
    with pytest.raises(UserError, match="2 of 100 lines are malformed"):
        rows.report_malformed(["2 cells", "3 cells"], 100, "x.csv", notes)


@pytest.mark.parametrize(
    "text, message",
    (
        ('{"a": 1}', "expected a list"),
        ('[{"a": 1}, {"b": 1}]', r"entry 2: expected an object with a; got {'b': 1}"),
        ("[1]", "entry 1"),
        ("[", "expected JSON"),
    ),
)
def test_a_json_file_of_another_layout_is_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message):
        rows.json_rows(tmp_path / "x.json", ["a"])


def test_json_lines_name_the_entry_that_is_none(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\nnot json\n')
    with pytest.raises(UserError, match=r"entry 2.*'not json'"):
        rows.json_lines(tmp_path / "x.jsonl", ["a"])


def test_lines_are_split_at_newlines_only(tmp_path):
    (tmp_path / "x.txt").write_bytes("a\u2028b\r\n\n c \x0b d\n".encode())
    assert rows.lines(tmp_path / "x.txt") == ["a\u2028b", "c \x0b d"]
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        rows.lines(tmp_path / "x.txt")
