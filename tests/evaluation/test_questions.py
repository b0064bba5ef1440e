"""Evaluators of question answering, multiple choice and classification: exact counts on odd inputs, any batch size."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from tests.evaluation.conftest import Source
from vlp_jax import sharding
from vlp_jax import state as state_lib
from vlp_jax.evaluation import by_clip, classification, multiple_choice, question_answering
from vlp_jax.input import pipeline
from vlp_jax.input.answers import AnswerList
from vlp_jax.input.sources import Record
from vlp_jax.types import UserError

ANSWERS = AnswerList(("red", "no", "circle", "left", "blue", "yes", "green", "down", "up down left right", "zebra"))
LEAN = {"loss.vtc": 0.0, "loss.vtm": 0.0, "loss.mvm": 0.0}
KINDS = {
    "decoder": {"task.kind": "question_answering", "task.shortlist": 4, **LEAN},
    "classifier": {"task.kind": "question_answering", "task.head": "classifier", **LEAN},
    "choice": {"task.kind": "multiple_choice", "loss.mlm": 0.0, "loss.mvm": 0.0},
    "retrieval": {},
    "classes": {"task.kind": "classification", "loss.mlm": 0.0, **LEAN},
}
EVALUATORS = {
    "decoder": question_answering.QuestionAnswering,
    "classifier": question_answering.QuestionAnswering,
    "choice": multiple_choice.MultipleChoice,
    "retrieval": multiple_choice.MultipleChoice,
    "classes": classification.Classification,
}


@pytest.fixture(scope="module")
def run(tiny_config, tokenizer, one_device):
    """`run(name, source, **changes)` -> (result, setup, params): the evaluator of a model at random."""

    @functools.cache
    def make(name):
        setup = state_lib.setup(tiny_config(KINDS[name]), tokenizer, one_device, 10, len(ANSWERS))
        with sharding.use_mesh(one_device):
            return setup, setup.create().params

    def evaluate(name, source, answers=ANSWERS, **changes):
        setup, params = make(name)
        given = {"evaluation.batch_size": 4, "evaluation.bootstrap": 50, **KINDS[name]}
        config = tiny_config({**given, **{key.replace("__", "."): value for key, value in changes.items()}})
        evaluator = EVALUATORS[name](
            setup.graph, setup.abstract.params, config, source, tokenizer, one_device, answers=answers
        )
        return evaluator.run(params), setup, params

    return evaluate


@pytest.mark.parametrize("name", ["decoder", "classifier"])
def test_every_question_is_counted_and_what_is_odd_is_listed(run, questions, name):
    source = questions()
    result, _, _ = run(name, source)
    assert (result["questions"], result["clips"], len(result["per_query"])) == (12, 5, 12)
    assert [row["query_id"] for row in result["per_query"]] == ["clip0#0", *(f"q{i}" for i in range(1, 12))]
    assert {(odd["query_id"], odd["error"]) for odd in result["malformed_questions"]} == {
        ("clip0#0", "empty question"),
        ("q6", "empty answer"),
    }
    assert result["malformed"] == 2
    assert (result["undecodable"], result["lost_questions"]) == (1, 2)
    assert [clip["clip_id"] for clip in result["bad_clips"]] == ["clip4"]
    # "sideways" is none of the list, "Left " is one of it; the malformed can be right no more than that.
    assert (result["outside_answers"], round(result["outside_share"], 2)) == (1, 8.33)
    assert result["upper_bound"] == 75
    assert result["cut_questions"] == 2
    assert (result["cut_answers"], result["same_answers"]) == (1, 0)
    # The four clips that are asked about are read once each, the clip of malformed questions alone not at all.
    assert sorted(source.reads) == [1, 2, 4, 7]
    rows = {row["query_id"]: row for row in result["per_query"]}
    assert all(rows[i]["predicted"] == "" and not rows[i]["correct"] for i in ("clip0#0", "q6", "q7", "q8"))
    assert all(rows[f"q{i}"]["predicted"] in ANSWERS.texts for i in (1, 2, 3, 4, 5, 9, 10, 11))
    assert all(row["correct"] == (ANSWERS.number(row["answer"]) == ANSWERS.number(row["predicted"]) >= 0)
               for row in rows.values())  # fmt: skip
    hits = [row["correct"] for row in result["per_query"]]
    assert result["accuracy"] == pytest.approx(100 * sum(hits) / 12)
    by_type = {"what": 6, "which": 3, "(none)": 3}
    assert {kind: row["count"] for kind, row in result["by_type"].items()} == by_type
    for kind, row in result["by_type"].items():
        chosen = [r["correct"] for r in result["per_query"] if (r["type"] or "(none)") == kind]
        assert row["accuracy"] == pytest.approx(100 * np.mean(chosen))
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
    json.dumps(result)


@pytest.mark.parametrize("name", ["decoder", "classifier"])
def test_predictions_are_the_models_on_each_question_with_its_own_clip(run, questions, tokenizer, tiny_config, name):
    source = questions()
    result, setup, params = run(name, source)
    listed = tokenizer.encode(list(ANSWERS.texts), 5)[:2]

    @jax.jit
    def answer(video, ids, mask):
        model = nnx.merge(setup.graph, params)
        return model.answer(model.recipe.encode_clip(video), np.zeros(1, np.int32), ids, mask, *listed)

    for number, row in enumerate(result["per_query"]):
        if not row["predicted"]:
            continue
        alone = Source([source.records[number]], source.columns)
        (item,) = pipeline.evaluation_batches(tiny_config(KINDS[name]), alone, tokenizer, batch_size=1, answers=ANSWERS)
        scores = answer(item.batch.video, item.batch.text_ids, item.batch.text_mask)
        assert row["predicted"] == ANSWERS.texts[int(np.argmax(scores))], number


@pytest.mark.parametrize("name", ["decoder", "classifier"])
def test_results_do_not_depend_on_the_batch_size(run, questions, name):
    whole, _, _ = run(name, questions(), evaluation__batch_size=16)
    for size in (1, 3):
        assert run(name, questions(), evaluation__batch_size=size)[0] == whole


def test_a_set_in_which_nothing_can_be_asked_has_accuracy_zero(run, clips):
    source = Source([Record(clips[4], "what colour", "a", answer="red"), Record(clips[0], "", "b", answer="red")],
                    {"question", "answer"})  # fmt: skip
    result, _, _ = run("decoder", source)
    assert (result["accuracy"], result["undecodable"], result["malformed"], result["questions"]) == (0, 1, 1, 2)
    assert result["by_type"] == {}


def test_without_a_bootstrap_there_are_no_intervals(run, questions):
    result, _, _ = run("decoder", questions(), evaluation__bootstrap=0)
    assert result["intervals"] == {} and all("interval" not in row for row in result["by_type"].values())
    assert "interval" in question_answering.table(result, "title")


def test_the_table_says_what_was_counted_and_the_scalars_are_the_accuracies(run, questions):
    result, _, _ = run("decoder", questions())
    text = question_answering.table(result, "a title")
    for words in ("a title", "12 questions, 5 clips", "1 clips did not decode, their 2 questions count as wrong",
                  "2 malformed questions", "empty answer", "8.33%", "at most 75.00", "2 questions were cut",
                  "10 answers in the list, the best 4", "which"):  # fmt: skip
        assert words in text, words
    scalars = question_answering.log_scalars(result, "validation")
    assert scalars["validation/accuracy"] == result["accuracy"]
    assert set(scalars) == {f"validation/accuracy{kind}" for kind in ("", "_what", "_which", "__none_")}


def test_without_the_question_all_questions_of_a_clip_get_one_answer(run, questions):
    result, _, _ = run("classifier", questions(), input__ablate="text")
    said = {}
    for row in result["per_query"]:
        if row["predicted"]:
            said.setdefault(row["clip_id"], set()).add(row["predicted"])
    assert {clip: len(words) for clip, words in said.items()} == {"clip0": 1, "clip1": 1, "clip2": 1}
    assert "input.ablate=text" in question_answering.table(result, "")


def test_best_takes_the_first_of_equal_scores_and_none_where_no_score_is_a_number():
    scores = np.array([[1, 3, 3], [np.nan, 0, -1], [np.nan, -np.inf, np.nan], [-np.inf, -5, -np.inf]], np.float32)
    assert by_clip.best(scores).tolist() == [1, 1, -1, 1]


@pytest.fixture
def choices(clips):
    """Choices of three: one with a question of its own, three malformed, one on a clip that does not decode."""
    options = ("red circle", "blue square", "it is moving left")
    rows = [
        (0, options, "0", "is it"),
        (1, options[::-1], "1", "is it"),
        (0, options, "2", ""),
        (2, options[:2], "1", "is it"),  # too few
        (2, (options[0], " ", options[2]), "0", "is it"),  # an empty option
        (2, options, "3", "is it"),  # no such option
        (2, (options[0], options[0], options[1]), "0", "is it"),  # the true option twice
        (4, options, "0", "is it"),  # no clip
        (3, (*options[:2], "red red red red red"), "2", "is it"),  # cut with its question
    ]

    def build(asked):
        records = [
            Record(clips[clip], question if asked else "", f"clip{clip}", options=o, answer=answer, question_id=f"m{i}")
            for i, (clip, o, answer, question) in enumerate(rows)
        ]
        return Source(records, {"options", "answer", "question_id", *(["question"] if asked else [])})

    return build


@pytest.mark.parametrize("name", ["choice", "retrieval"])
def test_choices_are_counted_in_full_and_ties_are_wrong(run, choices, name):
    result, _, _ = run(name, choices(asked=False))
    assert (result["questions"], result["options"], result["chance"]) == (9, 3, pytest.approx(100 / 3))
    assert [odd["query_id"] for odd in result["malformed_questions"]] == ["m3", "m4", "m5"]
    assert (result["undecodable"], result["lost_questions"]) == (1, 1)
    rows = {row["query_id"]: row for row in result["per_query"]}
    assert rows["m6"]["correct"] == 0
    assert all(rows[i]["predicted"] == "" for i in ("m3", "m4", "m5", "m7"))
    assert all((row["predicted"] == row["answer"]) == bool(row["correct"]) for row in rows.values())
    assert result["accuracy"] == pytest.approx(100 * sum(row["correct"] for row in rows.values()) / 9)
    assert "chance 33.33" in multiple_choice.table(result, "t")
    assert result["cut_options"] == 1
    json.dumps(result)


def test_a_checkpoint_of_retrieval_scores_options_as_its_matching_head_does(run, choices, tokenizer, tiny_config):
    source = choices(asked=True)
    result, setup, params = run("retrieval", source)
    assert result["malformed_questions"][0]["error"] == "empty question"
    rows = {row["query_id"]: row for row in result["per_query"]}

    @jax.jit
    def match(video, ids, mask):
        model = nnx.merge(setup.graph, params)
        return model.match(model.encode_clip(video), np.zeros(3, np.int32), model.encode_text(ids, mask), mask)

    for number in (0, 1, 8):
        record = source.records[number]
        alone = Source([record], source.columns)
        config = tiny_config({"task.kind": "multiple_choice"})
        (item,) = pipeline.evaluation_batches(config, alone, tokenizer, batch_size=1)
        ids, mask, _ = tokenizer.encode([f"is it {option}" for option in record.options])
        # What training reads is what is measured here.
        np.testing.assert_array_equal(item.batch.targets["option_ids"][0], ids)
        assert rows[f"m{number}"]["predicted"] == str(int(np.argmax(match(item.batch.video, ids, mask))))


def test_questions_of_one_name_are_told_apart(run, clips):
    names = ["a", "b", "a", "", "a", ""]
    records = [Record(clips[0], "is it", "c", question_id=name, answer="no") for name in names]
    result, _, _ = run("classifier", Source(records, {"question", "answer", "question_id"}))
    assert [row["query_id"] for row in result["per_query"]] == ["a#0", "b", "a#1", "c#0", "a#2", "c#1"]


def test_without_the_question_options_are_scored_alone(run, choices):
    rows = lambda result: {row["query_id"]: row["predicted"] for row in result["per_query"] if row["predicted"]}
    ablated = rows(run("choice", choices(asked=True), input__ablate="text")[0])
    alone = rows(run("choice", choices(asked=False))[0])
    assert set(ablated) == {"m0", "m1", "m6", "m8"}
    assert all(alone[name] == said for name, said in ablated.items())


def test_choices_do_not_depend_on_the_batch_size(run, choices):
    whole, _, _ = run("choice", choices(asked=True), evaluation__batch_size=32)
    for size in (1, 5):
        assert run("choice", choices(asked=True), evaluation__batch_size=size)[0] == whole


def test_a_tie_takes_a_wrong_option_and_nan_loses():
    nan = np.nan
    scores = np.array([[2, 2, 1], [1, 2, 2], [nan, 0, -1], [nan, nan, nan], [3, 1, nan], [1, 1, 1]], np.float32)
    chosen, tied = multiple_choice.decide(scores, np.array([0, 1, 0, 0, 0, 1]))
    assert chosen.tolist() == [1, 2, 1, -1, 0, 0]
    assert tied.tolist() == [True, True, False, False, False, True]


def test_a_model_that_does_not_tell_options_apart_earns_nothing():
    chosen, tied = multiple_choice.decide(np.zeros((6, 3), np.float32), np.arange(6) % 3)
    assert (chosen != np.arange(6) % 3).all() and tied.all()


def test_classes_are_counted_in_full(run, clips, tiny_config, tokenizer):
    labels = ["red", "Circle", "walrus", "", "left"]
    records = [Record(clips[i], "", f"clip{i}", answer=label) for i, label in enumerate(labels)]
    result, setup, params = run("classes", Source(records, {"label"}))
    assert (result["questions"], result["undecodable"], result["malformed"]) == (5, 1, 1)
    assert (result["outside_answers"], result["upper_bound"], result["classes"]) == (1, 60, 10)
    classify = jax.jit(lambda video: nnx.merge(setup.graph, params).classify(video))
    for number in (0, 1, 2):
        alone = Source([records[number]], {"label"})
        (item,) = pipeline.evaluation_batches(
            tiny_config(KINDS["classes"]), alone, tokenizer, batch_size=1, answers=ANSWERS
        )
        said = ANSWERS.texts[int(np.argmax(classify(item.batch.video)))]
        assert result["per_query"][number]["predicted"] == said
        assert result["per_query"][number]["correct"] == int(said == labels[number].lower())
    again, _, _ = run("classes", Source(records, {"label"}), evaluation__batch_size=2)
    assert again == result
    assert "10 classes" in classification.table(result, "t")


@pytest.mark.parametrize(
    ("evaluator", "name", "words"),
    [
        ("decoder", "retrieval", "config.task.kind = 'question_answering'"),
        ("classes", "retrieval", "config.task.kind = 'classification'"),
        ("choice", "decoder", "config.loss.vtm = 0"),
    ],
)
def test_a_model_of_another_task_is_refused(tiny_config, tokenizer, one_device, questions, evaluator, name, words):
    config = tiny_config(KINDS[name])
    setup = state_lib.setup(config, tokenizer, one_device, 10, len(ANSWERS))
    with pytest.raises(UserError) as caught:
        EVALUATORS[evaluator](
            setup.graph, setup.abstract.params, config, questions(), tokenizer, one_device, answers=ANSWERS
        )
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["classifier", "classes"])
def test_another_list_than_the_heads_is_refused(run, questions, clips, name):
    source = questions() if name == "classifier" else Source([Record(clips[0], "", "a", answer="red")], {"label"})
    with pytest.raises(UserError, match=r"holds 2 .* scores 10"):
        run(name, source, answers=AnswerList(("red", "no")))
