"""Clips and tokenizers small enough to make in a test."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import sentencepiece


def _make_clip(
    path=None,
    *,
    count=16,
    width=64,
    height=48,
    codec="libx264",
    container="mp4",
    options=None,
    gop=None,
    b_frames=None,
    durations=None,
    shift=0,
    muxer=None,
    seed=0,
    picture=None,
    title="",
):
    """Encodes `count` frames, each shown for `durations` ms (default 40); returns the bytes, or writes `path`.

    The frames show a moving texture, or all the RGB array `picture`.
    """
    rng = np.random.default_rng(seed)
    texture = np.kron(rng.integers(40, 216, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    target = io.BytesIO() if path is None else str(path)
    with av.open(target, "w", format=container, options=muxer or {}) as out:
        if title:
            out.metadata["title"] = title
        stream = out.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "libx264" and container != "avi":  # AVI would fill each millisecond with a frame
            stream.codec_context.time_base = Fraction(1, 1000)
        if gop:
            stream.gop_size = gop
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        packets, time = [], 0
        for i in range(count):
            moved = np.roll(texture, (i, 2 * i), (0, 1)) if picture is None else picture
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(moved))
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            time += 40 if durations is None else int(durations[i])
            packets += stream.encode(frame)
        for packet in packets + stream.encode():
            if shift:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            out.mux(packet)
    return target.getvalue() if path is None else None


@pytest.fixture(scope="session")
def make_clip():
    return _make_clip


def _make_model(texts, controls=("[CLS]", "[SEP]", "[MASK]"), **options):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        hard_vocab_limit=False,
        control_symbols=list(controls),
        normalization_rule_name="nmt_nfkc_cf",
        minloglevel=2,
        **{"vocab_size": 120, "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, **options},
    )
    return out.getvalue()


@pytest.fixture(scope="session")
def make_model():
    return _make_model


@pytest.fixture(scope="session")
def model():
    colours, moves = ("red", "green", "blue", "yellow"), ("moves left", "moves right", "spins", "grows")
    return _make_model(
        [f"a small {c} square {m}, then a large circle {n}" for c in colours for m in moves for n in moves]
    )
