"""What happens in each clip: the words, which captions belong to which split, and where and when objects move.

Units: pixels with the origin at the top left corner and y pointing down; time in frames. Everything is a pure function
of (seed, split, index), so a clip is the same whichever process makes it.
"""

import dataclasses
import itertools
import math

import numpy as np

from vlp_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class VideoFormat:
    """Frame size (pixels, square), number of frames, frames per second, and x264's quality and speed settings."""

    size: int = 64
    frames: int = 16
    fps: int = 8
    crf: int = 20  # low enough that a colour survives yuv420p on an object 9 px wide
    preset: str = "veryfast"


FORMAT = VideoFormat()

SIZES = ("small", "large")
COLORS = {  # RGB; far apart in hue and all far from the grey background
    "red": (215, 25, 30),
    "orange": (250, 130, 10),
    "yellow": (245, 230, 30),
    "green": (25, 150, 45),
    "cyan": (30, 215, 225),
    "blue": (35, 55, 215),
    "purple": (150, 30, 190),
}
# Shape -> (distance from the centre to the farthest corner over the object's radius, rotational period in degrees).
# The reach makes the shapes of one radius look about equally large (areas of 2.2 to 3.1 radius^2).
SHAPES = {
    "circle": (1.0, 0.0),
    "square": (1.15, 90.0),
    "triangle": (1.3, 120.0),
    "star": (1.3, 72.0),
    "cross": (1.15, 90.0),
}
# Each motion leaves the object in another state for the rest of the clip, so that frames before and after tell it apart
# even where no sampled frame falls inside it. A motion that restores the first state (a blink, a bounce) is left out
# because a clip sampled at 4 frames can miss it altogether. A spin is 1.5 periods of the shape: its last orientation
# is as different from the first as the shape allows.
MOTIONS = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "grows",
    "shrinks",
    "spins",
    "fades",
    "darkens",
)
DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}

# Pairings of color and shape that only `test_compositional` shows. No color and no shape occurs twice, so each is
# seen in training with all but one of its partners.
HELD_OUT_PAIRINGS = frozenset({("red", "triangle"), ("yellow", "circle"), ("green", "cross"), ("blue", "star")})

SPLITS = ("train", "validation", "test", "test_compositional")
ONE_EVENT_SHARE = 0.3

# Radii, pixels. A size names a band that the object never leaves: a small object that has grown (at most 7) is still
# smaller than a large one that has shrunk (at least 9), by area too, whatever their shapes.
_RADII = {"small": (4.0, 7.0), "large": (9.0, 12.5)}
_STILL_RADII = {"small": (4.8, 6.0), "large": (9.5, 11.0)}
_DISTANCE = (13.0, 20.0)  # how far a moving object travels, pixels
_TILT = math.radians(6)  # largest initial rotation: a square stays a square and does not become a diamond
_GAP = 0.5  # smallest distance between two objects at any time, and to the border, pixels


@dataclasses.dataclass(frozen=True)
class Event:
    """One object and what it does, in words."""

    size: str
    color: str
    shape: str
    motion: str

    @property
    def possible(self) -> bool:
        """False for a circle that spins: nobody could see it."""
        return not (self.shape == "circle" and self.motion == "spins")

    @property
    def held_out(self) -> bool:
        return (self.color, self.shape) in HELD_OUT_PAIRINGS

    def __str__(self) -> str:
        return f"a {self.size} {self.color} {self.shape} {self.motion}"


@dataclasses.dataclass(frozen=True)
class Track:
    """Where and when one object acts: at rest up to frame `start`, in its last state from frame `end` on.

    Positions are those of the centre, pixels; angles radians, clockwise on the screen; `opacity` and `brightness`
    are the last values (both start at 1).
    """

    start: int
    end: int
    position: tuple[float, float]
    position_end: tuple[float, float]
    radius: float
    radius_end: float
    angle: float
    angle_end: float
    opacity_end: float = 1.0
    brightness_end: float = 1.0

    def progress(self, frames: int) -> np.ndarray:
        """Returns float64 `[frames]`, the share of the change that is done in each frame, 0 to 1."""
        return np.clip((np.arange(frames) - self.start) / (self.end - self.start), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A clip before it is drawn: its identity and its one or two events in the order they happen."""

    split: str
    index: int
    seed: int
    events: tuple[Event, ...]

    @property
    def clip_id(self) -> str:
        return f"{self.split}_{self.index:06d}"

    @property
    def caption(self) -> str:
        return caption(self.events)

    def rng(self, purpose: int) -> np.random.Generator:
        """A generator for this clip and `purpose` alone: 0 layout, 1 background, 2 questions, 3 multiple choice."""
        key = (self.seed, SPLITS.index(self.split), self.index, purpose)
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def caption(events: tuple[Event, ...]) -> str:
    """The caption that is true of these events in this order, e.g. "a small red circle grows, then a ..."."""
    return ", then ".join(map(str, events))


# --- Which captions belong to which split -----------------------------------------------------------------------------


def plan(counts: dict[str, int], seed: int) -> list[Scene]:
    """Returns the scenes of every split, in the order of SPLITS.

    About 30% of the clips have one event, the others two by objects that differ in color or shape. Captions of test,
    validation and test_compositional are unique, occur in no other of these splits, and never in train. At most a
    quarter of the one-event captions goes to each of test and validation, so that most are left for train.

    Args:
      counts: split -> number of clips, at least 0; a missing split has none.
      seed: any integer from 0.

    Raises:
      UserError: a split asks for more unique captions than the vocabulary has room for.
    """
    events = [Event(*words) for words in itertools.product(SIZES, COLORS, SHAPES, MOTIONS)]
    events = [event for event in events if event.possible]
    common = [event for event in events if not event.held_out]
    novel = [event for event in events if event.held_out]
    taken: set[str] = set()
    scenes: dict[str, list[Scene]] = {}
    for split in ("test", "validation", "test_compositional", "train"):
        key = (seed, SPLITS.index(split))
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        count = counts.get(split, 0)
        if split == "train":
            clips = _training_captions(count, common, taken, rng)
        else:
            first, second = (novel, events) if split == "test_compositional" else (common, common)
            singles = len(first) if split == "test_compositional" else len(first) // 4
            _check_room(split, count, room=len(first) * len(second) // 10)
            clips = _unique_captions(count, singles, first, second, taken, rng)
        scenes[split] = [Scene(split, i, seed, clip) for i, clip in enumerate(clips)]
    return [scene for split in SPLITS for scene in scenes[split]]


def _check_room(split, count, room):
    # Beyond a tenth of all captions, drawing until a new one turns up becomes slow and train loses variety.
    if count > room:
        raise UserError(
            f"--{split.removeprefix('test_')} {count}: expected at most {room}, so that captions are unique"
        )


def _unique_captions(count, singles, first, second, taken, rng):
    """Draws `count` clips whose captions are not in `taken`, and adds them there."""
    free = [event for event in first if caption((event,)) not in taken]
    order = rng.permutation(len(free))[: min(round(ONE_EVENT_SHARE * count), singles)]
    clips = [(free[i],) for i in order]
    taken.update(map(caption, clips))
    while len(clips) < count:
        pair = _pair(first, second, rng)
        if caption(pair) not in taken:
            taken.add(caption(pair))
            clips.append(pair)
    return [clips[i] for i in rng.permutation(count)]


def _training_captions(count, events, taken, rng):
    """Draws `count` clips, repeats allowed, whose captions are not in `taken`."""
    singles = [event for event in events if caption((event,)) not in taken]
    clips = [(singles[rng.integers(len(singles))],) for _ in range(round(ONE_EVENT_SHARE * count))]
    while len(clips) < count:
        pair = _pair(events, events, rng)
        if caption(pair) not in taken:
            clips.append(pair)
    return [clips[i] for i in rng.permutation(count)]


def _pair(first, second, rng):
    """Draws one event of each list, in random order, whose objects differ in color or shape."""
    while True:
        a, b = first[rng.integers(len(first))], second[rng.integers(len(second))]
        if (a.color, a.shape) != (b.color, b.shape):
            return (a, b) if rng.integers(2) else (b, a)


# --- Where and when ---------------------------------------------------------------------------------------------------


def layout(scene: Scene) -> tuple[Track, ...]:
    """Returns one track per event: timing, positions and sizes such that objects stay inside the frame and apart.

    Whichever frame is sampled from each quarter of the clip, at least half of every change lies between two of the
    samples: no event is half done before frame 3, the last of the first quarter, or less than half done at frame 12,
    the first of the last quarter. With two events all of the first lies in the clip's first half.
    """
    rng = scene.rng(0)
    timings = _timings(len(scene.events), rng)
    # Nearly all pairs fit in the first 64 candidates; two large stars that both move may need a thousand.
    for _ in range(1000):
        candidates = [_candidates(event, 64, rng) for event in scene.events]
        fits = _apart(scene.events, candidates) if len(candidates) == 2 else np.ones(64, bool)
        if fits.any():
            best = int(fits.argmax())
            return tuple(_track(e, t, c[best], rng) for e, t, c in zip(scene.events, timings, candidates))
    raise RuntimeError(f"no room for both objects of {scene.caption!r} ({scene.clip_id}, seed {scene.seed})")


def _timings(count, rng):
    """Start and end frame of each event; see `layout` for the rule they obey."""
    if count == 2:
        return (rng.integers(1, 3), rng.integers(6, 8)), (rng.integers(8, 10), rng.integers(13, 15))
    start = rng.integers(1, 10)
    return ((start, start + rng.integers(4, 7)),)


def _candidates(event, count, rng):
    """Returns float64 `[count, 6]`: x, y, radius before and after, such that the object stays inside the frame."""
    low, high = _RADII[event.size]
    radius = radius_end = rng.uniform(*_STILL_RADII[event.size], count)
    if event.motion in ("grows", "shrinks"):
        small, big = rng.uniform(low, low + 0.5, count), rng.uniform(high - 0.5, high, count)
        radius, radius_end = (small, big) if event.motion == "grows" else (big, small)
    reach = SHAPES[event.shape][0] * np.maximum(radius, radius_end) + _GAP
    step = np.array(DIRECTIONS.get(event.motion, (0, 0)), np.float64)
    room = FORMAT.size - 2 * reach
    shift = step * rng.uniform(*_DISTANCE, count)[:, None]
    # The start is uniform over the places from which the whole move stays inside.
    free = room[:, None] - np.abs(shift)
    start = reach[:, None] + np.maximum(-shift, 0) + rng.uniform(size=(count, 2)) * free
    return np.concatenate([start, radius[:, None], start + shift, radius_end[:, None]], axis=1)


def _apart(events, candidates):
    """Returns bool `[count]`: the circumscribed circles never touch, neither while the first acts nor the second."""
    done = np.linspace(0, 1, 9)[:, None, None]
    a, b = candidates
    a_acts, b_acts = a[:, :3] + done * (a[:, 3:] - a[:, :3]), b[:, :3] + done * (b[:, 3:] - b[:, :3])
    fits = np.ones(len(a), bool)
    for one, other in ((a_acts, b[None, :, :3]), (a[None, :, 3:], b_acts)):
        distance = np.hypot(one[..., 0] - other[..., 0], one[..., 1] - other[..., 1])
        reach = SHAPES[events[0].shape][0] * one[..., 2] + SHAPES[events[1].shape][0] * other[..., 2]
        fits &= (distance >= reach + _GAP).all(0)
    return fits


def _track(event, timing, candidate, rng):
    x, y, radius, x_end, y_end, radius_end = map(float, candidate)
    angle = float(rng.uniform(-_TILT, _TILT))
    spin = math.radians(1.5 * SHAPES[event.shape][1]) * (1 if rng.integers(2) else -1)
    return Track(
        start=int(timing[0]),
        end=int(timing[1]),
        position=(x, y),
        position_end=(x_end, y_end),
        radius=radius,
        radius_end=radius_end,
        angle=angle,
        angle_end=angle + spin if event.motion == "spins" else angle,
        opacity_end=0.45 if event.motion == "fades" else 1.0,
        brightness_end=0.35 if event.motion == "darkens" else 1.0,
    )


def attributes(scene: Scene, tracks: tuple[Track, ...]) -> dict:
    """What error analysis needs, JSON-able: words, frames and boxes `[x0, y0, x1, y1]` (pixels) of each event."""

    def box(event, position, radius):
        reach = SHAPES[event.shape][0] * radius
        return [
            round(v, 2) for v in (position[0] - reach, position[1] - reach, position[0] + reach, position[1] + reach)
        ]

    return {
        "events": [
            dataclasses.asdict(event)
            | {
                "start_frame": track.start,
                "end_frame": track.end,
                "box_before": box(event, track.position, track.radius),
                "box_after": box(event, track.position_end, track.radius_end),
            }
            for event, track in zip(scene.events, tracks)
        ],
        "held_out_pairing": any(event.held_out for event in scene.events),
    }
