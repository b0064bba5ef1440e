import io
import itertools
import math
import pathlib
import pickle
import threading

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp_jax.input import video

REAL = pathlib.Path(__file__).parents[2].parent / "shared/data/gmdcsa24/clips"


def generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def full_decode(data, size):
    """Every frame, squashed, by the plainest use of PyAV."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        how = {"width": size, "height": size, "format": "rgb24", "threads": 1}
        how["interpolation"] = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT
        return np.stack([f.reformat(**how).to_ndarray() for f in container.decode(stream)])


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


# --- decode: exactness ------------------------------------------------------------------------------------------------

X264 = "bframes=3:b-adapt=0:ref=4:keyint=12:min-keyint=12:scenecut=0:b-pyramid=normal"
STREAMS = {
    "one group": {},
    "b-frames": {"options": {"x264-params": X264}},
    "open groups": {"options": {"x264-params": X264 + ":open-gop=1"}},
    "open groups, one reference": {
        "options": {"x264-params": "bframes=5:b-adapt=0:ref=1:keyint=10:open-gop=1:scenecut=0"}
    },
    "intra refresh": {"options": {"x264-params": "intra-refresh=1:keyint=10"}},
    "variable frame rate": {
        "options": {"x264-params": X264},
        "durations": np.random.default_rng(0).integers(5, 200, 48),
    },
    "edit list that starts inside a group": {
        "options": {"x264-params": X264},
        "shift": 700,
        "muxer": {"avoid_negative_ts": "disabled"},
    },
    "fragmented mp4": {"options": {"x264-params": X264}, "muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "matroska": {"options": {"x264-params": X264}, "container": "matroska"},
    "transport stream": {"options": {"x264-params": X264}, "container": "mpegts"},
    "avi without presentation times": {"options": {"x264-params": X264}, "container": "avi"},
    "mpeg4": {"codec": "mpeg4", "gop": 12},
    "mpeg4 with b-frames": {"codec": "mpeg4", "gop": 12, "b_frames": 2},
    "mpeg2 with b-frames": {"codec": "mpeg2video", "gop": 12, "b_frames": 2, "container": "mpeg"},
    "vp9": {
        "codec": "libvpx-vp9",
        "container": "webm",
        "gop": 20,
        "options": {"deadline": "realtime", "cpu-used": "8"},
    },
    "vp9 with hidden frames": {
        "codec": "libvpx-vp9",
        "container": "webm",
        "gop": 20,
        "options": {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"},
    },
}


@pytest.mark.parametrize("name", STREAMS)
def test_training_frames_equal_those_of_a_full_decode(name, make_clip):
    data = make_clip(count=48, **STREAMS[name])
    every = full_decode(data, 32)
    assert len(every) == 48 or (name.startswith("edit list") and 20 < len(every) < 48)
    assert len({f.tobytes() for f in every}) == len(every)  # else a wrong frame could pass
    for seed in range(8):
        chosen = video.sample_frames(len(every), 4, generator(seed))
        got = video.decode(data, frames=4, size=32, rng=generator(seed))
        np.testing.assert_array_equal(got, every[chosen], err_msg=f"seed {seed}")
    centre = video.decode(data, frames=5, size=32)
    np.testing.assert_array_equal(centre, every[video.sample_frames(len(every), 5, None)])


def test_every_pair_of_frames_is_exact_across_open_groups(make_clip):
    data = make_clip(count=30, options={"x264-params": "bframes=3:b-adapt=0:ref=3:keyint=8:open-gop=1:scenecut=0"})
    every = full_decode(data, 16)
    for pair in itertools.combinations(range(30), 2):
        frames = video._Reader(data, 20.0).read(lambda count, pair=pair: pair, None)
        np.testing.assert_array_equal(
            video._to_tube(frames, 16, None, (1, 1), False), every[list(pair)], err_msg=str(pair)
        )


def test_only_groups_that_hold_a_target_are_decoded(make_clip):
    data = make_clip(count=60, options={"x264-params": "bframes=0:keyint=10:min-keyint=10:scenecut=0"})
    reader = video._Reader(data, 20.0)
    assert reader._runs({3, 37}, reader._timestamps()) == [(0, 3), (30, 37)]
    assert reader._runs({9, 10, 11}, reader._timestamps()) == [(0, 11)]


def test_path_and_bytes_give_the_same_pixels(make_clip, tmp_path):
    make_clip(tmp_path / "a.mp4")
    by_path = video.decode(str(tmp_path / "a.mp4"), frames=4, size=32)
    np.testing.assert_array_equal(by_path, video.decode((tmp_path / "a.mp4").read_bytes(), frames=4, size=32))
    assert by_path.shape == (4, 32, 32, 3) and by_path.dtype == np.uint8


def test_metadata_in_an_unknown_encoding_does_no_harm(make_clip):
    data = make_clip(title="a title in ASCII")
    damaged = data.replace(b"a title in ASCII", b"a title \xff\xfe\xe9 ASC")
    assert damaged != data
    np.testing.assert_array_equal(video.decode(damaged, frames=4, size=32), video.decode(data, frames=4, size=32))


@pytest.mark.skipif(not REAL.is_dir(), reason="the clips of GMDCSA-24 are not beside the checkout")
def test_real_clips_equal_a_full_decode():
    for path in sorted(REAL.glob("*.mp4"))[:3]:
        every = full_decode(path.read_bytes(), 56)
        got = video.decode(str(path), frames=8, size=56)
        np.testing.assert_array_equal(got, every[video.sample_frames(len(every), 8, None)])


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


# --- decode: bad input ------------------------------------------------------------------------------------------------


def audio(codec, container):
    target = io.BytesIO()
    with av.open(target, "w", format=container) as out:
        stream = out.add_stream(codec, rate=8000, layout="mono")
        for i in range(4):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32 if codec == "aac" else np.int16),
                "fltp" if codec == "aac" else "s16",
                "mono",
            )
            frame.rate, frame.pts = 8000, 1024 * i
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return target.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty: 0 bytes"),
        (b"this is a text\n" * 200, "not a readable video"),
        (np.random.default_rng(0).bytes(5000), "not a readable video"),
        (audio("aac", "mp4"), r"no video stream \(only audio\)"),
        (audio("pcm_s16le", "wav"), r"no video stream \(only audio\)"),
    ],
    ids=["zero bytes", "text", "noise", "aac", "wav"],
)
def test_what_is_no_video_is_refused_with_the_reason(data, reason, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    for given_ in (data, str(path)):
        with pytest.raises(video.VideoError, match=reason):
            video.decode(given_, frames=4, size=32)


def test_a_missing_file_a_folder_and_a_playlist_are_refused(make_clip, tmp_path):
    make_clip(tmp_path / "a.mp4")
    (tmp_path / "list.mp4").write_bytes(b"ffconcat version 1.0\nfile a.mp4\n")
    for name, reason in (("none.mp4", "No such file"), ("", "not a regular file"), ("list.mp4", "a playlist")):
        with pytest.raises(video.VideoError, match=reason):
            video.decode(str(tmp_path / name), frames=4, size=32)


def test_too_short_a_clip_says_both_numbers(make_clip):
    with pytest.raises(video.TooFewFrames, match=r"^16 frames, fewer than the 32 asked$") as caught:
        video.decode(make_clip(count=16), frames=32, size=32)
    assert caught.value.count == 16


@pytest.mark.parametrize("container", ["index in front", "index at the end", "matroska", "webm"])
def test_a_truncated_file_is_never_a_shorter_clip(container, make_clip, tmp_path):
    path = tmp_path / "clip"
    if container == "webm":
        make_clip(
            path, count=40, codec="libvpx-vp9", container="webm", options={"deadline": "realtime", "cpu-used": "8"}
        )
    elif container == "matroska":
        make_clip(path, count=40, container="matroska")
    else:
        make_clip(path, count=40, muxer={"movflags": "faststart"} if "front" in container else {})
    data = path.read_bytes()
    video.decode(data, frames=4, size=32)
    for tenths in range(1, 10):
        with pytest.raises(video.VideoError):
            video.decode(data[: len(data) * tenths // 10], frames=4, size=32)


@pytest.mark.parametrize("container", ["mp4", "mpegts", "matroska", "avi"])
def test_flipped_bits_give_a_tube_or_a_reason(container, make_clip):
    data = make_clip(count=40, container=container)
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(120):
        damaged = bytearray(data)
        for at in rng.integers(len(data), size=rng.integers(1, 20)):
            damaged[at] ^= 1 << rng.integers(8)
        try:
            outcomes.add(video.decode(bytes(damaged), frames=4, size=32).shape)
        except video.VideoError as e:
            outcomes.add("error")
            assert str(e) and "\n" not in str(e)
    assert outcomes == {(4, 32, 32, 3), "error"}


def test_the_time_limit_holds(make_clip):
    with pytest.raises(video.VideoError, match="time limit of 0 s"):
        video.decode(make_clip(), frames=4, size=32, timeout_s=0.0)


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
