"""The closed list of answers: where it comes from, in which order, and what is refused."""

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_jax import config as config_lib
from vlp_jax.input import answers, sources
from vlp_jax.input.answers import AnswerList
from vlp_jax.types import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path):
    """Seven questions in a table."""
    given = ["red", "Blue ", "two", " RED", "two", "", "blue"]
    rows = [{"video": "a.mp4", "caption": "what?", "answer": answer} for answer in given]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"input.kind": "table", "input.path": str(tmp_path / "qa.jsonl"), "input.split": "all"}
    changes |= {"input.answer_column": "answer", "task.kind": "question_answering"}
    return config_lib.update(config_lib.defaults(), changes)


def named(config, name):
    return config_lib.update(config, {"task.answers": name})


# --- Lists ------------------------------------------------------------------------------------------------------------

DISTINCT = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=6).filter(str.strip),
    min_size=1,
    max_size=8,
    unique_by=answers.normalised,
)


@given(DISTINCT)
def test_a_list_is_restored_from_its_bytes_and_numbers_its_texts(texts):
    one = AnswerList.of(texts, "x")
    assert AnswerList.parse(one.serialized()) == one == pickle.loads(pickle.dumps(one))
    assert one.texts == tuple(text.strip() for text in texts) and len(one) == len(texts)
    for number, text in enumerate(texts):
        assert one.number(text) == one.number(f" {text}\t") == number


def test_case_and_spaces_around_do_not_tell_answers_apart_and_others_are_unknown():
    one = AnswerList(("Red", "playing guitar", "2"))
    assert [one.number(x) for x in ("red", " RED\n", "Playing Guitar", "2")] == [0, 0, 1, 2]
    assert [one.number(x) for x in ("reds", "playing  guitar", "", "2.0")] == [-1] * 4


def test_numbers_in_a_list_count_as_their_text():
    assert AnswerList.parse(b'["a", 2, 1.5]').texts == ("a", "2", "1.5")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", "holds no answer"),
        (b'["a", "b", " A"]', "entries 1 and 3 are the same answer, ' A'"),
        (b'["a", " "]', "entry 2: the answer ' ' is empty"),
        (b'{"a": 0}', 'expected a JSON list of answers, got {"a": 0}'),
        (b'["a", null]', "entry 2: expected an answer as text, got null"),
        (b'["a", true]', "entry 2: expected an answer as text, got true"),
        (b'["a", ["b"]]', r"entry 2: expected an answer as text, got \["),
        (b'["a"', "expected a JSON list of answers in UTF-8, but"),
        ("['ä']".encode("latin-1"), "expected a JSON list of answers in UTF-8, but"),
        (b"[" * 100_000, "expected a JSON list of answers in UTF-8, but"),
    ],
)
def test_what_is_no_list_of_different_answers_is_refused(data, message):
    with pytest.raises(UserError, match=f"^list.json.*{message}"):
        AnswerList.parse(data, "list.json")


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps)


@given(st.binary(max_size=40) | JSON)
def test_any_bytes_are_a_list_or_a_message(data):
    data = data if isinstance(data, bytes) else data.encode()
    try:
        assert len(AnswerList.parse(data)) > 0
    except UserError as error:
        assert str(error)


# --- Where it comes from ----------------------------------------------------------------------------------------------


def test_answers_of_the_training_rows_come_most_frequent_first_then_by_the_alphabet(config):
    assert answers.open_answers(config).texts == ("blue", "red", "two")
    source = sources.open_source(config.input, "answer=two|red")
    assert answers.open_answers(config, source).texts == ("two", "red")


def test_answers_of_all_sources_of_a_mixture_are_counted_together(config, tmp_path):
    rows = [{"video": "b.mp4", "caption": "who?", "answer": answer} for answer in ("two", "dog")]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config_lib.add_source(config, "one", weight=1.0)
    config_lib.add_source(config, "more", weight=1.0, path=str(tmp_path / "more.jsonl"))
    assert answers.open_answers(config).texts == ("two", "blue", "red", "dog")


def test_training_rows_without_answers_are_refused(config, tmp_path):
    config_lib.update(config, {"input.answer_column": ""})
    with pytest.raises(UserError, match=r"'' takes the answers of the training records, but .* has none"):
        answers.open_answers(config, sources.open_source(config.input))
    (tmp_path / "qa.jsonl").write_text('{"video": "a", "caption": "b", "answer": " "}\n')
    config_lib.update(config, {"input.answer_column": "answer"})
    with pytest.raises(UserError, match="are all empty; fill them in"):
        answers.open_answers(config)


def test_a_bare_name_and_a_file_s_name_lie_beside_the_data(config, tmp_path, monkeypatch):
    (tmp_path / "qa_answers.jsonl").write_text('{"answer": "x", "count": 3}\n\n{"answer": 2}\n')
    (tmp_path / "list.json").write_text('["y", "z"]')
    monkeypatch.chdir("/")
    assert answers.open_answers(named(config, "qa_answers")).texts == ("x", "2")
    assert answers.open_answers(named(config, "qa_answers.jsonl")).texts == ("x", "2")
    assert answers.open_answers(named(config, "list.json")).texts == ("y", "z")
    assert answers.open_answers(named(config, str(tmp_path / "list.json"))).texts == ("y", "z")
    config.input.path = str(tmp_path)  # a dataset's directory holds the list itself
    assert answers.open_answers(named(config, "qa_answers")).texts == ("x", "2")
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path)
    config.input.path = str(tmp_path / "deeper")
    assert answers.open_answers(named(config, "list.json")).texts == ("y", "z")


def test_a_missing_file_names_the_lists_there_are(config, tmp_path):
    (tmp_path / "qa_answers.jsonl").write_text('{"answer": "x", "count": 3}\n')
    (tmp_path / "list.json").write_text('["y"]')
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        answers.open_answers(named(config, "qa_answer"))
    assert re.fullmatch(
        rf"config.task.answers = 'qa_answer': no file {tmp_path}/qa_answer.jsonl; {tmp_path} holds the lists "
        r"qa_answers, list.json; did you mean 'qa_answers'\?",
        str(caught.value),
    )
    with pytest.raises(UserError, match="nowhere holds no list of answers"):
        answers.open_answers(named(config, f"{tmp_path}/nowhere/a.json"))
    with pytest.raises(UserError, match=r"'x/y': expected a .json or a .jsonl file, or a name without a folder"):
        answers.open_answers(named(config, "x/y"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"label": "x"}\n', r"list.jsonl has no key 'answer', only label"),
        (b'{"answer": "x"}\n{"answer": "y"}\n{"answer": "X "}\n', r"entries 1 and 3 are the same answer, 'X '"),
        (b'{"answer": "x"}\n{"answer": ""}\n', r"entry 2: the answer '' is empty"),
        (b'{"answer": "\xff"}\n', r"line 1: expected answers in UTF-8"),
        (b'{"answer": ["x"]}\n', r"the value of 'answer' is"),
        (b"", "list.jsonl holds no answer"),
        (b'"x"\n', r"line 1: '\"x\"\\n' is no JSON object"),
    ],
)
def test_a_table_that_is_no_list_is_refused(config, tmp_path, content, message):
    (tmp_path / "list.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        answers.open_answers(named(config, "list"))
