"""moving_shapes in pixels: decoded clips show what their captions say, judged without the code that drew them."""

import io
import json

import av
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from data.moving_shapes import builder, render, scenes

HUES = {"red": 358, "orange": 30, "yellow": 56, "green": 130, "cyan": 183, "blue": 233, "purple": 285}


def read(caption):
    """Caption -> its events, each a dict with size, color, shape and motion."""
    events = []
    for part in caption.split(", then "):
        _, size, color, shape, motion = part.split(" ", 4)
        events.append({"size": size, "color": color, "shape": shape, "motion": motion})
    return events


def decode(video):
    with av.open(io.BytesIO(video), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def plan():
    return scenes.plan(builder.Settings().counts(), seed=0)


def masks(video, color):
    """bool [T, H, W]: the object of that color, up to where it is half as far from the background as inside."""
    rgb = video.astype(np.float64)
    high, low = rgb.max(-1), rgb.min(-1)
    chroma = np.maximum(high - low, 1)
    r, g, b = (rgb[..., i] for i in range(3))
    hue = np.select([high == r, high == g], [(g - b) / chroma % 6, (b - r) / chroma + 2], (r - g) / chroma + 4) * 60
    off = {name: np.abs((hue - h + 180) % 360 - 180) for name, h in HUES.items()}
    nearest = np.argmin(np.stack(list(off.values())), axis=0) == list(HUES).index(color)
    found = nearest & ((chroma > 32) | ((high < 115) & (chroma > 15)))
    out = np.zeros_like(found)
    for frame, mask in enumerate(found):
        blobs, count = scipy.ndimage.label(mask)
        assert count, f"nothing {color} in frame {frame}"
        blob = blobs == 1 + np.argmax(np.bincount(blobs.ravel())[1:])
        # yuv420p smears color over a pixel or two beyond the outline: cut there.
        strength = np.linalg.norm(rgb[frame] - np.median(rgb[frame], axis=(0, 1)), axis=-1)
        out[frame] = blob & (strength > 0.5 * np.percentile(strength[blob], 80))
    return out


def measure(video, mask):
    """Per frame: centre x, centre y, area (pixels), chroma, and brightness of the masked object."""
    rgb = video.astype(np.float64)
    out = []
    for frame, m in zip(rgb, mask):
        y, x = np.nonzero(m)
        pixels = frame[m]
        out.append((x.mean(), y.mean(), m.sum(), (pixels.max(1) - pixels.min(1)).mean(), pixels.max(1).mean()))
    return np.array(out)


def looks_like(video, mask):
    """The motion of the masked object between the first and the last frame, by thresholds on what was measured."""
    values = measure(video, mask)
    (x0, y0, area0, chroma0, bright0), (x1, y1, area1, chroma1, bright1) = values[0], values[-1]
    if max(abs(x1 - x0), abs(y1 - y0)) > 9:
        horizontal = abs(x1 - x0) > abs(y1 - y0)
        return ("moves right" if x1 > x0 else "moves left") if horizontal else ("moves down" if y1 > y0 else "moves up")
    if bright1 < 0.6 * bright0:
        return "darkens"
    if chroma1 < 0.65 * chroma0:
        return "fades"
    if area1 > 1.3 * area0:
        return "grows"
    if area1 < area0 / 1.3:
        return "shrinks"
    overlap = (mask[0] & mask[-1]).sum() / (mask[0] | mask[-1]).sum()
    return "spins" if overlap < 0.87 else "nothing"


@pytest.fixture(scope="module")
def clips():
    """Clips whose objects differ in color: scene, parsed caption, frames, color -> mask. Every motion occurs."""
    out = []
    for scene in scenes.plan({"train": 90, "test_compositional": 8}, seed=11):
        events = read(scene.caption)
        if len({e["color"] for e in events}) == len(events):
            video = decode(render.clip(scene)[0])
            out.append((scene, events, video, {e["color"]: masks(video, e["color"]) for e in events}))
    motions = {e["motion"] for _, events, _, _ in out for e in events}
    assert len(out) > 70 and len(motions) == 9
    return out


def test_clips_have_16_frames_of_64_pixels_at_8_frames_per_second(clips):
    assert all(video.shape == (16, 64, 64, 3) for _, _, video, _ in clips)
    with av.open(io.BytesIO(render.clip(clips[0][0])[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (8, 16)


def test_pixels_show_the_motion_that_the_caption_names(clips):
    for scene, events, video, objects in clips:
        for event in events:
            assert looks_like(video, objects[event["color"]]) == event["motion"], (scene.clip_id, scene.caption)


def test_first_event_is_over_before_the_second_begins(clips):
    early, late = slice(0, 8), slice(8, 16)
    for scene, events, video, objects in clips:
        if len(events) == 2:
            first, second = (objects[e["color"]] for e in events)
            assert looks_like(video[early], first[early]) == events[0]["motion"], scene.caption
            assert looks_like(video[early], second[early]) == "nothing", scene.caption
            assert looks_like(video[late], first[late]) == "nothing", scene.caption
            assert looks_like(video[late], second[late]) == events[1]["motion"], scene.caption


def test_any_frame_from_each_quarter_shows_half_of_every_change(plan):
    for scene in plan[:600]:
        for track in scenes.layout(scene):
            done = track.progress(16)
            assert done[0] == 0 and done[-1] == 1
            # The worst choice: the latest frame of the first quarter and the earliest of the last.
            assert done[3] <= 0.5 <= done[12] and done[12] - done[3] >= 0.5


def test_a_small_object_never_looks_large_nor_a_large_one_small(clips):
    for scene, events, _, objects in clips:
        for event in events:
            areas = objects[event["color"]].sum((1, 2))
            assert (areas < 160 if event["size"] == "small" else areas > 160).all(), (scene.caption, areas)


def test_backgrounds_are_still_and_differ_between_clips(clips):
    means = []
    for _, _, video, objects in clips[:20]:
        free = ~scipy.ndimage.binary_dilation(np.any([mask.any(0) for mask in objects.values()], axis=0), iterations=3)
        still = np.abs(video[-1].astype(int) - video[0])[free]
        assert np.median(still) <= 1
        means.append(video[0][free].mean(0).round(3).tolist())
    assert len({tuple(m) for m in means}) == len(means)


def test_objects_stay_inside_the_frame_and_apart():
    plan = scenes.plan({"train": 400}, seed=2)
    for scene in plan:
        tracks = scenes.layout(scene)
        circles = []
        for event, track in zip(scene.events, tracks):
            done = track.progress(16)[:, None]
            centre = np.array(track.position) + done * (np.array(track.position_end) - track.position)
            reach = scenes.SHAPES[event.shape][0] * (track.radius + done * (track.radius_end - track.radius))
            assert (centre - reach >= 0).all() and (centre + reach <= 64).all(), scene.caption
            circles.append((centre, reach[:, 0]))
        if len(circles) == 2:
            (a, reach_a), (b, reach_b) = circles
            assert (np.linalg.norm(a - b, axis=1) > reach_a + reach_b).all(), scene.caption


def corners(shape, reach, angle):
    """Vertices of the outline [n, 2] (x right, y down), a flat-topped square, else a tip up, then turned."""
    if shape == "cross":
        a = reach / np.hypot(1, 0.36)
        w = 0.36 * a
        quarter = np.array([(w, -a), (w, -w), (a, -w)])
        points = np.concatenate([quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))])
    else:
        turns = {"square": 4, "triangle": 3, "star": 10}[shape]
        theta = np.arange(turns) * 2 * np.pi / turns - (np.pi / 4 if shape == "square" else np.pi / 2)
        radius = np.where(np.arange(turns) % 2, 0.5, 1.0) * reach if shape == "star" else reach
        points = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1)
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(["square", "triangle", "star", "cross"]),
    radius=st.floats(3, 15),
    angle=st.floats(-4, 4),
    seed=st.integers(0, 1000),
)
def test_signed_distance_is_negative_exactly_inside_the_outline(shape, radius, angle, seed):
    points = np.random.default_rng(seed).uniform(-20, 20, (300, 2))
    polygon = corners(shape, scenes.SHAPES[shape][0] * radius, angle)
    after = np.roll(polygon, -1, axis=0)
    # Even-odd rule, and the distance to every edge to leave out points that are on the outline.
    px, py = points[:, None, 0], points[:, None, 1]
    (x0, y0), (x1, y1) = polygon.T, after.T
    with np.errstate(divide="ignore", invalid="ignore"):
        crosses = ((y0 > py) != (y1 > py)) & (px < (x1 - x0) * (py - y0) / (y1 - y0) + x0)
    inside = crosses.sum(1) % 2 == 1
    along = np.clip(((px - x0) * (x1 - x0) + (py - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
    near = np.hypot(px - x0 - along * (x1 - x0), py - y0 - along * (y1 - y0)).min(1) < 1e-6
    distance = render.signed_distance(shape, points[:, 0], points[:, 1], np.array(radius), np.array(angle))
    assert ((distance < 0) == inside)[~near].all()


def test_attributes_say_where_and_when(clips):
    for scene, events, _, objects in clips[:30]:
        attributes = json.loads(render.clip(scene)[1])
        assert attributes["held_out_pairing"] == (scene.split == "test_compositional")
        assert [{k: e[k] for k in ("size", "color", "shape", "motion")} for e in attributes["events"]] == events
        for event, told in zip(events, attributes["events"]):
            mask = objects[event["color"]]
            for frame, box in ((0, told["box_before"]), (15, told["box_after"])):
                x0, y0, x1, y1 = box
                y, x = np.nonzero(mask[frame])
                assert x0 - 2 <= x.min() and x.max() + 1 <= x1 + 2 and y0 - 2 <= y.min() and y.max() + 1 <= y1 + 2
            assert 0 < told["start_frame"] < told["end_frame"] <= 15
