"""Re-encoding: which frames, which size, the same picture; what is damaged is refused."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from data.corpora.reencode import ReencodeError, reencode
from vlp_jax.input import video


def frames_of(data):
    with av.open(io.BytesIO(data)) as container:
        return list(container.decode(video=0))


def packets_of(data):
    """Packets of the video, and the kinds of all streams."""
    with av.open(io.BytesIO(data)) as container:
        return [p for p in container.demux(video=0) if p.size], [s.type for s in container.streams]


def numbers(data):
    """Which frames of `make_video` these are: blue is 12 times the number, give or take what the codec loses."""
    return [round(f.to_ndarray(format="rgb24")[8:-8, 8:-8, 2].mean() / 12) for f in frames_of(data)]


def tube(data, frames=1, size=32):
    return video.decode(data, frames=frames, size=size).astype(int)


@pytest.mark.parametrize(
    ("fps", "asked", "kept"), [(8, 2, [0, 4, 8, 12]), (8, 3, [0, 3, 6, 8, 11, 14]), (8, 8, list(range(16)))]
)
def test_the_first_frame_of_each_interval_stays_with_its_time(make_video, fps, asked, kept):
    small = reencode(make_video(count=16, fps=fps), fps=asked)
    assert numbers(small) == kept
    assert [float(f.pts * f.time_base) for f in frames_of(small)] == [n / fps for n in kept]


def test_a_video_slower_than_asked_keeps_every_frame(make_video):
    assert numbers(reencode(make_video(count=6, fps=4), fps=25)) == list(range(6))


def test_without_a_rate_all_frames_stay(make_video):
    assert numbers(reencode(make_video(count=9), short_side=32)) == list(range(9))


def test_times_since_the_start_survive_where_the_rate_varies():
    target, times = io.BytesIO(), [300, 340, 700, 1300, 1310, 1900]
    with av.open(target, "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = (
            64,
            48,
            "yuv420p",
            Fraction(1, 1000),
        )
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * i, np.uint8))
            frame.pts, frame.time_base = time, stream.codec_context.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    got = frames_of(reencode(target.getvalue(), fps=2))
    assert [round(1000 * f.pts * f.time_base) for f in got] == [0, 1000, 1600]


@pytest.mark.parametrize(
    ("width", "height", "short_side", "expected"),
    [
        (128, 96, 48, (64, 48)),
        (96, 128, 48, (48, 64)),
        (160, 90, 32, (56, 32)),  # 56.9 to even numbers
        (64, 48, 224, (64, 48)),  # not enlarged
        (64, 48, 0, (64, 48)),
        (62, 46, 33, (44, 32)),
    ],
)
def test_the_shorter_side_is_scaled_and_both_are_even(make_video, width, height, short_side, expected):
    got = frames_of(reencode(make_video(count=2, width=width, height=height), short_side=short_side))
    assert {(f.width, f.height) for f in got} == {expected}


def test_an_odd_size_becomes_even(make_video):
    data = make_video(count=2, width=33, height=17, pixels="yuv444p")
    assert {(f.width, f.height) for f in frames_of(reencode(data, fps=8))} == {(32, 16)}


@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv444p", "yuv422p", "yuv420p10le"])
def test_colours_are_those_of_the_original_whatever_its_pixel_format(make_video, pixels):
    data = make_video(count=4, width=128, height=96, pixels=pixels)
    assert np.abs(tube(data, 4) - tube(reencode(data, short_side=48), 4)).mean() < 3


def test_a_rotation_is_applied_and_not_repeated(make_video):
    upright = make_video(count=2, width=64, height=48)
    at = upright.index(b"tkhd") + 44  # the display matrix of the track header
    clockwise = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    rotated = upright[:at] + clockwise + upright[at + 36 :]
    small = reencode(rotated, short_side=32)
    assert {(f.width, f.height, f.rotation) for f in frames_of(small)} == {(32, 42, 0)}
    assert np.abs(tube(rotated) - tube(small)).mean() < 4
    assert np.abs(tube(upright) - tube(small)).mean() > 20


@pytest.mark.parametrize(("asked", "most"), [(0, 4), (4, 2), (2, 1), (1, 1), (30, 4)])
def test_a_key_frame_comes_every_half_second_and_nothing_refers_to_later_frames(make_video, asked, most):
    packets, kinds = packets_of(reencode(make_video(count=40, fps=8), fps=asked))
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    assert max(np.diff([*keys, len(packets)])) <= most
    assert [p.pts for p in packets] == sorted(p.pts for p in packets)
    assert kinds == ["video"]


def test_the_same_video_gives_the_same_bytes_from_memory_and_from_a_file(make_video, tmp_path):
    data = make_video(tmp_path / "a.mp4", count=12)
    assert reencode(data, fps=4) == reencode(str(tmp_path / "a.mp4"), fps=4)


@pytest.mark.parametrize(("codec", "container"), [("mpeg4", "avi"), ("libvpx-vp9", "webm"), ("mjpeg", "mov")])
def test_other_codecs_and_containers(make_video, codec, container):
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    data = make_video(count=8, codec=codec, container=container, pixels=pixels)
    small = reencode(data, fps=4)
    assert [round(float(f.pts * f.time_base), 2) for f in frames_of(small)] == [0.0, 0.25, 0.5, 0.75]
    assert np.abs(tube(data) - tube(small)).mean() < 5


@pytest.mark.parametrize("codec", ["mjpeg", "png"])
def test_a_large_image_becomes_a_small_jpeg_of_the_same_picture(make_image, codec):
    data = make_image(width=131, height=97, codec=codec)
    small = reencode(data, short_side=48)
    assert small[:2] == b"\xff\xd8"
    assert [(f.width, f.height) for f in frames_of(small)] == [(65, 48)]
    assert np.abs(tube(data) - tube(small)).mean() < 3


@pytest.mark.parametrize("codec", ["mjpeg", "png"])
def test_a_small_image_stays_as_it_is(make_image, codec, tmp_path):
    data = make_image(tmp_path / "image", codec=codec)
    assert reencode(data, short_side=48) == reencode(str(tmp_path / "image"), short_side=48) == data
    assert reencode(data, fps=2) == data


def test_what_training_refuses_is_refused(make_video, tmp_path):
    data = make_video(count=16)
    for bad in (b"", b"no video at all", data[: len(data) // 2], str(tmp_path / "absent.mp4")):
        with pytest.raises(ReencodeError):
            reencode(bad, fps=2)


def test_damage_between_frames_is_refused_or_harmless(make_video):
    """No other exception, whatever byte is damaged."""
    data = make_video(count=8)
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        try:
            assert frames_of(reencode(bytes(damaged), fps=8))
        except ReencodeError as error:
            assert str(error)
            refused += 1
    assert refused
