"""The windows of a long video, and one's frames."""

import math
import time

import av
import numpy as np

from vlp_jax.input import decoder, video
from vlp_jax.input.container import OutOfTime, open_container, reasons, video_stream

Span = tuple[float, float]

_SLACK = 0.05  # of a window: no video of 10.02 s becomes two windows of 10 s


def end_of(path: str, timeout_s: float, max_pixels: int = decoder.MAX_PIXELS) -> float:
    """Seconds from a file's start to the end of its last frame, 0 where its packets have no times.

    Of the packets, not of the header, which may be wrong, or tell the end of the sound. Only those after a jump towards
    the end are read, where the file has an index.

    Raises:
      VideoError: not a readable video.
    """
    deadline = time.monotonic() + timeout_s

    def last(jump: bool) -> float | None:
        with open_container(path, {"max_pixels": str(max_pixels)}, timeout_s) as container:
            stream = video_stream(container)
            zero, length = (container.start_time or 0) / av.time_base, max(container.duration or 0, 0) / av.time_base
            frame = float(1 / stream.average_rate) if stream.average_rate else 0.0
            if jump:
                try:
                    container.seek(round((zero + length) / stream.time_base), stream=stream, backward=True)
                except av.FFmpegError:
                    return None
            ends = []
            for packet in container.demux(stream):
                if time.monotonic() > deadline:
                    raise OutOfTime(f"its end was not found within the time limit of {timeout_s:g} s")
                if packet.size and packet.pts is not None:
                    own = float(packet.duration * stream.time_base) if packet.duration else frame
                    ends.append(float(packet.pts * stream.time_base) + own - zero)
            return max(ends, default=None)

    with reasons("not a readable video"):
        end = last(jump=True)
        if end is None:  # it has no index: every packet is read
            end = last(jump=False)
    return max(0.0, end or 0.0)


def spans(end: float, window: float, stride: float) -> list[Span]:
    """Cuts `[0, end]` into windows; the last one ends at the end, and nothing is left out where `stride <= window`.

    Args:
      end: seconds of the video.
      window: seconds of a window; the last one, or the only one, may be a twentieth longer. 0 for the whole video.
      stride: seconds from one window's start to the next one's, above 0.

    Returns:
      `(start, end)` of each, seconds, in their order.
    """
    starts = [0.0]
    while window and starts[-1] + (1 + _SLACK) * window < end:
        starts.append(min(starts[-1] + stride, end - window))
    return [*((start, start + window) for start in starts[:-1]), (starts[-1], end)]


def around(seconds: float, end: float, window: float) -> Span:
    """The window with `seconds` in its middle, moved where it would leave `[0, end]`."""
    if not window or window >= end:
        return 0.0, end
    start = min(max(0.0, seconds - window / 2), end - window)
    return start, start + window


def tube(path: str, span: Span, end: float, *, frames: int, size: int, timeout_s: float, max_pixels: int) -> np.ndarray:
    """Decodes the frames of a window, `[T, size, size, 3]`, as `video.decode` does at evaluation.

    Args:
      end: of the video; a window that reaches from 0 to it is the whole file, and one that reaches it has the last
        frame, too.

    Raises:
      VideoError: as `video.decode`.
    """
    start, stop = span
    whole = start == 0 and stop >= end
    return video.decode(
        path,
        frames=frames,
        size=size,
        span=None if whole else (start, stop + 1.0 if stop >= end else stop),
        timeout_s=timeout_s,
        max_pixels=max_pixels,
    )


def seconds_of(text: str) -> float | None:
    """The inverse of `text.duration`, which takes plain seconds as well; None where the text is neither."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        return None
    if len(parts) > 3 or any(not 0 <= part < math.inf for part in parts):
        return None
    return sum(part * 60**place for place, part in enumerate(reversed(parts)))
