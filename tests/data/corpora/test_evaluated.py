"""Official annotation files in miniature, prepared and then evaluated: the counts of each protocol are the files'."""

import pytest

from data import prepare, train_tokenizer
from tests.data.corpora import test_activitynet, test_didemo, test_msrvtt, test_msvd, test_ssv2
from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax import state as state_lib
from vlp_jax.evaluation import evaluators
from vlp_jax.input import answers as answers_lib
from vlp_jax.input import sources
from vlp_jax.input.sentence_piece import SentencePiece

msrvtt, msvd = test_msrvtt.root, test_msvd.root
didemo, activitynet = test_didemo.root, test_activitynet.root
ssv2 = test_ssv2.root

TASKS = {
    "retrieval": {},
    "question_answering": {"task.kind": "question_answering", "loss.vtc": 0.0, "loss.vtm": 0.0, "loss.mvm": 0.0},
    "multiple_choice": {},
}


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["caption 0 1 2 3 4 5 6 7 8 of", "a man, singing", "how many what is it dog cat yes no"]
    return SentencePiece(train_tokenizer.train(texts), 12, "tokenizer.model")


@pytest.fixture
def evaluate(tmp_path, tiny_config, tokenizer):
    """`evaluate(root, split, task, answers)`: the result of a model at random on a prepared miniature."""
    mesh = None

    def run(root, split, task="retrieval", answers="", **changes):
        nonlocal mesh
        out = tmp_path / f"{root.name}_prepared"
        if not out.exists():
            assert prepare.main([root.name, "--root", str(root), "--out", str(out)]) == 0
        given = {
            **TASKS[task],
            "input.path": str(out),
            "input.max_text_tokens": 12,
            "task.answers": answers,
            "evaluation.batch_size": 4,
            "evaluation.bootstrap": 20,
            **changes,
        }
        config = tiny_config(given)
        mesh = mesh or sharding.make_mesh(config_lib.update(config, {"mesh.data": 1}), None)
        source = sources.open_source(config.input, split)
        listed = answers_lib.open_answers(config) if answers else None
        setup = state_lib.setup(config, tokenizer, mesh, 10, len(listed or ()))
        with sharding.use_mesh(mesh):
            params = setup.create().params
        module, evaluator = evaluators.make(
            task, setup.graph, setup.abstract.params, config, source, tokenizer, mesh, listed
        )
        result = evaluator.run(params)
        assert module.table(result, "title").startswith("title\n")
        return result

    return run


def counts(result, *names):
    return [result[name] for name in names]


def test_msrvtt_one_caption_a_clip_in_1ka_and_three_in_the_full_test(msrvtt, evaluate):
    result = evaluate(msrvtt, "test_1ka")
    assert counts(result, "queries", "clips", "undecodable", "captions_per_clip") == [2, 2, 0, {"min": 1, "max": 1}]
    assert [row["clip_id"] for row in result["per_query"]] == ["video8", "video5"]
    full = evaluate(msrvtt, "test", **{"evaluation.rerank": 3})
    assert counts(full, "queries", "clips", "captions_per_clip", "rerank") == [12, 4, {"min": 3, "max": 3}, 3]
    assert full["text_to_video"]["R@5"] == 100  # of four clips


def test_msrvtt_held_out_clips_and_those_kept_are_the_training_list_between_them(msrvtt, evaluate):
    parts = [evaluate(msrvtt, f"train_9k[{part}]") for part in ("held_out", "kept")]
    clips = [{row["clip_id"] for row in part["per_query"]} for part in parts]
    assert clips[0] and clips[1] and not clips[0] & clips[1]
    assert clips[0] | clips[1] == {"video0", "video3", "video4"}


def test_msvd_ragged_captions_a_clip(msvd, evaluate):
    result = evaluate(msvd, "train")
    assert counts(result, "queries", "clips", "captions_per_clip") == [5, 2, {"min": 2, "max": 3}]


def test_didemo_and_activitynet_paragraphs_are_one_query_a_clip_and_moments_are_clips_of_their_own(
    didemo, activitynet, evaluate
):
    result = evaluate(didemo, "train")
    assert counts(result, "queries", "clips", "captions_per_clip") == [2, 2, {"min": 1, "max": 1}]
    assert result["per_query"][0]["caption"] == "a dog runs. it barks it sleeps"
    paragraphs, moments = evaluate(activitynet, "train"), evaluate(activitynet, "moments_train")
    assert counts(paragraphs, "queries", "clips") == [2, 2]
    assert moments["queries"] == 3
    assert paragraphs["words_per_caption"] > moments["words_per_caption"]


@pytest.mark.parametrize("ssv2", [""], indirect=True)
def test_all_clips_of_a_template_are_right_for_it(ssv2, evaluate):
    result = evaluate(ssv2, "template_validation_small", **{"input.positives": "caption"})
    assert counts(result, "queries", "clips", "clips_per_caption") == [1, 2, {"min": 2, "max": 2}]
    assert result["text_to_video"]["R@1"] == result["video_to_text"]["R@1"] == 100


def test_msrvtt_qa_counts_the_answer_that_is_not_in_the_list(msrvtt, evaluate):
    result = evaluate(msrvtt, "qa_test", "question_answering", "qa_answers")
    names = ("questions", "clips", "answers", "outside_answers", "upper_bound", "malformed")
    assert counts(result, *names) == [2, 1, 3, 1, 50.0, 0]
    assert {name: row["count"] for name, row in result["by_type"].items()} == {"how": 1, "what": 1}
    assert result["per_query"][0]["correct"] == 0


def test_msvd_qa_and_activitynet_qa_by_their_types(msvd, activitynet, evaluate):
    result = evaluate(msvd, "qa_test", "question_answering", "qa_answers")
    assert counts(result, "questions", "answers", "outside_answers", "upper_bound") == [2, 1, 2, 0.0]
    assert result["accuracy"] == 0
    result = evaluate(activitynet, "qa_test", "question_answering", "qa_answers")
    assert result["questions"] == 9 and len(result["by_type"]) == 9


def test_msrvtt_mc_scores_each_of_five_options(msrvtt, evaluate):
    result = evaluate(msrvtt, "mc_test", "multiple_choice")
    assert counts(result, "questions", "clips", "options", "chance", "malformed") == [2, 2, 5, 20.0, 0]
    assert {row["predicted"] for row in result["per_query"]} <= set("01234")
