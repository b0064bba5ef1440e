"""Progress lines, waiting times and the table of parameters, on a clock that the test moves."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlp_jax.telemetry import progress as progress_lib
from vlp_jax.telemetry.progress import DataWait, Progress, parameter_overview
from vlp_jax.text import duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_data_wait_share_is_waiting_over_wall_time_and_starts_anew():
    clock = Clock()
    waiting = DataWait(clock)
    for _ in range(3):
        with waiting:
            clock.now += 1
        clock.now += 3
    assert waiting.share() == pytest.approx(0.25)
    clock.now += 5
    assert waiting.share() == 0
    assert waiting.share() == 0  # no time has passed
    with pytest.raises(KeyError), waiting:
        clock.now += 2
        raise KeyError
    clock.now += 2
    assert waiting.share() == pytest.approx(0.5)  # a wait that fails counts too


def test_plain_line_says_where_the_run_is_and_how_fast():
    clock, out = Clock(), io.StringIO()
    progress = Progress(1000, 0, 32, out, clock=clock)
    clock.now += 60  # compilation
    progress.update(100, {"loss": 2.0}, 0.5)
    clock.now += 10
    speed = progress.update(200, {"loss": 1.23456, "vtc": 0.5}, 0.125)
    assert speed == {"examples_per_second": pytest.approx(320), "data_wait_share": 0.125}
    line = out.getvalue().splitlines()[-1]
    for part in (
        "step 200/1,000 (20.0%)",
        "1:10 elapsed",
        "320.0 examples/s",
        "data wait 12%",
        "loss 1.235",
        "vtc 0.5",
    ):
        assert part in line
    assert "1:20 left" in line  # 800 steps at 10 a second: compilation before the first update is not projected


def test_a_resumed_run_projects_only_its_own_steps():
    clock, out = Clock(), io.StringIO()
    progress = Progress(1000, 900, 32, out, clock=clock)
    clock.now += 10
    progress.update(910, {}, 0.0)
    assert "step 910/1,000 (91.0%), 0:10 elapsed, 1:30 left" in out.getvalue()


def test_plain_lines_are_spaced_and_the_last_state_is_always_printed():
    clock, out = Clock(), io.StringIO()
    progress = Progress(100, 0, 1, out, clock=clock)
    for step in range(1, 60):
        clock.now += 1
        progress.update(step, {}, 0.0)
        progress.tick(step)
    assert len(out.getvalue().splitlines()) == 12  # 59 seconds, a line each 5
    progress.finish()
    progress.finish()
    lines = out.getvalue().splitlines()
    assert len(lines) == 13 and lines[-1].startswith("step 59/100")
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue()


def test_live_line_is_redrawn_in_place_at_most_five_times_a_second_and_fits_the_width(monkeypatch):
    monkeypatch.setattr(progress_lib, "_width", lambda stream: 60)
    clock, out = Clock(), Terminal()
    progress = Progress(1000, 0, 8, out, clock=clock)
    for step in range(1, 101):
        clock.now += 0.01
        progress.update(step, {f"a_long_name_of_a_term_{i}": 1.0 for i in range(9)}, 0.0)
    assert "\n" not in out.getvalue()
    lines = out.getvalue().split("\r")[1:]
    assert 4 <= len(lines) <= 6
    assert all(len(line.removesuffix("\x1b[K")) <= 59 for line in lines)
    assert lines[-1].startswith("step ") and "…" in lines[-1]
    clock.now += 1
    progress.tick(150)
    assert out.getvalue().split("\r")[-1].startswith("step 150/1,000")
    progress.finish()
    progress.finish()
    assert out.getvalue().count("\n") == 1 and out.getvalue().endswith("\n")


def test_eighty_columns_show_the_loss_the_pace_and_the_time_left(monkeypatch):
    monkeypatch.setattr(progress_lib, "_width", lambda stream: 80)
    clock, out = Clock(), Terminal()
    progress = Progress(328, 120, 128, out, clock=clock)
    for step in (130, 140):
        clock.now += 5
        progress.update(step, {"loss": 6.1843, "mlm": 2.4, "vtc": 2.1, "vtm": 0.64}, 0.02)
    line = out.getvalue().split("\r")[-1]
    for part in ("step 140/328", "1:34 left", "loss 6.184", "256.0 examples/s", "data wait 2%"):
        assert part in line


def test_last_step_is_shown_even_right_after_another_line():
    clock, out = Clock(), io.StringIO()
    progress = Progress(2, 0, 1, out, clock=clock)
    for step in (1, 2):
        clock.now += 0.001
        progress.update(step, {}, 0.0)
    assert out.getvalue().splitlines()[-1].startswith("step 2/2 (100.0%)")
    assert "left" not in out.getvalue().splitlines()[-1]


def test_disabled_progress_prints_nothing_and_still_measures():
    clock, out = Clock(), Terminal()
    progress = Progress(10, 0, 4, out, enabled=False, clock=clock)
    clock.now += 2
    assert progress.update(10, {"loss": 1.0}, 0.0)["examples_per_second"] == pytest.approx(20)
    progress.tick(10)
    progress.finish()
    assert out.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (360_000, "100:00:00")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_parameter_overview_groups_by_module_and_adds_up():
    params = {
        "encoder": {
            "blocks": {
                "kernel": jax.ShapeDtypeStruct((12, 10, 10), jnp.float32),
                "bias": np.zeros((12, 10), np.float32),
            },
            "cls": np.zeros(60, np.float32),
        },
        "scale": jnp.ones((20,), jnp.bfloat16),
    }
    table = parameter_overview(params)
    rows = {
        line.split("|")[1].strip(): [x.strip() for x in line.split("|")[2:-1]]
        for line in table.split("\n")
        if "|" in line
    }
    assert rows["encoder/blocks"] == ["2", "1,320", "94.3%"]
    assert rows["encoder/cls"] == ["1", "60", "4.3%"]
    assert rows["scale"] == ["1", "20", "1.4%"]
    assert table.endswith("Total: 1,400 parameters in 4 arrays, 0.0 MB (bfloat16, float32)")


def test_parameter_overview_takes_the_state_of_a_model_that_was_never_built():
    params = jax.eval_shape(lambda: nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0))))
    table = parameter_overview(params)
    assert "Total: 16 parameters in 2 arrays" in table
    assert "| kernel" in table and "value" not in table
