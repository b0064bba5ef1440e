"""The corpus of odd, damaged and hostile media, and a process that decodes it: `python -m tests.input.bad_media DIR`.

Everything is made with PyAV and Pillow, in memory, a few kilobytes each.
"""

import dataclasses
import io
import json
import pathlib
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from vlp_jax.input import video

SIDE = 48  # of the images, and of what every clip is decoded to
H264 = {"options": {"x264-params": "bframes=3:keyint=12"}}
VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}, "container": "webm"}
HEVC = {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:pools=1"}}
AV1 = {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}}


@dataclasses.dataclass
class Case:
    """One file. `expect` is `frames`, `error` or `either`; `reason` a part of the error.

    `sound` names the case that this one is a damaged copy of, `suffix` the file's name's end, `oracle` the right
    pixels where plain decoding by the same library would prove nothing.
    """

    name: str
    data: bytes
    expect: str = "frames"
    reason: str = ""
    suffix: str = ".mp4"
    frames: int = 4
    sound: str = ""
    oracle: np.ndarray | None = None
    tolerance: int = 0


def texture(height: int, width: int) -> np.ndarray:
    """Blocks of random colours, uint8 `[height, width, 3]`."""
    blocks = np.random.default_rng(0).integers(40, 216, (height // 8 + 1, width // 8 + 1, 3))
    return np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8)[:height, :width]


def clip(
    *, codec="libx264", container="mp4", count=25, width=64, height=48, options=None, pix_fmt="yuv420p", rate=25
) -> bytes:
    """Encodes a moving texture, `[height, width]`, `count` frames; alpha, where `pix_fmt` has it, is a ramp."""
    target = io.BytesIO()
    picture = texture(height, width)
    ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], (height, width, 1))
    with av.open(target, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.thread_count = 1
        out.start_encoding()
        for i in range(count):
            moved = np.concatenate([np.roll(picture, (i, 2 * i), (0, 1)), ramp], -1)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(moved), format="rgba")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return target.getvalue()


def audio() -> bytes:
    """A second of silence in MP4."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=8000, layout="mono")
        for i in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.rate, frame.pts = 8000, 1024 * i
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return target.getvalue()


def rotated(data: bytes) -> bytes:
    """Writes a quarter turn clockwise into the track header's matrix."""
    at = data.index(b"tkhd") + 4 + 40
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    return data[:at] + matrix + data[at + 36 :]


def four_hours(data: bytes) -> bytes:
    """Writes four hours into every duration of an MP4's headers."""
    changed = bytearray(data)
    for box, scale_at, duration_at in ((b"mvhd", 12, 16), (b"mdhd", 12, 16), (b"tkhd", 0, 20)):
        at = data.index(box) + 4
        scale = struct.unpack(">I", data[at + scale_at : at + scale_at + 4])[0] if scale_at else 1000
        changed[at + duration_at : at + duration_at + 4] = struct.pack(">I", 4 * 3600 * min(scale, 200_000))
    return bytes(changed)


def png(width: int, height: int) -> bytes:
    """A PNG whose header tells this size; zeros for 600 rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(3 * width + 1) * 600, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def jpeg_bomb(side: int) -> bytes:
    """A small JPEG whose header tells `side` x `side`."""
    data = image("JPEG")[0]
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]


def gif_bomb(side: int) -> bytes:
    """A small GIF on a canvas of `side` x `side`."""
    data = image("GIF")[0]
    return data[:6] + struct.pack("<HH", side, side) + data[10:]


def vp8_bomb(side: int) -> bytes:
    """A WebM whose container tells 64 x 48 and whose first picture tells `side` x `side`."""
    data = clip(codec="libvpx", container="webm", options={"deadline": "realtime", "cpu-used": "8"})
    at = data.index(b"\x9d\x01\x2a") + 3  # VP8's start code
    return data[:at] + struct.pack("<HH", side, side) + data[at + 4 :]


def image(fmt: str, mode: str = "RGB", **options) -> tuple[bytes, np.ndarray]:
    """Returns an encoded picture and what Pillow reads of it, RGB."""
    picture = Image.fromarray(texture(SIDE, SIDE))
    if mode.endswith("A"):
        picture.putalpha(Image.fromarray(np.linspace(1, 255, SIDE * SIDE).astype(np.uint8).reshape(SIDE, SIDE)))
    target = io.BytesIO()
    picture.convert(mode).save(target, fmt, **options)
    return target.getvalue(), np.asarray(Image.open(io.BytesIO(target.getvalue())).convert("RGB"))


def flipped(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies of which one byte, at a random place, has another value."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        yield bytes(changed)


def odd_clips() -> Iterator[Case]:
    """Sound, unusual: the right frames are those of a plain full decode.

    Enlarging, the decoder under test may round a value otherwise.
    """
    yield Case("h264", clip(**H264))
    yield Case("one frame", clip(count=1), frames=1)
    yield Case("one frame, four asked", clip(count=1), "error", "1 frames, fewer than the 4 asked")
    yield Case("rotated", rotated(clip(**H264)))
    yield Case("33x17 vp9", clip(width=33, height=17, **VP9), suffix=".webm", tolerance=1)
    yield Case("33x17 h264", clip(width=33, height=17, pix_fmt="yuv444p", **H264), tolerance=1)
    yield Case("1x1", clip(codec="ffv1", container="matroska", width=1, height=1, pix_fmt="yuv444p", count=4))
    yield Case("alpha vp9", clip(**VP9, pix_fmt="yuva420p"), suffix=".webm")
    yield Case("alpha png", clip(codec="png", container="mov", pix_fmt="rgba"), suffix=".mov")
    yield Case("alpha prores", clip(codec="prores_ks", container="mov", pix_fmt="yuva444p10le"), suffix=".mov")
    yield Case("10-bit h264", clip(pix_fmt="yuv420p10le", **H264))
    yield Case("10-bit hevc", clip(pix_fmt="yuv420p10le", **HEVC))
    yield Case("hevc", clip(**HEVC))
    yield Case("vp9", clip(**VP9), suffix=".webm")
    yield Case("av1", clip(**AV1))
    yield Case("gif", clip(codec="gif", container="gif", pix_fmt="rgb8"), suffix=".gif")
    yield Case("mjpeg", clip(codec="mjpeg", container="avi", pix_fmt="yuvj420p"), suffix=".avi")
    yield Case("mpeg4", clip(codec="mpeg4", container="avi"), suffix=".avi")
    yield Case("rgb h264", clip(codec="libx264rgb", pix_fmt="rgb24"))
    yield Case("mp4 named jpg", clip(**H264), suffix=".jpg")
    yield Case("mp4 named 100%d.png", clip(**H264), suffix="100%d.png")
    yield Case("webm named avi", clip(**VP9), suffix=".avi")
    yield Case("gif named mp4", clip(codec="gif", container="gif", pix_fmt="rgb8"), suffix=".mp4")
    yield Case("four hours in the header", four_hours(clip(**H264)))


def images() -> Iterator[Case]:
    """Images are videos of one frame; Pillow tells what they show."""
    for name, fmt, mode, options, tolerance in (
        ("jpeg", "JPEG", "RGB", {"quality": 95, "subsampling": 0}, 3),
        ("progressive jpeg", "JPEG", "RGB", {"quality": 95, "subsampling": 0, "progressive": True}, 3),
        ("gray jpeg", "JPEG", "L", {"quality": 95}, 1),
        ("cmyk jpeg", "JPEG", "CMYK", {"quality": 95}, 3),
        ("png", "PNG", "RGB", {}, 0),
        ("gray png", "PNG", "L", {}, 0),
        ("palette png", "PNG", "P", {}, 0),
        ("alpha png", "PNG", "RGBA", {}, 0),
        ("gray alpha png", "PNG", "LA", {}, 0),
        ("webp", "WEBP", "RGB", {"lossless": True}, 0),
        ("alpha webp", "WEBP", "RGBA", {"lossless": True, "exact": True}, 0),
        ("still gif", "GIF", "RGB", {}, 0),
    ):
        data, oracle = image(fmt, mode, **options)
        yield Case(f"image: {name}", data, suffix=f".{fmt.lower()}", frames=1, oracle=oracle[None], tolerance=tolerance)
    data, oracle = image("JPEG", quality=95, subsampling=0)
    yield Case("image: jpeg named mp4", data, suffix=".mp4", frames=1, oracle=oracle[None], tolerance=3)
    yield Case("image: jpeg named png", data, suffix=".png", frames=1, oracle=oracle[None], tolerance=3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise
    data, oracle = image("JPEG", quality=95, subsampling=0, exif=exif)
    turned = np.rot90(oracle, -1)[None]
    yield Case("image: turned by exif", data, suffix=".jpg", frames=1, oracle=turned, tolerance=3)
    yield Case("image: four frames asked", data, "error", "1 frames, fewer than the 4 asked", ".jpg")


def no_clips() -> Iterator[Case]:
    """What has no frames to give, or too large ones."""
    yield Case("no bytes", b"", "error", "empty: 0 bytes")
    yield Case("audio only", audio(), "error", "no video stream")
    yield Case("no frame", clip(count=0), "error")
    yield Case("text", b"caption\n" * 100, "error", "not a readable video")
    yield Case("html", b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 9, "error", "not a readable video")
    for side in (16_000, 30_000):
        yield Case(f"bomb: png {side}", png(side, side), "error", suffix=".png", frames=1)
        yield Case(f"bomb: jpeg {side}", jpeg_bomb(side), "error", suffix=".jpg", frames=1)
        yield Case(f"bomb: gif {side}", gif_bomb(side), "error", suffix=".gif", frames=1)
    yield Case("bomb: vp8", vp8_bomb(16_000), "error", suffix=".webm")


def damaged() -> Iterator[Case]:
    """Truncated copies, at each tenth, and copies with a byte changed."""
    sound = [
        ("h264", clip(**H264), ".mp4", 200),
        ("hevc", clip(**HEVC), ".mp4", 40),
        ("av1", clip(**AV1), ".mp4", 40),
        ("vp9", clip(**VP9), ".webm", 40),
        ("matroska", clip(container="matroska", **H264), ".mkv", 40),
        ("transport stream", clip(container="mpegts", **H264), ".ts", 40),
        ("avi", clip(codec="mpeg4", container="avi"), ".avi", 40),
        ("gif", clip(codec="gif", container="gif", pix_fmt="rgb8"), ".gif", 40),
        ("jpeg", image("JPEG")[0], ".jpg", 40),
        ("progressive jpeg", image("JPEG", progressive=True)[0], ".jpg", 0),
        ("png", image("PNG")[0], ".png", 40),
        ("webp", image("WEBP")[0], ".webp", 40),
    ]
    for seed, (name, data, suffix, flips) in enumerate(sound):
        frames = 1 if suffix in (".jpg", ".png", ".webp") else 4
        yield Case(f"sound {name}", data, suffix=suffix, frames=frames)
        for tenths in range(1, 10):
            # Transport streams are made to be cut anywhere.
            expect = "either" if suffix == ".ts" else "error"
            cut = data[: len(data) * tenths // 10]
            yield Case(f"{name}, {tenths} tenths", cut, expect, suffix=suffix, frames=frames)
        for i, changed in enumerate(flipped(data, flips, seed)):
            how = {"expect": "either", "suffix": suffix, "frames": frames, "sound": f"sound {name}"}
            yield Case(f"{name}, byte {i}", changed, **how)


CORPUS = {"odd clips": odd_clips, "images": images, "no clips": no_clips, "damaged": damaged}


# --- The decoding process ---------------------------------------------------------------------------------------------


def plain_tube(data: bytes, frames: int, strict: bool) -> np.ndarray | None:
    """What a plain full decode gives, in order of time; None where it gives fewer frames than asked."""
    pictures = []
    try:
        with av.open(io.BytesIO(data), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": "1000000", **({"err_detect": "explode"} if strict else {})}
            for packet in container.demux(stream):
                try:
                    decoded = stream.codec_context.decode(packet)
                except av.FFmpegError:
                    continue
                for frame in decoded:
                    how = {"width": SIDE, "height": SIDE, "format": "rgb24", "interpolation": video._INTERPOLATION}
                    turned = np.rot90(frame.reformat(**how, threads=1).to_ndarray(), round(frame.rotation / 90) % 4)
                    pictures.append((frame.pts or 0, len(pictures), turned))
    except (av.FFmpegError, IndexError):
        pass
    if len(pictures) < frames:
        return None
    pictures.sort(key=lambda p: p[:2])
    return np.stack([pictures[i][2] for i in video.sample_frames(len(pictures), frames, None)])


def judge(case: Case, path: pathlib.Path, sound: dict[str, np.ndarray]) -> dict:
    """Decodes one case from bytes and from its file; says what came out, and whether it is right."""
    outcome: dict = {"name": case.name}
    tubes: list[np.ndarray | str] = []
    for source in (case.data, str(path)):
        try:
            tubes.append(video.decode(source, frames=case.frames, size=SIDE, timeout_s=10.0))
        except video.VideoError as e:
            tubes.append(str(e))
    by_bytes, by_path = tubes
    errors = [isinstance(tube, str) for tube in tubes]
    outcome["same by path"] = errors == [True, True] or (not any(errors) and np.array_equal(by_bytes, by_path))
    # Not getrusage's peak, which a process that is spawned inherits from its parent.
    outcome["peak_mb"] = int(re.search(r"VmHWM:\s*(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
    if isinstance(by_bytes, str):
        return outcome | {"error": by_bytes}
    sound[case.name] = by_bytes
    references = [case.oracle, sound.get(case.sound)]
    if case.oracle is None:
        references += [plain_tube(case.data, case.frames, strict) for strict in (False, True)]
    off = [np.abs(by_bytes.astype(int) - r).max() for r in references if r is not None and r.shape == by_bytes.shape]
    return outcome | {"right": bool(off) and int(min(off)) <= case.tolerance, "off": int(min(off, default=-1))}


def main(name: str, directory: pathlib.Path) -> None:
    sound: dict[str, np.ndarray] = {}
    for number, case in enumerate(CORPUS[name]()):
        path = directory / f"{number}{case.suffix}"
        path.write_bytes(case.data)
        print(json.dumps({"begin": case.name}), flush=True)  # the last line tells what a crash was met at
        print(json.dumps(judge(case, path, sound)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
