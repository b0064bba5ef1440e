"""Windows cover a video with exact times, whatever its header says."""

import itertools
import math

import numpy as np
import pytest

from tests.indexing.conftest import moving
from tests.input.bad_media import VP9, four_hours
from vlp_jax.indexing import windows
from vlp_jax.input import video
from vlp_jax.input.container import VideoError
from vlp_jax.text import duration


@pytest.mark.parametrize(
    ("end", "window", "stride", "expected"),
    [
        (8, 10, 10, [(0, 8)]),
        (10.4, 10, 10, [(0, 10.4)]),  # a twentieth more is no second window
        (25, 10, 10, [(0, 10), (10, 20), (15, 25)]),
        (20.3, 10, 10, [(0, 10), (10, 20.3)]),
        (25, 10, 5, [(0, 10), (5, 15), (10, 20), (15, 25)]),
        (3600, 0, 10, [(0, 3600)]),
        (0, 10, 10, [(0, 0)]),
    ],
)
def test_windows_have_these_times(end, window, stride, expected):
    assert windows.spans(end, window, stride) == expected


def test_windows_leave_nothing_out_and_the_last_one_ends_at_the_end():
    rng = np.random.default_rng(0)
    for _ in range(300):
        window = rng.uniform(0.5, 20)
        end, stride = rng.uniform(0.01, 100), rng.uniform(0.05, 1) * window
        found = windows.spans(end, window, stride)
        assert found[0][0] == 0 and found[-1][1] == end
        assert all(after[0] <= before[1] and before[0] < after[0] for before, after in itertools.pairwise(found))
        if end > 1.05 * window:
            assert all(window * 0.999 <= stop - start <= window * 1.051 for start, stop in found)


def test_the_window_around_a_time_stays_inside():
    assert windows.around(12, 60, 10) == (7, 17)
    assert windows.around(1, 60, 10) == (0, 10)
    assert windows.around(60, 60, 10) == (50, 60)
    assert windows.around(3, 8, 10) == (0, 8)
    assert windows.around(3, 60, 0) == (0, 60)


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".mp4", moving(3)),
        (".mp4", four_hours(moving(3))),
        (".mkv", moving(3, container="matroska")),
        (".webm", moving(3, **VP9)),
        (".ts", moving(3, container="mpegts")),
        (".avi", moving(3, container="avi", codec="mpeg4", options={})),
        (".gif", moving(3, container="gif", codec="gif", pix_fmt="rgb8", options={})),
    ],
    ids=["mp4", "four hours in the header", "mkv", "webm", "ts", "avi", "gif"],
)
def test_the_end_is_that_of_the_last_frame(tmp_path, suffix, data):
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(data)
    assert windows.end_of(str(path), 20) == pytest.approx(3, abs=0.041)


def test_the_end_of_what_is_no_video_is_an_error(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"caption\n" * 100)
    with pytest.raises(VideoError, match="not a readable video"):
        windows.end_of(str(tmp_path / "a.mp4"), 20)


def test_a_window_holds_the_frames_of_its_times(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(moving(4))
    how = {"frames": 2, "size": 48, "timeout_s": 20.0, "max_pixels": 2**20}
    every = video.decode(str(path), frames=100, size=48)
    first, last = (windows.tube(str(path), span, 4.0, **how) for span in [(0.0, 2.0), (2.0, 4.0)])
    # The centres of two halves of 50 frames each.
    np.testing.assert_array_equal(first, every[[12, 37]])
    np.testing.assert_array_equal(last, every[[62, 87]])
    np.testing.assert_array_equal(windows.tube(str(path), (0.0, 4.0), 4.0, **how), every[[25, 75]])


def test_times_are_written_and_read():
    assert [duration(s) for s in (0, 75.4, 59.7, 3725)] == ["0:00", "1:15", "1:00", "1:02:05"]
    assert [windows.seconds_of(t) for t in ("75", "1:15", "1:02:05", "7.5")] == [75, 75, 3725, 7.5]
    assert [windows.seconds_of(t) for t in ("", "a", "1:2:3:4", "-1", "inf", "nan")] == [None] * 6
    assert math.isfinite(windows.seconds_of("1e3"))
