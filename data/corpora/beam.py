"""Writes a corpus by Apache Beam, through TFDS: on one machine by the direct runner, on clusters by their runners."""

import contextlib
import io
import itertools
import json
import pathlib
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from data import array_record
from data.corpora.corpus import Clip, Corpus
from data.corpora.encoding import Encoding, stored_bytes
from data.corpora.writer import VERSION, Written, each, failure
from vlp_jax.types import UserError

# What DirectRunner meant before it became a switch, whose first choice is to download a program (Prism) from GitHub and
# run that.
_RUNNER = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_CHUNK = 1000  # clips that one work item lists


def write(directory: pathlib.Path, corpus: Corpus, encoding: Encoding = Encoding(), *, options: str = "") -> Written:
    """Does what `writer.write` does, with the same records in the same order; the shards differ.

    Args:
      directory: exists; all workers see it, and the clips, under the same path.
      corpus: what to write.
      encoding: how clips are stored.
      options: command-line options of the Beam pipeline, such as "--runner=FlinkRunner ..."; where they name no runner,
        the direct one of this machine.

    Raises:
      UserError: apache-beam is not installed.
    """
    beam = import_beam()
    failures = directory / "failures"
    failures.mkdir()
    splits = {}
    for split, clips in corpus.splits.items():
        # Work items are names of files, so that ten million clips do not travel inside the pipeline's description.
        chunks = _write_chunks(directory / f"clips-{split}", each(clips))
        splits[split] = (
            beam.Create(chunks)
            | "Spread" >> beam.Reshuffle()
            | "List" >> beam.FlatMap(_read_chunk)
            | "SpreadClips" >> beam.Reshuffle()
            | "Read" >> beam.Map(_record, split=split, encoding=encoding, failures=str(failures.absolute()))
        )
    flags = shlex.split(options)
    if not any(flag.split("=")[0] == "--runner" for flag in flags):
        flags.insert(0, _RUNNER)
    config = tfds.download.DownloadConfig(beam_options=beam.options.pipeline_options.PipelineOptions(flags))
    builder = _Builder(corpus.name, directory, splits)
    print(f"{corpus.name}: writing by Beam ({' '.join(flags)})", file=sys.stderr, flush=True)
    tfds.disable_progress_bar()
    # TFDS announces a download and names the temporary directory on stdout; both would mislead.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config, file_format="array_record")
    path = pathlib.Path(builder.data_path)
    failed = [json.loads(file.read_text(encoding="utf-8")) for file in failures.iterdir()]
    order = list(corpus.splits)
    failed.sort(key=lambda row: (order.index(row["split"]), row["record"]))
    return Written(path, array_record.counts(path), failed)


def import_beam() -> Any:
    """Returns the module apache_beam.

    Raises:
      UserError: it is not installed.
    """
    try:
        import apache_beam
    except ImportError as e:
        raise UserError(f"--beam needs apache-beam ({e}): pip install -e .[beam]") from e
    return apache_beam


class _Builder(tfds.core.GeneratorBasedBuilder):
    """What `array_record.write` writes, by a pipeline of each split."""

    VERSION = tfds.core.Version(VERSION)
    # Nothing is downloaded. TFDS would look for checksums next to this file, which in 4.9.10 fails unless the package
    # importlib_resources happens to be installed: TFDS does not ask for it.
    url_infos = None

    def __init__(self, name: str, directory: pathlib.Path, splits: Mapping[str, Any]):
        self.name = name
        self._splits = splits
        super().__init__(data_dir=directory, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, **array_record.info_arguments(self.name))

    def _split_generators(self, dl_manager) -> dict[str, Any]:
        return dict(self._splits)

    def _generate_examples(self):
        raise RuntimeError("written by `python -m data.prepare --beam`, not by tfds build")


def _write_chunks(folder: pathlib.Path, clips: Iterable[Clip]) -> list[str]:
    """Lists the clips in files of a thousand lines: number, clip_id, path, caption; returns the files' paths."""
    folder.mkdir()
    chunks: list[str] = []
    numbered = enumerate(clips)
    while rows := list(itertools.islice(numbered, _CHUNK)):
        path = folder / f"{len(chunks):06d}.jsonl"
        lines = (json.dumps([number, clip.clip_id, str(clip.path.absolute()), clip.caption]) for number, clip in rows)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        chunks.append(str(path.absolute()))
    return chunks


def _read_chunk(path: str) -> Iterator[list]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def _record(row: list, split: str, encoding: Encoding, failures: str) -> tuple[int, dict[str, Any]]:
    number, clip_id, path, caption = row
    clip = Clip(clip_id, pathlib.Path(path), caption)
    video, error = stored_bytes(clip, encoding)
    if error:
        # One file each: a work item that Beam repeats says the same again.
        text = json.dumps(failure(split, number, clip, error))
        pathlib.Path(failures, f"{split}-{number}.json").write_text(text, encoding="utf-8")
    return number, {"video": video, "caption": caption, "clip_id": clip_id}
