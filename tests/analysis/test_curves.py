"""Curves hold what runs logged, whatever broke off or was logged twice, and draw each run in one colour."""

import json

import numpy as np
import pytest

from vlp_jax import analysis
from vlp_jax.analysis import curves
from vlp_jax.checkpoint import Checkpointer
from vlp_jax.types import UserError


def log(folder, lines, torn=""):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    return folder


def spend(folder, seconds, device_seconds):
    checkpoints = Checkpointer(folder / "checkpoints", keep=1, asynchronous=False)
    costs = {"seconds": seconds, "device_seconds": device_seconds}
    checkpoints.save(1, {"w": np.zeros(1)}, {"costs": costs})
    checkpoints.close()


@pytest.fixture
def run(tmp_path):
    lines = [
        {"step": 10, "loss": 3.0, "vtc": 2.0, "flops": 100, "device_hours": 1.0, "examples": 40, "mfu": 0.3},
        {"step": 15, "validation/text_to_video/R1": 5.0},
        {"step": 20, "loss": 2.0, "flops": 300, "device_hours": 2.0, "examples": 80, "vtc_recall_at_1": 0.5},
        {"step": 25, "validation/text_to_video/R1": 7.0},
    ]
    return log(tmp_path / "run", lines)


@pytest.mark.parametrize(("points", "over"), [(1, 1), (16, 1), (50, 1), (51, 1.02), (500, 10)])
def test_a_curve_is_averaged_over_a_fiftieth_of_its_points_and_a_short_one_not_at_all(points, over):
    assert 1 / (1 - curves.weight_for(points)) == pytest.approx(over)


def test_each_name_has_the_steps_that_logged_it(run):
    (one,) = analysis.read_curves(run)
    assert one.name == "run" and "step" not in one.series
    steps, values = one.series["loss"]
    assert steps.tolist() == [10, 20] and values.tolist() == [3, 2]
    assert one.series["vtc"][0].tolist() == [10] and one.series["validation/text_to_video/R1"][0].tolist() == [15, 25]


def test_a_torn_last_line_is_left_out_and_of_a_step_written_twice_the_later_line_counts(tmp_path):
    lines = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 3.0, "flops": 9}]
    again = [{"step": 20, "loss": 2.5}, {"step": 25, "loss": "nan"}]
    (one,) = analysis.read_curves([log(tmp_path / "run", [*lines, *again], torn='{"step": 40, "lo')])
    steps, values = one.series["loss"]
    assert steps.tolist() == [10, 20, 25]
    np.testing.assert_array_equal(values, [1, 2.5, np.nan])


def test_of_a_rewound_run_no_series_keeps_what_it_logged_later(tmp_path):
    lines = [{"step": step, "loss": 1.0, "old": 0.0} for step in (20, 60, 100)]
    lines += [{"step": 100, "validation/accuracy": 9.0}]
    again = [{"step": 40, "loss": 2.0}, {"step": 40, "validation/accuracy": 5.0}, {"step": 60, "loss": 3.0}]
    (one,) = analysis.read_curves(log(tmp_path / "run", [*lines, *again]))
    assert {name: steps.tolist() for name, (steps, _) in one.series.items()} == {
        **{"loss": [20, 40, 60], "old": [20]},
        "validation/accuracy": [40],
    }
    (one,) = analysis.read_curves(log(tmp_path / "other", [*lines, {"step": 10, "loss": 2.0}]))
    assert list(one.series) == ["loss"]


def test_costs_are_linear_between_lines_from_nothing_at_the_start_and_unknown_after_the_last(run):
    (one,) = analysis.read_curves(run)
    np.testing.assert_array_equal(one.along("flops", [0, 5, 15, 20, 25]), [0, 50, 200, 300, np.nan])
    np.testing.assert_array_equal(one.along("examples", [15]), [60])
    np.testing.assert_array_equal(one.along("step", [15]), [15])


def test_seconds_are_device_hours_over_the_devices_of_the_ledger(run):
    with pytest.raises(UserError, match=r"no checkpoint that says how many devices.*take x = 'device_hours'"):
        analysis.read_curves(run)[0].along("seconds", [10])
    spend(run, 100.0, {"TPU v5e": 300.0, "CPU": 100.0})
    (one,) = analysis.read_curves(run)
    assert one.devices == 4
    np.testing.assert_allclose(one.along("seconds", [10, 20]), [900, 1800])


def test_runs_of_one_folder_name_are_told_apart_by_the_folders_above(tmp_path):
    paths = [log(tmp_path / name / "run", [{"step": 1, "loss": 1.0}]) for name in "ab"]
    assert [one.name for one in analysis.read_curves(paths)] == ["a/run", "b/run"]


def test_the_average_is_that_of_the_weights_that_it_stands_for():
    values = np.array([3.0, 1.0, np.nan, 2.0, 7.0])
    found = analysis.smooth(values, 0.7)
    for i in range(5):
        seen = [v for v in values[: i + 1] if np.isfinite(v)]
        weights = 0.7 ** np.arange(len(seen))[::-1]
        np.testing.assert_allclose(found[i], np.average(seen, weights=weights))
    np.testing.assert_array_equal(analysis.smooth(values, 0), values)
    assert np.isnan(analysis.smooth([np.nan, 1.0], 0.5)).tolist() == [True, False]


def test_names_are_grouped_and_the_loss_comes_first(tmp_path):
    line = {"step": 1, "vtc": 1.0, "loss": 1.0, "vtc_recall_at_1": 0.1, "mlm_accuracy": 0.2, "grad_norm": 1.0}
    line |= {"mfu": 0.1, "examples": 4, "examples/webvid": 3, "validation/accuracy": 50.0}
    assert analysis.curve_groups(analysis.read_curves(log(tmp_path / "run", [line]))) == {
        "losses": ["loss", "vtc"],
        "accuracy": ["vtc_recall_at_1", "mlm_accuracy"],
        "validation": ["validation/accuracy"],
        "throughput": ["mfu"],
        "costs": ["examples"],
        "optimisation": ["grad_norm"],
    }


def test_a_run_has_one_colour_in_every_panel_even_where_another_run_lacks_the_panel(run, tmp_path):
    other = log(tmp_path / "other", [{"step": 1, "loss": 4.0, "flops": 1}, {"step": 2, "loss": 3.0, "flops": 2}])
    runs = analysis.read_curves([other, run])
    figure = analysis.draw_curves(runs, ["loss", "vtc"], x="flops", smoothing=0.5)
    loss, vtc = figure.axes
    assert loss.get_xlabel() == "model FLOPs" and [text.get_text() for text in figure.legends[0].get_texts()]
    raw_other, smooth_other, raw_run, smooth_run = loss.lines
    assert raw_other.get_color() == smooth_other.get_color() != smooth_run.get_color() == vtc.lines[0].get_color()
    np.testing.assert_array_equal(raw_run.get_xydata(), [[100, 3], [300, 2]])
    np.testing.assert_allclose(smooth_run.get_ydata(), analysis.smooth([3, 2], 0.5))
    assert raw_run.get_alpha() < 0.5 and raw_other.get_ydata().tolist() == [4, 3]
    figure.savefig(tmp_path / "curves.png")
    styles = {tuple(curves.run_style(i).values()) for i in range(20)}
    assert len(styles) == 20 and {curves.run_style(i)["linestyle"] for i in range(7)} == {"-"}


def test_what_was_not_logged_is_refused_by_name(run, tmp_path):
    runs = analysis.read_curves(run)
    poor = analysis.read_curves(log(tmp_path / "poor", [{"step": 1, "loss": 1.0}]))
    for call, message in [
        (lambda: analysis.read_curves([]), "expected one workdir or more"),
        (lambda: analysis.read_curves([run, str(run)]), "given twice"),
        (lambda: analysis.read_curves(tmp_path / "none"), "none/metrics.jsonl does not exist"),
        (lambda: analysis.draw_curves([]), "expected what read_curves returned"),
        (lambda: analysis.draw_curves(runs, ["los"]), "'los' was logged by none.*did you mean 'loss'"),
        (lambda: analysis.draw_curves(runs, x="hours"), "x = 'hours': expected one of step, examples"),
        (lambda: analysis.draw_curves(poor, x="flops"), "metrics.jsonl has no flops; it has loss"),
        (lambda: analysis.draw_curves(runs, smoothing=1.0), "smoothing = 1.0"),
        (lambda: analysis.draw_curves(runs, []), "nothing to draw"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
