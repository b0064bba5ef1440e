"""Folders of small videos of one grey each, and a stand-in for a model that embeds the mean colour."""

import io

import numpy as np
import pytest

from tests.input.bad_media import clip
from tests.input.conftest import _make_clip
from vlp_jax.indexing import folder, update
from vlp_jax.indexing.store import Store
from vlp_jax.telemetry.counting import CountProgress

READING = update.Reading(window=10.0, stride=10.0, frames=2, size=16, timeout_s=20.0, max_pixels=2**20)
SETTINGS = {"model": "stand-in"}


def coloured(path, value, seconds=1.0):
    """A clip of a grey of this value, at 25 frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _make_clip(path, count=round(25 * seconds), picture=np.full((48, 64, 3), value, np.uint8), gop=25)


def moving(seconds, rate=25, **more):
    """Bytes of a clip of a moving texture."""
    return clip(count=round(seconds * rate), rate=rate, **{"options": {"x264-params": "keyint=12"}, **more})


class MeanColour:
    """Embeds clips as `(mean / 255, 1)`; keeps the shapes that it was given, and how many clips they were."""

    width = 2

    def __init__(self):
        self.shapes = set()
        self.calls = 0

    def __call__(self, tubes):
        self.shapes.add(tubes.shape)
        self.calls += 1
        return np.stack([tubes.mean((1, 2, 3, 4)) / 255, np.ones(len(tubes))], 1).astype(np.float32)


@pytest.fixture
def videos(tmp_path):
    """Three clips: dark.mp4, sub/light.mp4, sub/mid.mp4."""
    root = tmp_path / "videos"
    coloured(root / "dark.mp4", 30)
    coloured(root / "sub" / "mid.mp4", 120)
    coloured(root / "sub" / "light.mp4", 220)
    return root


@pytest.fixture
def index(tmp_path, videos):
    """Updates an index of the folder, opening it anew; returns the store, the plan and the stand-in."""

    def call(reading=READING, embed=None, batch_size=2):
        place = tmp_path / "index"
        place.mkdir(exist_ok=True)
        embed = embed or MeanColour()
        store = Store.open(place) or Store.create(place, SETTINGS, embed.width)
        found = folder.find(videos)
        todo = update.plan(store.entries, found)
        progress = CountProgress("", len(found.files), io.StringIO())
        update.update(
            *(store, str(videos), found, todo, reading, embed), batch_size=batch_size, threads=2, progress=progress
        )
        return store, todo, embed

    return call
