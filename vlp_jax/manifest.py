"""The manifest of a checkpoint folder: what it holds, and the digests by which a changed byte is noticed.

`manifest.json` holds a body (metadata; shape and dtype of each leaf; size and digest of each file) and the body's own
digest, so that every byte of the folder is covered.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
from typing import Any

_NAME = "manifest.json"


class Corrupt(Exception):
    """Says which file of a checkpoint is damaged, and how."""


def _render(body: dict[str, Any]) -> bytes:
    """The manifest's bytes: the body and its own digest."""
    digest = hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()
    return json.dumps({"blake2b": digest, "body": body}, indent=1, sort_keys=True).encode()


def write(folder: pathlib.Path, body: dict[str, Any]) -> None:
    """Hashes every file of `folder`, writes the manifest beside them, and forces all of it to disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = _in_threads(_sync_and_sum, files)
    body = body | {"files": {p.relative_to(folder).as_posix(): s for p, s in zip(files, sums)}}
    path = folder / _NAME
    path.write_bytes(_render(body))
    sync(path)
    for inner in [p for p in folder.rglob("*") if p.is_dir()] + [folder]:
        sync(inner)


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest's body; raises Corrupt where it is missing or a byte of it has changed."""
    try:
        raw = (folder / _NAME).read_bytes()
    except FileNotFoundError:
        raise Corrupt(f"{_NAME} is missing") from None
    try:
        body = json.loads(raw)["body"]
        # Rendering again and comparing bytes also sees changes that leave the parsed content the same.
        changed = _render(body) != raw
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{_NAME} is damaged: {error}") from None
    if changed:
        raise Corrupt(f"{_NAME} has been changed: its digest does not match")
    if not re.fullmatch(rf"{body['step']:09d}(\.\d+)?", folder.name):
        raise Corrupt(f"{_NAME} is that of step {body['step']}: the folder has been renamed or overwritten")
    return body


def problem(folder: pathlib.Path) -> str | None:
    """Reads every file of a checkpoint; returns what is wrong with it, or None."""

    def check(item: tuple[str, list]) -> str | None:
        name, (size, digest) = item
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, {size} expected"
            if _sum(folder / name) != digest:
                return f"{name} has been changed: its digest does not match"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error}"
        return None

    try:
        files = read(folder)["files"]
    except Corrupt as error:
        return str(error)
    return next((p for p in _in_threads(check, files.items()) if p is not None), None)


def _in_threads(function, items) -> list:
    """Maps over files; hashing and fsync release the GIL."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(function, items))


def _sum(path: pathlib.Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync_and_sum(path: pathlib.Path) -> list:
    sync(path)
    return [path.stat().st_size, _sum(path)]


def sync(path: pathlib.Path) -> None:
    """Forces a file, or a directory's entries, to disk: a rename must not become durable before what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
