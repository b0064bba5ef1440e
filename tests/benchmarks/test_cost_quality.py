"""Plans of equal wall time, and the seconds to a mark, from numbers given by hand."""

import dataclasses
import math

import hypothesis
import pytest
from hypothesis import strategies as st

from benchmarks import cost_quality, marks
from benchmarks.timed_run import Speeds

SECONDS = lambda cost: f"{cost:.0f} s"
SPEEDS = Speeds(epoch=47, decode=0.4, cached=0.6, unmasked=0.9, unmasked_share=0.2, flops=2.0, unmasked_flops=3.0)


@hypothesis.given(
    st.integers(60, 5000),
    st.floats(0.1, 3),
    st.floats(0.1, 3),
    st.floats(0.1, 3),
    st.sampled_from([0.0, 0.2]),
)
def test_the_steps_that_fill_a_time_take_that_time(steps, decode, cached, unmasked, share):
    speeds = Speeds(47, decode, cached, unmasked, share, 1.0, 1.0)
    seconds = speeds.seconds(steps, steps)
    # Rounding the number of unmasked steps shifts it by one at most.
    assert abs(speeds.steps_in(seconds) - steps) <= 1 + 3 / min(cached, unmasked)


def test_seconds_and_flops_of_a_run_by_hand():
    assert SPEEDS.seconds(100, 100) == pytest.approx(47 * 1.0 + 33 * 0.6 + 20 * 0.9)
    assert SPEEDS.seconds(50, 100) == pytest.approx(47 * 1.0 + 3 * 0.6)
    assert SPEEDS.seconds(90, 100) == pytest.approx(47 * 1.0 + 33 * 0.6 + 10 * 0.9)
    assert SPEEDS.total_flops(100, 100) == 80 * 2 + 20 * 3
    assert SPEEDS.total_flops(50, 100) == 50 * 2


@pytest.mark.parametrize("system", cost_quality.SYSTEMS)
@pytest.mark.parametrize("budget", [60, 900])
def test_a_plan_fills_its_budget_and_one_step_more_would_not_fit(tmp_path, system, budget):
    stages = cost_quality.SYSTEMS[system]
    speeds = {stage.name: dataclasses.replace(SPEEDS, cached=0.3 + 0.2 * i) for i, stage in enumerate(stages)}
    plan = cost_quality.make_plan(system, budget, 0, speeds, tmp_path)
    seconds = sum(speeds[stage.name].seconds(n, n) for stage, n in zip(stages, plan.steps))
    assert budget - 2 * 1.0 < seconds <= budget
    for stage, n in zip(stages, plan.steps):
        assert n == pytest.approx(stage.share * sum(plan.steps), abs=1)


def test_singularity_spends_twice_the_steps_on_one_frame():
    shares = [stage.share for stage in cost_quality.SYSTEMS["Singularity"]]
    assert shares == pytest.approx([2 / 3, 1 / 3])


def test_the_time_to_a_mark_is_interpolated_in_log_seconds_between_runs_and_never_beyond_them():
    ends = {100: [10.0], 400: [28.0, 32.0]}
    assert marks.time_to(10, ends) == pytest.approx(100)
    assert marks.time_to(20, ends) == pytest.approx(200)
    assert marks.time_to(30, ends) == pytest.approx(400)
    assert marks.time_to(31, ends) is None
    assert marks.time_to(5, ends) is None
    assert marks.time_to(5, {}) is None
    assert math.isclose(marks.time_to(15, {100: [10.0], 200: [20.0], 300: [15.0]}), 100 * 2**0.5)


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        (20, "SMAUG 200 s, Singularity 800 s, ratio 4.00"),
        (10, "SMAUG 100 s, Singularity under 400 s, ratio under 4.00"),
        (35, "SMAUG not reached, Singularity 1345 s, ratio under 3.36"),
        (25, "SMAUG 283 s, Singularity 951 s, ratio 3.36"),
    ],
)
def test_a_marks_line_says_what_lies_outside_the_curves(mark, said):
    ours, theirs = {100: [10.0], 400: [28.0, 32.0]}, {400: [15.0], 800: [20.0], 1600: [40.0]}
    lines = lambda mark: marks.mark_lines("time", mark, (("SMAUG", ours), ("Singularity", theirs)), SECONDS)
    assert lines(mark) == [f"    time to R@1 = {mark}: {said}"]
    assert lines(90) == []


def test_the_range_of_a_ratio_is_that_of_single_rounds_of_measurements():
    pair = lambda slower: (("A", {100: [10.0], 200: [20.0]}), ("B", {slower * 100: [10.0], slower * 200: [20.0]}))
    (line,) = marks.mark_lines("time", 15, pair(2), SECONDS, [pair(1.5), pair(2), pair(3)])
    assert line.endswith("A 141 s, B 283 s, ratio 2.00 (1.50 to 3.00)")


def test_a_mark_below_our_first_run_bounds_the_ratio_from_below():
    theirs = "Singularity", {200: [10.0], 400: [20.0]}
    (line,) = marks.mark_lines("time", 12, (("SMAUG", {100: [15.0], 200: [30.0]}), theirs), SECONDS)
    assert line.endswith("SMAUG under 100 s, Singularity 230 s, ratio over 2.30")
    (line,) = marks.mark_lines("time", 25, (("SMAUG", {100: [15.0], 200: [35.0]}), theirs), SECONDS)
    assert line.endswith("SMAUG 141 s, Singularity not reached, ratio over 2.83")


def test_a_stages_name_tells_its_changes_apart():
    names = [stage.name for stages in cost_quality.SYSTEMS.values() for stage in stages]
    assert len(set(names)) == len({(s.config, s.changes) for stages in cost_quality.SYSTEMS.values() for s in stages})
    assert "smaug.py:small_stage1 patch_size=4 ratio=0.6" in names


def test_every_system_and_both_rivals_can_be_named_in_a_list():
    assert all("," not in name for name in cost_quality.SYSTEMS)
    assert {name for pair in cost_quality.RIVALS for name in pair} <= set(cost_quality.SYSTEMS)
