"""Clips for benchmarks/input_throughput.py, and the ways of decoding T frames of one that it compares."""

import pathlib
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from vlp_jax.input import video

SIZE = 224  # pixels that frames are scaled to
SECONDS, RATE, WIDTH, HEIGHT = 10, 30, 320, 240
_VERSION = 1  # of the clips: raised when they change


def make_clip(path: pathlib.Path, keyframe_interval: int, seed: int) -> None:
    """Encodes textures with the spectrum of photographs that glide over each other, with sensor noise; x264's defaults.

    The camera pans over a background while three objects move: at crf 23 that gives 0.3 to 0.6 Mbit/s.
    """
    rng = np.random.default_rng(seed)

    def texture(height: int, width: int) -> np.ndarray:
        spectrum = np.fft.rfft2(rng.standard_normal((height, width, 3)), axes=(0, 1))
        frequency = np.hypot(np.fft.fftfreq(height)[:, None, None], np.fft.rfftfreq(width)[None, :, None])
        picture = np.fft.irfft2(spectrum / (frequency + 1 / width) ** 1.4, s=(height, width), axes=(0, 1))
        return np.clip(128 + 45 * (picture - picture.mean()) / picture.std(), 0, 255)

    side = 96
    background, objects = texture(2 * HEIGHT, 2 * WIDTH), [texture(side, side) for _ in range(3)]
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "23", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", keyframe_interval
        stream.codec_context.thread_count = 1
        for i in range(SECONDS * RATE):
            y, x = round(HEIGHT / 2 * (1 + 0.8 * np.sin(i / 120))), round(WIDTH / 2 * (1 + 0.8 * np.sin(i / 90 + seed)))
            picture = background[y : y + HEIGHT, x : x + WIDTH].copy()
            for k, thing in enumerate(objects):
                top = round((HEIGHT - side) * (0.5 + 0.5 * np.sin(i * (k + 1) / 80 + k)))
                left = round((WIDTH - side) * (0.5 + 0.5 * np.cos(i * (k + 2) / 100 + k)))
                picture[top : top + side, left : left + side] = thing
            picture += 2 * rng.standard_normal((HEIGHT, WIDTH, 1))
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8))
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    part.rename(path)


def make_clips(folder: pathlib.Path, keyframe_interval: int, count: int) -> list[str]:
    """Paths of `count` clips, made where they are not in the folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"v{_VERSION}_gop{keyframe_interval}_{seed}.mp4" for seed in range(count)]
    for seed, path in enumerate(paths):
        if not path.exists():
            make_clip(path, keyframe_interval, seed)
    return [str(path) for path in paths]


def wanted(frames: int, count: int = SECONDS * RATE) -> list[int]:
    """The frames that evaluation takes: the centres of equal intervals."""
    return video.sample_frames(count, frames, None).tolist()


def ours(path: str, frames: int) -> np.ndarray:
    """This project's decoder."""
    return video.decode(path, frames=frames, size=SIZE)


class Scaler:
    """Frames to RGB arrays of SIZE x SIZE, by swscale."""

    def __init__(self):
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        how = Interpolation.BILINEAR
        return self._reformatter.reformat(frame, SIZE, SIZE, "rgb24", interpolation=how, threads=1).to_ndarray()


def decode_all(path: str, frames: int) -> np.ndarray:
    """Every frame to an RGB array, then the chosen ones scaled."""
    chosen = wanted(frames)
    with av.open(path) as container:
        context = container.streams.video[0].codec_context
        context.thread_type, context.thread_count = "NONE", 1
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    scale = Scaler()
    pictures = [av.VideoFrame.from_ndarray(every[i], format="rgb24") for i in chosen]
    return np.stack([scale(picture) for picture in pictures])


def in_filter(path: str, frames: int) -> np.ndarray:
    """Every frame decoded, scaled by swscale on its way to RGB."""
    chosen = wanted(frames)
    scale = Scaler()
    with av.open(path) as container:
        context = container.streams.video[0].codec_context
        context.thread_type, context.thread_count = "NONE", 1
        every = [scale(frame) for frame in container.decode(video=0)]
    return np.stack([every[i] for i in chosen])


def seek(path: str, frames: int) -> np.ndarray:
    """For each frame: seek to the key frame before it, decode up to it."""
    out = []
    scale = Scaler()
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        for i in wanted(frames):
            assert stream.time_base
            pts = round(i / RATE / stream.time_base)
            container.seek(pts, stream=stream)
            out.append(scale(next(f for f in container.decode(stream) if f.pts is not None and f.pts >= pts)))
    return np.stack(out)


STRATEGIES = {"decode all": decode_all, "in-filter scaling": in_filter, "seek per frame": seek, "ours": ours}
