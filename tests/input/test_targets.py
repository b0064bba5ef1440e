"""Examples of tasks through the pipeline: targets, odd examples that stay in place, and what is taken away."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_jax import config as config_lib
from vlp_jax.input import answers, pipeline, sources, targets, video
from vlp_jax.input.mixture import Mixture, Part, open_mixture
from vlp_jax.input.tokenizer import open_tokenizer
from vlp_jax.types import UserError

L, LA = 10, 4


@pytest.fixture(scope="module")
def clip(tmp_path_factory, make_clip):
    folder = tmp_path_factory.mktemp("clips")
    make_clip(folder / "a.mp4", count=12, width=32, height=32)
    return folder / "a.mp4"


@pytest.fixture
def tokenizer(model):
    return open_tokenizer(model, L)


@pytest.fixture
def make(tmp_path, clip, monkeypatch):
    """Writes rows about the one clip, and returns `(config, source)`; columns of `config` are those of the rows."""
    monkeypatch.setenv("VLP_JAX_CACHE", str(tmp_path / "cache"))

    def build(kind, rows, changes=None, name="rows"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"video": str(clip), **row}) + "\n" for row in rows))
        has = lambda column: column if any(column in row for row in rows) else ""
        knobs = {"caption_column": has("question"), "answer_column": has("answer"), "options_column": has("options")}
        knobs |= {"type_column": has("type"), "kind": "table", "path": str(path), "split": "all"}
        knobs |= {"frames": 4, "image_size": 16, "max_text_tokens": L}
        config = config_lib.update(config_lib.defaults(), {f"input.{k}": v for k, v in knobs.items()})
        own = {"batch_size": len(rows), "seed": 5, "task.kind": kind, "task.max_answer_tokens": LA}
        config_lib.update(config, {**own, **(changes or {})})
        return config, sources.open_source(config.input)

    return build


def evaluate(config, source, tokenizer, size=None, **more):
    return list(pipeline.evaluation_batches(config, source, tokenizer, batch_size=size or len(source), **more))


def train(config, source, tokenizer, **more):
    mixture = Mixture((Part("", config.input, source),))
    return next(pipeline.train_batches(config, mixture, tokenizer, start_step=0, stop_step=1, **more))


# --- Question answering -----------------------------------------------------------------------------------------------

QUESTIONS = [
    {"question": "what grows", "answer": "a circle", "type": "shape"},
    {"question": "what spins", "answer": " Red ", "type": "color"},
    {"question": "what moves left", "answer": "a large red circle spins", "type": "shape"},
    {"question": "what moves", "answer": "unheard of", "type": "other"},
    {"question": "", "answer": "red"},
    {"question": "what", "answer": "  "},
]
LIST = answers.AnswerList(("red", "a Circle", "a large red circle spins"))


def test_questions_have_the_number_and_the_tokens_of_their_answer(make, tokenizer):
    config, source = make("question_answering", QUESTIONS)
    (item,) = evaluate(config, source, tokenizer, answers=LIST)
    goal = item.batch.targets
    assert set(goal) == {"label", "answer_ids", "answer_mask"}
    np.testing.assert_array_equal(goal["label"], [1, 0, 2, -1, 0, -1])
    # An answer of the list has the tokens of the list's own text; one outside has its own.
    texts = ["a Circle", "red", "a large red circle spins", "unheard of", "red", ""]
    ids, mask, _ = tokenizer.encode(texts, LA)
    np.testing.assert_array_equal(goal["answer_ids"], ids)
    np.testing.assert_array_equal(goal["answer_mask"], mask)
    assert ids.shape == (6, LA)
    types = {"label": np.int32, "answer_ids": np.int32, "answer_mask": np.bool_}
    assert {name: value.dtype.type for name, value in goal.items()} == types
    np.testing.assert_array_equal(item.batch.text_ids, tokenizer.encode([r["question"] for r in QUESTIONS])[0])


def test_an_answer_outside_the_list_is_an_example_and_an_empty_question_or_answer_is_none(make, tokenizer):
    config, source = make("question_answering", QUESTIONS)
    for item in (*evaluate(config, source, tokenizer, answers=LIST), train(config, source, tokenizer, answers=LIST)):
        at = np.argsort(item.records)
        np.testing.assert_array_equal(item.batch.valid[at], [True] * 4 + [False] * 2)
        assert [item.errors[i] for i in at] == [""] * 4 + ["empty question", "empty answer"]
        assert not item.batch.video[~item.batch.valid].any() and item.batch.video[item.batch.valid].any()


def test_cut_questions_and_cut_answers_are_counted_apart(make, tokenizer):
    config, source = make("question_answering", QUESTIONS)
    room = lambda texts, n: sum(len(tokenizer._split(t)) > n - 2 for t in texts)
    questions = [r["question"] for r in QUESTIONS]
    in_list = ["a Circle", "red", "a large red circle spins", "unheard of", "red", ""]
    (item,) = evaluate(config, source, tokenizer, answers=LIST)
    assert (item.cut, item.cut_answers) == (room(questions, L), room(in_list, LA)) and item.cut_answers > item.cut > 0


def test_worker_processes_make_the_same_targets(make, tokenizer):
    config, source = make("question_answering", QUESTIONS)
    here = train(config, source, tokenizer, answers=LIST)
    config.input.workers = 1
    there = train(config, source, tokenizer, answers=LIST)
    assert here.captions == there.captions and here.errors == there.errors
    for name, value in here.batch.targets.items():
        np.testing.assert_array_equal(there.batch.targets[name], value)


def test_padding_has_no_answer(make, tokenizer):
    config, source = make("question_answering", QUESTIONS[:3])
    _, last = evaluate(config, source, tokenizer, size=2, answers=LIST)
    assert last.is_padding.tolist() == [False, True] and last.batch.targets["label"].tolist() == [2, -1]
    assert last.batch.targets["answer_mask"].any(1).all()


def test_a_task_that_needs_a_list_says_so(make, tokenizer):
    for kind in ("question_answering", "classification"):
        config, source = make(kind, QUESTIONS)
        with pytest.raises(ValueError, match=f"'{kind}' needs `answers`"):
            evaluate(config, source, tokenizer)


def test_records_of_another_task_are_refused_before_the_first_batch(make, tokenizer):
    config, source = make("multiple_choice", QUESTIONS)
    with pytest.raises(UserError, match="'multiple_choice' needs rows with options and answer"):
        evaluate(config, source, tokenizer)
    with pytest.raises(UserError, match="'multiple_choice' needs rows with options and answer"):
        open_mixture(config)
    config_lib.add_source(config, "more", weight=1.0)
    with pytest.raises(UserError, match=r"source 'more' of config.mixture.*needs rows with options and answer"):
        open_mixture(config)


# --- Multiple choice --------------------------------------------------------------------------------------------------

CHOICES = [
    {"options": ["red", "a circle", "a square spins and grows and moves left again"], "answer": 1},
    {"options": ["a", "b", "c"], "answer": "2"},
    {"options": ["a", "b", " "], "answer": 0},
    {"options": ["a", "b"], "answer": 0},
    {"options": ["a", "b", "c", "d"], "answer": 0},
    {"options": ["a", "b", "c"], "answer": 3},
    {"options": ["a", "b", "c"], "answer": -1},
    {"options": ["a", "b", "c"], "answer": "red"},
    {"options": ["a", "b", "c"], "answer": None},
    {"options": [], "answer": 0},
]
PROBLEMS = [
    "",
    "",
    "empty option 2",
    "2 options where the data set has 3",
    "4 options where the data set has 3",
    "the answer '3' is none of the options 0 to 2",
    "the answer '-1' is none of the options 0 to 2",
    "the answer 'red' is none of the options 0 to 2",
    "the answer '' is none of the options 0 to 2",
    "0 options where the data set has 3",
]


def test_odd_choices_stay_in_place_with_their_reason_in_training_and_evaluation(make, tokenizer):
    config, source = make("multiple_choice", CHOICES)
    for item in (*evaluate(config, source, tokenizer), train(config, source, tokenizer)):
        at = np.argsort(item.records)
        assert [item.errors[i] for i in at] == PROBLEMS
        np.testing.assert_array_equal(item.batch.valid[at], [not p for p in PROBLEMS])
        np.testing.assert_array_equal(item.batch.targets["label"][at], [1, 2, *[-1] * 8])
        assert item.batch.targets["option_ids"].shape == (len(CHOICES), 3, L)


def test_a_choice_whose_clip_does_not_decode_keeps_its_label(make, tokenizer):
    rows = [{"options": ["a", "b"], "answer": 1}, {"video": "/nowhere.mp4", "options": ["a", "b"], "answer": 1}]
    config, source = make("multiple_choice", rows)
    (item,) = evaluate(config, source, tokenizer)
    assert item.batch.valid.tolist() == [True, False] and item.batch.targets["label"].tolist() == [1, 1]


def test_options_are_encoded_as_texts_of_their_own(make, tokenizer):
    config, source = make("multiple_choice", CHOICES)
    (item,) = evaluate(config, source, tokenizer)
    ids, mask, cut = tokenizer.encode(CHOICES[0]["options"])
    np.testing.assert_array_equal(item.batch.targets["option_ids"][0], ids)
    np.testing.assert_array_equal(item.batch.targets["option_mask"][0], mask)
    # What is missing has the two tokens of an empty text, and what is too much is left out.
    assert item.batch.targets["option_mask"].any(2).all() and cut == item.cut == 1 and item.cut_answers == 0
    np.testing.assert_array_equal(item.batch.text_mask.sum(1), 2)


def test_a_question_beside_the_options_is_read_and_must_not_be_empty(make, tokenizer):
    rows = [{"question": q, "options": ["a", "b"], "answer": 0} for q in ("what", "")]
    config, source = make("multiple_choice", rows)
    (item,) = evaluate(config, source, tokenizer)
    assert item.errors == ["", "empty question"]
    np.testing.assert_array_equal(item.batch.text_ids, tokenizer.encode(["what", ""])[0])


def test_the_number_of_options_is_that_of_most_of_the_first_rows(make, monkeypatch):
    rows = lambda *counts: [{"options": ["x"] * n, "answer": 0} for n in counts]
    counted = lambda *counts: targets.count_options(make("multiple_choice", rows(*counts))[1])
    assert counted(5) == 5 and counted(2, 4, 4) == 4 and counted(3, 2, 2, 3) == 3
    monkeypatch.setattr(targets, "_FIRST_ROWS", 3)
    assert counted(3, 3, 2, 2, 2, 2) == 3
    with pytest.raises(UserError, match=r"most of its first 3 rows have 1 options; expected two or more"):
        counted(1, 1, 4, 4, 4)


CHOICE = targets.Task("multiple_choice", False, 4, None, LA)


@given(st.integers())
def test_a_number_is_the_answer_where_there_is_an_option_of_that_number(number):
    record = sources.Record(b"", "", "c", answer=f" {number}", options=("a", "b", "c", "d"))
    assert (CHOICE.problem(record) == "") == (0 <= number < 4)


@given(st.text(st.characters(exclude_categories=("Nd",)), max_size=6) | st.sampled_from(["1.0", "٣", "²", "9" * 5000]))
def test_what_is_no_number_is_never_the_answer(answer):
    record = sources.Record(b"", "", "c", answer=answer, options=("a", "b", "c", "d"))
    assert CHOICE.problem(record).endswith("is none of the options 0 to 3")


# --- Classification ---------------------------------------------------------------------------------------------------


def test_clips_have_the_number_of_their_class_and_need_no_text(make, tokenizer):
    config, source = make("classification", [{"answer": a} for a in ("RED", "a circle", "blue", "")])
    for item in (*evaluate(config, source, tokenizer, answers=LIST), train(config, source, tokenizer, answers=LIST)):
        at = np.argsort(item.records)
        assert set(item.batch.targets) == {"label"}
        np.testing.assert_array_equal(item.batch.targets["label"][at], [0, 1, -1, -1])
        assert [item.errors[i] for i in at] == ["", "", "", "empty class"]


def test_captions_have_no_targets(make, tokenizer):
    config, source = make("pretrain", [{"question": "a circle"}, {"question": ""}])
    (item,) = evaluate(config, source, tokenizer)
    assert item.batch.targets == {} and item.errors == ["", "empty caption"]


# --- What is taken away -----------------------------------------------------------------------------------------------


def both(config, source, tokenizer, **more):
    return (*evaluate(config, source, tokenizer, **more), train(config, source, tokenizer, **more))


def test_without_video_every_frame_is_grey_and_training_decodes_nothing(make, tokenizer, monkeypatch):
    config, source = make("question_answering", [*QUESTIONS[:4], {"question": "", "answer": "red"}])
    config.input.ablate = "video"
    (tested,) = evaluate(config, source, tokenizer, answers=LIST)
    monkeypatch.setattr(video, "decode", lambda *a, **k: pytest.fail("a clip was decoded"))
    for item in (tested, train(config, source, tokenizer, answers=LIST)):
        valid = item.batch.valid
        assert valid.sum() == 4 and (item.batch.video[valid] == 127).all() and not item.batch.video[~valid].any()


def test_a_clip_that_is_not_there_counts_as_missed_without_video_as_with_it(make, tokenizer):
    config, source = make("question_answering", [{"video": "/nowhere.mp4", "question": "what", "answer": "red"}])
    assert not any(item.batch.valid.any() for item in both(config, source, tokenizer, answers=LIST))
    config.input.ablate = "video"
    tested, trained = both(config, source, tokenizer, answers=LIST)
    assert not tested.batch.valid.any() and trained.batch.valid.all()


def test_a_clip_read_for_itself_is_valid_whatever_its_record_asks(make, tokenizer):
    config, source = make("question_answering", [*QUESTIONS, {"video": "/nowhere.mp4", "question": "what"}])
    (item,) = evaluate(config, source, tokenizer, answers=LIST, clips_alone=True)
    assert item.batch.valid.tolist() == [True] * len(QUESTIONS) + [False]
    assert item.batch.video[:-1].any(axis=(1, 2, 3, 4)).all()


def test_without_text_every_question_is_empty_and_all_else_stays(make, tokenizer):
    config, source = make("question_answering", QUESTIONS)
    whole = both(config, source, tokenizer, answers=LIST)
    config.input.ablate = "text"
    for item, before in zip(both(config, source, tokenizer, answers=LIST), whole):
        np.testing.assert_array_equal(item.batch.text_ids, tokenizer.encode([""] * len(QUESTIONS))[0])
        assert item.captions == before.captions and item.errors == before.errors
        for name in ("video", "valid", "positive_id"):
            np.testing.assert_array_equal(getattr(item.batch, name), getattr(before.batch, name))
        for name, value in before.batch.targets.items():
            np.testing.assert_array_equal(item.batch.targets[name], value)


@pytest.mark.parametrize("kind", ["pretrain", "multiple_choice"])
def test_text_cannot_be_taken_away_where_it_is_the_example(make, tokenizer, kind):
    rows = [{"question": "x"}] if kind == "pretrain" else [{"options": ["a", "b"], "answer": 0}]
    config, source = make(kind, rows, {"input.ablate": "text"})
    with pytest.raises(UserError, match=r"config.input.ablate = 'text'"):
        evaluate(config, source, tokenizer)


def test_shuffled_frames_are_those_of_the_clip_in_the_order_of_the_record_s_number(make, tokenizer):
    config, source = make("pretrain", [{"question": "a circle"}] * 6)
    whole = both(config, source, tokenizer)
    config.input.ablate = "order"
    for item, before in zip(both(config, source, tokenizer), whole):
        for row, number in enumerate(item.records):
            order = pipeline.shuffled(4, 5, int(number))
            np.testing.assert_array_equal(item.batch.video[row], before.batch.video[row][order])
            assert not np.array_equal(item.batch.video[row], before.batch.video[row])
    processes = [evaluate(config, source, tokenizer, own=own)[0] for own in (np.arange(3), np.arange(3, 6))]
    joined = np.concatenate([item.batch.video for item in processes])
    np.testing.assert_array_equal(joined, evaluate(config, source, tokenizer)[0].batch.video)


@given(st.integers(1, 9), st.integers(0, 2**31), st.integers(0, 2**31))
def test_shuffling_is_a_permutation_that_moves_something_and_the_same_each_time(frames, seed, number):
    order = pipeline.shuffled(frames, seed, number)
    assert sorted(order) == list(range(frames))
    assert frames == 1 or (order != np.arange(frames)).any()
    np.testing.assert_array_equal(order, pipeline.shuffled(frames, seed, number))


def test_shuffling_depends_on_seed_and_record_and_reaches_every_order():
    orders = {tuple(pipeline.shuffled(3, 0, n)) for n in range(200)}
    assert len(orders) == 5 and (0, 1, 2) not in orders
    assert any(tuple(pipeline.shuffled(3, 0, n)) != tuple(pipeline.shuffled(3, 1, n)) for n in range(20))
