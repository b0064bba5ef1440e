"""The progress line of commands that count clips."""

import io

import pytest

from vlp_jax.telemetry import counting


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [100.0]
    monkeypatch.setattr(counting.time, "monotonic", lambda: now[0])
    return now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_elsewhere_than_on_a_terminal_a_line_comes_every_five_seconds_and_at_the_end(clock):
    out = io.StringIO()
    progress = counting.CountProgress("train", 4000, out)
    for _ in range(3000):
        clock[0] += 2**-8
        progress.add("3 bad")
    progress.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and "\r" not in out.getvalue()
    assert lines[0] == "train: 1,280/4,000 clips (32.0%), 3 bad, 256/s, 0:00:11 left"
    assert lines[-1].startswith("train: 3,000/4,000 clips (75.0%)")


def test_a_terminal_line_is_redrawn_and_ends_once(clock):
    out = Terminal()
    progress = counting.CountProgress("", 10, out)
    for _ in range(10):
        clock[0] += 1
        progress.add()
    progress.close()
    assert out.getvalue().count("\n") == 1 and out.getvalue().count("\r") == 11


def test_where_nobody_knows_the_total_no_time_left_is_shown(clock):
    out = io.StringIO()
    progress = counting.CountProgress("train", None, out)
    clock[0] += 10
    progress.add()
    assert out.getvalue() == "train: 1 clips, 0/s\n"
