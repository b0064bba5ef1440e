"""The TFDS side of moving_shapes; works without TensorFlow because clips travel as encoded bytes."""

import contextlib
import io
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from data.moving_shapes import builder


class MovingShapes(tfds.core.GeneratorBasedBuilder):
    """Features: video (mp4 bytes), caption, clip_id, and attributes (JSON), in the order of the clips' numbers.

    Records are the same from run to run, the files that hold them are not: protobuf writes a record's features in any
    order. The class must not live in `__main__`, where worker processes that open the dataset could not find it.
    """

    name = "moving_shapes"
    VERSION = tfds.core.Version(builder.VERSION)
    # Nothing is downloaded. TFDS would look for checksums next to this file, which in 4.9.10 fails unless the package
    # importlib_resources happens to be installed: TFDS does not ask for it.
    url_infos = None

    def __init__(
        self, *, splits: Sequence[str] = (), records: Callable[[str], Iterable[dict]] | None = None, **arguments
    ):
        """`records(split)` yields the examples of each of `splits`."""
        self._splits = splits
        self._records = records
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Shapes that act in turn on a still background, with captions of what happens in what order.",
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Scalar(np.object_),
                    "caption": tfds.features.Text(),
                    "clip_id": tfds.features.Text(),
                    "attributes": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,  # record i of a split is clip i
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        if self._records is None:
            raise RuntimeError("moving_shapes is written by `python -m data.moving_shapes`, not by tfds build")
        return enumerate(self._records(split))


def write(directory: pathlib.Path, splits: Sequence[str], records: Callable[[str], Iterable[dict]]) -> pathlib.Path:
    """Writes the dataset somewhere below `directory`; returns the folder that holds dataset_info.json."""
    tfds.disable_progress_bar()
    shapes = MovingShapes(splits=splits, records=records, data_dir=directory)
    # TFDS announces a download and names the temporary directory on stdout; both would mislead.
    with contextlib.redirect_stdout(io.StringIO()):
        shapes.download_and_prepare(file_format="array_record")
    return pathlib.Path(shapes.data_path)
