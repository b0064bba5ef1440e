"""Precomputed features in place of videos: one .npz file a clip, or the same packed into ArrayRecord.

A clip's file holds arrays, of T' moments of it in their order: `features` float16 or float32 `[T', D]`, or
`[T', R, D]` of R regions; where wanted `boxes`, of the same types, `[T', R, 4]` or `[T', R, 6]`; and `times` `[T']`,
seconds from the video's start, which captions of parts of videos need. It is found by the clip's id: `CLIP_ID.npz` in
the folder, for rows of a table the video's path with .npz behind it (`videos/a.mp4.npz`). Parts of one video share its
file. `data/pack_features.py` makes of such a folder a directory with FORM_FILE, INDEX_FILE and shards.
"""

import bisect
import dataclasses
import io
import json
import os
import pathlib
import threading
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa

from vlp_jax.input.container import VideoError
from vlp_jax.input.decoder import TooFewFrames
from vlp_jax.input.per_process import PerProcess
from vlp_jax.input.sources import Record, Source, span_id
from vlp_jax.input.video import sample_frames
from vlp_jax.text import encodable
from vlp_jax.types import UserError

FORM_FILE = "features.json"
INDEX_FILE = "index.arrow"  # the clips' ids in the order of their records, which is that of their code points
SUFFIX = ".npz"
SHARDS = "features-*.array_record"
_ROUNDING = 1e-6  # seconds; as for times of frames


class OtherForm(VideoError):
    """Sound features of another width, number of regions or of box numbers than the config has."""


@dataclasses.dataclass(frozen=True)
class Form:
    """What the features of all clips of a set have in common: D; R, 0 for one feature a moment; numbers of a box."""

    width: int
    regions: int = 0
    boxes: int = 0

    def compare(self, there: "Form") -> str:
        """How features of the form `there` differ from what is wanted, '' where they serve; boxes may go unread."""
        wanted = dataclasses.asdict(self if self.boxes else dataclasses.replace(self, boxes=there.boxes))
        found = dataclasses.asdict(there)
        differ = [f"{name} {found[name]}, config.input.features.{name} = {n}" for name, n in wanted.items()]
        return "; ".join(text for text, name in zip(differ, wanted) if wanted[name] != found[name])


@dataclasses.dataclass(frozen=True)
class Clip:
    """The features of a clip, as stored: `features` `[T', R, D]`, R being 1 without regions, `boxes` and `times`."""

    form: Form
    features: np.ndarray
    boxes: np.ndarray | None
    times: np.ndarray | None


def form_of(c: ml_collections.ConfigDict) -> Form:
    """The form that `config.input` asks for."""
    return Form(c.features.width, c.features.regions, c.features.boxes)


def parse(data: bytes) -> Clip:
    """Reads and checks the bytes of a clip's .npz file.

    Raises:
      VideoError: it is no such file, or an array is missing, of another type or shape, or holds a NaN or an infinity.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("features", "boxes", "times") if name in file.files}
            names = ", ".join(file.files) or "nothing"
    except Exception as e:  # whatever a damaged file makes a library raise: it is reported, as any bad clip is
        raise VideoError(f"not a readable .npz file: {type(e).__name__}: {e}".splitlines()[0]) from e
    if "features" not in arrays:
        raise VideoError(f"no array 'features' in the .npz file, only {names}")
    features, boxes, times = arrays["features"], arrays.get("boxes"), arrays.get("times")
    if features.ndim not in (2, 3) or not all(features.shape):
        raise VideoError(f"features of shape {list(features.shape)}: expected [T, width] or [T, regions, width]")
    regions = features.shape[1] if features.ndim == 3 else 0
    beside = f"beside features of shape {list(features.shape)}"
    if boxes is not None and (not regions or boxes.ndim != 3 or boxes.shape[:2] != features.shape[:2]):
        raise VideoError(f"boxes of shape {list(boxes.shape)} {beside}: expected [T, regions, 4 or 6]")
    if times is not None and times.shape != features.shape[:1]:
        raise VideoError(f"times of shape {list(times.shape)} {beside}: expected [T]")
    for name, array in (("features", features), ("boxes", boxes)):
        if array is not None and array.dtype not in (np.float16, np.float32):
            raise VideoError(f"{name} of type {array.dtype}: expected float16 or float32")
    if times is not None and times.dtype.kind not in "fiu":
        raise VideoError(f"times of type {times.dtype}: expected seconds, as numbers")
    for name, array in arrays.items():
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise VideoError(f"{name} hold {bad} values that are nan or infinite")
    if times is not None and (np.diff(times.astype(np.float64)) < 0).any():
        raise VideoError("times that go back: expected the order of the video")
    form = Form(features.shape[-1], regions, 0 if boxes is None else boxes.shape[-1])
    return Clip(form, features if regions else features[:, None], boxes, times)


class FeatureStore(PerProcess):
    """The features of a set of clips, by the clips' ids; picklable, and opened by each process when it first reads.

    Args:
      c: `config.input`; `features` and `frames` are read.

    Raises:
      UserError: there is no such folder, or what was packed there has another form.
    """

    _ids: Any  # of what was packed, memory-mapped
    _records: Any
    _lock: threading.Lock

    def __init__(self, c: ml_collections.ConfigDict):
        self._path, self._form = c.features.path, form_of(c)
        root = pathlib.Path(self._path)
        if not root.is_dir():
            raise UserError(
                f"config.input.features.path = {self._path!r}: no such directory; expected a folder of CLIP_ID{SUFFIX} "
                "files, or what `python -m data.pack_features` made of one"
            )
        self._is_packed = (root / FORM_FILE).is_file()
        if self._is_packed:
            differs = self._form.compare(read_form(root))
            if differs:
                raise UserError(
                    f"the features in config.input.features.path = {self._path!r} have {differs}; set "
                    "config.input.features to what they are, or the path of others"
                )
        self._forget()

    def _fresh(self) -> dict[str, Any]:
        return {"_ids": None, "_records": None, "_lock": threading.Lock()}

    def origin(self, record: Record) -> str:
        """Where the features of a record's clip lie."""
        return self._path if self._is_packed else self._file(video_of(record))

    def read(self, record: Record, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """The features of `frames` moments of a record's clip, or of its span, chosen as frames are from a video.

        Args:
          frames: T.
          rng: as in `video.sample_frames`.

        Returns:
          float32 `[T, R, D + box numbers]`, R being 1 without regions.

        Raises:
          VideoError: no features of the clip, damaged ones or of another form, none in the span, fewer than T.
        """
        clip = parse(self._bytes(video_of(record)))
        differs = self._form.compare(clip.form)
        if differs:
            raise OtherForm(f"features have {differs}")
        at = _in_span(clip, record.span)
        try:
            chosen = at[sample_frames(len(at), frames, rng)]
        except TooFewFrames as e:
            where = "" if record.span is None else f" from {record.span[0]:g} to {record.span[1]:g} s"
            raise TooFewFrames(e.count, frames, f"{where} with features") from None
        parts = [clip.features[chosen]]
        if self._form.boxes:
            assert clip.boxes is not None  # or the forms would differ
            parts.append(clip.boxes[chosen])
        return np.concatenate(parts, axis=-1, dtype=np.float32)

    def _file(self, clip_id: str) -> str:
        return os.path.join(self._path, clip_id.lstrip("/") + SUFFIX)

    def _bytes(self, clip_id: str) -> bytes:
        if not self._is_packed:
            try:
                return pathlib.Path(self._file(clip_id)).read_bytes()
            except FileNotFoundError:
                raise VideoError(f"no features: there is no file {self._file(clip_id)}") from None
            except (OSError, ValueError) as e:
                raise VideoError(f"features not readable: {e}") from e
        ids, records = self._open()
        name = encodable(clip_id.lstrip("/"))
        at = bisect.bisect_left(range(len(ids)), name, key=lambda i: ids[i].as_py())
        if at == len(ids) or ids[at].as_py() != name:
            raise VideoError(f"no features of {name!r} among the {len(ids)} clips of {self._path}")
        return records[at]

    def _open(self) -> tuple[pa.Array, Any]:
        if self._records is None:
            with self._lock:
                if self._records is None:
                    from array_record.python import array_record_data_source  # where records are read alone

                    root = pathlib.Path(self._path)
                    reader = pa.ipc.open_file(pa.memory_map(str(root / INDEX_FILE)))
                    self._ids = reader.read_all().column("clip_id").combine_chunks()
                    shards = sorted(str(shard) for shard in root.glob(SHARDS))
                    records = array_record_data_source.ArrayRecordDataSource(shards)
                    if len(records) != len(self._ids):
                        raise UserError(
                            f"{self._path} names {len(self._ids)} clips and holds {len(records)} records: it is not "
                            "complete; make it anew"
                        )
                    self._records = records
        return self._ids, self._records


def read_form(root: pathlib.Path) -> Form:
    """The form of the features that were packed into `root`.

    Raises:
      UserError: its FORM_FILE is damaged.
    """
    try:
        there = json.loads((root / FORM_FILE).read_text(encoding="utf-8"))
        return Form(**{field.name: int(there[field.name]) for field in dataclasses.fields(Form)})
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{root / FORM_FILE} is damaged ({e}): make the directory anew") from e


def open_store(c: ml_collections.ConfigDict) -> FeatureStore | None:
    """The features that `config.input` names; None where clips are videos. Raises as `FeatureStore`."""
    return FeatureStore(c) if c.features.width else None


def origin(record: Record, source: Source, store: FeatureStore | None) -> str:
    """Where a record's clip lies, for messages: its features, its file, or the dataset that holds it."""
    if store is not None:
        return store.origin(record)
    return record.video if isinstance(record.video, str) else source.name


def video_of(record: Record) -> str:
    """The id of the video that a record is of, or of a part of."""
    return record.clip_id.removesuffix(span_id("", record.span))


def _in_span(clip: Clip, span: tuple[float, float] | None) -> np.ndarray:
    """Numbers of the moments `start <= time < end`, all of them without a span."""
    if span is None:
        return np.arange(len(clip.features))
    if clip.times is None:
        raise VideoError(f"the span {span[0]:g} to {span[1]:g} s needs an array 'times' beside the features")
    if not span[0] < span[1]:
        raise VideoError(f"the span {span[0]:g} to {span[1]:g} s is empty: expected its start before its end")
    times = clip.times.astype(np.float64)
    at = np.flatnonzero((times >= span[0] - _ROUNDING) & (times < span[1] - _ROUNDING))
    if not len(at):
        raise VideoError(f"no features in the span {span[0]:g} to {span[1]:g} s: the last are of {times[-1]:.2f} s")
    return at
