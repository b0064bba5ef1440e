"""Videos and pictures whose pixels tell which frame and which corner they are."""

import io
import json
from fractions import Fraction

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds


def picture(number, width, height):
    """RGB: red grows along x, green along y, blue is 12 times the frame's number."""
    x, y = np.meshgrid(np.arange(width) * 200 // width, np.arange(height) * 200 // height)
    return np.stack([x + 20, y + 20, np.full_like(x, 12 * number % 256)], -1).astype(np.uint8)


@pytest.fixture(scope="session")
def make_video():
    """Encodes `count` frames of `picture`; returns the bytes, and writes them to `path` if given."""

    def make(path=None, *, count=4, fps=8, width=64, height=48, codec="libx264", container="mp4", pixels="yuv420p"):
        target = io.BytesIO()
        with av.open(target, "w", format=container) as out:
            stream = out.add_stream(codec, rate=fps, options={"qp": "2"} if codec == "libx264" else {})
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            for i in range(count):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i, width, height))))
            out.mux(stream.encode(None))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(target.getvalue())
        return target.getvalue()

    return make


@pytest.fixture(scope="session")
def make_image():
    """Encodes one `picture` as JPEG or PNG; returns the bytes, and writes them to `path` if given."""

    def make(path=None, *, width=64, height=48, codec="mjpeg"):
        encoder = av.CodecContext.create(codec, "w")
        encoder.width, encoder.height, encoder.time_base = width, height, Fraction(1, 25)
        encoder.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}[codec]
        frame = av.VideoFrame.from_ndarray(picture(0, width, height)).reformat(format=encoder.pix_fmt)
        data = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return data

    return make


@pytest.fixture(scope="session")
def read_records():
    """Returns the records of a split: video, caption and clip_id as written."""

    def read(path, split):
        rows = list(tfds.builder_from_directory(path).as_data_source(split))
        return [{"video": r["video"], "caption": r["caption"].decode(), "clip_id": r["clip_id"].decode()} for r in rows]

    return read


@pytest.fixture(scope="session")
def read_lines():
    return lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
