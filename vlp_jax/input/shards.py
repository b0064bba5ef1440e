"""Tar shards of video2dataset, img2dataset and WebDataset as a source: read in place, in any order."""

import concurrent.futures
import glob
import json
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from vlp_jax.input import arrow_cache, tar_index
from vlp_jax.input.per_process import PerProcess
from vlp_jax.input.sources import Record, near
from vlp_jax.text import encodable
from vlp_jax.types import UserError

MEDIA = ("mp4", "webm", "mkv", "avi", "mov", "jpg", "jpeg", "png", "webp")  # of several the first is taken
_PARTS = (*MEDIA, "txt", "json")
_THREADS = 16  # indexing waits for the disk, most of all for a remote one
_OPEN = 64  # shards held open by each process
_TRIED = 64  # samples whose JSON is looked into for the caption's key
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_EXPECTED = "expected a directory of .tar files, a glob, or a range such as shards/{00000..00099}.tar"
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)

_log = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    [("shard", pa.int32()), ("key", pa.string())]
    + [(f"{part}_{what}", pa.int64()) for part in ("media", "txt", "json") for what in ("offset", "size")]
)


class ShardSource(PerProcess):
    """Samples of tar shards: KEY.(mp4|webm|mkv|avi|mov|jpg|jpeg|png|webp) with KEY.txt, KEY.json or both.

    KEY is a member's name up to the first dot of its basename (WebDataset's rule), and the extension counts without
    its case. Where each member lies is found once, by a walk over the headers of all shards, and cached; clips and
    captions are read where they are.

    A sample without media or without caption stays: its record, of video b'' or caption '', fails when it is loaded, so
    that the ledger counts it. So does one whose JSON cannot be parsed, lacks the key, or holds no text there. Bytes
    of a caption that are not UTF-8 become U+FFFD. Of a truncated or damaged shard the samples before the damage are
    used; what is not used is counted in one warning and listed in `problems`.

    Args:
      path: a directory of .tar files, a glob, or a brace range, `{00000..00099}.tar`; read in sorted order.
      split: `all`, or `shards=first..last`, places in that order, from 0, both included.
      caption_key: '' for the text of KEY.txt, otherwise a key of KEY.json; `a.b` is b inside a.

    Attributes:
      problems: `(shard, what of it is not used and why)`.

    Raises:
      UserError: no such shard, a compressed one, one that cannot be read, no sample, no caption in the place named
        (listing the keys there are), an unwritable cache.
    """

    _files: "dict[int, _File]"
    _lock: threading.Lock

    def __init__(self, path: str, split: str = "all", *, caption_key: str = ""):
        self.name = f"{path}:{split}"
        self.columns = frozenset({"caption"})
        self._caption_key = caption_key
        self._paths = _choose(find(path), split, path)
        self._names = _shard_names(self._paths)
        key = ["shards", [[*arrow_cache.identity(shard), _is_readable(shard)] for shard in self._paths]]
        self._rows = arrow_cache.open_rows(key, _SCHEMA, lambda: _blocks(self._paths))
        self._forget()
        notes = self._rows.notes
        self.problems: list[tuple[str, str]] = [(self._paths[i], reason) for i, reason in notes["problems"]]
        if not len(self):
            first = "; ".join(f"{shard}: {reason}" for shard, reason in self.problems[:3])
            raise UserError(f"config.input.path = {path!r} holds no sample: {first}; {_EXPECTED}")
        self._warn()
        self._check_caption(path)

    def _warn(self) -> None:
        notes = self._rows.notes
        if self.problems:
            shard, reason = self.problems[0]
            _log.warning(
                "%s: %d samples are cut off, and %d shards are not used whole; the first is %s: %s",
                self.name,
                notes["lost"],
                len({shard for shard, _ in self.problems}),
                shard,
                reason,
            )
        caption = "json" if self._caption_key else "txt"
        for part in ("media", caption):
            missing = len(self) - notes[part]
            if missing:
                what = "media" if part == "media" else f".{part} member"
                _log.warning("%s: %d of %d samples have no %s: bad clips", self.name, missing, len(self), what)

    def _check_caption(self, path: str) -> None:
        notes, where = self._rows.notes, f"config.input.path = {path!r}"
        if not self._caption_key:
            if not notes["txt"]:
                listed = ", ".join(self._json_keys()) or "none, for there is no .json member"
                raise UserError(f"{where} has no .txt member: set config.input.caption_key to one of the keys {listed}")
            return
        if not notes["json"]:
            raise UserError(
                f"{where} has no .json member, where config.input.caption_key = {self._caption_key!r} would be; "
                "set it to '' to take the .txt members"
            )
        keys = self._json_keys()
        if not any(_text_at(sample, self._caption_key) for sample in self._tried()):
            raise UserError(
                f"config.input.caption_key = {self._caption_key!r}: no text there in the .json members of {path}, "
                f"expected one of the keys {', '.join(keys) or '(none)'}{near(self._caption_key, keys)}"
            )

    def _tried(self) -> Iterator[Any]:
        """The JSON of the first samples that have one."""
        for i in self._rows.notes["first_json"]:
            yield _parse(self._read(self._rows[i], "json"))

    def _json_keys(self) -> list[str]:
        """Keys that hold text in one of the samples tried, or all keys where none does."""
        samples = [sample for sample in self._tried() if isinstance(sample, dict)]
        every = dict.fromkeys(key for sample in samples for key in sample)
        texts = [key for key in every if any(_text_at(sample, key) for sample in samples)]
        return texts or list(every)

    def _fresh(self) -> dict[str, Any]:
        return {"_files": {}, "_lock": threading.Lock()}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        row = self._rows[index]
        return self._record(row, self._read(row, "media"))

    def annotation(self, index: int) -> Record:
        """As `self[index]` with `video` b''; the media are not read."""
        return self._record(self._rows[index], b"")

    def _record(self, row: dict[str, Any], video: bytes) -> Record:
        return Record(video, self._caption(row), f"{self._names[row['shard']]}/{row['key']}")

    def _caption(self, row: dict[str, Any]) -> str:
        if self._caption_key:
            return _text_at(_parse(self._read(row, "json")), self._caption_key)
        return self._read(row, "txt").decode(errors="replace").strip()

    def _read(self, row: dict[str, Any], part: str) -> bytes:
        """The bytes of a sample's media, txt or json member; none where it has no such member."""
        offset, size = row[f"{part}_offset"], row[f"{part}_size"]
        if offset < 0:
            return b""
        data = self._file(row["shard"]).read(offset, size)
        if len(data) < size:
            raise UserError(f"{self._paths[row['shard']]} became shorter while it was read; start the run again")
        return data

    def _file(self, shard: int) -> "_File":
        with self._lock:
            file = self._files.pop(shard, None) or _File(self._paths[shard])
            self._files[shard] = file  # the last one used stands last
            while len(self._files) > _OPEN:
                del self._files[next(iter(self._files))]
            return file


class _File:
    """An open file, closed when nobody refers to it: another thread may be reading what the cache lets go."""

    def __init__(self, path: str):
        self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._number)

    def read(self, offset: int, size: int) -> bytes:
        pieces = []
        while size:
            piece = os.pread(self._number, size, offset)  # at most 2 GiB at once
            if not piece:
                break
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


# --- Captions ---------------------------------------------------------------------------------------------------------


def _parse(data: bytes) -> Any:
    """The JSON of a sample; None where there is none."""
    try:
        return json.loads(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None  # a bad sample: its caption is empty, which the loader reports


def _text_at(sample: Any, key: str) -> str:
    """The text under `key`, '' where there is none."""
    if isinstance(sample, dict) and key in sample:
        return encodable(sample[key].strip()) if isinstance(sample[key], str) else ""
    first, dot, rest = key.partition(".")
    return _text_at(sample[first], rest) if dot and isinstance(sample, dict) and first in sample else ""


# --- Which shards -----------------------------------------------------------------------------------------------------


def find(path: str) -> list[str]:
    """The shards that `config.input.path` names, in their order; see `ShardSource`."""
    where = f"config.input.path = {path!r}"
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        plain = [os.path.join(path, name) for name in names if name.endswith(".tar")]
        packed = [name for name in names if name.endswith(_COMPRESSED)]
        if plain:
            return plain
        if packed:
            raise _compressed(os.path.join(path, packed[0]))
        raise UserError(f"{where} holds no .tar file: {_EXPECTED}")
    found: list[str] = []
    missing: list[str] = []
    for one in _expand(path):
        if os.path.isfile(one):
            found.append(one)
        else:
            matches = sorted(m for m in glob.glob(one, recursive=True) if os.path.isfile(m))
            found += matches
            missing += [] if matches else [one]
    if not found:
        what = "matches no file" if glob.has_magic(path) or "{" in path else "no such file or directory"
        raise UserError(f"{where}: {what}; {_EXPECTED}")
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of its shards do not exist, the first {missing[0]}; correct the range, or use a "
            "glob to take those that are there"
        )
    for shard in found:
        if shard.endswith(_COMPRESSED):
            raise _compressed(shard)
    return list(dict.fromkeys(found))


def _expand(path: str) -> list[str]:
    """Expands each `{first..last}` of numbers; leading zeros give the width."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if not match:
        return [path]
    first, last = match[1], match[2]
    width = len(first) if first.startswith("0") else 0
    numbers = range(int(first), int(last) + 1)
    return [more for n in numbers for more in _expand(f"{path[: match.start()]}{n:0{width}}{path[match.end() :]}")]


def _compressed(shard: str, kind: str = "") -> UserError:
    return UserError(
        f"{shard} is compressed{f' ({kind})' if kind else ''}, and can only be read from its beginning: expected plain "
        ".tar files; decompress them, e.g. `gunzip *.tar.gz`"
    )


def _choose(shards: list[str], split: str, path: str) -> list[str]:
    if split == "all":
        return shards
    match = re.fullmatch(r"shards=(\d+)\.\.(\d+)", split)
    if not match or not int(match[1]) <= int(match[2]) < len(shards):
        raise UserError(
            f"split {split!r} of {path}: expected 'all', or 'shards=first..last' with first <= last from 0 to "
            f"{len(shards) - 1}, its {len(shards)} shards in sorted order"
        )
    return shards[int(match[1]) : int(match[2]) + 1]


def _shard_names(paths: Sequence[str]) -> list[str]:
    """Paths below the common directory, without .tar."""
    absolute = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return [os.path.relpath(path, common).removesuffix(".tar") for path in absolute]


# --- The index --------------------------------------------------------------------------------------------------------


def _blocks(paths: Sequence[str]) -> arrow_cache.Blocks:
    """Indexes the shards in parallel threads, and yields one block of rows for each, in their order."""
    if len(paths) >= 100:
        _log.warning("indexing %d shards once, into %s", len(paths), arrow_cache.directory())
    notes: dict[str, Any] = {"problems": [], "lost": 0, "media": 0, "txt": 0, "json": 0, "first_json": []}
    executor = concurrent.futures.ThreadPoolExecutor(_THREADS)
    rows = 0
    said = time.monotonic()
    try:
        for shard, (samples, problems, lost) in enumerate(executor.map(_index, paths)):
            notes["problems"] += [(shard, problem) for problem in problems]
            notes["lost"] += lost
            columns: dict[str, list[Any]] = {"shard": [shard] * len(samples), "key": list(samples)}
            for part in ("media", "txt", "json"):
                members = [sample.get(part) for sample in samples.values()]
                notes[part] += sum(m is not None for m in members)
                columns[f"{part}_offset"] = [m.offset if m else -1 for m in members]
                columns[f"{part}_size"] = [m.size if m else 0 for m in members]
            with_json = [rows + i for i, offset in enumerate(columns["json_offset"]) if offset >= 0]
            notes["first_json"] += with_json[: _TRIED - len(notes["first_json"])]
            rows += len(samples)
            if time.monotonic() - said > 30:
                said = time.monotonic()
                _log.warning("indexed %d of %d shards", shard + 1, len(paths))
            yield pa.record_batch(columns, schema=_SCHEMA)
    finally:
        executor.shutdown(cancel_futures=True)
    return notes


Sample = dict[str, tar_index.Member]  # extension -> member


def _index(path: str) -> tuple[dict[str, Sample], list[str], int]:
    """Returns KEY -> sample, its media member under "media"; what is not used; how many samples are cut off."""
    if not _is_readable(path):
        return {}, ["no file that this user may read"], 0
    samples: dict[str, Sample] = {}
    odd = _Tally()
    twice: set[str] = set()
    lost, last, damage = 0, "", ""
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for member in tar_index.walk(number):
                if isinstance(member, tar_index.Ignored):
                    odd.add("not read", member.what)
                    continue
                key, extension = _split_name(member.name)
                if extension not in _PARTS:
                    odd.add("neither media nor .txt nor .json", member.name)
                    continue
                last = key
                sample = samples.setdefault(key, {})
                if extension in sample:
                    # Two samples of one name, or one written twice: which media goes with which text is not to be told.
                    odd.add("samples not used, with a member that is in it twice", member.name)
                    twice.add(key)
                sample[extension] = member
        except tar_index.Damaged as e:
            damage = str(e)
            key, extension = _split_name(e.name)
            cut = {key} if extension in _PARTS else set()
            if not _is_whole(samples.get(last, {})):  # the next of its members was not reached
                cut |= {last} & samples.keys()
            for key in cut:
                samples.pop(key, None)
            lost = len(cut)
        finally:
            os.close(number)
    except tar_index.Compressed as e:
        raise _compressed(path, str(e)) from e
    except OSError as e:
        raise UserError(f"the shard {path} cannot be read: {e.strerror or e}; repair or remove it") from e
    for key in twice:
        samples.pop(key, None)
    for key, sample in samples.items():
        media = [extension for extension in MEDIA if extension in sample]
        if media:
            sample["media"] = sample[media[0]]
        if len(media) > 1:
            odd.add(f"samples with several media, of which .{media[0]} is taken", key)
    problems = odd.texts()
    if damage:
        problems.insert(0, f"{damage}; {lost} samples are cut off, {len(samples)} are used")
    if not samples and not problems:
        problems.append("an archive without a file")
    return samples, problems, lost


def _is_readable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.R_OK)


def _is_whole(sample: Sample) -> bool:
    return any(extension in sample for extension in MEDIA) and ("txt" in sample or "json" in sample)


class _Tally:
    """Counts what is odd in a shard, by kind, with the first of each: there may be one in every sample."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, kind: str, name: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._first.setdefault(kind, name)

    def texts(self) -> list[str]:
        return [f"{kind}: {count}, the first {self._first[kind]!r}" for kind, count in self._counts.items()]


def _split_name(name: str) -> tuple[str, str]:
    """KEY and extension of a member's name; ('', '') where its basename has no dot, or begins with one."""
    match = _KEY.fullmatch(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else ("", "")
