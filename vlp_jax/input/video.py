"""Clips to fixed-shape tubes: which frames, which crop, and exact decoding of only what they need."""

import bisect
import contextlib
import io
import itertools
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

# libav prints every oddity of every clip to stderr; what matters is raised here and written to the ledger.
av.logging.set_level(av.logging.PANIC)

# Clips are data: one must not make libav open other files or addresses. See also `_video_stream`.
_OPTIONS = {"protocol_whitelist": "file"}

# Damaged metadata text is no reason to lose a clip; from version 19 on PyAV does not decode it strictly anyway.
_LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

# Without the second flag swscale gives two neighbouring pixels of the *result* one colour, whatever the source holds.
_INTERPOLATION = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT


class VideoError(Exception):
    """A clip that cannot be used; `str(error)` is the reason, fit for one line of the ledger."""


class TooFewFrames(VideoError):
    """A sound clip with fewer frames than asked; `count` holds how many it has."""

    def __init__(self, count: int, frames: int):
        super().__init__(f"{count} frames, fewer than the {frames} asked")
        self.count = count


class _Inexact(Exception):
    """The packets' timestamps do not name the frames that the decoder returns."""


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


class FrameCache:
    """Decoded frames of whole clips, up to a budget, for one process; a pickled copy starts empty.

    Nothing is evicted: under reshuffled epochs every clip is equally likely to come next, so the clips that came first
    hit as often as any others would, and least-recently-used order would drop each clip shortly before its return.

    Args:
      gib: budget, GiB.
    """

    def __init__(self, gib: float):
        self._budget = int(gib * 2**30)
        self._clear()

    def _clear(self) -> None:
        self._entries: dict[Any, tuple[threading.Lock, list[av.VideoFrame]]] = {}
        self._lock = threading.Lock()
        self.used = 0  # bytes

    def __getstate__(self) -> int:
        return self._budget

    def __setstate__(self, budget: int) -> None:
        self._budget = budget
        self._clear()

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
    video: bytes | str,
    *,
    frames: int,
    size: int,
    rng: np.random.Generator | None = None,
    crop_scale: tuple[float, float] = (1.0, 1.0),
    flip: bool = False,
    timeout_s: float = 20.0,
    cache: FrameCache | None = None,
    key: Any = None,
) -> np.ndarray:
    """Decodes T frames of a clip; the pixels equal those of a full decode.

    Args:
      video: an encoded file's bytes, or its path.
      frames: T.
      size: height and width of the result, pixels.
      rng: None for evaluation: the frames at the centres of T equal intervals, the whole frame squashed to a square,
        no flip. Otherwise training: a uniformly random frame of each interval, one random-resized crop and one flip
        (probability 1/2, where `flip`) common to all frames.
      crop_scale, flip: training only; see `sample_crop`.
      timeout_s: limit for the clip, seconds, checked between packets.
      cache, key: keeps all frames of the clip under `key`, and finds them there; changes speed only.

    Returns:
      uint8 `[T, size, size, 3]`, RGB. A display rotation by a multiple of 90 degrees is applied.

    Raises:
      VideoError: missing, empty, truncated or undecodable input, no video stream, fewer than T frames, time limit.
    """
    entry = None if cache is None else cache.get(key)
    if entry is None:
        reader = _Reader(video, timeout_s)
        if cache is None or not _fill(cache, key, reader):
            chosen = reader.read(lambda count: sample_frames(count, frames, rng), rng)
            return _to_tube(chosen, size, rng, crop_scale, flip)
        entry = cache.get(key)
    assert entry is not None
    lock, every = entry
    chosen = [every[i] for i in sample_frames(len(every), frames, rng)]
    with lock:  # swscale edits the source frame's colour tags while it runs
        return _to_tube(chosen, size, rng, crop_scale, flip)


def _fill(cache: FrameCache, key: Any, reader: "_Reader") -> bool:
    """Puts the whole clip into the cache; False where it does not fit, or where not all of its frames decode."""
    if not cache.fits(reader.estimate()):
        return False
    try:
        cache.put(key, reader.select(range(reader.count())))
    except (VideoError, _Inexact):
        # The damage may lie beyond the frames that are asked for: the plain path decides what the clip is worth.
        return False
    return cache.get(key) is not None


class _Reader:
    """One clip's packets, and the frames behind chosen ones."""

    def __init__(self, video: bytes | str, timeout_s: float):
        self._timeout_s = timeout_s
        self._start_clock()
        with _reasons("not a readable video"), _open(video) as container:
            stream = _video_stream(container)
            self._context = stream.codec_context
            self._context.thread_type = "NONE"  # the pipeline's threads and processes are the parallelism
            self._context.thread_count = 1
            # Opened before any frame is skipped: some decoders (dav1d) read the skip level only here.
            self._context.open(strict=False)
            self._packets = self._demux(container, stream)
            # AVI stores no presentation times; with reordered frames those that libav makes up are wrong.
            self._timed = container.format.name != "avi" or not self._context.has_b_frames

    def _start_clock(self) -> None:
        self._deadline = time.monotonic() + self._timeout_s

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise VideoError(f"not decoded within the time limit of {self._timeout_s:g} s")

    def _demux(self, container, stream) -> list[av.Packet]:
        packets = []
        for packet in container.demux(stream):
            self._check_time()
            if packet.size:
                packets.append(packet)
        if not packets:
            raise VideoError("no frames")
        declared = _declared_packets(container, stream)
        if len(packets) < declared:
            raise VideoError(f"truncated: {len(packets)} of {declared} frames are there")
        times = sorted(p.pts for p in packets if p.pts is not None)
        gaps = [after - before for before, after in itertools.pairwise(times)]
        end = _declared_end(stream)
        # The last frame's own duration is not always stored, hence the slack.
        if gaps and float((times[-1] + 2 * max(gaps)) * packets[0].time_base) < end:
            raise VideoError(f"truncated: ends at {float(times[-1] * packets[0].time_base):.2f} of {end:.2f} s")
        return packets

    def _timestamps(self) -> list[int]:
        """Presentation timestamp of each packet; _Inexact where some have none, or share one."""
        pts = [p.pts for p in self._packets if p.pts is not None]
        if not self._timed or len(set(pts)) < len(self._packets):
            raise _Inexact
        return pts

    def _order(self) -> list[int]:
        """Packet numbers in display order, without those that an edit list hides."""
        pts = self._timestamps()
        return sorted((i for i, p in enumerate(self._packets) if not p.is_discard), key=pts.__getitem__)

    def count(self) -> int:
        return len(self._order())

    def estimate(self) -> int:
        """Bytes that all frames take, 4:2:0."""
        return len(self._packets) * self._context.width * self._context.height * 3 // 2

    def read(
        self, choose: Callable[[int], Sequence[int] | np.ndarray], rng: np.random.Generator | None
    ) -> list[av.VideoFrame]:
        """Returns the frames that `choose(number of frames)` asks for, increasing."""
        self._start_clock()  # what filling a cache took is not held against the clip
        state: Any = None if rng is None else rng.bit_generator.state
        try:
            return self.select(choose(self.count()))
        except _Inexact:
            if rng is not None:
                rng.bit_generator.state = state
            return self._select_by_full_decode(choose)

    def select(self, wanted: Sequence[int] | np.ndarray) -> list[av.VideoFrame]:
        """Decodes the frames at the display positions `wanted`, and little else.

        Only groups of pictures that hold a target are decoded, up to their last target, and inside them frames that
        nothing refers to are skipped.
        """
        order, pts = self._order(), self._timestamps()
        targets = {order[i] for i in wanted}
        by_pts = {pts[i]: i for i in targets}
        found: dict[int, av.VideoFrame] = {}

        def keep(decoded: list[av.VideoFrame]) -> None:
            found.update((by_pts[f.pts], f) for f in decoded if f.pts in by_pts)

        with _reasons("undecodable"):
            for start, stop in self._runs(targets, pts):
                self._context.flush_buffers()
                for i in range(start, stop + 1):
                    self._check_time()
                    if self._packets[i].is_corrupt:
                        raise VideoError("undecodable: damaged packet")
                    self._context.skip_frame = "DEFAULT" if i in targets else "NONREF"
                    keep(self._context.decode(self._packets[i]))
                keep(self._context.decode(None))
        if len(found) < len(targets):
            raise _Inexact
        return _sound([found[order[i]] for i in wanted])

    def _runs(self, targets: set[int], pts: list[int]) -> list[tuple[int, int]]:
        """Ranges of packets, first and last, that decode to the targets."""
        keys = [i for i, p in enumerate(self._packets) if p.is_keyframe]
        runs: list[tuple[int, int]] = []
        for i in sorted(targets):
            at = bisect.bisect_right(keys, i) - 1
            if at >= 0 and pts[i] < pts[keys[at]]:
                at -= 1  # in an open group, frames shown before its key frame refer to the group before it
            start = keys[at] if at >= 0 else 0
            if runs and start <= runs[-1][1] + 1:
                runs[-1] = (runs[-1][0], i)
            else:
                runs.append((start, i))
        return runs

    def _select_by_full_decode(self, choose: Callable[[int], Sequence[int] | np.ndarray]) -> list[av.VideoFrame]:
        """The slow, plain way, for streams whose packets do not tell their frames: count by decoding, then decode."""
        count = sum(1 for _ in self._every_frame())
        if not count:
            raise VideoError("no frames")
        wanted = [int(i) for i in choose(count)]
        chosen = set(wanted)
        found = {}
        for i, frame in enumerate(self._every_frame()):
            if i in chosen:
                found[i] = frame
            if i == wanted[-1]:
                break
        return _sound([found[i] for i in wanted])

    def _every_frame(self):
        with _reasons("undecodable"):
            self._context.flush_buffers()
            self._context.skip_frame = "DEFAULT"
            for packet in [*self._packets, None]:
                self._check_time()
                yield from self._context.decode(packet)


def _open(video: bytes | str):
    if isinstance(video, str):
        try:
            info = os.stat(video)
        except OSError as e:
            raise VideoError(f"file not readable: {e.strerror}") from e
        if not stat.S_ISREG(info.st_mode):
            raise VideoError("not a regular file")
        length = info.st_size
    else:
        length = len(video)
    if not length:
        raise VideoError("empty: 0 bytes")
    source = video if isinstance(video, str) else io.BytesIO(video)
    return av.open(source, options=_OPTIONS, **_LENIENT)


def _video_stream(container):
    if container.format.name == "concat":
        raise VideoError("a playlist, not a video")
    # Cover art of an audio file is no clip.
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = sorted({s.type for s in container.streams})
        raise VideoError(f"no video stream{' (only ' + ', '.join(kinds) + ')' if kinds else ''}")
    if streams[0].codec_context is None:
        raise VideoError("no decoder for its codec")
    return streams[0]


def _declared_packets(container, stream) -> int:
    """How many packets an MP4 or MOV file's index lists; 0 for other containers, whose index is sparse."""
    return len(stream.index_entries) if "mp4" in container.format.name else 0


def _declared_end(stream) -> float:
    """End of the track in seconds as Matroska and WebM files tag it; 0 where they do not."""
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0


@contextlib.contextmanager
def _reasons(what: str):
    """Turns libav's errors into VideoError."""
    try:
        yield
    except av.FFmpegError as e:
        raise VideoError(f"{what}: {e.strerror or type(e).__name__}") from e
    except IndexError as e:
        # PyAV's own, where a damaged header makes streams appear or vanish while the container is read.
        raise VideoError(f"{what}: inconsistent streams") from e


def _sound(frames: list[av.VideoFrame]) -> list[av.VideoFrame]:
    if any(f.is_corrupt for f in frames):
        raise VideoError("undecodable: damaged frame")
    return frames


def _to_tube(frames: list[av.VideoFrame], size: int, rng, crop_scale, flip) -> np.ndarray:
    """Crops, resizes and converts to RGB: one swscale call a frame, which scales the box to `size` pixels.

    The box's corner is thereby rounded to whole pixels of the result.
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
    with _reasons("not convertible to RGB"):
        for t, frame in enumerate(frames):
            scaled = reformatter.reformat(
                frame, width=scaled_w, height=scaled_h, format="rgb24", interpolation=_INTERPOLATION, threads=1
            )
            tube[t] = np.rot90(scaled.to_ndarray()[y : y + size, x : x + size], turns)
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
