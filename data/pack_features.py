"""Packs a folder of features into ArrayRecord: `python -m data.pack_features --root features --out packed`.

The folder holds a CLIP_ID.npz for each clip, in subfolders where the id has slashes; `vlp_jax/input/features.py` says
what is in them. Training reads them as they are, too (`config.input.features.path`); packed, millions of clips are a
few large files. Files are stored byte for byte. Those that training would refuse, or whose form is not the first good
one's, are left out and listed in skipped.jsonl.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from array_record.python import array_record_module

from data import output
from vlp_jax.input import features
from vlp_jax.input.container import VideoError
from vlp_jax.telemetry.counting import CountProgress
from vlp_jax.text import encodable
from vlp_jax.types import UserError

VERSION = "1.0.0"  # goes up with every change of what is stored
SHARD_BYTES = 2**30


def pack(root: str | os.PathLike, out: str | os.PathLike) -> str:
    """Writes the features below `root` to the directory `out`, and returns what was done, in a line.

    `out` appears when it is complete. Where it was made from the same files already (names, sizes and modification
    times), nothing is done.

    Raises:
      UserError: no such folder, no .npz file or no good one in it, two files for one id; or `out` holds something else.
    """
    root, out = pathlib.Path(root), pathlib.Path(out)
    done = output.found(out, features.FORM_FILE, {"version": VERSION})
    files = find(root)
    state = digest(files)
    if done is not None:
        if done.get("digest") != state:
            raise UserError(f"{out} was made of other files than {root} holds now: delete it, or choose another --out")
        return f"{out} already holds these features ({done['summary']}): nothing done"
    start, kept = time.monotonic(), Kept()
    with output.partial_directory(out) as partial:
        directory = partial / "features"  # the partial one is unreadable to others, and the data is not
        directory.mkdir()
        shards = Shards(directory)
        try:
            for data in good(root, files, kept):
                shards.write(data)
        finally:
            shards.close()
        if kept.form is None:
            first = kept.skipped[0]
            raise UserError(
                f"{root}: none of {len(files)} files is fit; the first is {first['clip_id']}: {first['reason']}"
            )
        table = pa.table({"clip_id": pa.array(kept.ids, pa.string())})
        with pa.ipc.new_file(str(directory / features.INDEX_FILE), table.schema) as index:
            index.write_table(table)
        summary = f"{len(kept.ids)} clips of {len(files)}"
        if kept.skipped:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept.skipped)
            (directory / "skipped.jsonl").write_text(lines, encoding="utf-8")
            summary += f"; {len(kept.skipped)} skipped, listed in {out / 'skipped.jsonl'}"
        form = dataclasses.asdict(kept.form)
        content = {**form, "root": str(root), "version": VERSION, "digest": state, "summary": summary}
        output.finish(directory, out, features.FORM_FILE, content)
    knobs = {"path": out, **form}
    flags = " ".join(f"--config.input.features.{name}={value}" for name, value in knobs.items() if value)
    return f"wrote {out} in {time.monotonic() - start:.0f} s: {summary}; train with {flags}"


def find(root: pathlib.Path) -> dict[str, str]:
    """The files below `root`: clip id -> path, in the order of the ids.

    Raises:
      UserError: no such folder, no file, or two files for one id.
    """
    if not root.is_dir():
        raise UserError(f"--root {root}: no such directory; expected one of CLIP_ID{features.SUFFIX} files")
    found: dict[str, str] = {}
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            if name.endswith(features.SUFFIX):
                path = os.path.join(folder, name)
                clip_id = encodable(os.path.relpath(path, root).removesuffix(features.SUFFIX).replace(os.sep, "/"))
                if clip_id in found:
                    raise UserError(f"{path} and {found[clip_id]} are both of the clip {clip_id!r}: rename one of them")
                found[clip_id] = path
    if not found:
        raise UserError(
            f"--root {root} holds no {features.SUFFIX} file; expected one for each clip, CLIP_ID{features.SUFFIX}"
        )
    return dict(sorted(found.items()))


def digest(files: dict[str, str]) -> str:
    """Stands for the names, sizes and modification times of the files."""
    state = hashlib.blake2b(digest_size=16)
    for clip_id, path in files.items():
        info = os.stat(path)
        state.update(json.dumps([clip_id, info.st_size, info.st_mtime_ns]).encode())
    return state.hexdigest()


class Kept:
    """What has been packed: the ids in the order of the records, the form that they share, and what was left out."""

    def __init__(self):
        self.ids: list[str] = []
        self.form: features.Form | None = None
        self.skipped: list[dict[str, str]] = []

    def add(self, clip_id: str, data: bytes) -> bool:
        """Whether a file is fit, which is noted."""
        try:
            form = features.parse(data).form
            if self.form not in (None, form):
                raise VideoError(f"{form}, where the first clip, {self.ids[0]!r}, has {self.form}")
        except VideoError as e:
            self.skipped.append({"clip_id": clip_id, "reason": str(e)})
            return False
        self.form = form
        self.ids.append(clip_id)
        return True


def good(root: pathlib.Path, files: dict[str, str], kept: Kept) -> Iterator[bytes]:
    """Yields the bytes of the fit files, and shows the progress."""
    progress = CountProgress(root.name, len(files))
    for clip_id, path in files.items():
        data = pathlib.Path(path).read_bytes()
        if kept.add(clip_id, data):
            yield data
        progress.add()
    progress.close()


class Shards:
    """ArrayRecord files of about SHARD_BYTES each, whose names sort in the order of their records."""

    def __init__(self, directory: pathlib.Path):
        self._directory, self._count, self._size = directory, 0, 0
        self._writer: Any = None

    def write(self, data: bytes) -> None:
        """Appends a record."""
        if self._writer is None or self._size >= SHARD_BYTES:
            self.close()
            name = features.SHARDS.replace("*", f"{self._count:06d}")
            # One record a group: any of them is read without its neighbours.
            self._writer = array_record_module.ArrayRecordWriter(str(self._directory / name), "group_size:1")
            self._count, self._size = self._count + 1, 0
        self._writer.write(data)
        self._size += len(data)

    def close(self) -> None:
        """Ends the file that is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the arguments, packs and prints one line; returns the exit status, 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m data.pack_features", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", required=True, help="folder of CLIP_ID.npz files")
    parser.add_argument("--out", required=True, help="directory to make; the config.input.features.path of a run")
    given = parser.parse_args(arguments)
    return output.run_command(lambda: pack(given.root, given.out))


if __name__ == "__main__":
    sys.exit(main())
