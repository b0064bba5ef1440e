"""Comparing two results query by query."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest

from vlp_jax import compare
from vlp_jax.evaluation import ranking
from vlp_jax.types import UserError

RANKS = ("text_to_video_rank", "video_to_text_rank")


def retrieval(ranks, of_clips, **more):
    """A result of captions with these ranks; caption i is of clip i // 2."""
    rows = [
        {
            "query_id": f"c{i // 2}:{i % 2}",
            "clip_id": f"c{i // 2}",
            "caption": f"text {i}",
            "text_to_video_rank": int(rank),
            "video_to_text_rank": int(of_clips[i // 2]),
        }
        for i, rank in enumerate(ranks)
    ]
    return {"task": "retrieval", "dataset": "data", "split": "test", "per_query": rows, **more}


def answers(correct, types=None):
    rows = [
        {"query_id": f"q{i}", "clip_id": f"c{i // 3}", "correct": int(right), "type": types[i] if types else ""}
        for i, right in enumerate(correct)
    ]
    return {"task": "question_answering", "dataset": "data", "split": "test", "per_query": rows}


def test_a_result_differs_from_itself_by_nothing():
    result = retrieval([1, 5, 9, 30], [2, 1])
    found = compare.compare(result, result, samples=50, seed=0)
    assert found["queries"] == 4 and len(found["metrics"]) == 2 * len(ranking.METRICS)
    for m in found["metrics"].values():
        assert m["a"] == m["b"] and (m["difference"], m["low"], m["high"], m["p"]) == (0, 0, 0, 1)


def test_metrics_are_those_of_the_evaluator_and_a_clip_counts_once():
    a, b = retrieval([1, 5, 9, 30], [2, 1]), retrieval([1, 1, 2, 12], [1, 7])
    found = compare.compare(a, b, samples=50, seed=0)["metrics"]
    for name, value in ranking.summarise(np.array([1, 1, 2, 12])).items():
        assert found[f"text_to_video/{name}"]["b"] == value
    for name, value in ranking.summarise(np.array([2, 1])).items():
        assert found[f"video_to_text/{name}"]["a"] == value
    mean = found["text_to_video/mean_rank"]
    assert mean["difference"] == mean["b"] - mean["a"] == 4 - 11.25


def test_rows_are_paired_by_query_and_not_by_place():
    rng = np.random.Generator(np.random.Philox(0))
    a = retrieval(rng.integers(1, 20, 40), rng.integers(1, 20, 20))
    b = copy.deepcopy(a)
    for row in b["per_query"]:
        row["text_to_video_rank"] += 1
    b["per_query"].reverse()
    m = compare.compare(a, b, samples=60, seed=0)["metrics"]["text_to_video/mean_rank"]
    np.testing.assert_allclose([m["difference"], m["low"], m["high"]], 1)
    assert m["p"] == 2 / 61


def test_answers_are_compared_as_a_whole_and_by_type():
    a = answers([1, 0, 1, 0, 0, 1], ["how", "how", "what", "what", "what", "how"])
    b = answers([1, 1, 1, 0, 0, 1], ["how", "how", "what", "what", "what", "how"])
    found = compare.compare(a, b, samples=40, seed=0)["metrics"]
    assert set(found) == {"accuracy", "accuracy/how", "accuracy/what"}
    assert found["accuracy"]["a"] == 50 and found["accuracy"]["b"] == pytest.approx(400 / 6)
    assert found["accuracy/how"]["difference"] == pytest.approx(100 / 3) and found["accuracy/what"]["p"] == 1


def changed(result, **changes):
    return {**copy.deepcopy(result), **changes}


def test_results_of_other_data_splits_tasks_and_queries_are_refused_by_name():
    a = retrieval([1, 5, 9, 30], [2, 1])
    renamed, rewritten = copy.deepcopy(a), copy.deepcopy(a)
    renamed["per_query"][1]["query_id"] = "c9:0"
    rewritten["per_query"][2]["caption"] = "another"
    for b, message in (
        (changed(a, dataset="other"), "different data: 'data' and 'other'"),
        (changed(a, split="val"), "different splits: 'test' and 'val'"),
        (answers([1, 0]), "different tasks: 'retrieval' and 'question_answering'"),
        (changed(answers([1, 0]), task="retrieval"), "different kinds: text_to_video_rank"),
        (renamed, r"1 \(first 'c0:1'\) are only in A and 1 \(first 'c9:0'\) only in B"),
        (changed(a, per_query=a["per_query"][:3]), r"1 \(first 'c1:1'\) are only in A and 0 only in B"),
        (rewritten, "the caption of query 'c1:0' is 'text 2' in A and 'another' in B"),
    ):
        with pytest.raises(UserError, match=message):
            compare.compare(a, b, samples=5, seed=0)


def test_the_same_data_by_another_way_is_the_same():
    a = retrieval([1, 5], [2])
    assert compare.compare(a, changed(a, dataset="./data/"), samples=5, seed=0)["queries"] == 2


def test_files_that_are_no_results_are_refused(tmp_path):
    good = retrieval([1, 5], [2])
    twice = changed(good, per_query=good["per_query"] * 2)
    mixed = changed(good, per_query=[good["per_query"][0], {"query_id": "x", "correct": 1}])
    row = lambda **values: json.dumps(
        changed(good, per_query=[good["per_query"][0], {**good["per_query"][1], **values}])
    )
    for content, message in (
        ("{", "expected a result"),
        ("[]", "expected `per_query`"),
        (json.dumps({"per_query": [{"clip_id": "c"}]}), "each have a query_id"),
        (json.dumps({"per_query": [{"query_id": "c"}]}), "or `correct`"),
        (json.dumps(mixed), "or `correct`"),
        (json.dumps(twice), "occurs twice"),
        ("[" * 100_000, "expected a result"),
        (json.dumps(changed(good, split=3)), "split of the result is 3, expected text"),
        (row(query_id=["c"]), r"query_id of row 1 of `per_query` is \['c'\], expected text"),
        (json.dumps({"per_query": [{"query_id": "c", **dict.fromkeys(RANKS, 1)}]}), "clip_id of row 0 .* is None"),
        (
            json.dumps(
                {"positives": "caption", "per_query": [{"query_id": "c", "clip_id": "c", **dict.fromkeys(RANKS, 1)}]}
            ),
            "caption of row 0 .* is None, expected text",
        ),
        (row(caption=None), "caption of row 1 of `per_query` is None, expected text"),
        (row(text_to_video_rank=0), "text_to_video_rank of row 1 .* is 0, expected a whole number from 1"),
        (row(video_to_text_rank="2"), "video_to_text_rank of row 1 .* is '2'"),
        (row(video_to_text_rank=True), "video_to_text_rank of row 1 .* is True"),
        (json.dumps({"per_query": [{"query_id": "c", "correct": 0.5}]}), "correct of row 0 .* is 0.5, expected 0 or 1"),
    ):
        path = tmp_path / "result.json"
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            compare.read(path)
    with pytest.raises(UserError, match="No such file"):
        compare.read(tmp_path / "nowhere.json")


@pytest.mark.slow
def test_the_binary_prints_a_table_and_one_line_of_json(tmp_path):
    for name, ranks in (("a", [1, 5, 9, 30]), ("b", [1, 1, 2, 12])):
        (tmp_path / f"{name}.json").write_text(json.dumps(retrieval(ranks, [2, 1])))
    call = lambda *words: subprocess.run(
        [sys.executable, "-m", "vlp_jax.compare", *words], capture_output=True, text=True, timeout=300
    )
    done = call(str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--bootstrap=20")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["metrics"]["text_to_video/R@1"]["difference"] == 25
    assert "text_to_video/R@1" in done.stdout and "+25.00" in done.stdout and "20 resamples" in done.stdout
    for words, message in (
        ([str(tmp_path / "a.json")], "expected two result files"),
        ([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--bootstrap=0"], "--bootstrap=0: expected 1 or more"),
    ):
        done = call(*words)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_caption_that_clips_share_is_one_query_of_the_first_direction():
    def shared(to_video, to_text):
        rows = [
            {
                "query_id": f"c{i}:0",
                "clip_id": f"c{i}",
                "caption": f"t{i // 3}",
                "text_to_video_rank": to_video[i // 3],
                "video_to_text_rank": rank,
            }
            for i, rank in enumerate(to_text)
        ]
        return {"task": "retrieval", "dataset": "data", "split": "test", "positives": "caption", "per_query": rows}

    a, b = shared([1, 5], [1, 1, 1, 2, 2, 2]), shared([5, 1], [1, 1, 1, 1, 1, 2])
    found = compare.compare(a, b, samples=50, seed=0)["metrics"]
    assert (found["text_to_video/R@1"]["a"], found["text_to_video/R@1"]["b"]) == (50, 50)
    assert found["video_to_text/R@1"]["a"] == 50 and found["video_to_text/R@1"]["b"] == pytest.approx(100 * 5 / 6)
    with pytest.raises(UserError, match="different positives: 'caption' and 'clip'"):
        compare.compare(a, {**b, "positives": "clip"}, samples=50, seed=0)
