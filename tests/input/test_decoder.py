import io
import itertools
import math
import pathlib

import av
import numpy as np
import pytest

from tests.input.streams import STREAMS, full_decode
from vlp_jax.input import video
from vlp_jax.input.decoder import Reader

REAL = pathlib.Path(__file__).parents[2].parent / "shared/data/gmdcsa24/clips"


def generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


# --- decode: exactness ------------------------------------------------------------------------------------------------


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
        frames = Reader(data).read(lambda count, pair=pair: pair)
        np.testing.assert_array_equal(
            video._to_tube(frames, 16, None, (1, 1), False), every[list(pair)], err_msg=str(pair)
        )


def test_only_groups_that_hold_a_target_are_decoded(make_clip):
    data = make_clip(count=60, options={"x264-params": "bframes=0:keyint=10:min-keyint=10:scenecut=0"})
    reader = Reader(data)
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


# --- decode: spans ----------------------------------------------------------------------------------------------------


def frames_and_times(data, size):
    """Every frame and its time, by the plainest use of PyAV; AVI tells no times: its frames are 40 ms apart."""
    every = full_decode(data, size)
    with av.open(io.BytesIO(data)) as container:
        zero = container.start_time / av.time_base
        if container.format.name == "avi":
            return every, np.arange(len(every)) * 0.04
        return every, np.array([f.time - zero for f in container.decode(video=0)])


@pytest.mark.parametrize("name", STREAMS)
def test_frames_of_a_span_are_those_shown_inside_it(name, make_clip):
    data = make_clip(count=48, **STREAMS[name])
    every, times = frames_and_times(data, 16)
    last = times[-1]
    for start, end in ((0.0, 0.5), (0.401, 0.9), (last / 2, last + 9), (0.6 * last, 0.6 * last + 0.3), (0.0, math.inf)):
        inside = np.flatnonzero((times > start - 1e-4) & (times < end - 1e-4))
        got = video.decode(data, frames=2, size=16, span=(start, end))
        np.testing.assert_array_equal(got, every[inside[video.sample_frames(len(inside), 2, None)]], err_msg=str(start))
        assert Reader(data, span=(start, end)).count() == len(inside)


def test_a_span_of_a_long_file_reads_little_of_it(make_clip, tmp_path):
    for container in ("mp4", "matroska"):
        make_clip(tmp_path / "clip", count=200, container=container, options={"x264-params": "keyint=10"})
        reader = Reader(str(tmp_path / "clip"), span=(4.0, 4.4))
        assert reader.count() == 10 and len(reader._packets) < 60


def test_a_span_outside_the_clip_says_both(make_clip):
    data = make_clip(count=25)
    with pytest.raises(video.VideoError, match=r"no frame lies in the span 3 to 4.5 s: the clip ends at 1.00 s"):
        video.decode(data, frames=2, size=16, span=(3.0, 4.5))
    with pytest.raises(video.VideoError, match=r"span 4 to 4 s is empty"):
        video.decode(data, frames=2, size=16, span=(4.0, 4.0))
    with pytest.raises(video.TooFewFrames, match=r"^5 frames from 0.2 to 0.4 s, fewer than the 8 asked$"):
        video.decode(data, frames=8, size=16, span=(0.2, 0.4))


def test_a_truncated_file_is_refused_for_spans_that_reach_its_end(make_clip, tmp_path):
    make_clip(tmp_path / "clip", count=100, muxer={"movflags": "faststart"}, options={"x264-params": "keyint=10"})
    data = (tmp_path / "clip").read_bytes()
    cut = data[: len(data) * 6 // 10]
    whole = video.decode(data, frames=2, size=16, span=(0.4, 0.8))
    np.testing.assert_array_equal(video.decode(cut, frames=2, size=16, span=(0.4, 0.8)), whole)
    for span in ((0.4, 3.9), (3.0, 3.5)):
        with pytest.raises(video.VideoError):
            video.decode(cut, frames=2, size=16, span=span)


def test_cached_spans_give_identical_pixels(make_clip):
    data = make_clip(count=48)
    cache = video.FrameCache(0.1)
    for seed in range(3):
        how = {"frames": 4, "size": 16, "span": (0.4, 1.2)}
        plain = video.decode(data, rng=generator(seed), **how)
        np.testing.assert_array_equal(video.decode(data, rng=generator(seed), cache=cache, key=0, **how), plain)
    assert len(cache) == 1


# --- decode: large pictures, incomplete beginnings -------------------------------------------------------------------


def test_pictures_over_the_limit_are_refused(make_clip):
    data = make_clip(width=64, height=48)
    video.decode(data, frames=4, size=16, max_pixels=64 * 48)
    with pytest.raises(video.VideoError, match=r"max_pixels = 3071"):
        video.decode(data, frames=4, size=16, max_pixels=64 * 48 - 1)


def test_a_recording_that_begins_in_the_middle_gives_what_a_player_shows(make_clip):
    """Its first frames refer to what was cut off: a plain decoder drops them."""
    params = "bframes=3:b-adapt=0:ref=1:keyint=10:open-gop=1:scenecut=0"
    data = make_clip(count=48, container="mpegts", options={"x264-params": params})
    target = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(target, "w", format="mpegts") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [p for p in source.demux(video=0) if p.size]
        second = [i for i, p in enumerate(packets) if p.is_keyframe][1]
        for packet in packets[second:]:
            packet.stream = stream
            out.mux(packet)
    cut = target.getvalue()
    every = full_decode(cut, 16)
    assert 20 < len(every) < 48
    got = video.decode(cut, frames=4, size=16)
    np.testing.assert_array_equal(got, every[video.sample_frames(len(every), 4, None)])


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
    (tmp_path / "list.m3u8").write_bytes(b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.mp4\n#EXT-X-ENDLIST\n")
    lists = (("list.mp4", "a playlist"), ("list.m3u8", "a playlist"))
    for name, reason in (("none.mp4", "No such file"), ("", "not a regular file"), *lists):
        with pytest.raises(video.VideoError, match=reason):
            video.decode(str(tmp_path / name), frames=4, size=32)


def test_a_name_with_a_colon_is_no_address(make_clip, tmp_path, monkeypatch):
    make_clip(tmp_path / "a:b.mp4")
    monkeypatch.chdir(tmp_path)
    assert video.decode("a:b.mp4", frames=4, size=32).shape == (4, 32, 32, 3)


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
