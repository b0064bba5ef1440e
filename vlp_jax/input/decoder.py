"""One clip's packets, and exact decoding of the frames that are asked for, with little else decoded."""

import bisect
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np

from vlp_jax.input.container import OutOfTime, VideoError, check_whole, open_container, reasons, video_stream

MAX_PIXELS = 2**26  # 8192 x 8192

_SEEKABLE = ("mp4", "matroska")  # containers whose seeking lands on a key frame, by an index
_ROUNDING = 1e-6  # seconds; container times are whole microseconds

Choose = Callable[[int], Sequence[int] | np.ndarray]


class TooFewFrames(VideoError):
    """A sound clip with fewer frames than asked; `count` holds how many it has, or how many its span has."""

    def __init__(self, count: int, frames: int, where: str = ""):
        super().__init__(f"{count} frames{where}, fewer than the {frames} asked")
        self.count = count


class _Inexact(Exception):
    """The packets' timestamps do not name the frames that the decoder returns."""


class Reader:
    """The packets of a clip, or of a span of it, and the frames behind chosen ones.

    Decoding is strict: a picture that the decoder could only guess at (damaged data, missing references) is an error,
    where a player would show something; but for files that begin in the middle of a group of pictures.

    Args:
      video: an encoded file's bytes, or its path. Images are videos of one frame.
      timeout_s: limit for the clip, seconds; checked between packets, and by libav while it reads.
      span: `(start, end)`, seconds from the file's start; only frames shown at `start <= time < end` are counted and
        read. Of an MP4 or Matroska file, the rest is not even read.
      max_pixels: larger pictures are refused before memory is taken for them.

    Attributes:
      codec: libav's name of the decoder.
      width, height: as coded, before a rotation; pixels.
      is_still: whether it is a picture, by its format.

    Raises:
      VideoError: missing, empty, truncated or undecodable input, no video stream, a picture too large, a span outside
        the clip, time limit.
    """

    def __init__(
        self,
        video: bytes | str,
        timeout_s: float = 20.0,
        *,
        span: tuple[float, float] | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        if span is not None and not span[0] < span[1]:
            raise VideoError(f"the span {_seconds(span)} is empty: expected its start before its end")
        self._timeout_s, self._span, self._max_pixels = timeout_s, span, max_pixels
        self._start_clock()
        with reasons("not a readable video"):
            if span is None or not self._open(video, seek=True):
                self._open(video, seek=False)

    def _start_clock(self) -> None:
        self._deadline = time.monotonic() + self._timeout_s

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise OutOfTime(f"not decoded within the time limit of {self._timeout_s:g} s")

    # -- Packets -------------------------------------------------------------------------------------------------------

    def _open(self, video: bytes | str, seek: bool) -> bool:
        """Reads the packets; False where a seek did not lead to where decoding can begin, before the span."""
        limits = {"max_pixels": str(self._max_pixels)}
        with open_container(video, limits, self._timeout_s) as container:
            stream = video_stream(container)
            self._context = context = stream.codec_context
            self.codec, self.width, self.height = context.name, context.width, context.height
            self.is_still = container.format.name == "image2" or container.format.name.endswith("_pipe")
            if self.width * self.height > self._max_pixels:
                raise VideoError(
                    f"{self.width} x {self.height} pixels, more than config.input.max_pixels = {self._max_pixels}"
                )
            context.thread_type = "NONE"  # the pipeline's threads and processes are the parallelism
            context.thread_count = 1
            self._zero = (container.start_time or 0) / av.time_base
            self._rate, self._time_base = stream.average_rate, stream.time_base
            self._duration = (container.duration or 0) / av.time_base
            # AVI stores no presentation times; with reordered frames those that libav makes up are wrong.
            self._timed = container.format.name != "avi" or not context.has_b_frames
            if seek:
                assert self._span is not None
                if not any(name in container.format.name for name in _SEEKABLE):
                    return False
                try:
                    offset = round((self._span[0] + self._zero) / self._time_base)
                    container.seek(offset, stream=stream, backward=True)
                except av.FFmpegError:
                    return False
            self._packets, at_end = self._demux(container, stream)
            if seek and not self._starts_before_span():
                return False
            if not self._packets:
                raise VideoError("no frames")
            check_whole(container, stream, self._packets, at_end=at_end, from_start=not seek, video=video)
            # A recording that begins in the middle refers to what is not there: no decoder could be strict with it.
            complete = self._packets[0].is_keyframe and not self._is_open(0)
            context.options = {**limits, **({"err_detect": "explode"} if complete else {})}
            self._exact = self._timed and complete
            # Opened before any frame is skipped: some decoders (dav1d) read the skip level only here.
            context.open(strict=False)
        return True

    def _demux(self, container, stream) -> tuple[list[av.Packet], bool]:
        """Returns the packets up to the span's end, and whether the file ends with them."""
        packets: list[av.Packet] = []
        # No frame is shown before it can be decoded; the second is for files that tell decoding times wrongly.
        stop = np.inf if self._span is None else self._span[1] + 1.0
        for packet in container.demux(stream):
            self._check_time()
            if packet.size:
                if packet.dts is not None and self._time(packet.dts) > stop:
                    return packets, False
                packets.append(packet)
        return packets, True

    def _starts_before_span(self) -> bool:
        """Whether the packets begin with what can be decoded by itself, before the span does."""
        assert self._span is not None
        if not self._packets or not self._packets[0].is_keyframe or self._is_open(0):
            return False
        first = self._packets[0].pts
        return first is not None and self._time(first) <= self._span[0] + _ROUNDING

    def _time(self, timestamp: int) -> float:
        """Seconds since the file's start."""
        return float(timestamp * self._time_base) - self._zero

    def _in_span(self, seconds: float) -> bool:
        return self._span is None or self._span[0] - _ROUNDING <= seconds < self._span[1] - _ROUNDING

    def _timestamps(self) -> list[int]:
        """Presentation timestamp of each packet; _Inexact where some have none, share one, or have no frame."""
        pts = [p.pts for p in self._packets if p.pts is not None]
        if not self._exact or len(set(pts)) < len(self._packets):
            raise _Inexact
        return pts

    def _order(self) -> list[int]:
        """Packet numbers in display order, without those that an edit list hides or that lie outside the span."""
        pts = self._timestamps()
        shown = (i for i, p in enumerate(self._packets) if not p.is_discard and self._in_span(self._time(pts[i])))
        return sorted(shown, key=pts.__getitem__)

    def _counted(self, count: int) -> int:
        if count or self._span is None:
            return count
        times = [self._time(p.pts) for p in self._packets if p.pts is not None]
        end = max([self._duration, *times])
        raise VideoError(f"no frame lies in the span {_seconds(self._span)}: the clip ends at {end:.2f} s")

    def count(self) -> int:
        """Frames that there are to choose from.

        Raises:
          VideoError: none lies in the span.
        """
        try:
            return self._counted(len(self._order()))
        except _Inexact:
            return self._count_by_decoding()

    def duration(self) -> float:
        """Seconds of the whole file as its header tells them, 0 where it does not."""
        return self._duration

    def estimate(self) -> int:
        """Bytes that all frames take, 4:2:0."""
        return len(self._packets) * self._context.width * self._context.height * 3 // 2

    # -- Frames --------------------------------------------------------------------------------------------------------

    def read(self, choose: Choose, again: Callable[[], None] = lambda: None) -> list[av.VideoFrame]:
        """Returns the frames that `choose(number of frames)` asks for, increasing.

        Args:
          choose: called a second time, after `again`, where the packets turn out not to name the frames.
        """
        self._start_clock()  # what filling a cache took is not held against the clip
        try:
            return self._select(choose(self._counted(len(self._order()))))
        except _Inexact:
            again()
            return self._select_by_full_decode(choose)

    def read_all(self) -> list[av.VideoFrame] | None:
        """Returns every frame; None where the packets do not name them.

        Raises:
          VideoError: one of them is damaged.
        """
        try:
            return self._select(range(self._counted(len(self._order()))))
        except _Inexact:
            return None

    def check_every_frame(self) -> None:
        """Decodes every frame and keeps none.

        Raises:
          VideoError: one of them is damaged.
        """
        self._start_clock()
        for frame in self._every_frame():
            _sound([frame])

    def _select(self, wanted: Sequence[int] | np.ndarray) -> list[av.VideoFrame]:
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

        def run(start: int, stop: int) -> None:
            self._context.flush_buffers()
            for i in range(start, stop + 1):
                self._check_time()
                if self._packets[i].is_corrupt:
                    raise VideoError("undecodable: damaged packet")
                self._context.skip_frame = "DEFAULT" if i in targets else "NONREF"
                try:
                    keep(self._context.decode(self._packets[i]))
                except av.InvalidDataError:
                    if i in targets or pts[i] >= pts[start]:
                        raise  # what is shown before an open group's key frame refers to the group before it
            keep(self._context.decode(None))

        with self._reasons():
            for start, stop in self._runs(targets, pts):
                try:
                    run(start, stop)
                except av.InvalidDataError:
                    # In H.264 an open group may order frames forgotten that only a decoder from before it has seen.
                    while start and self._is_open(start):
                        start = next(i for i in range(start - 1, -1, -1) if not i or self._packets[i].is_keyframe)
                    run(start, stop)
        if len(found) < len(targets):
            raise _Inexact
        return _sound([found[order[i]] for i in wanted])

    @contextlib.contextmanager
    def _reasons(self):
        try:
            with reasons("undecodable"):
                yield
        except VideoError as e:
            # libav does not tell this error from others.
            if isinstance(e.__cause__, av.ArgumentError) or (e.__cause__ and not self._context.width):
                raise VideoError(
                    f"{e}; damaged, or larger than config.input.max_pixels = {self._max_pixels}"
                ) from e.__cause__
            raise

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

    def _is_open(self, key: int) -> bool:
        """Whether frames are shown before the group's key frame that come after it, and refer to what is before it."""
        follow = itertools.takewhile(lambda p: not p.is_keyframe, self._packets[key + 1 :])
        first = self._packets[key].pts
        return first is None or any(p.pts is not None and p.pts < first for p in follow)

    def _select_by_full_decode(self, choose: Choose) -> list[av.VideoFrame]:
        """The slow, plain way, for streams whose packets do not tell their frames: count by decoding, then decode."""
        wanted = [int(i) for i in choose(self._count_by_decoding())]
        chosen = set(wanted)
        found = {}
        for i, frame in enumerate(self._every_frame()):
            if i in chosen:
                found[i] = frame
            if i == wanted[-1]:
                break
        return _sound([found[i] for i in wanted])

    def _count_by_decoding(self) -> int:
        count = self._counted(sum(1 for _ in self._every_frame()))
        if not count:
            raise VideoError("no frames")
        return count

    def _every_frame(self) -> Iterator[av.VideoFrame]:
        with self._reasons():
            self._context.flush_buffers()
            self._context.skip_frame = "DEFAULT"
            number = 0
            for packet in [*self._packets, None]:
                self._check_time()
                for frame in self._context.decode(packet):
                    if self._span is None or self._in_span(self._frame_time(frame, number)):
                        yield frame
                    number += 1

    def _frame_time(self, frame: av.VideoFrame, number: int) -> float:
        if self._timed and frame.pts is not None:
            return self._time(frame.pts)
        if not self._rate:
            raise VideoError("neither its frames nor its header tell the times that a span needs")
        return number / float(self._rate)


def _seconds(span: tuple[float, float]) -> str:
    return f"{span[0]:g} to {span[1]:g} s"


def _sound(frames: list[av.VideoFrame]) -> list[av.VideoFrame]:
    if any(f.is_corrupt for f in frames):
        raise VideoError("undecodable: damaged frame")
    return frames
