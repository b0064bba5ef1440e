"""The frontier holds what no other run beats; costs are those up to the evaluated checkpoint, stages included."""

import json

import numpy as np
import pytest

from vlp_jax import analysis
from vlp_jax.types import UserError


def make(folder, value, flops, step=20, init_from="", **more):
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    lines = [{"step": 10, "flops": flops // 2, "device_hours": 1.0}, {"step": 20, "flops": flops, "device_hours": 2.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"init_from": init_from}))
    result = {
        **{"task": "retrieval", "split": "test", "step": step, "rerank": 0, "ablate": "", "frames": 4},
        "text_to_video": {"R@1": value, "mean_rank": 100 - value},
        "intervals": {"text_to_video/R@1": [value - 5, value + 5]},
        "per_query": [{"query_id": "a:0"}, {"query_id": "b:0"}],
        **more,
    }
    name = "_".join([result["task"], result["split"], str(step), *map(str, more.values())])[:80]
    (folder / "evaluation" / f"{name}.json").write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize("higher", [True, False])
def test_the_frontier_is_what_no_point_beats(higher):
    rng = np.random.default_rng(0)
    costs, values = rng.integers(0, 6, 40), rng.integers(0, 6, 40)
    sign = 1 if higher else -1
    expected = [
        not any(
            c <= cost and sign * v >= sign * value and (c < cost or sign * v > sign * value)
            for c, v in zip(costs, values)
        )
        for cost, value in zip(costs, values)
    ]
    assert analysis.pareto(costs, values, higher_is_better=higher).tolist() == expected
    unknown = np.where(rng.random((2, 40)) < 0.3, np.nan, [costs, values])
    known = ~np.isnan(unknown).any(0)
    front = analysis.pareto(*unknown, higher_is_better=higher)
    assert not front[~known].any()
    np.testing.assert_array_equal(front[known], analysis.pareto(costs[known], values[known], higher_is_better=higher))


def test_points_have_the_cost_up_to_their_step_and_the_interval(tmp_path):
    a, b = make(tmp_path / "a", 50.0, 1000), make(tmp_path / "b", 60.0, 3000, step=10)
    make(tmp_path / "a", 40.0, 1000, step=15)
    points = analysis.read_points([a, b])
    assert [(p.name, p.step, p.cost, p.value, p.low, p.high) for p in points] == [
        ("a", 15, 750, 40, 35, 45),
        ("a", 20, 1000, 50, 45, 55),
        ("b", 10, 1500, 60, 55, 65),
    ]
    assert analysis.read_points(str(a)) == analysis.read_points(a) == points[:2]
    assert [p.cost for p in analysis.read_points([a], cost="device_hours")] == [1.5, 2.0]
    (point, _) = analysis.read_points([a], metric="text_to_video/mean_rank")
    assert point.value == 60 and np.isnan(point.low)


def test_costs_of_stages_add_up_and_a_run_without_its_first_stage_is_marked(tmp_path):
    first, second = make(tmp_path / "first", 10.0, 1000), make(tmp_path / "second", 50.0, 300, init_from="runs/first")
    (both,) = analysis.read_points([[first, second]])
    (alone,) = analysis.read_points([second])
    assert (both.cost, both.whole, both.name) == (1300, True, "second")
    assert (alone.cost, alone.whole) == (300, False)
    figure = analysis.draw_frontier([alone])
    assert "without the cost of the run that it began from" in figure.axes[0].get_title()


def test_results_under_other_conditions_are_no_part_of_it_unless_asked_for(tmp_path):
    a = make(tmp_path / "a", 50.0, 1000)
    make(tmp_path / "a", 70.0, 1000, rerank=16)
    make(tmp_path / "a", 20.0, 1000, ablate="order")
    make(tmp_path / "a", 5.0, 1000, split="val")
    assert [p.value for p in analysis.read_points([a])] == [50]
    assert [p.value for p in analysis.read_points([a], where={"rerank": 16})] == [70]
    assert [p.value for p in analysis.read_points([a], split="val")] == [5]
    make(tmp_path / "a", 55.0, 1000, frames=12)
    with pytest.raises(UserError, match=r"at step 20; they differ in frames: (4 and 12|12 and 4): choose one"):
        analysis.read_points([a])
    assert [p.value for p in analysis.read_points([a], where={"frames": 12})] == [55]


def test_the_figure_draws_the_steps_of_the_frontier_and_hollow_what_is_beaten(tmp_path):
    runs = [make(tmp_path / name, value, flops) for name, value, flops in [("a", 40, 10), ("b", 30, 20), ("c", 60, 40)]]
    figure = analysis.draw_frontier(analysis.read_points(runs))
    axis = figure.axes[0]
    step, *points = axis.lines
    np.testing.assert_array_equal(step.get_xydata(), [[10, 40], [40, 60], [40, 60]])
    assert [line.get_markerfacecolor() == "white" for line in points] == [False, True, False]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    figure.savefig(tmp_path / "frontier.png")
    nothing = analysis.read_points(make(tmp_path / "d", float("nan"), 30))
    drawn = analysis.draw_frontier([*analysis.read_points(runs), *nothing]).axes[0].lines
    np.testing.assert_array_equal(drawn[0].get_xydata(), step.get_xydata())
    with pytest.raises(UserError, match="every point has a cost or a text_to_video/R@1 that is nan"):
        analysis.draw_frontier(nothing)


def test_what_cannot_be_compared_is_refused_by_name(tmp_path):
    a, b = make(tmp_path / "a", 50.0, 1000), make(tmp_path / "b", 50.0, 1000, per_query=[{"query_id": "z:0"}])
    empty = make(tmp_path / "empty", 1.0, 1000, task="question_answering")
    late = make(tmp_path / "late", 1.0, 1000, step=30)
    torn = make(tmp_path / "torn", 1.0, 1000)
    (torn / "evaluation" / "x.json").write_text("{")
    for call, message in [
        (lambda: analysis.read_points([]), "expected one workdir or more"),
        (lambda: analysis.read_points([a], cost="dollars"), "cost = 'dollars': expected one of flops"),
        (lambda: analysis.read_points([a, b]), "are of different queries, 1 and 2"),
        (lambda: analysis.read_points([empty]), "no result of retrieval on split 'test'.*vlp_jax.evaluate --workdir"),
        (lambda: analysis.read_points([late]), "late has logged no flops up to step 30"),
        (lambda: analysis.read_points([torn]), "x.json: expected a result of vlp_jax.evaluate"),
        (lambda: analysis.read_points([a], metric="accuracy"), "metric = 'accuracy'.*has text_to_video/R@1"),
        (lambda: analysis.read_points([a], where={"framez": 12}), r"where = \{'framez': 12\}.*mean 'frames'"),
        (lambda: analysis.draw_frontier([]), "expected what read_points returned"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
