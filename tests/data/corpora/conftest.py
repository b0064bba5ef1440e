"""Videos of a few frames, and folders of them under the names that a data set gives them."""

import functools
import io
import json
import pathlib

import av
import numpy as np
import pytest

_CODECS = {
    "mp4": ("mp4", "libx264", "yuv420p"),
    "webm": ("webm", "libvpx", "yuv420p"),
    "avi": ("avi", "mpeg4", "yuv420p"),
    "gif": ("gif", "gif", "rgb8"),
}


@functools.cache
def _video(extension, brightness=0):
    container, codec, pixels = _CODECS[extension]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 24, pixels
        for i in range(6):
            frame = np.full((24, 32, 3), (brightness + 20 * i) % 256, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame).reformat(format=pixels)))
        out.mux(stream.encode())
    return file.getvalue()


def _put_videos(folder, names):
    for number, name in enumerate(names):
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        extension = path.suffix.lower().lstrip(".")
        path.write_bytes(_video(extension if extension in _CODECS else "mp4", number % 8))


@pytest.fixture(scope="session")
def put_videos():
    """put_videos(folder, names) writes a video of 6 frames, 32 x 24, under each name, folders included."""
    return _put_videos


def _put(path, content):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="session")
def put():
    """put(path, content) writes a text, or anything else as JSON."""
    return _put


def _put_table(path, rows, end="\n"):
    _put(path, "".join("\t".join(map(str, row)) + end for row in rows))


@pytest.fixture(scope="session")
def put_table():
    """put_table(path, rows, end) writes tab-separated lines."""
    return _put_table
