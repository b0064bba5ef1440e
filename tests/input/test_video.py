import io
import math
import pathlib
import pickle
import threading

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.input.streams import STREAMS
from vlp_jax.input import video

REAL = pathlib.Path(__file__).parents[2].parent / "shared/data/gmdcsa24/clips"


def generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


# --- sample_frames ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_sampled_frames_lie_one_in_each_interval(count, frames, seed):
    if count < frames:
        with pytest.raises(video.TooFewFrames, match=f"{count} frames, fewer than the {frames} asked"):
            video.sample_frames(count, frames, None)
        return
    for rng in (None, generator(seed)):
        chosen = video.sample_frames(count, frames, rng)
        for i, c in enumerate(chosen):
            assert math.floor(i * count / frames) <= c < math.floor((i + 1) * count / frames)


def test_evaluation_takes_the_centres():
    np.testing.assert_array_equal(video.sample_frames(16, 4, None), [2, 6, 10, 14])
    np.testing.assert_array_equal(video.sample_frames(10, 1, None), [5])
    np.testing.assert_array_equal(video.sample_frames(5, 5, None), np.arange(5))


def test_training_frames_are_uniform_in_their_interval():
    rng = generator()
    drawn = np.stack([video.sample_frames(10, 3, rng) for _ in range(6000)])
    for column, members in zip(drawn.T, ([0, 1, 2], [3, 4, 5], [6, 7, 8, 9])):
        values, counts = np.unique(column, return_counts=True)
        assert list(values) == members
        # Five standard deviations of a binomial count.
        expected = 6000 / len(members)
        assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


# --- sample_crop ------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_crop_lies_inside_the_frame(height, width, low, share, seed):
    high = low + share * (1 - low)
    top, left, h, w = video.sample_crop(height, width, (low, high), generator(seed))
    assert min(top, left) >= 0 and min(h, w) > 0 and top + h <= height and left + w <= width


def test_crop_area_aspect_and_corner_follow_torchvision():
    rng = generator()
    boxes = np.array([video.sample_crop(200, 200, (0.3, 0.6), rng) for _ in range(4000)])
    top, left, h, w = boxes.T
    area, ratio = h * w / 200**2, w / h
    assert 0.29 < area.min() < 0.31 and 0.59 < area.max() < 0.61
    assert 0.74 < ratio.min() < 0.77 and 1.30 < ratio.max() < 1.35
    assert abs(np.log(ratio).mean()) < 0.02  # log-uniform around 1
    assert abs(area.mean() - 0.45) < 0.01
    assert abs((top / (200 - h)).mean() - 0.5) < 0.02 and abs((left / (200 - w)).mean() - 0.5) < 0.02


def test_crop_of_a_frame_too_narrow_for_any_box_is_its_centre():
    assert video.sample_crop(300, 30, (0.99, 1.0), generator()) == (130, 0, 40, 30)


def test_whole_frame_is_taken_at_scale_one():
    assert video.sample_crop(31, 77, (1, 1), generator()) == (0, 0, 31, 77)


# --- decode: crop, flip, rotation -------------------------------------------------------------------------------------


def test_flip_mirrors_half_the_clips_and_all_frames_of_a_clip(make_clip):
    data = make_clip()
    flipped = 0
    for seed in range(60):
        plain = video.decode(data, frames=4, size=32, rng=generator(seed))
        got = video.decode(data, frames=4, size=32, rng=generator(seed), flip=True)
        mirrored = np.array_equal(got, plain[:, :, ::-1])
        assert mirrored or np.array_equal(got, plain)
        flipped += mirrored
    assert 15 < flipped < 45


def test_crop_is_the_box_that_was_drawn_and_the_same_in_all_frames(make_clip):
    """Oracle: red grows along x and green along y, so colours tell where a pixel comes from."""
    x, y = np.meshgrid(np.arange(256), np.arange(192))
    picture = np.stack([x * 0.9 + 10, y * 0.9 + 10, np.full_like(x, 100)], -1).astype(np.uint8)
    data = make_clip(count=4, width=256, height=192, picture=picture, options={"qp": "2"})
    for seed in range(8):
        rng = generator(seed)
        rng.random(4)  # the frames are drawn first
        top, left, h, w = video.sample_crop(192, 256, (0.2, 0.5), rng)
        got = video.decode(data, frames=4, size=16, rng=generator(seed), crop_scale=(0.2, 0.5))
        from_x, from_y = (got[..., :2].astype(float).transpose(3, 0, 1, 2) - 10) / 0.9
        centres = (np.arange(16) + 0.5) / 16
        half = max(h, w) / 32  # the corner is rounded to pixels of the result
        np.testing.assert_allclose(from_x, np.broadcast_to(left + w * centres, (4, 16, 16)), atol=half + 1.5)
        np.testing.assert_allclose(from_y, np.broadcast_to((top + h * centres)[:, None], (4, 16, 16)), atol=half + 1.5)


def rotate_in_header(data, turns):
    """Writes the rotation, clockwise quarter turns, into the track header's matrix."""
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    a, b, c, d = {1: (0, one, -one, 0), 2: (-one, 0, 0, -one), 3: (0, -one, one, 0)}[turns]
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    return data[:at] + matrix + data[at + 36 :]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_of_the_display_is_applied(make_clip, turns):
    data = make_clip(width=64, height=48)
    upright = video.decode(data, frames=4, size=32)
    rotated = video.decode(rotate_in_header(data, turns), frames=4, size=32)
    np.testing.assert_array_equal(rotated, np.rot90(upright, -turns, axes=(1, 2)))


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_box_of_the_shown_frame_maps_to_the_coded_frame(turns):
    coded = np.arange(5 * 7).reshape(5, 7)
    shown = np.rot90(coded, turns)
    top, left, h, w = 1, 2, 3, 2
    y, x, hc, wc = video._unrotate((top, left, h, w), 5, 7, turns)
    np.testing.assert_array_equal(np.rot90(coded[y : y + hc, x : x + wc], turns), shown[top : top + h, left : left + w])


# --- cache ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
def test_cached_clips_give_identical_pixels(name, make_clip):
    data = make_clip(count=48, **STREAMS[name])
    cache = video.FrameCache(0.1)
    for seed in range(4):
        how = {"frames": 4, "size": 24, "crop_scale": (0.4, 1.0), "flip": True}
        plain = video.decode(data, rng=generator(seed), **how)
        np.testing.assert_array_equal(video.decode(data, rng=generator(seed), cache=cache, key=7, **how), plain)
    assert len(cache) == (0 if name.startswith("avi") else 1)  # frames that packets do not name are not cached


def test_a_cached_clip_is_not_decoded_again(make_clip):
    cache = video.FrameCache(0.1)
    first = video.decode(make_clip(), frames=4, size=32, cache=cache, key="a")
    np.testing.assert_array_equal(video.decode(b"", frames=4, size=32, cache=cache, key="a"), first)
    with pytest.raises(video.TooFewFrames):
        video.decode(b"", frames=17, size=32, cache=cache, key="a")


def test_the_cache_keeps_its_budget_and_travels_empty(make_clip):
    data = make_clip(width=64, height=48)
    cache = video.FrameCache(3.5 * 16 * 64 * 48 * 1.5 / 2**30)
    for key in range(5):
        video.decode(data, frames=4, size=32, cache=cache, key=key)
    assert 1 <= len(cache) <= 3 and cache.used <= 3.5 * 16 * 64 * 48 * 1.5
    copy = pickle.loads(pickle.dumps(cache))
    assert len(copy) == 0 and copy.used == 0
    video.decode(data, frames=4, size=32, cache=copy, key=0)
    assert len(copy) == 1


def test_a_damaged_tail_is_no_worse_with_a_cache(make_clip):
    data = bytearray(make_clip(count=40, options={"x264-params": "keyint=10:bframes=0"}))
    with av.open(io.BytesIO(data)) as container:
        last = [p.pos for p in container.demux(video=0) if p.size][-1]
    data[last : last + 4] = b"\xff" * 4  # the length of its first unit
    cache = video.FrameCache(0.1)
    with pytest.raises(video.VideoError, match="undecodable"):
        video.decode(bytes(data), frames=40, size=16, cache=cache, key=0)
    got = video.decode(bytes(data), frames=4, size=16, cache=cache, key=0)
    np.testing.assert_array_equal(got, video.decode(bytes(data), frames=4, size=16))
    assert len(cache) == 0


def test_threads_share_a_cached_clip(make_clip):
    data = make_clip()
    cache = video.FrameCache(0.1)
    expected = [video.decode(data, frames=4, size=20 + i, rng=generator(i)) for i in range(4)]
    results = {}

    def work(i):
        results[i] = [
            video.decode(data, frames=4, size=20 + i, rng=generator(i), cache=cache, key=0) for _ in range(20)
        ]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(4):
        for got in results[i]:
            np.testing.assert_array_equal(got, expected[i])
