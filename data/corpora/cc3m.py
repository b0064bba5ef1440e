"""Conceptual Captions 3M (Sharma et al., ACL 2018): images with their alt texts, trained on as one-frame videos."""

import csv
import functools
import json
import os
import pathlib
from collections.abc import Iterator

from data.corpora.corpus import (
    IMAGE_EXTENSIONS,
    Clip,
    Corpus,
    Stream,
    check_missing,
    contents,
    find_file,
    read_json,
    stream_present,
)
from vlp_jax.text import encodable
from vlp_jax.types import UserError

NAME = "cc3m"
WHERE_FROM = (
    "https://ai.google.com/research/ConceptualCaptions/download offers Train_GCC-training.tsv and "
    "Validation_GCC-1.1.0-Validation.tsv, lines of caption TAB url. Either download the images by img2dataset "
    "(https://github.com/rom1504/img2dataset; --output_format files, one --output_folder for each: ROOT/train, "
    "ROOT/validation), which saves <5 digits>/<key>.jpg, .txt and .json; or replace each url by the image's path, "
    "relative to the tsv's folder. Shards in tar files need no preparation: config.input.kind = shards"
)

# split -> names of its tsv, names of its img2dataset folder
_PLACES = {
    "train": (("Train_GCC-training.tsv", "train.tsv"), ("train", "training")),
    "validation": (("Validation_GCC-1.1.0-Validation.tsv", "validation.tsv", "val.tsv"), ("validation", "val")),
}


def read(root: pathlib.Path, *, allow_share: float = 0.0) -> Corpus:
    """Reads each split from its tsv with paths, or from the folders that img2dataset wrote.

    Args:
      root: folder that holds the tsv files, or the folders `train` and `validation`, or (the training split alone) the
        numbered folders themselves.
      allow_share: share of the images that may be missing, 0..1.

    Raises:
      UserError: neither is there, the tsv holds urls and nothing was downloaded, a line is not caption TAB path, or too
        many images are missing.
    """
    if not root.is_dir():
        raise UserError(f"--root {root}: no such directory. {WHERE_FROM}")
    corpus = Corpus(NAME, {})
    notes, undownloaded = [], []
    for split, (tables, folders) in _PLACES.items():
        label = f"{NAME} {split}"
        folder = _downloads(root, folders)
        table = find_file(root, tables)
        if table is not None and not _holds_urls(table):
            corpus.splits[split], missing, note = stream_present(
                f"{label} ({table.name})",
                functools.partial(_rows, table),
                f"{table.parent}/<path of the tsv>",
                WHERE_FROM,
                allow_share=allow_share,
            )
            notes += [note] if note else []
        elif folder is not None:
            corpus.splits[split], missing, note = _downloaded(label, root, folder, allow_share)
            notes += [note] if note else []
        else:
            undownloaded += [table.name] if table is not None else []
            notes.append(f"neither {tables[0]} with paths nor a folder {folders[0]} of img2dataset: no split {split}")
            continue
        corpus.missing += missing
    if not corpus.splits:
        names = [name for _, folders in _PLACES.values() for name in folders]
        if undownloaded:
            raise UserError(
                f"--root {root}: {' and '.join(undownloaded)} holds urls, not paths, and there is no folder "
                f"{' or '.join(names)} of downloaded images. {WHERE_FROM}"
            )
        raise UserError(
            f"--root {root}: expected {' or '.join(tables[0] for tables, _ in _PLACES.values())}, or img2dataset's "
            f"folders in train/ and validation/; the folder holds {contents(root)}. {WHERE_FROM}"
        )
    corpus.notes = "\n".join(notes)
    return corpus


# --- A tsv with paths -----------------------------------------------------------------------------------------------


def _holds_urls(table: pathlib.Path) -> bool:
    _, path, _ = next(_cells(table), ("", "", 0))
    return path.startswith(("http://", "https://"))


def _rows(table: pathlib.Path) -> Iterator[tuple[str, list[str], str]]:
    for caption, path, _ in _cells(table):
        yield os.path.splitext(path)[0], [f"{table.parent}/{path}" if not os.path.isabs(path) else path], caption


def _cells(table: pathlib.Path) -> Iterator[tuple[str, str, int]]:
    """Yields caption, path and line number."""
    csv.field_size_limit(2**31 - 1)
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != 2 or not cells[1]:
                    raise UserError(
                        f"{table}, line {reader.line_num}: expected caption TAB path, found {len(cells)} cells: {cells}"
                    )
                yield cells[0], cells[1], reader.line_num
        except (UnicodeDecodeError, csv.Error) as e:
            raise UserError(
                f"{table}, after line {reader.line_num}: expected lines of caption TAB path, but {e}"
            ) from e


# --- Folders of img2dataset -------------------------------------------------------------------------------------------


def _downloads(root: pathlib.Path, folders: tuple[str, ...]) -> pathlib.Path | None:
    """The folder that holds numbered folders: one of `folders`, or for the training split the root itself."""
    candidates = [root / name for name in folders] + ([root] if "train" in folders else [])
    return next((folder for folder in candidates if folder.is_dir() and _shards(folder)), None)


def _shards(folder: pathlib.Path) -> list[pathlib.Path]:
    """Its folders named by digits, as img2dataset numbers its shards."""
    return sorted(pathlib.Path(entry.path) for entry in os.scandir(folder) if entry.name.isdigit() and entry.is_dir())


def _samples(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path | None]]:
    """Yields each sample's path without extension, and its image or None, in the order of names."""
    for shard in _shards(folder):
        names: dict[str, set[str]] = {}
        for entry in os.scandir(shard):
            key, _, extension = entry.name.rpartition(".")
            names.setdefault(key, set()).add(extension)
        for key in sorted(names):
            extension = next((e for e in IMAGE_EXTENSIONS if e in names[key]), "")
            if extension or names[key] & {"txt", "json"}:
                yield shard / key, shard / f"{key}.{extension}" if extension else None


def _downloaded(
    label: str, root: pathlib.Path, folder: pathlib.Path, allow_share: float
) -> tuple[Stream, list[str], str]:
    count, missing = 0, []
    for sample, image in _samples(folder):
        if image is None:
            missing.append(_clip_id(sample, root))
        else:
            count += 1
    expected = f"{folder}/<5 digits>/<key>.jpg beside its .txt or .json"
    listed = count + len(missing)
    check_missing(label, len(missing), missing[:5], expected, WHERE_FROM, listed=listed, allow_share=allow_share)
    if not count:
        raise UserError(f"{label}: {folder} holds no image. {WHERE_FROM}")

    def clips() -> Iterator[Clip]:
        for sample, image in _samples(folder):
            if image is not None:
                yield Clip(_clip_id(sample, root), image, _caption(sample))

    return Stream(clips, count), missing, _failed_downloads(label, folder)


def _clip_id(sample: pathlib.Path, root: pathlib.Path) -> str:
    return encodable(str(sample.relative_to(root)))


def _caption(sample: pathlib.Path) -> str:
    """The .txt, or the caption in the .json; "" where neither holds one, and the ledger of the run will name it."""
    text, details = sample.parent / f"{sample.name}.txt", sample.parent / f"{sample.name}.json"
    if text.is_file():
        return text.read_text(encoding="utf-8", errors="replace").strip()
    if details.is_file():
        try:
            return encodable(str(json.loads(details.read_bytes()).get("caption") or "")).strip()
        except (ValueError, AttributeError):  # cut off while it was written: one sample is no reason to stop
            return ""
    return ""


def _failed_downloads(label: str, folder: pathlib.Path) -> str:
    """What img2dataset says in its NNNNN_stats.json about images that it could not get."""
    count = successes = 0
    for path in sorted(folder.glob("*_stats.json")):
        stats = read_json(path)
        count, successes = count + int(stats.get("count", 0)), successes + int(stats.get("successes", 0))
    return f"{label}: img2dataset could not download {count - successes} of {count} images" if count > successes else ""
