"""Opening what libav reads: the container of a clip or an image, its video stream, and whether it is all there."""

import contextlib
import io
import itertools
import os
import pathlib
import stat
from typing import Any

import av

# libav prints every oddity of every clip to stderr; what matters is raised here and written to the ledger.
av.logging.set_level(av.logging.PANIC)

# Ends of the names of files that are looked for in folders.
VIDEOS = ".mp4 .webm .mkv .avi .mov .m4v .mpg .mpeg .ts .flv .3gp .gif".split()
IMAGES = ".jpg .jpeg .png .webp .bmp .tif .tiff".split()

# What names other files: HLS, concat, DASH and other XML, SDP.
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"v=0")
_PATTERN = set("%*?[]{}")  # characters that make a name a pattern of many pictures' names, to libav

# Damaged metadata text is no reason to lose a clip; from version 19 on PyAV does not decode it strictly anyway.
_LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class VideoError(Exception):
    """A clip that cannot be used; `str(error)` is the reason, fit for one line of the ledger."""


class OutOfTime(VideoError):
    """A clip that took too long, which may be the machine's doing."""


@contextlib.contextmanager
def reasons(what: str):
    """Turns libav's errors into VideoError."""
    try:
        yield
    except av.FFmpegError as e:
        raise VideoError(f"{what}: {e.strerror or type(e).__name__}") from e
    except IndexError as e:
        # PyAV's own, where a damaged header makes streams appear or vanish while the container is read.
        raise VideoError(f"{what}: inconsistent streams") from e


def open_container(video: bytes | str, options: dict[str, str], timeout_s: float):
    """Opens a file's bytes, or its path, for reading.

    Args:
      options: for libav.
      timeout_s: after which libav gives up a read, seconds.

    Raises:
      VideoError: missing, empty, or no regular file.
      av.FFmpegError: not readable.
    """
    if isinstance(video, str):
        video = os.path.abspath(video)  # libav takes what stands before a colon for a protocol
        try:
            info = os.stat(video)
            if stat.S_ISREG(info.st_mode) and not _PATTERN.isdisjoint(video):
                video = pathlib.Path(video).read_bytes()
        except OSError as e:
            raise VideoError(f"file not readable: {e.strerror}") from e
        except ValueError as e:
            raise VideoError(f"no path of a file: {e}") from e
        if not stat.S_ISREG(info.st_mode):
            raise VideoError("not a regular file")
        length = info.st_size
    else:
        length = len(video)
    if not length:
        raise VideoError("empty: 0 bytes")
    # Clips are data: one must not make libav open other files or addresses.
    if _start_of(video).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_PLAYLISTS):
        raise VideoError("a playlist, not a video")
    source = video if isinstance(video, str) else io.BytesIO(video)
    return av.open(source, options={"protocol_whitelist": "file", **options}, timeout=timeout_s, **_LENIENT)


def _start_of(video: bytes | str) -> bytes:
    if isinstance(video, bytes):
        return video[:64]
    try:
        with open(video, "rb") as file:
            return file.read(64)
    except OSError as e:
        raise VideoError(f"file not readable: {e.strerror}") from e


def video_stream(container):
    """Returns the first stream of moving pictures; VideoError where there is none that can be decoded."""
    # Cover art of an audio file is no clip.
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = sorted({s.type for s in container.streams})
        raise VideoError(f"no video stream{' (only ' + ', '.join(kinds) + ')' if kinds else ''}")
    if streams[0].codec_context is None:
        raise VideoError("no decoder for its codec")
    return streams[0]


def check_whole(container, stream, packets, *, at_end: bool, from_start: bool, video: bytes | str) -> None:
    """Raises VideoError where the file declares, in the way of its format, more than there is.

    Args:
      packets: of `stream`, not empty.
      at_end: whether the file ends with them; from_start: whether it begins with them.
      video: the file's bytes, or its path.
    """
    name = container.format.name
    if "mp4" in name and len(stream.index_entries):
        declared = len(stream.index_entries)
        if from_start and at_end and len(packets) < declared:
            raise VideoError(f"truncated: {len(packets)} of {declared} frames are there")
        if at_end and packets[-1].dts is not None and packets[-1].dts < stream.index_entries[-1].timestamp:
            raise VideoError("truncated: the index lists frames beyond the last one")
    elif name in ("jpeg_pipe", "image2") and stream.codec_context.name == "mjpeg":
        # Inside a scan no 0xff is followed by 0xda or 0xd9; libav makes up an end where a progressive file lacks it.
        data = bytes(packets[-1])
        if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
            raise VideoError("truncated: a JPEG without its end marker")
    elif name == "gif" and not _tail(video, 1024).rstrip(b"\0").endswith(b"\x3b"):
        raise VideoError("truncated: a GIF without its trailer")
    times = sorted(p.pts for p in packets if p.pts is not None)
    if not at_end or not times:
        return
    end = _declared_end(container, stream)
    largest = max((after - before for before, after in itertools.pairwise(times)), default=0)
    # The last frame's own duration is not always stored, hence the slack.
    if largest and float((times[-1] + 2 * largest) * stream.time_base) < end:
        raise VideoError(f"truncated: ends at {float(times[-1] * stream.time_base):.2f} of {end:.2f} s")


def _declared_end(container, stream) -> float:
    """End of the track in seconds as Matroska and WebM files tag it and AVI files count it; 0 for others."""
    if container.format.name == "avi" and stream.duration:
        return float(stream.duration * stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _tail(video: bytes | str, size: int) -> bytes:
    if isinstance(video, bytes):
        return video[-size:]
    with open(video, "rb") as f:
        f.seek(max(0, os.path.getsize(video) - size))
        return f.read()
