"""Makes clips small and cheap to decode, once: fewer frames, fewer pixels, a key frame every few of them."""

import fractions
import io
import time
from collections.abc import Iterator

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from vlp_jax.input import video as reading
from vlp_jax.input.container import VideoError, open_container, reasons, video_stream
from vlp_jax.input.decoder import MAX_PIXELS

# At 2 fps every frame is one: neighbours have little in common by then, and training asks for a few frames of a clip.
KEYFRAME_S = 0.5  # seconds from one key frame to the next
# x264's default quality, without the coding tools that cost decoders most (CABAC, deblocking). And without lookahead:
# its macroblock tree gains little between key frames so near, and gave other bytes once in some hundred encodings.
_VIDEO_OPTIONS = {"preset": "medium", "crf": "23", "tune": "fastdecode", "x264-params": "rc-lookahead=0"}
_JPEG_QUANTIZER = 3  # of 2 (best) to 31
# Averages what it drops (no flicker), and gives each pixel its own colour.
_INTERPOLATION = Interpolation.AREA | Interpolation.FULL_CHR_H_INT
_TIME_LIMIT_S = 3600.0  # for one file; films of hours take minutes

_OPTIONS = {"max_pixels": str(MAX_PIXELS)}

# Images come through libav as videos in one of these containers.
_IMAGE_FORMATS = ("image2", "jpeg_pipe", "png_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe")


class ReencodeError(Exception):
    """A file that cannot be re-encoded; `str(error)` is the reason, in one line."""


def reencode(video: bytes | str, *, short_side: int = 0, fps: float = 0.0) -> bytes:
    """Re-encodes a video as H.264 in MP4, or an image as JPEG.

    Videos keep, of each interval of `1 / fps` seconds, the first frame, with its time since the file's start: spans in
    seconds keep their place, but one of S seconds holds about S * fps frames, which may be fewer than a model asks. No
    frame is repeated, so a video slower than `fps` keeps all. There is a key frame every half second, no frame refers
    to later ones, and there is no sound. An image that is small enough already stays as it is. Rotations are applied.

    Args:
      video: the file's bytes, or its path.
      short_side: pixels of the shorter side of the result, which keeps the aspect ratio in even numbers (videos);
        smaller pictures are not enlarged; 0 keeps the size.
      fps: most frames a second, 0 for all.

    Returns:
      The new file's bytes; the same input gives the same bytes (with the same PyAV on the same kind of machine).

    Raises:
      ReencodeError: the file is damaged, truncated, no video or image, or has frames without order.
    """
    try:
        # Training's own checks first: what they refuse must arrive there as it is, not as half a video made whole.
        reading.decode(video, frames=1, size=16, timeout_s=_TIME_LIMIT_S)
        with reasons("undecodable"), open_container(video, _OPTIONS, _TIME_LIMIT_S) as container:
            if container.format.name in _IMAGE_FORMATS:
                return _image(container, short_side) or _bytes(video)
            return _video(container, short_side, fps)
    except VideoError as e:
        raise ReencodeError(str(e)) from e
    except OSError as e:
        raise ReencodeError(e.strerror or type(e).__name__) from e


def _bytes(video: bytes | str) -> bytes:
    if isinstance(video, str):
        with open(video, "rb") as file:
            return file.read()
    return video


def _size(frame: av.VideoFrame, short_side: int, multiple: int) -> tuple[int, int]:
    """Returns the width and height that `frame` gets, before any rotation."""
    shorter = min(frame.width, frame.height)
    scale = fractions.Fraction(min(short_side, shorter) if short_side else shorter, shorter)

    def fit(side: int) -> int:
        return max(multiple, round(side * scale / multiple) * multiple)

    return fit(frame.width), fit(frame.height)


def _upright_rgb(frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
    scaled = frame.reformat(width=width, height=height, format="rgb24", interpolation=_INTERPOLATION)
    upright = np.rot90(scaled.to_ndarray(), round(frame.rotation / 90) % 4)  # counterclockwise
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(upright, np.uint8), format="rgb24")


def _image(container, short_side: int) -> bytes | None:
    """Returns a JPEG file, None where the image is small enough."""
    frame = next(container.decode(video=0), None)
    if frame is None:
        raise ReencodeError("no picture")
    if not short_side or min(frame.width, frame.height) <= short_side:
        return None
    picture = _upright_rgb(frame, *_size(frame, short_side, 1))
    picture = picture.reformat(format="yuvj420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG)
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuvj420p"
    encoder.time_base = fractions.Fraction(1, 25)
    encoder.qmin = encoder.qmax = _JPEG_QUANTIZER
    picture.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])


def _video(container, short_side: int, fps: float) -> bytes:
    stream = video_stream(container)
    stream.codec_context.thread_type = "NONE"  # clips are the parallelism
    # Where data is damaged, an error rather than a guess, which would pass for a sound picture afterwards.
    stream.codec_context.options = {**_OPTIONS, "err_detect": "explode"}
    target = io.BytesIO()
    encoder = None
    with av.open(target, "w", format="mp4") as out:
        for frame, pts in _chosen(container, stream, fps):
            width, height = _size(frame, short_side, 2)
            if round(frame.rotation / 90) % 4:
                picture = _upright_rgb(frame, width, height).reformat(format="yuv420p")
            else:
                # Straight from YUV to YUV: the numbers keep their meaning, which the tags below carry on.
                picture = frame.reformat(width=width, height=height, format="yuv420p", interpolation=_INTERPOLATION)
            if encoder is None:
                rate = min(stream.average_rate or 25, fractions.Fraction(fps or 1000).limit_denominator(1000))
                encoder = out.add_stream("libx264", rate=rate, options=_VIDEO_OPTIONS)
                encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuv420p"
                context = encoder.codec_context
                context.time_base, context.max_b_frames = stream.time_base, 0
                context.gop_size = max(1, int(rate * KEYFRAME_S))
                context.thread_count = 1
                context.colorspace, context.color_range = picture.colorspace, picture.color_range
            elif (picture.width, picture.height) != (encoder.width, encoder.height):
                raise ReencodeError(
                    f"the picture's size changes from {encoder.width} x {encoder.height} "
                    f"to {picture.width} x {picture.height}"
                )
            picture.pts, picture.time_base, picture.pict_type = pts, stream.time_base, PictureType.NONE
            out.mux(encoder.encode(picture))
        if encoder is None:
            raise ReencodeError("no frames")
        out.mux(encoder.encode(None))
    return target.getvalue()


def _chosen(container, stream, fps: float) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yields the first frame of each interval of 1 / fps seconds, and its time in units of the stream's time base."""
    deadline = time.monotonic() + _TIME_LIMIT_S
    # AVI stores no presentation times; with reordered frames those that libav makes up are wrong.
    timed = container.format.name != "avi"
    start = round(fractions.Fraction(container.start_time or 0, av.time_base) / stream.time_base)
    last: int | None = None
    interval = -1
    for number, frame in enumerate(container.decode(stream)):
        if time.monotonic() > deadline:
            raise ReencodeError(f"not decoded within the time limit of {_TIME_LIMIT_S:g} s")
        if frame.is_corrupt:
            raise ReencodeError("undecodable: damaged frame")
        pts = frame.pts - start if timed and frame.pts is not None else None
        if pts is None:
            if not stream.average_rate:
                raise ReencodeError("neither its frames nor its header tell their times")
            pts = round(number / (stream.average_rate * stream.time_base))
        if last is None:
            pts = 0  # sound may begin before the pictures do; the first is shown until the second
        elif pts <= last:
            raise ReencodeError(f"frame {number} is shown no later than the one before it")
        last = pts
        now = int(pts * stream.time_base * fractions.Fraction(fps)) if fps else number
        if now != interval:
            interval = now
            yield frame, pts
