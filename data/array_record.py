"""Writes records as a TFDS dataset in ArrayRecord; no TensorFlow is needed, because clips travel as encoded bytes."""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vlp_jax.types import UserError

TEXTS = ("caption", "clip_id")  # features that every dataset has beside `video`
_SHARD_BYTES = 2**29  # aim; TFDS itself makes shards of 64 MiB to 1 GiB
_BATCH_BYTES = 2**26  # videos handed to TFDS at a time, which writes the metadata anew each time

Records = Callable[[], Iterable[dict[str, Any]]]


def info_arguments(name: str, texts: tuple[str, ...] = TEXTS) -> dict[str, Any]:
    """Returns what `tfds.core.DatasetInfo` is told of a dataset with the features video (encoded bytes) and `texts`."""
    features = {"video": tfds.features.Scalar(np.object_)} | {text: tfds.features.Text() for text in texts}
    return {
        "description": f"{name}: encoded videos or images with captions.",
        "features": tfds.features.FeaturesDict(features),
        "disable_shuffling": True,  # record i of a split is clip i
    }


def write(
    directory: pathlib.Path, name: str, version: str, splits: Mapping[str, Records], texts: tuple[str, ...] = TEXTS
) -> pathlib.Path:
    """Writes the dataset `name`, with record i of a split the i-th given; holds a few of them at a time.

    Records are the same from run to run, the files that hold them are not: protobuf writes a record's features in any
    order.

    Args:
      directory: exists.
      splits: name -> function that yields its records, with the features video and `texts`.

    Returns:
      The folder below `directory` that holds dataset_info.json.

    Raises:
      UserError: a split has no record.
    """
    path = directory / name / version
    path.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(name, tfds.core.Version(version), str(path), __name__)
    info = tfds.core.DatasetInfo(builder=identity, **info_arguments(name, texts))
    # Not a builder's download_and_prepare: without shuffling it keeps a whole split in memory, and beyond 1 GB asks for
    # TensorFlow.
    writer: tfds.core.SequentialWriter | None = None
    for split, records in splits.items():
        empty = True
        for batch in _batches(records()):
            if writer is None:
                mean = sum(len(record["video"]) for record in batch) / len(batch)
                shard = max(1, int(_SHARD_BYTES / (mean + 1024)))
                writer = tfds.core.SequentialWriter(info, shard, file_format="array_record")
            if empty:
                writer.initialize_splits([split])
            writer.add_examples({split: batch})
            empty = False
        if empty or writer is None:
            raise UserError(f"{name}: the split {split!r} has no record")
        writer.close_splits([split])
    return path


def _batches(records: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record["video"])
        if size >= _BATCH_BYTES or len(batch) == 64:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def counts(path: pathlib.Path) -> dict[str, int]:
    """Returns split -> number of records of the dataset in `path`."""
    return {name: split.num_examples for name, split in tfds.builder_from_directory(path).info.splits.items()}
