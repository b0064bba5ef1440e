"""Checks a source before a long run: `python -m vlp_jax.input.check SOURCE`, or `--config FILE` for a run's sources.

SOURCE is a dataset directory (ArrayRecord), a table (.csv, .tsv, .jsonl), tar shards (a directory, a glob or a brace
range), or a folder, a glob or a single file of videos and images. Every record is decoded as training would, by a
process for each core; a clip that crashes or hangs the decoder is reported like any other bad one. Fields of the
config can be set in both forms, e.g. `--config.input.caption_key=caption`; with `config.input.features` these are read
instead of the clips. Ctrl-C prints what was found so far.

Exit status: 0, 1 where more than `--max-bad-share` of the clips are bad, 2 for a mistake in the command, 130 after
Ctrl-C.
"""

import argparse
import array
import collections
import contextlib
import dataclasses
import glob
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from vlp_jax import config as config_lib
from vlp_jax import processes, validation
from vlp_jax.input import features, scan, sources
from vlp_jax.input.container import IMAGES, VIDEOS
from vlp_jax.input.ledger import kind_of
from vlp_jax.input.mixture import open_mixture
from vlp_jax.telemetry.counting import CountProgress
from vlp_jax.types import UserError

MEDIA = (*VIDEOS, *IMAGES)
_LISTED = 12  # reasons, sizes and codecs shown


class FolderSource:
    """Video and image files, without captions; `clip_id` is the path, relative to the folder where there is one.

    Args:
      path: a folder (searched with its subfolders), a glob, or a file.
    """

    columns: frozenset[str] = frozenset()

    def __init__(self, path: str):
        self.name = path
        if os.path.isdir(path):
            found = sorted(str(p) for p in pathlib.Path(path).rglob("*") if p.is_file())
            self._root = path
        else:
            found = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
            self._root = ""
        self._files = [p for p in found if pathlib.Path(p).suffix.lower() in MEDIA]
        self.left_out = len(found) - len(self._files)
        if not self._files:
            raise UserError(f"{path!r} holds no video and no image ({', '.join(MEDIA)}) among {len(found)} files")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> sources.Record:
        path = self._files[index]
        return sources.Record(path, "", os.path.relpath(path, self._root) if self._root else path)

    def annotation(self, index: int) -> sources.Record:
        """As `self[index]` with `video` b''."""
        return dataclasses.replace(self[index], video=b"")


def open_parts(
    source: str, config: ml_collections.ConfigDict, split: str = "", every_frame: bool = False
) -> tuple[scan.Part, ...]:
    """Opens what SOURCE names, told apart by what it is on disk.

    Args:
      split: of a dataset directory, by default every split; otherwise as `config.input.split`, by default `all`.

    Raises:
      UserError: it is none of these, or cannot be opened.
    """
    how = {**limits(config.input, every_frame), "stills": True}
    path = pathlib.Path(source)
    if (path / "dataset_info.json").is_file():
        info = json.loads((path / "dataset_info.json").read_text())
        names = [split] if split else [s["name"] for s in info["splits"] if int(sum(map(int, s["shardLengths"])))]
        config_lib.update(config, {"input.kind": "tfds", "input.path": source})
        opened = [sources.open_source(config.input, name) for name in names]
        # Split `clips` of an evaluation set holds videos; the captions are in the tables beside it.
        return tuple(
            scan.Part(f"split {name}", one, captions=name != "clips" and sources.has_text(one), **how)
            for name, one in zip(names, opened)
        )
    kind = ""
    if path.suffix in (".csv", ".tsv", ".jsonl"):
        kind = "table"
    elif path.suffix in (".tar", ".gz", ".tgz") or (path.is_dir() and any(path.glob("*.tar"))):
        kind = "shards"
    if kind:
        config_lib.update(config, {"input.kind": kind, "input.path": source, "input.split": split or "all"})
        one = sources.open_source(config.input)
        return (scan.Part(source, one, captions=sources.has_text(one), **how),)
    if split:
        raise UserError(f"--split={split}: {source!r} is a folder of media, which has no splits")
    if not path.exists() and not glob.glob(source, recursive=True):
        raise UserError(
            f"{source!r}: no such file or folder; expected a dataset directory, a table (.csv, .tsv, .jsonl), tar "
            "shards, or a folder of videos"
        )
    return (scan.Part(source, FolderSource(source), captions=False, **how),)


def open_config(config: ml_collections.ConfigDict, every_frame: bool = False) -> tuple[scan.Part, ...]:
    """Opens the training sources of a run's config."""
    return tuple(
        scan.Part(
            part.name or part.source.name,
            part.source,
            captions=sources.has_text(part.source),
            **limits(part.config, every_frame),
        )
        for part in open_mixture(config).parts
    )


def limits(c: ml_collections.ConfigDict, every_frame: bool) -> dict[str, Any]:
    """How the clips of a source with `config.input` c are examined."""
    return {
        "frames": c.frames,
        "size": c.image_size,
        "timeout_s": c.clip_timeout_s,
        "max_pixels": c.max_pixels,
        "every_frame": every_frame,
        "store": features.open_store(c),
    }


def spread(parts: tuple[scan.Part, ...], sample: int) -> tuple[int, Iterator[tuple[int, int]]]:
    """Returns how many records are to be examined, and which: all, or `sample` evenly spaced ones over all parts."""
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part.source))
    total = ends[-1]
    count = min(sample, total) if sample else total

    def records() -> Iterator[tuple[int, int]]:
        part = 0
        for i in range(count):
            at = i * total // count
            while at >= ends[part + 1]:
                part += 1
            yield part, at - ends[part]

    return count, records()


class Summary:
    """What a scan found, by part."""

    def __init__(self, parts: tuple[scan.Part, ...]):
        self._parts = parts
        self.seen = [0] * len(parts)
        self.bad = [0] * len(parts)
        self._reasons: collections.Counter[str] = collections.Counter()
        self._example: dict[str, str] = {}
        self._codecs: collections.Counter[str] = collections.Counter()
        self._sizes: collections.Counter[str] = collections.Counter()
        self._frames, self._seconds = array.array("q"), array.array("d")  # ten million clips are no burden

    def add(self, found: scan.Finding) -> None:
        """Counts one record."""
        self.seen[found.part] += 1
        if found.codec:
            self._codecs[found.codec] += 1
            self._sizes[f"{found.width} x {found.height}"] += 1
        if found.frames:
            self._frames.append(found.frames)
            self._seconds.append(found.seconds)
        if found.error:
            self.bad[found.part] += 1
            kind = kind_of(found.error)
            self._reasons[kind] += 1
            self._example.setdefault(kind, f"{found.clip_id or found.number} ({found.origin}): {found.error}")

    def share(self) -> float:
        """Bad records over all."""
        return sum(self.bad) / max(1, sum(self.seen))

    def lines(self, left: int) -> Iterator[str]:
        """The report; `left` records were not examined."""
        seen, bad = sum(self.seen), sum(self.bad)
        unfinished = f", {left:,} were not reached" if left else ""
        yield f"{seen:,} clips examined{unfinished}: {seen - bad:,} good, {bad:,} bad ({self.share():.2%})"
        if len(self._parts) > 1:
            yield from _table("bad", ((p.name, b, s) for p, b, s in zip(self._parts, self.bad, self.seen) if s))
        if self._reasons:
            yield "bad clips by reason, with the first of each:"
            for kind, count in self._reasons.most_common(_LISTED):
                yield f"  {count:>9,}  {kind}"
                yield f"             {self._example[kind]}"
            if len(self._reasons) > _LISTED:
                yield f"             and {len(self._reasons) - _LISTED} other reasons"
        for what, counter in (("codec", self._codecs), ("pixels", self._sizes)):
            known = sum(counter.values())
            if known:
                yield from _table(what, ((name, count, known) for name, count in counter.most_common(_LISTED)))
        if self._frames:
            yield _distribution("frames", self._frames, ",.0f")
            hours = sum(self._seconds) / 3600
            yield f"{_distribution('seconds', self._seconds, ',.1f')}; {hours:,.1f} hours together"


def _table(what: str, rows) -> Iterator[str]:
    yield f"{what}:"
    for name, count, total in rows:
        yield f"  {count:>9,}  {count / total:7.2%}  {name}"


def _distribution(what: str, values, form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{what}: {low:{form}} to {high:{form}}, half of them up to {middle:{form}}"


def run(parts: tuple[scan.Part, ...], *, workers: int, sample: int = 0, out: str = "") -> tuple[Summary, bool]:
    """Scans, prints the report to stdout and writes one JSON line for each bad clip to `out`.

    Returns:
      The summary, and whether the scan was stopped by Ctrl-C.
    """
    total, records = spread(parts, sample)
    summary, progress = Summary(parts), CountProgress("", total)
    interrupted = False
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(open(out, "w", encoding="utf-8")) if out else None
        findings = stack.enter_context(contextlib.closing(scan.scan(parts, records, min(workers, total))))
        try:
            for found in findings:
                summary.add(found)
                if rows and found.error:
                    row = {**dataclasses.asdict(found), "source": parts[found.part].name, "count": 1}
                    row = {key: row[key] for key in ("clip_id", "origin", "source", "error", "number", "count")}
                    rows.write(json.dumps(row) + "\n")  # ASCII: names of files need not be UTF-8
                progress.add(f"{sum(summary.bad):,} bad")
        except KeyboardInterrupt:
            interrupted = True
        progress.close()
    print("\n".join(summary.lines(total - sum(summary.seen))), flush=True)
    if out and sum(summary.bad):
        print(f"bad clips are listed in {out}")
    return summary, interrupted


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the command's own options, and the rest: flags of the config."""
    parser = argparse.ArgumentParser(
        prog="python -m vlp_jax.input.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source", nargs="?", default="", metavar="SOURCE", help="what to check, unless --config says it"
    )
    parser.add_argument("--config", default="", metavar="FILE", help="a run's config: checks what it trains on")
    parser.add_argument("--split", default="", help="one split of SOURCE instead of all of them")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="examine N evenly spaced clips, not all")
    parser.add_argument("--every-frame", action="store_true", help="decode all frames, not the few that training takes")
    parser.add_argument("--max-bad-share", type=float, help="default: config.input.max_bad_share")
    parser.add_argument("--out", default="", metavar="FILE", help="write a JSON line for each bad clip there")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one for each core")
    options, rest = parser.parse_known_args(argv)
    wrong = [word for word in rest if not word.startswith("--config.")]
    if wrong:
        raise UserError(f"unexpected argument {wrong[0]!r}; `python -m vlp_jax.input.check --help` lists all")
    if bool(options.source) == bool(options.config):
        raise UserError("expected a SOURCE or a --config=FILE, and not both")
    if options.config and options.split:
        raise UserError(f"--split={options.split} with --config: set --config.input.split instead")
    if options.max_bad_share is not None and not 0 <= options.max_bad_share <= 1:
        raise UserError(f"--max-bad-share={options.max_bad_share:g}: expected a share from 0 to 1")
    if options.workers < 1 or options.sample < 0:
        raise UserError(f"--workers={options.workers} --sample={options.sample}: expected 1 or more, and 0 or more")
    return options, rest


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    from vlp_jax import launch  # brings in the models, which worker processes do without

    options, rest = parse(argv)
    holder = flags.FlagValues()
    if options.config:
        words = ["check", f"--config={options.config}", *rest]
        launch.check_config_flags(words)
        config_flags.DEFINE_config_file("config", flag_values=holder, sys_argv=words)
        holder(words)
        validation.validate_input(holder.config)
        parts = open_config(holder.config, options.every_frame)
    else:
        for word in rest:
            config_lib.check_key(config_lib.defaults(), word.partition("=")[0].removeprefix("--config."))
        words = ["check", *rest]
        config_flags.DEFINE_config_dict("config", config_lib.defaults(), flag_values=holder, sys_argv=words)
        holder(words)
        config_lib.update(holder.config, {"input.path": options.source})
        validation.validate_input(holder.config)
        given = [word.partition("=")[2] for word in rest if word.startswith("--config.input.split=")]
        if given and options.split:
            raise UserError(f"--split={options.split} and --config.input.split={given[-1]}: expected one of the two")
        parts = open_parts(options.source, holder.config, options.split or "".join(given[-1:]), options.every_frame)
    limit = holder.config.input.max_bad_share if options.max_bad_share is None else options.max_bad_share
    for part in parts:
        if isinstance(part.source, FolderSource) and part.source.left_out:
            print(f"{part.name}: {part.source.left_out} files that are no video or image were left out")
    summary, interrupted = run(parts, workers=options.workers, sample=options.sample, out=options.out)
    if interrupted:
        return 130
    if summary.share() > limit:
        print(f"over the limit: {summary.share():.2%} of the clips are bad, at most {limit:.2%} may be")
        return 1
    return 0


def cli() -> None:
    """Entry point: a UserError becomes one message and exit status 2."""
    processes.heed_interrupts()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files need not be UTF-8
    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted before the first clip", file=sys.stderr)
        status = 130
    except (UserError, OSError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        status = 2
    sys.exit(status)


if __name__ == "__main__":
    cli()
