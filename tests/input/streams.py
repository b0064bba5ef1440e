"""Kinds of streams that decoding must get exactly right, and the plain decoding it is compared with."""

import io

import av
import numpy as np
from av.video.reformatter import Interpolation


def full_decode(data, size):
    """Every frame, squashed, by the plainest use of PyAV."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        how = {"width": size, "height": size, "format": "rgb24", "threads": 1}
        how["interpolation"] = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT
        return np.stack([f.reformat(**how).to_ndarray() for f in container.decode(stream)])


X264 = "bframes=3:b-adapt=0:ref=4:keyint=12:min-keyint=12:scenecut=0:b-pyramid=normal"
STREAMS = {
    "one group": {},
    "b-frames": {"options": {"x264-params": X264}},
    "open groups": {"options": {"x264-params": X264 + ":open-gop=1"}},
    "open groups, one reference": {
        "options": {"x264-params": "bframes=5:b-adapt=0:ref=1:keyint=10:open-gop=1:scenecut=0"}
    },
    "intra refresh": {"options": {"x264-params": "intra-refresh=1:keyint=10"}},
    "variable frame rate": {
        "options": {"x264-params": X264},
        "durations": np.random.default_rng(0).integers(5, 200, 48),
    },
    "edit list that starts inside a group": {
        "options": {"x264-params": X264},
        "shift": 700,
        "muxer": {"avoid_negative_ts": "disabled"},
    },
    "fragmented mp4": {"options": {"x264-params": X264}, "muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "matroska": {"options": {"x264-params": X264}, "container": "matroska"},
    "transport stream": {"options": {"x264-params": X264}, "container": "mpegts"},
    "avi without presentation times": {"options": {"x264-params": X264}, "container": "avi"},
    "mpeg4": {"codec": "mpeg4", "gop": 12},
    "mpeg4 with b-frames": {"codec": "mpeg4", "gop": 12, "b_frames": 2},
    "mpeg2 with b-frames": {"codec": "mpeg2video", "gop": 12, "b_frames": 2, "container": "mpeg"},
    "vp9": {
        "codec": "libvpx-vp9",
        "container": "webm",
        "gop": 20,
        "options": {"deadline": "realtime", "cpu-used": "8"},
    },
    "vp9 with hidden frames": {
        "codec": "libvpx-vp9",
        "container": "webm",
        "gop": 20,
        "options": {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"},
    },
}
