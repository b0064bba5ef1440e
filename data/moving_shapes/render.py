"""Draws a scene and encodes it as H.264 in mp4."""

import io
import json
import math

import av
import numpy as np

from data.moving_shapes import scenes
from data.moving_shapes.scenes import FORMAT, Event, Scene, Track

_STAR_NOTCH = 0.5  # radius of the star's notches over that of its tips
_CROSS_ARM = 0.36  # half width of the cross's arms over their length


def clip(scene: Scene) -> tuple[bytes, str]:
    """Returns the clip as mp4 bytes and its attributes as JSON; a pure function of the scene."""
    tracks = scenes.layout(scene)
    frames = draw(scene.events, tracks, background(scene.rng(1)))
    return encode(frames), json.dumps(scenes.attributes(scene, tracks), sort_keys=True)


def background(rng: np.random.Generator) -> np.ndarray:
    """Returns float32 `[H, W, 3]`, a light grey with a faint tint and low-contrast blotches; the same for all frames.

    Between 130 and 215 in value, so that an object that darkens and one that fades end up on different sides.
    """
    cells = 7
    x = (np.arange(FORMAT.size) + 0.5) / FORMAT.size * (cells - 1)
    weights = np.maximum(0, 1 - np.abs(x[:, None] - np.arange(cells)))  # bilinear interpolation as a matrix
    blotches = weights @ rng.uniform(-14, 14, (cells, cells)) @ weights.T
    grain = rng.uniform(-4, 4, (FORMAT.size, FORMAT.size))
    color = rng.uniform(155, 190) + rng.uniform(-5, 5, 3)
    return (color + (blotches + grain)[:, :, None]).astype(np.float32)


def draw(events: tuple[Event, ...], tracks: tuple[Track, ...], backdrop: np.ndarray) -> np.ndarray:
    """Returns uint8 `[T, H, W, 3]`, RGB: the objects over `backdrop` (float `[H, W, 3]`), anti-aliased.

    Only the box that an object sweeps is drawn, and each distinct state of it once.
    """
    video = np.repeat(backdrop[None], FORMAT.frames, axis=0)
    for event, track in zip(events, tracks):
        done, frame_state = np.unique(track.progress(FORMAT.frames), return_inverse=True)

        def between(before, after, done=done):
            return (before + done * (after - before))[:, None, None]

        x, y = (between(track.position[i], track.position_end[i]) for i in (0, 1))
        radius = between(track.radius, track.radius_end)
        reach = scenes.SHAPES[event.shape][0] * radius + 1
        x0, x1 = _pixels((x - reach).min(), (x + reach).max())
        y0, y1 = _pixels((y - reach).min(), (y + reach).max())
        u = np.arange(x0, x1)[None, None, :] + 0.5 - x
        v = np.arange(y0, y1)[None, :, None] + 0.5 - y
        distance = signed_distance(event.shape, u, v, radius, between(track.angle, track.angle_end))
        alpha = np.clip(0.5 - distance, 0, 1) * between(1.0, track.opacity_end)
        color = np.array(scenes.COLORS[event.color]) * between(1.0, track.brightness_end)[..., 0]
        alpha = alpha[frame_state, :, :, None].astype(np.float32)
        color = color[frame_state, None, None, :].astype(np.float32)
        box = video[:, y0:y1, x0:x1]
        box += alpha * (color - box)
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def _pixels(low, high):
    return max(0, math.floor(low)), min(FORMAT.size, math.ceil(high))


def signed_distance(shape: str, u: np.ndarray, v: np.ndarray, radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Distance to the outline, pixels, negative inside; exact along the edges, rounded at corners.

    Args:
      shape: a key of SHAPES.
      u: offset to the right of the centre, pixels.
      v: offset below the centre, pixels; broadcasts with `u`, `radius` and `angle`.
      radius: the object's radius, pixels.
      angle: clockwise rotation, radians.
    """
    reach = scenes.SHAPES[shape][0] * radius
    if shape == "circle":
        return np.hypot(u, v) - reach
    if shape == "cross":
        cos, sin = np.cos(angle), np.sin(angle)
        p, q = np.abs(u * cos + v * sin), np.abs(v * cos - u * sin)
        arm = reach / math.hypot(1, _CROSS_ARM)
        return np.maximum(np.maximum(p, q) - arm, np.minimum(p, q) - _CROSS_ARM * arm)
    # A regular polygon or star is one edge repeated by rotation and reflection: fold the plane onto the half sector
    # between a tip (at angle 0) and the next notch, and measure the distance to the line through both.
    tips, notch = {"square": (4, math.cos(math.pi / 4)), "triangle": (3, 0.5), "star": (5, _STAR_NOTCH)}[shape]
    half = math.pi / tips
    first_tip = -math.pi / 4 if shape == "square" else -math.pi / 2  # a flat top, or a tip pointing up
    turn = np.arctan2(v, u) - angle - first_tip
    folded = np.abs((turn + half) % (2 * half) - half)
    length = np.hypot(u, v)
    edge = (notch * math.cos(half) - 1, notch * math.sin(half))  # from the tip to the notch, over the reach
    norm = math.hypot(*edge)
    return ((length * np.cos(folded) - reach) * edge[1] - length * np.sin(folded) * edge[0]) / norm


def encode(frames: np.ndarray) -> bytes:
    """Encodes uint8 `[T, H, W, 3]` RGB frames as H.264 yuv420p in an mp4 of one group of pictures; deterministic."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FORMAT.fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread: the parallelism is over clips. No B-frames: on frames this small x264's look-ahead for them reads
        # memory that it has not written, and one clip in eight came out differently from run to run.
        stream.options = {"crf": str(FORMAT.crf), "preset": FORMAT.preset, "threads": "1", "bf": "0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
