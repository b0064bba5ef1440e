"""Clips to fixed-shape tubes: which frames of a clip are taken, which crop of them, and what is kept in memory."""

import math
import threading
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from vlp_jax.input.container import VideoError, reasons
from vlp_jax.input.decoder import MAX_PIXELS, Reader, TooFewFrames
from vlp_jax.input.per_process import PerProcess

# Without the second flag swscale gives two neighbouring pixels of the *result* one colour, whatever the source holds.
_INTERPOLATION = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT


# --- What to take of a clip -------------------------------------------------------------------------------------------


def sample_frames(count: int, frames: int, rng: np.random.Generator | None) -> np.ndarray:
    """Chooses one frame of each of `frames` equal intervals of a clip (the segment sampling of TSN, Wang et al. 2016).

    Args:
      count: frames that the clip has.
      frames: T, frames asked.
      rng: draws uniformly within each interval; None takes the centre frames (evaluation).

    Returns:
      int64 `[T]`, strictly increasing, in `[0, count)`.

    Raises:
      TooFewFrames: `count < frames`.
    """
    if count < frames:
        raise TooFewFrames(count, frames)
    edges = np.arange(frames + 1, dtype=np.int64) * count // frames
    if rng is None:
        return (edges[:-1] + edges[1:]) // 2
    return edges[:-1] + (rng.random(frames) * np.diff(edges)).astype(np.int64)


def sample_crop(
    height: int, width: int, crop_scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws a random-resized crop as torchvision does (Inception crop, Szegedy et al. 2015).

    Args:
      height, width: size of the frame, pixels.
      crop_scale: `(low, high)` share of the frame's area; `(1, 1)` returns the whole frame.
      rng: source of the area (uniform), the aspect ratio (log-uniform in 3/4..4/3) and the corner (uniform).

    Returns:
      `(top, left, height, width)`, pixels, inside the frame. After ten boxes that do not fit, the largest central box
      with a permitted aspect ratio.
    """
    if tuple(crop_scale) == (1, 1):
        return 0, 0, height, width
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = height * width * rng.uniform(*crop_scale)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = min(height, round(width / low)), min(width, round(height * high))
    return (height - h) // 2, (width - w) // 2, h, w


# --- Decoded frames kept in memory ------------------------------------------------------------------------------------


class FrameCache(PerProcess):
    """Decoded frames of whole clips, up to a budget, for one process; a pickled copy starts empty.

    Nothing is evicted: under reshuffled epochs every clip is equally likely to come next, so the clips that came first
    hit as often as any others would, and least-recently-used order would drop each clip shortly before its return.

    Args:
      gib: budget, GiB.

    Attributes:
      used: bytes.
    """

    _entries: dict[Any, tuple[threading.Lock, list[av.VideoFrame]]]
    _lock: threading.Lock
    used: int

    def __init__(self, gib: float):
        self._budget = int(gib * 2**30)
        self._forget()

    def _fresh(self) -> dict[str, Any]:
        return {"_entries": {}, "_lock": threading.Lock(), "used": 0}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Any) -> tuple[threading.Lock, list[av.VideoFrame]] | None:
        return self._entries.get(key)

    def fits(self, size: int) -> bool:
        return self.used + size <= self._budget

    def put(self, key: Any, frames: list[av.VideoFrame]) -> None:
        size = sum(1024 + sum(plane.buffer_size for plane in frame.planes) for frame in frames)
        with self._lock:
            if key not in self._entries and self.fits(size):
                self._entries[key] = (threading.Lock(), frames)
                self.used += size


# --- Decoding ---------------------------------------------------------------------------------------------------------


def decode(
    video: bytes | str | Reader,
    *,
    frames: int,
    size: int,
    rng: np.random.Generator | None = None,
    crop_scale: tuple[float, float] = (1.0, 1.0),
    flip: bool = False,
    span: tuple[float, float] | None = None,
    timeout_s: float = 20.0,
    max_pixels: int = MAX_PIXELS,
    cache: FrameCache | None = None,
    key: Any = None,
) -> np.ndarray:
    """Decodes T frames of a clip, or of an image (one frame); they are the frames that a full decode gives.

    Args:
      video: an encoded file's bytes, or its path; or a Reader of it, and then `span`, `timeout_s` and `max_pixels` are
        those that it was made with.
      frames: T.
      size: height and width of the result, pixels.
      rng: None for evaluation: the frames at the centres of T equal intervals, the whole frame squashed to a square,
        no flip. Otherwise training: a uniformly random frame of each interval, one random-resized crop and one flip
        (probability 1/2, where `flip`) common to all frames.
      crop_scale, flip: training only; see `sample_crop`.
      span: `(start, end)`, seconds from the file's start: frames are taken from those shown at `start <= time < end`.
      timeout_s: limit for the clip, seconds; see `Reader`.
      max_pixels: larger pictures are refused.
      cache, key: keeps all frames of the clip (or its span) under `key`, and finds them there; changes speed only.

    Returns:
      uint8 `[T, size, size, 3]`, RGB. A display rotation by a multiple of 90 degrees is applied, transparency dropped.

    Raises:
      VideoError: missing, empty, truncated or undecodable input, no video stream, a picture too large, a span outside
        the clip, fewer than T frames, time limit.
    """
    entry = None if cache is None else cache.get(key)
    try:
        if entry is None:
            reader = video if isinstance(video, Reader) else Reader(video, timeout_s, span=span, max_pixels=max_pixels)
            if cache is None or not _fill(cache, key, reader):
                state: Any = None if rng is None else rng.bit_generator.state

                def draw_again() -> None:
                    if rng is not None:
                        rng.bit_generator.state = state

                chosen = reader.read(lambda count: sample_frames(count, frames, rng), draw_again)
                return _to_tube(chosen, size, rng, crop_scale, flip)
            entry = cache.get(key)
        assert entry is not None
        lock, every = entry
        chosen = [every[i] for i in sample_frames(len(every), frames, rng)]
    except TooFewFrames as e:
        if span is None:
            raise
        raise TooFewFrames(e.count, frames, f" from {span[0]:g} to {span[1]:g} s") from None
    with lock:  # swscale edits the source frame's colour tags while it runs
        return _to_tube(chosen, size, rng, crop_scale, flip)


def _fill(cache: FrameCache, key: Any, reader: Reader) -> bool:
    """Puts the whole clip into the cache; False where it does not fit, or where not all of its frames decode."""
    if not cache.fits(reader.estimate()):
        return False
    try:
        every = reader.read_all()
    except VideoError:
        # The damage may lie beyond the frames that are asked for: the plain path decides what the clip is worth.
        return False
    if every is not None:
        cache.put(key, every)
    return cache.get(key) is not None


def _to_tube(frames: list[av.VideoFrame], size: int, rng, crop_scale, flip) -> np.ndarray:
    """Crops, resizes and converts to RGB: one swscale call a frame, which scales the box to `size` pixels.

    The box's corner is thereby rounded to whole pixels of the result. Planar RGB is three times faster than packed
    (swscale has vector code for it), and differs from it by at most 1, where pictures are enlarged.
    """
    coded_h, coded_w = frames[0].height, frames[0].width
    turns = round(frames[0].rotation / 90) % 4  # counterclockwise
    if rng is None:
        top, left, h, w = 0, 0, coded_h, coded_w
    else:
        shown_h, shown_w = (coded_w, coded_h) if turns % 2 else (coded_h, coded_w)
        top, left, h, w = _unrotate(sample_crop(shown_h, shown_w, crop_scale, rng), coded_h, coded_w, turns)
    scaled_h, scaled_w = round(coded_h * size / h), round(coded_w * size / w)
    y, x = round(top * (scaled_h - size) / max(1, coded_h - h)), round(left * (scaled_w - size) / max(1, coded_w - w))
    reformatter = VideoReformatter()
    tube = np.empty((len(frames), size, size, 3), np.uint8)
    with reasons("not convertible to RGB"):
        for t, frame in enumerate(frames):
            scaled = reformatter.reformat(
                frame, width=scaled_w, height=scaled_h, format="gbrp", interpolation=_INTERPOLATION, threads=1
            )
            for plane, channel in zip(scaled.planes, (1, 2, 0)):
                pixels = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
                tube[t, ..., channel] = np.rot90(pixels[y : y + size, x : x + size], turns)
    if rng is not None and flip and rng.random() < 0.5:
        tube = np.ascontiguousarray(tube[:, :, ::-1])
    return tube


def _unrotate(box: tuple[int, int, int, int], height: int, width: int, turns: int) -> tuple[int, int, int, int]:
    """Maps a box of the frame as shown to the frame as coded (`height` x `width`, shown after `turns` rot90)."""
    top, left, h, w = box
    return {
        0: (top, left, h, w),
        1: (left, width - top - h, w, h),
        2: (height - top - h, width - left - w, h, w),
        3: (height - left - w, top, w, h),
    }[turns]
