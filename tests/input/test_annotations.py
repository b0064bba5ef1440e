"""Annotation tables of a dataset: what their rows become, which table serves which task, and what is refused."""

import json
import re

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlp_jax import config as config_lib
from vlp_jax.input import annotations, sources, table_readers, tables
from vlp_jax.types import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_JAX_CACHE", str(tmp_path / "cache"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def annotate(folder, rows, clips=("c0", "c1", "c2")):
    (folder / "clips.txt").write_text("".join(f"{c}\n" for c in clips))
    table = write(folder / "test.jsonl", rows)
    return annotations.open_annotations(table, annotations.clip_lists(folder), {"clips": 3})


# --- Where the clips are ----------------------------------------------------------------------------------------------


def test_annotations_know_the_record_of_their_clip(tmp_path):
    rows = annotate(
        tmp_path, [{"clip_id": "c2", "caption": "x"}, {"clip_id": "c0", "caption": "y", "start": 1, "end": 2.5}]
    )
    assert [rows[i]["number"] for i in range(2)] == [2, 0]
    assert [tables.read_span(rows[i]) for i in range(2)] == [None, (1.0, 2.5)]


def test_a_table_may_be_about_clips_of_several_splits(tmp_path):
    for split, ids in (("train", "ab"), ("clips", "c"), ("test_x", "de")):
        name = "clips.txt" if split == "clips" else f"clips_{split}.txt"
        (tmp_path / name).write_text("".join(f"{i}\n" for i in ids))
    lists = annotations.clip_lists(tmp_path)
    assert list(lists) == ["clips", "test_x", "train"]
    table = write(tmp_path / "t.jsonl", [{"clip_id": i, "caption": "x"} for i in "ebca"])
    rows = annotations.open_annotations(table, lists, {"train": 2, "test_x": 2, "clips": 1, "other": 7})
    # Records are counted over the splits in the order of their names: c, then d and e, then a and b.
    assert [rows[i]["number"] for i in range(4)] == [2, 4, 0, 3]


def test_annotations_of_unknown_clips_are_counted_and_named(tmp_path):
    with pytest.raises(UserError, match=r"3 rows are about clips that clips.txt does not list, the first 'd', 'e'"):
        annotate(tmp_path, [{"clip_id": c, "caption": "x"} for c in ("c0", "d", "e", "d")])


def test_a_list_of_clips_must_fit_the_records(tmp_path):
    row = [{"clip_id": "c0", "caption": "x"}]
    with pytest.raises(UserError, match="lists 2 clips where the split `clips` holds 3 records"):
        annotate(tmp_path, row, clips=("c0", "c1"))
    with pytest.raises(UserError, match="lists a clip twice"):
        annotate(tmp_path, row, clips=("c0", "c1", "c0"))
    (tmp_path / "clips_dev.txt").write_text("d0\n")
    with pytest.raises(UserError, match=r"clips_dev.txt lists the clips of the split 'dev', which is not among clips;"):
        annotate(tmp_path, row)


# --- What rows become -------------------------------------------------------------------------------------------------


def records(folder, rows):
    opened = annotate(folder, rows)
    return [sources._annotated(opened[i], b"") for i in range(len(opened))]


def test_questions_choices_and_classes_become_records(tmp_path):
    question = {"question_id": 7, "clip_id": "c1", "question": "what?", "answer": 3, "type": "count"}
    assert records(tmp_path, [question]) == [
        sources.Record(b"", "what?", "c1", question_id="7", answer="3", type="count")
    ]
    choice = {"clip_id": "c0", "options": ["ä", "b", 3], "answer": 2, "start": 1, "end": 2}
    assert records(tmp_path, [choice]) == [
        sources.Record(b"", "", "c0#t=1,2", (1.0, 2.0), answer="2", options=("ä", "b", "3"))
    ]
    asked = {"clip_id": "c0", "question": "which?", "options": ["a", "b"], "answer": 1, "question_id": "q"}
    assert records(tmp_path, [asked]) == [
        sources.Record(b"", "which?", "c0", question_id="q", answer="1", options=("a", "b"))
    ]
    labelled = {"clip_id": "c2", "caption": "a dog", "label": "Barking", "label_id": 4}
    assert records(tmp_path, [labelled]) == [sources.Record(b"", "a dog", "c2", answer="Barking")]


def test_what_a_row_lacks_is_empty_and_counted(tmp_path, caplog):
    rows = [
        {"clip_id": "c0", "question": "what?", "answer": "red", "type": "color", "question_id": "q0"},
        {"clip_id": "c1", "question": "  ", "answer": None},
        {"clip_id": "c1", "question": "why?"},
    ]
    got = records(tmp_path, rows)
    assert [(r.caption, r.answer, r.type, r.question_id) for r in got] == [
        ("what?", "red", "color", "q0"),
        ("", "", "", ""),
        ("why?", "", "", ""),
    ]
    assert "1 of 3 rows have no text" in caplog.text and "2 of 3 rows have no answer" in caplog.text


def test_an_empty_or_missing_list_of_options_is_an_odd_row_and_no_error(tmp_path):
    rows = [{"clip_id": "c0", "options": options, "answer": 0} for options in (["a", "b"], [], None, ["a", None])]
    assert [r.options for r in records(tmp_path, rows)] == [("a", "b"), (), (), ("a", "")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("a|b", r"test.jsonl, line 2: the options are 'a|b': expected a JSON list of texts"),
        ({"a": 1}, r"test.jsonl, line 2: the value of 'options' is"),
        ([["a"]], r"test.jsonl, line 2: the options are '\[\[\"a\"\]\]': expected a JSON list of texts"),
        ([{"clip_id": "c0", "start": 0, "end": 1}], r"line 2: the options are clips, as EgoMCQ's are.*not supported"),
    ],
)
def test_options_that_are_no_texts_are_refused_with_their_line(tmp_path, options, message):
    rows = [{"clip_id": "c0", "options": ["a", "b"], "answer": 0}, {"clip_id": "c0", "options": options, "answer": 0}]
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        annotate(tmp_path, rows)


OPTIONS = st.lists(st.text(max_size=8), max_size=6)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OPTIONS, min_size=1, max_size=6))
def test_options_are_read_back_as_written_in_cells_and_in_lines(tmp_path_factory, lists):
    folder = tmp_path_factory.mktemp("options")
    expected = [tuple("".join(c if not "\ud800" <= c <= "\udfff" else "\ufffd" for c in x) for x in o) for o in lists]
    jsonl = write(folder / "t.jsonl", [{"video": "a", "options": o, "answer": 1} for o in lists])
    tsv = folder / "t.tsv"
    tsv.write_text("video\toptions\tanswer\n" + "".join(f"a\t{json.dumps(o)}\t1\n" for o in lists))
    for file in (jsonl, tsv):
        source = tables.TableSource(str(file), caption_column="", answer_column="answer", options_column="options")
        assert [source[i].options for i in range(len(source))] == expected


def test_columns_of_a_table_s_task_come_from_the_config(tmp_path):
    (tmp_path / "t.csv").write_text('file,q,a,kind,o\nx.mp4,what?,1,color,"[""a"", ""b""]"\ny.mp4,,,,\n')
    changes = {"kind": "table", "path": str(tmp_path / "t.csv"), "split": "all", "video_column": "file"}
    changes |= {"caption_column": "q", "answer_column": "a", "type_column": "kind", "options_column": "o"}
    source = sources.open_source(configure(changes))
    video = str(tmp_path / "x.mp4")
    assert source[0] == sources.Record(video, "what?", "x.mp4", answer="1", options=("a", "b"), type="color")
    assert source[1] == sources.Record(str(tmp_path / "y.mp4"), "", "y.mp4")
    with pytest.raises(UserError, match=r"no column 'b', only file, q, a, kind, o; set config.input.answer_column"):
        sources.open_source(configure(changes | {"answer_column": "b"}))


def test_rows_of_captions_alone_are_stored_without_columns_of_tasks():
    assert tables.Columns("video", "caption").schema.names == ["video", "caption", "start", "end"]
    assert tables.Columns("v", options="o", answer="a").schema.field("options").type == pa.list_(pa.string())


def test_a_list_in_a_column_that_holds_none_is_refused(tmp_path):
    file = str(write(tmp_path / "t.jsonl", [{"video": "a", "caption": ["x", "y"]}]))
    with pytest.raises(UserError, match="the value of 'caption' is"):
        list(table_readers.read(file, ["caption"], lambda present: None, table_readers.Replaced()))


# --- Which table serves which task ------------------------------------------------------------------------------------

ROWS = {
    "captions": {"clip_id": "a", "caption": "x"},
    "qa_train": {"clip_id": "a", "question": "x", "answer": "y"},
    "mc_train": {"clip_id": "a", "options": ["x", "y"], "answer": 0},
    "action_train": {"clip_id": "a", "question": "x", "options": ["x", "y"], "answer": 0},
    "label_train": {"clip_id": "a", "caption": "x", "label": "y"},
    "qa_answers": {"answer": "y", "count": 1},
    "egomcq": {"question_id": "0", "caption": "x", "options": [{"clip_id": "a"}], "answer": 0},
    "prepare": {"rows": 1},
}
FITTING = {
    "pretrain": ["captions", "label_train"],
    "question_answering": ["qa_train"],
    "multiple_choice": ["action_train", "mc_train"],
    "classification": ["label_train"],
}


@pytest.fixture
def folder(tmp_path):
    for name, row in ROWS.items():
        write(tmp_path / f"{name}.jsonl", [row])
    (tmp_path / "broken.jsonl").write_text("[1, 2\n")
    (tmp_path / "clips.txt").write_text("a\n")
    return tmp_path


def configure(changes):
    return config_lib.update(config_lib.defaults(), {f"input.{k}": v for k, v in changes.items()}).input


class Fake:
    def __init__(self, name, columns):
        self.name, self.columns = name, frozenset(columns)


def test_columns_tell_what_a_table_is_for(folder):
    assert annotations.annotation_tables(folder) == ["action_train", "captions", "label_train", "mc_train", "qa_train"]
    for kind, names in FITTING.items():
        assert annotations.annotation_tables(folder, kind) == names
    (folder / "clips.txt").unlink()
    assert annotations.annotation_tables(folder) == []


@pytest.mark.parametrize("kind", FITTING)
def test_a_table_of_another_kind_is_refused_with_those_that_fit(folder, kind):
    c = configure({"path": str(folder)})
    for name in annotations.annotation_tables(folder):
        source = Fake(f"data:{name}", annotations.held(ROWS[name]))
        if name in FITTING[kind]:
            sources.check_task(source, kind, c)
            continue
        with pytest.raises(UserError) as caught:
            sources.check_task(source, kind, c)
        message = str(caught.value)
        assert f"config.task.kind = {kind!r} needs rows with {' and '.join(annotations.TASK_COLUMNS[kind])}" in message
        assert f"data:{name} has {', '.join(sorted(set(ROWS[name]) - {'clip_id'}))}: " in message
        assert f"the tables {', '.join(FITTING[kind])} of {folder} have them" in message


def test_what_a_table_s_config_lacks_for_a_task_is_named():
    c = configure({"kind": "table", "path": "t.csv"})
    asked = {"caption", "question"}
    for kind, columns, message in (
        ("question_answering", asked, "has caption, question: set config.input.answer_column"),
        ("multiple_choice", asked, "set config.input.options_column and config.input.answer_column"),
        ("classification", asked, "set config.input.answer_column"),
        ("pretrain", {"answer", "label"}, "set config.input.caption_column"),
        ("question_answering", asked | {"answer", "options"}, "and no options; .*: set config.input.options_column=''"),
    ):
        with pytest.raises(UserError, match=message):
            sources.check_task(Fake("t.csv:all", columns), kind, c)
    with pytest.raises(UserError, match="tar shards hold captions alone"):
        sources.check_task(Fake("s", {"caption"}), "classification", configure({"kind": "shards", "path": "x.tar"}))


def test_a_file_that_is_no_annotation_table_is_refused_by_what_it_is(folder):
    with pytest.raises(UserError, match=r"egomcq.jsonl asks which of several clips fits a text, as EgoMCQ does"):
        annotations.refuse_other(folder / "egomcq.jsonl")
    with pytest.raises(UserError, match=r"qa_answers.jsonl is no annotation table: its rows have answer, count;"):
        annotations.refuse_other(folder / "qa_answers.jsonl")
    (folder / "empty.jsonl").touch()
    for name in ("broken", "empty"):
        with pytest.raises(UserError, match=rf"{name}.jsonl is no annotation table: its first line is no JSON object"):
            annotations.refuse_other(folder / f"{name}.jsonl")


def test_text_is_taken_away_only_where_there_is_a_question():
    c = configure({"path": "somewhere", "ablate": "text"})
    sources.check_task(Fake("x", {"question", "answer"}), "question_answering", c)
    sources.check_task(Fake("x", {"question", "options", "answer"}), "multiple_choice", c)
    for kind, columns, why in (
        ("multiple_choice", {"options", "answer"}, "its rows have options and no question"),
        ("pretrain", {"caption"}, "captions are what it learns from"),
        ("classification", {"label"}, "it reads no text"),
    ):
        with pytest.raises(UserError, match=re.escape("config.input.ablate = 'text'") + f".*{why}"):
            sources.check_task(Fake("x", columns), kind, c)
