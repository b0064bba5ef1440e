"""Writes a corpus in its official layout as a TFDS dataset: `python -m data.prepare msrvtt --root DIR --out DIR`.

The dataset is ArrayRecord, opened by `config.input.path` (no TensorFlow). Videos and images are stored as they are, or
re-encoded once by `--short-side 224 --fps 2`, which makes decoding far cheaper.
"""

import argparse
import dataclasses
import importlib
import inspect
import os
import pathlib
import pkgutil
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import data.corpora
from data import output
from data.corpora import beam, writer
from data.corpora.corpus import Corpus
from vlp_jax.types import UserError

SETTINGS_FILE = "prepare.json"  # see data/output.py
_FEW_FRAMES = 4  # of a span: the default of input.frames


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the dataset depends on.

    Attributes:
      corpus: NAME of a module of data.corpora.
      root: folder of the official files.
      short_side, fps: see `reencode`; 0 stores the bytes as they are.
      allow_missing: share of the listed videos that may be absent, 0..1.
      options: what else the corpus' `read` takes.
      version: of the records.
    """

    corpus: str
    root: str
    short_side: int = 0
    fps: float = 0.0
    allow_missing: float = 0.0
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    version: str = writer.VERSION


def corpora() -> dict[str, ModuleType]:
    """Returns name -> module of every corpus that can be read."""
    found = {}
    for info in pkgutil.iter_modules(data.corpora.__path__):
        module = importlib.import_module(f"data.corpora.{info.name}")
        if hasattr(module, "NAME"):
            found[module.NAME] = module
    return found


def prepare(settings: Settings, out: str | os.PathLike, *, workers: int = 2, beam_options: str | None = None) -> str:
    """Writes the dataset to `out` and returns what was done, in a line.

    Everything is written to a sibling `<out>.<random>.tmp` and renamed at the end, so `out` is either absent or
    complete; where it is complete already, nothing is done. Beside dataset_info.json lie, of evaluation sets,
    `clips.txt` (clip ids in the order of the records) and `<annotation>.jsonl`; `missing.jsonl` lists videos that
    were not found, `failed.jsonl` those whose bytes are not as asked, `prepare.json` the settings and counts.

    Args:
      settings: what the dataset depends on.
      out: directory to make.
      workers: processes that re-encode, or threads that read; the dataset is the same.
      beam_options: None writes on this machine; otherwise options of an Apache Beam pipeline, see `beam.write`.

    Raises:
      UserError: a setting is out of range, files are missing, or `out` holds something else.
    """
    out = pathlib.Path(out)
    known = corpora()
    _check(settings, workers, known)
    asked = dataclasses.asdict(settings)
    done = output.found(out, SETTINGS_FILE, asked)
    if done is not None:
        return f"{out} already holds this dataset ({done['summary']}): nothing done"
    if beam_options is not None:
        beam.import_beam()  # not after minutes of reading
    start = time.monotonic()
    corpus = _read(known[settings.corpus], settings)
    writer.check(corpus)
    corpus.notes = "\n".join(filter(None, (corpus.notes, _short_spans(corpus, settings.fps))))
    for note in corpus.notes.splitlines():
        print(f"{corpus.name}: {note}", file=sys.stderr)
    encoding = writer.Encoding(settings.short_side, settings.fps)
    with output.partial_directory(out) as partial:
        if beam_options is None:
            written = writer.write(partial, corpus, encoding, workers=workers)
        else:
            partial.chmod(0o755)  # of mkdtemp's own making: workers of a cluster may be other users
            written = beam.write(partial, corpus, encoding, options=beam_options)
        writer.write_annotations(written.path, corpus, written.failed)
        summary = _summary(corpus, written)
        output.finish(written.path, out, SETTINGS_FILE, {**asked, "summary": summary, "notes": corpus.notes})
    return f"wrote {out} in {time.monotonic() - start:.0f} s: {summary}"


def _check(settings: Settings, workers: int, known: Mapping[str, ModuleType]) -> None:
    if settings.corpus not in known:
        raise UserError(f"no corpus {settings.corpus!r}: expected one of {', '.join(sorted(known))}")
    if settings.short_side and settings.short_side < 16:
        raise UserError(f"--short-side {settings.short_side}: expected pixels from 16, or 0 to keep the size")
    if not 0 <= settings.fps < 1000:
        raise UserError(f"--fps {settings.fps:g}: expected frames a second below 1000, or 0 to keep all")
    if not 0 <= settings.allow_missing <= 1:
        raise UserError(f"--allow-missing {settings.allow_missing:g}: expected a share from 0 to 1")
    if workers < 1:
        raise UserError(f"--workers {workers}: expected an integer from 1")


def _read(module: ModuleType, settings: Settings) -> Corpus:
    takes = sorted(set(inspect.signature(module.read).parameters) - {"root", "allow_share"})
    for key in settings.options:
        if key not in takes:
            listed = ", ".join(takes) or "no option"
            raise UserError(f"--option {key}={settings.options[key]}: {settings.corpus} takes {listed}")
    return module.read(pathlib.Path(settings.root), allow_share=settings.allow_missing, **settings.options)


def _short_spans(corpus: Corpus, fps: float) -> str:
    """The note on spans of a video that are left with too few frames, "" where there is none."""
    few = count = 0
    for rows in corpus.annotations.values():
        for row in rows:
            for span in (row, *row.get("options", ())):  # EgoMCQ chooses among spans
                if isinstance(span, dict) and "start" in span and "end" in span:
                    count += 1
                    few += round((span["end"] - span["start"]) * fps, 6) < _FEW_FRAMES
    if not fps or not few:
        return ""
    return (
        f"--fps {fps:g}: {few} of {count} annotation spans hold fewer than {_FEW_FRAMES} frames at that rate; a span "
        "with fewer frames than input.frames is a bad clip in training: raise --fps for this set"
    )


def _summary(corpus: Corpus, written: writer.Written) -> str:
    parts = [", ".join(f"{count} {split}" for split, count in written.counts.items())]
    if corpus.annotations:
        parts.append("annotations " + ", ".join(f"{name} {len(rows)}" for name, rows in corpus.annotations.items()))
    if corpus.missing:
        parts.append(f"{len(corpus.missing)} listed videos are missing (missing.jsonl)")
    if written.failed:
        parts.append(f"{len(written.failed)} files are not as asked (failed.jsonl); those unreadable hold no bytes")
    return "; ".join(parts)


def _option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE")
    return key, value


def _parser(known: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__)
    parser.add_argument("corpus", nargs="?", choices=known, metavar="NAME", help=f"one of {', '.join(known)}")
    parser.add_argument("--list", action="store_true", help="say of every corpus which files it takes, and from where")
    parser.add_argument("--root", help="folder of the official files and videos")
    parser.add_argument("--out", help="directory to make; config.input.path of a run")
    parser.add_argument("--short-side", type=int, default=0, help="re-encode: pixels of the shorter side (%(default)s)")
    parser.add_argument("--fps", type=float, default=0.0, help="re-encode: most frames a second (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes; the dataset is the same (%(default)s)")
    parser.add_argument(
        "--allow-missing",
        nargs="?",
        type=float,
        const=1.0,
        default=0.0,
        metavar="SHARE",
        help="go on without videos that are listed and absent, up to this share of them (any share, if not given)",
    )
    parser.add_argument(
        "--option", action="append", default=[], type=_option, metavar="KEY=VALUE", help="what else the corpus takes"
    )
    parser.add_argument(
        "--beam", action="store_true", help="write by Apache Beam, on this machine if not told otherwise"
    )
    parser.add_argument("--beam-options", default="", help='of the pipeline, such as "--runner=FlinkRunner ..."')
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the arguments, makes the dataset and prints one line; returns the exit status, 2 for a user's error."""
    known = corpora()
    parser = _parser(sorted(known))
    given: Any = parser.parse_args(arguments)
    if given.list:
        for name in sorted(known):
            print(f"{name}: {known[name].WHERE_FROM}\n")
        return 0
    if given.corpus is None or given.root is None or given.out is None:
        parser.error("expected NAME, --root and --out, or --list")
    if given.beam_options and not given.beam:
        parser.error("--beam-options: expected --beam beside it")
    settings = Settings(
        given.corpus,
        str(pathlib.Path(given.root).absolute()),
        given.short_side,
        given.fps,
        given.allow_missing,
        dict(given.option),
    )
    beam_options = given.beam_options if given.beam else None
    return output.run_command(lambda: prepare(settings, given.out, workers=given.workers, beam_options=beam_options))


if __name__ == "__main__":
    sys.exit(main())
