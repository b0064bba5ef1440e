"""A run's model over a folder: embeds what is asked, and finds what is near it."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from vlp_jax import analysis, sharding, trees
from vlp_jax import config as config_lib
from vlp_jax.indexing import update, windows
from vlp_jax.indexing.gallery import Gallery, Hit
from vlp_jax.input.container import VideoError
from vlp_jax.recipes import recipe
from vlp_jax.text import duration, visible
from vlp_jax.types import UserError


def embed_videos(model: Any, video: Any) -> Any:
    """uint8 clips -> float32 `[B, E]`; of the module's own, so that it compiles once."""
    return model.embed_video(video)


def embed_texts(model: Any, ids: Any, mask: Any) -> Any:
    """ids and mask `[B, L]` -> float32 `[B, E]`; as `embed_videos`."""
    return model.embed_text(ids, mask)


@dataclasses.dataclass(frozen=True)
class Query:
    """What is asked: an embedding, what it is of, and the file that is not to be found, being asked about."""

    asked: dict[str, Any]
    embedding: np.ndarray
    without: str = ""

    @property
    def title(self) -> str:
        """For people."""
        return visible(self.asked["text"] if "text" in self.asked else f"like {self.asked['like']}")


EMPTY = "the query is empty: expected words, such as 'a red circle moves left'"


def like_file(named: str, videos: str) -> tuple[str, float | None]:
    """The file that PATH or PATH@TIME names, from here or below `videos`, and the time in seconds.

    Raises:
      UserError: there is no such file.
    """
    before, at, after = named.rpartition("@")
    seconds = windows.seconds_of(after) if at else None
    for path, time_s in ((named, None), (before, seconds)):
        for place in (path, os.path.join(videos, path)):
            if path and os.path.isfile(place) and (path == named or seconds is not None):
                return place, time_s
    raise UserError(
        f"--like={named}: no such file, neither from here nor below {videos}; expected PATH, or PATH@TIME "
        "with a time such as 75 or 1:15"
    )


class Searcher:
    """A run's model, and how it reads videos.

    Args:
      loaded: the run.
      videos: folder of the videos.
      window, stride: seconds, as of `windows.spans`.

    Attributes:
      gallery: what is searched, at first nothing.
      reading: how videos are cut and decoded.

    Raises:
      UserError: the run cannot embed videos.
    """

    def __init__(self, loaded: analysis.Loaded, videos: str, window: float, stride: float):
        recipe.require_embeddings(loaded.model, loaded.config, "search")
        if width := loaded.config.input.features.width:
            raise UserError(
                f"{loaded.config.name} was trained on precomputed features (config.input.features.width = {width}), "
                "and a folder of videos has none: take a run that was trained on videos"
            )
        self.loaded, self.videos = loaded, videos
        self.gallery = Gallery([], np.zeros((0, loaded.config.model.projection), np.float32))
        c = config_lib.evaluated_input(loaded.config)
        self.reading = update.Reading(window, stride, c.frames, c.image_size, c.clip_timeout_s, c.max_pixels)

    def settings(self, folder: pathlib.Path) -> dict[str, Any]:
        """What an index at `folder` is of; the place of the videos is as seen from there, so that both may move."""
        digest = hashlib.blake2b(digest_size=8)
        for name, value in sorted(trees.by_path(self.loaded.run.params).items()):
            digest.update(name.encode() + np.ascontiguousarray(sharding.fetch(value)).tobytes())
        return {
            "model": self.loaded.title,
            "weights": digest.hexdigest(),
            "frames": self.reading.frames,
            "image_size": self.reading.size,
            "window": self.reading.window,
            "stride": self.reading.stride,
            "videos": os.path.relpath(os.path.realpath(self.videos), os.path.realpath(folder)),
        }

    def embed(self, tubes: np.ndarray) -> np.ndarray:
        """uint8 `[B, T, H, W, 3]` -> float32 `[B, E]`, on all devices."""
        return self.loaded.apply(embed_videos, sharding.to_global(tubes, self.loaded.run.setup.mesh))

    def text(self, text: str) -> Query:
        """The query of a text.

        Raises:
          UserError: it is empty.
        """
        if not text.strip():
            raise UserError(EMPTY)
        tokenizer = self.loaded.run.tokenizer
        ids, mask, cut = tokenizer.encode([text])
        notes = []
        if cut:
            notes.append(f"cut to the model's {tokenizer.max_tokens} tokens: {tokenizer.decode(ids[0])!r}")
        own, own_mask, _ = tokenizer.encode(text.split())
        unknown = [
            word
            for word, ids_L, mask_L in zip(text.split(), own, own_mask)
            if tokenizer.unk_id in ids_L[1 : mask_L.sum() - 1]
        ]
        if unknown:
            notes.append(f"unknown to the run's tokenizer: {', '.join(map(repr, unknown))}")
        return Query({"text": text, "notes": notes}, self.loaded.apply(embed_texts, ids, mask)[0])

    def like(self, named: str) -> Query:
        """The query of a file, PATH, or of the window around a time of it, PATH@TIME.

        A file of several windows asks with the mean of them, so that a score is the mean of their scores.

        Raises:
          UserError: there is no such file, or it does not decode.
        """
        path, seconds = like_file(named, self.videos)
        # As it is named, or as what it is a link to is.
        names = (
            os.path.relpath(path, self.videos),
            os.path.relpath(os.path.realpath(path), os.path.realpath(self.videos)),
        )
        inside = next((name for name in names if name in self.gallery), "")
        mean = self.gallery.mean(inside) if seconds is None else None
        if mean is None:
            try:
                end = self.reading.end_of(path)
                if seconds is None:
                    spans = self.reading.spans(end)
                elif seconds > end:
                    raise UserError(f"--like={named}: the video ends at {duration(end)}")
                else:
                    spans = [windows.around(seconds, end, self.reading.window)]
                # One at a time: a program of its own, which does not compute a whole batch for one window.
                tubes = (self.reading.tube(path, span, end)[None] for span in spans)
                mean = np.mean([self.loaded.apply(embed_videos, tube)[0] for tube in tubes], 0)
            except VideoError as error:
                raise UserError(f"--like={named}: {error}") from None
        return Query({"like": named, "notes": []}, mean, inside)

    def answer(self, query: Query, top: int, every_window: bool) -> list[Hit]:
        """The best windows for a query."""
        return self.gallery.nearest(query.embedding, top, every_window=every_window, without=query.without)
