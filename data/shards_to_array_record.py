"""Tar shards to ArrayRecord: `python -m data.shards_to_array_record --input 'cc3m/*.tar' --out datasets/cc3m`.

Shards are those of video2dataset, img2dataset or WebDataset (see `vlp_jax.input.shards`). Training reads them in place
as well (`config.input.kind = 'shards'`); a dataset is one directory to copy, without an index. Media are stored as they
are, in the order of the shards, with features video, caption and clip_id (SHARD/KEY).
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from data import array_record, output
from data.corpora.encoding import LARGEST
from vlp_jax.input import arrow_cache
from vlp_jax.input import shards as tar_shards
from vlp_jax.input.shards import ShardSource
from vlp_jax.input.sources import Record
from vlp_jax.telemetry.counting import CountProgress
from vlp_jax.text import encodable, encodable_json
from vlp_jax.types import UserError

VERSION = "1.0.0"  # goes up with every change of what is stored
SETTINGS_FILE = "shards.json"  # see data/output.py


def convert(shards: str, out: str | os.PathLike, *, caption_key: str = "", split: str = "train") -> str:
    """Writes the samples of `shards` to `out` and returns what was done, in a line.

    Everything is written to a sibling `<out>.<random>.tmp` and renamed at the end, so `out` is either absent or
    complete; where it was made from the same shards already (path, size and modification time of each), nothing is
    done. Samples without media or caption, and what of damaged shards could not be read, are listed in `skipped.jsonl`
    and counted in the line returned.

    Args:
      shards: a directory of .tar files, a glob, or a brace range.
      out: directory to make.
      caption_key: '' for KEY.txt, otherwise a key of KEY.json.
      split: name of the split to write.

    Raises:
      UserError: as `ShardSource`; no sample is whole; or `out` holds something else, other shards among it.
    """
    out = pathlib.Path(out)
    settings = {"caption_key": caption_key, "split": split, "version": VERSION}
    done = output.found(out, SETTINGS_FILE, settings)
    files = [arrow_cache.identity(shard) for shard in tar_shards.find(shards)]
    if done is not None:
        if "shards" not in done:
            raise UserError(f"{out} does not tell which shards it was made of: delete it or choose another --out")
        _check_same(done["shards"], files, out)
        return f"{out} already holds these shards ({done['summary']}): nothing done"
    start = time.monotonic()
    source = ShardSource(shards, caption_key=caption_key)
    skipped: list[dict[str, str]] = [{"shard": shard, "reason": reason} for shard, reason in source.problems]
    problems = len(skipped)
    with output.partial_directory(out) as partial:
        path = array_record.write(partial, "shards", VERSION, {split: lambda: _records(source, split, skipped)})
        count = array_record.counts(path)[split]
        summary = f"{count} samples of {len(source)}"
        if skipped:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in encodable_json(skipped))
            (path / "skipped.jsonl").write_text(lines, encoding="utf-8")
            summary += f"; {len(skipped) - problems} samples skipped and {problems} faults of shards"
            summary += f", listed in {out / 'skipped.jsonl'}"
        output.finish(path, out, SETTINGS_FILE, {"input": shards, **settings, "summary": summary, "shards": files})
    return f"wrote {out} in {time.monotonic() - start:.0f} s: {summary}"


def _check_same(there: list[list[Any]], asked: list[list[Any]], out: pathlib.Path) -> None:
    """Raises UserError where the shards that `out` was made of are not those asked for; the order does not count."""
    before, now = ({path: state for path, *state in files} for files in (there, asked))
    differ = {
        "changed since": [path for path in now if path in before and now[path] != before[path]],
        "not among them": [path for path in now if path not in before],
        "no longer asked for or there": [path for path in before if path not in now],
    }
    said = "; ".join(f"{len(paths)} {what}, the first {paths[0]}" for what, paths in differ.items() if paths)
    if said:
        raise UserError(
            f"{out} was made of {len(before)} shards, and {len(now)} are asked for: {said}; delete it or choose "
            "another --out"
        )


def _records(source: ShardSource, split: str, skipped: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    progress = CountProgress(split, len(source))
    for i in range(len(source)):
        record = source[i]
        reason = _unfit(record)
        if reason:
            skipped.append({"clip_id": record.clip_id, "reason": reason})
        else:
            yield {"video": record.video, "caption": encodable(record.caption), "clip_id": encodable(record.clip_id)}
        progress.add()
    progress.close()


def _unfit(record: Record) -> str:
    """Why a sample cannot be trained on, '' where it can; nothing is decoded."""
    if not record.video:
        return "no media"
    if not record.caption:
        return "no caption"
    if len(record.video) > LARGEST:
        return f"{len(record.video)} bytes, more than the {LARGEST} that a record holds"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the arguments, converts and prints one line; returns the exit status, 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m data.shards_to_array_record", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--input", required=True, help="directory of .tar files, glob, or range {00000..00099}.tar")
    parser.add_argument("--out", required=True, help="directory to make; the config.input.path of a training run")
    parser.add_argument("--caption-key", default="", help="key of a sample's .json; its .txt by default")
    parser.add_argument("--split", default="train", help="name of the split to write (%(default)s)")
    given = parser.parse_args(arguments)
    convert_them = lambda: convert(given.input, given.out, caption_key=given.caption_key, split=given.split)
    return output.run_command(convert_them)


if __name__ == "__main__":
    sys.exit(main())
