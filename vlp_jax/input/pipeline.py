"""Records to host batches: order, decoding in threads and processes, tokens, a task's targets.

The order is a pure function of (seed, step): step s trains on one source of the mixture, as its n-th batch, and row r
of it is record `order[n * batch_size + r]` of that source, a permutation per epoch. The augmentation is drawn from
`(seed, g)`, where `g = s * batch_size + r` counts the examples of the run. Resuming is starting at a step; no number of
hosts, threads or worker processes changes a batch.
"""

import contextlib
import dataclasses
import hashlib
import math
import signal
import zlib
from collections.abc import Callable, Generator
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from absl import flags

from vlp_jax import config as config_lib
from vlp_jax import processes
from vlp_jax.input import features, sources, targets, video
from vlp_jax.input.answers import AnswerList
from vlp_jax.input.mixture import Mixture, Part
from vlp_jax.input.sources import Record, Source
from vlp_jax.input.tokenizer import Tokenizer
from vlp_jax.types import Batch, UserError

_PADDING = -1  # the record number of rows beyond the dataset's end
_GREY = np.uint8(127)  # what `config.input.ablate = 'video'` shows instead of each pixel
_ORDER = 1  # sets the draws of `shuffled` apart from those of the augmentation


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class HostBatch:
    """One host's rows of a batch, with what the device does not need.

    Attributes:
      batch: `vlp_jax.types.Batch` of NumPy arrays, B rows. A clip that failed, or a question that is none, stays in
        place: zero frames (or features), its own text, valid=False.
      clip_ids: B names, '' for padding.
      captions: B texts, '' for padding; a question's words, also where `config.input.ablate` takes them away.
      origins: B places, the video's path, or the dataset's name where clips are stored in it; of features, theirs.
      errors: B reasons, '' where the example is fine or the row is padding.
      is_padding: bool `[B]`, rows beyond the dataset's end (evaluation only); they are no failures.
      records: int32 `[B]`, record number in the source, -1 for padding.
      source: name of the source in the mixture, '' where there is but one.
      cut: how many captions, questions and options were longer than L.
      cut_answers: how many answers were longer than La = `config.task.max_answer_tokens`.
    """

    batch: Batch
    clip_ids: list[str]
    captions: list[str]
    origins: list[str]
    errors: list[str]
    is_padding: Any
    records: Any
    source: str
    cut: int
    cut_answers: int

    @property
    def outside(self) -> int:
        """How many examples, not bad ones, have an answer that the list lacks."""
        label_B = self.batch.targets.get("label")
        return 0 if label_B is None else int(((label_B < 0) & self.batch.valid).sum())


def train_batches(
    config: ml_collections.ConfigDict,
    mixture: Mixture,
    tokenizer: Tokenizer,
    *,
    start_step: int,
    stop_step: int,
    own: np.ndarray | None = None,
    answers: AnswerList | None = None,
) -> Generator[HostBatch, None, None]:
    """Yields this process's rows of the batches of steps `[start_step, stop_step)`, `B = config.batch_size` rows each.

    `Batch.index` is the example's position in the endless stream. Decoding starts with the first batch asked for;
    closing the generator, or dropping it, ends its threads and processes.

    Args:
      own: numbers of the rows that this process reads, `sharding.rows_of`; None for all of them.
      answers: the list that `config.task.kind` needs for `Batch.targets`: question answering and classification.

    Raises:
      UserError: the run has more than 2**31 - 1 examples, which `Batch.index` cannot count, or a source has no records
        for the task.
    """
    size = config.batch_size
    mine = (np.arange(size) if own is None else own).tolist()
    if stop_step * size > 2**31 - 1:
        raise UserError(
            f"{stop_step} steps of {size} examples exceed the 2**31 - 1 = {2**31 - 1} that example numbers can count; "
            f"run at most {(2**31 - 1) // size} steps, or lower config.batch_size"
        )
    # A number of its own for each source's permutation: two sources of one length are not read in the same order.
    orders = [
        grain.MapDataset.range(len(part.source)).seed(config.seed + number).shuffle().repeat()
        for number, part in enumerate(mixture.parts)
    ]
    part_of = mixture.schedule(stop_step)
    batch_of = np.empty(stop_step, np.int64)  # how many batches of the same source came before
    for number in range(len(orders)):
        its = part_of == number
        batch_of[its] = np.arange(its.sum())

    def rows(step: int) -> tuple[int, list[tuple[int, int]]]:
        number = int(part_of[step])
        at = int(batch_of[step]) * size
        return number, [(step * size + row, orders[number][at + row]) for row in mine]

    loader = _Loader(mixture.parts, _tasks(config, mixture.parts, answers), tokenizer, rows, config.seed, training=True)
    return _stream(loader, start_step, stop_step, config.input)


def evaluation_batches(
    config: ml_collections.ConfigDict,
    source: Source,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    records: np.ndarray | None = None,
    own: np.ndarray | None = None,
    answers: AnswerList | None = None,
    clips_alone: bool = False,
) -> Generator[HostBatch, None, None]:
    """Yields each record exactly once, in order, with deterministic frames; `Batch.index` is the record's number.

    Clips have `config.evaluation.frames` frames where that is set. The last batch is padded with rows of valid=False
    and is_padding=True, whose index is beyond the dataset; every process gets the same number of batches.

    Args:
      records: int `[R]`, numbers of the records to read, in this order, instead of all of them.
      own, answers: as in `train_batches`.
      clips_alone: a row is valid where its clip decodes, whatever the record asks: what stands in a gallery is no
        matter of its caption.

    Raises:
      UserError: the source has no records for `config.task.kind`.
    """
    mine = (np.arange(batch_size) if own is None else own).tolist()
    numbers = np.arange(len(source)) if records is None else np.asarray(records)
    c, count = config_lib.evaluated_input(config), len(numbers)

    def row(i: int) -> tuple[int, int]:
        return (int(numbers[i]), int(numbers[i])) if i < count else (len(source) + i - count, _PADDING)

    def rows(step: int) -> tuple[int, list[tuple[int, int]]]:
        return 0, [row(step * batch_size + i) for i in mine]

    parts = (Part("", c, source),)
    tasks = _tasks(config, parts, answers)
    loader = _Loader(parts, tasks, tokenizer, rows, config.seed, training=False, clips_alone=clips_alone)
    return _stream(loader, 0, math.ceil(count / batch_size), c)


def probe(mixture: Mixture) -> None:
    """Probes each source of a run, see `probe_source`."""
    for part in mixture.parts:
        with config_lib.errors_of_source(part.name):
            probe_source(part.config, part.source)


def probe_source(c: ml_collections.ConfigDict, source: Source, frames_knob: str = "config.input.frames") -> None:
    """Decodes up to 8 evenly spaced records before the run starts, so that a wrong path or frame count shows at once.

    Args:
      frames_knob: what sets `c.frames`, for the message.

    Raises:
      UserError: none of them decodes, or all have fewer than `c.frames` frames, c being the source's `config.input`; or
        their features are of another form than c asks for.
    """
    count, store = min(8, len(source)), features.open_store(c)
    first: tuple[Record, video.VideoError] | None = None
    for i in range(count):
        number = i * len(source) // count
        record = source[number] if store is None else source.annotation(number)
        try:
            if store is not None:
                store.read(record, c.frames)
                return
            video.decode(
                record.video,
                frames=c.frames,
                size=c.image_size,
                span=record.span,
                timeout_s=c.clip_timeout_s,
                max_pixels=c.max_pixels,
            )
            return
        except video.VideoError as e:
            # A clip that is only too short, or of another form, says more about the config than one that is broken.
            of_config = (video.TooFewFrames, features.OtherForm)
            if first is None or (isinstance(e, of_config) and not isinstance(first[1], of_config)):
                first = record, e
    assert first is not None
    record, error = first
    if isinstance(error, video.TooFewFrames):
        raise UserError(
            f"{frames_knob} = {c.frames}, but clip {record.clip_id!r} has {error.count} frames, and none of "
            f"{count} clips of {source.name} that were tried has enough; lower {frames_knob}"
        )
    knobs = "config.input.path and config.input.video_root"
    if store is not None:
        form = isinstance(error, features.OtherForm)
        knobs = "config.input.features" if form else "config.input.path and config.input.features.path"
    raise UserError(
        f"none of {count} clips of {source.name} that were tried decodes; the first is {record.clip_id!r} "
        f"({features.origin(record, source, store)}): {error}; check {knobs}"
    )


def _tasks(
    config: ml_collections.ConfigDict, parts: tuple[Part, ...], answers: AnswerList | None
) -> tuple[targets.Task, ...]:
    for part in parts:
        with config_lib.errors_of_source(part.name):
            sources.check_task(part.source, config.task.kind, part.config)
    return tuple(targets.open_task(config, part.source, answers) for part in parts)


def _hash31(text: str) -> int:
    """A number in `[0, 2**31)` that is the same in every process and run."""
    data = text.encode("utf-8", "surrogatepass")  # an id may be the name of a file
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little") & 0x7FFFFFFF


@dataclasses.dataclass
class _Loader:
    """Makes the batch of a step; runs in reading threads, of this or of worker processes.

    Attributes:
      tasks: what each of `parts` is asked for.
      rows: step -> number of its source, and `(index, record number or _PADDING)` of each row.
      training: whether clips are augmented.
      clips_alone: as in `evaluation_batches`.
    """

    parts: tuple[Part, ...]
    tasks: tuple[targets.Task, ...]
    tokenizer: Tokenizer
    rows: Callable[[int], tuple[int, list[tuple[int, int]]]]
    seed: int
    training: bool
    clips_alone: bool = False

    def __post_init__(self):
        first = self.parts[0].config  # all sources share the cache's budget, and the features
        self._cache = video.FrameCache(first.cache_gib) if self.training and first.cache_gib else None
        self._store = features.open_store(first)

    def __call__(self, step: int) -> HostBatch:
        part, rows = self.rows(step)
        c, source, task = self.parts[part].config, self.parts[part].source, self.tasks[part]
        # Padding gets an empty caption, not an empty row: attention over no token at all would be 0 / 0.
        read = source.annotation if self._unseen(c) or self._store is not None else source.__getitem__
        records = [Record(b"", "", "") if number == _PADDING else read(number) for _, number in rows]
        shape, dtype = config_lib.clip_form(c)
        frames = np.zeros((len(rows), *shape), dtype)
        errors = [""] * len(rows)
        for i, ((index, number), record) in enumerate(zip(rows, records)):
            if number == _PADDING:
                continue
            errors[i] = "" if self.clips_alone else task.problem(record)
            if errors[i]:
                continue
            try:
                frames[i] = self._frames(c, record, index, part, number)
            except video.VideoError as e:
                errors[i] = str(e)
        captions = [r.caption for r in records]
        clip_ids = [r.clip_id for r in records]
        ids, mask, cut = self.tokenizer.encode([""] * len(rows) if c.ablate == "text" else captions)
        numbers = np.array([number for _, number in rows], np.int32)
        is_padding = numbers == _PADDING
        asked, cut_options, cut_answers = task.targets(records, self.tokenizer)
        batch = Batch(
            video=frames,
            text_ids=ids,
            text_mask=mask,
            valid=np.array([not e for e in errors]) & ~is_padding,
            index=np.array([index for index, _ in rows], np.int32),
            positive_id=np.array([_hash31(x) for x in (captions if c.positives == "caption" else clip_ids)], np.int32),
            targets=asked,
        )
        return HostBatch(
            batch=batch,
            clip_ids=clip_ids,
            captions=captions,
            origins=[
                "" if number == _PADDING else features.origin(r, source, self._store)
                for (_, number), r in zip(rows, records)
            ],
            errors=errors,
            is_padding=is_padding,
            records=numbers,
            source=self.parts[part].name,
            cut=cut + cut_options,
            cut_answers=cut_answers,
        )

    def _frames(self, c: ml_collections.ConfigDict, record: Record, index: int, part: int, number: int) -> np.ndarray:
        """The frames of a clip, or its features, or what `config.input.ablate` leaves of them."""
        shape, dtype = config_lib.clip_form(c)
        grey = np.broadcast_to(_GREY if self._store is None else np.zeros((), dtype), shape)
        if self._unseen(c):
            return grey
        frames = self._decode(c, record, index, part)
        if c.ablate == "video":
            return grey
        return frames[shuffled(c.frames, self.seed, number)] if c.ablate == "order" else frames

    def _unseen(self, c: ml_collections.ConfigDict) -> bool:
        """Whether clips need not be decoded. A test decodes them all the same, so that the baseline's denominator has
        the same clips that count as missed."""
        return c.ablate == "video" and self.training

    def _decode(self, c: ml_collections.ConfigDict, record: Record, index: int, part: int) -> np.ndarray:
        rng = _generator(self.seed, index) if self.training else None
        if self._store is not None:
            return self._store.read(record, c.frames, rng)
        return video.decode(
            record.video,
            frames=c.frames,
            size=c.image_size,
            rng=rng,
            crop_scale=tuple(c.crop_scale),
            flip=c.flip,
            span=record.span,
            timeout_s=c.clip_timeout_s,
            max_pixels=c.max_pixels,
            cache=self._cache,
            key=(part, record.clip_id, _identity(record.video)) if self._cache is not None else None,
        )


def _identity(video: bytes | str) -> Any:
    """What tells videos apart in the cache: a clip's questions share its frames, two clips of one name do not."""
    return video if isinstance(video, str) else (len(video), zlib.crc32(video))


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def shuffled(frames: int, seed: int, number: int) -> np.ndarray:
    """The order in which `config.input.ablate = 'order'` shows a record's frames: any but the true one.

    Args:
      frames: T; one frame stays where it is.
      number: of the record in its source.

    Returns:
      int `[T]`, the same at each call.
    """
    rng = _generator(seed, number, _ORDER)
    order = np.arange(frames)
    while frames > 1 and (order == np.arange(frames)).all():
        order = rng.permutation(frames)
    return order


def _stream(loader: _Loader, start: int, stop: int, c: ml_collections.ConfigDict) -> Generator[HostBatch, None, None]:
    """Runs `loader` over the steps, ahead of the consumer."""
    if stop <= start:
        return
    # Whole batches are the unit of work: nothing is copied together afterwards, and workers hand over one block each.
    ahead = c.threads if c.workers else max(c.threads, c.prefetch)
    dataset = grain.MapDataset.range(start, stop).map(loader)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=c.threads, prefetch_buffer_size=ahead))
    if c.workers:
        if not flags.FLAGS.is_parsed():  # Grain passes absl flags on to its workers
            flags.FLAGS.mark_as_parsed()
        # Below this size a shared-memory segment costs more than a copy.
        settings = grain.experimental.DatasetOptions(min_shm_size=2**16)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, settings)
        options = grain.MultiprocessingOptions(c.workers, per_worker_buffer_size=math.ceil(c.prefetch / c.workers))
        dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
    with contextlib.closing(iter(dataset)) as iterator:
        for batch in iterator:
            # From a worker, arrays arrive as a subclass that owns shared memory; a plain view keeps it alive.
            yield jax.tree.map(lambda x: np.asarray(x) if isinstance(x, np.ndarray) else x, batch)


def _start_worker(index: int, count: int) -> None:
    del index, count
    # Ctrl-C, and SIGTERM from a batch system, reach the whole process group; the trainer finishes its step and saves,
    # which needs its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    processes.end_with_parent()
