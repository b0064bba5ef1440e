"""What every corpus module hands to the writer, and how files are found on disk and missed by name.

A corpus module of this package offers

    NAME: str                     as in `python -m data.prepare NAME`
    WHERE_FROM: str               where its files are to be had, and under which names they are expected
    read(root: pathlib.Path, *, allow_share: float = 0.0) -> Corpus

`read` looks at names and annotations only; no video is opened. `allow_share` goes to `report_missing`.
"""

import csv
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from vlp_jax.text import encodable_json
from vlp_jax.types import UserError

VIDEO_EXTENSIONS = ("mp4", "webm", "mkv", "avi", "mov")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One record to be: a video or image file, and its name.

    Attributes:
      clip_id: unique within the corpus; like the caption, without lone surrogates (`vlp_jax.text`).
      path: the encoded file.
      caption: pre-training corpora only; evaluation sets keep theirs in `Corpus.annotations`.
    """

    clip_id: str
    path: pathlib.Path
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Stream:
    """A split too long to hold as objects: `stream()` reads its `len(stream)` clips anew, one by one."""

    clips: Callable[[], Iterable[Clip]]
    count: int

    def __call__(self) -> Iterable[Clip]:
        return self.clips()

    def __len__(self) -> int:
        return self.count


@dataclasses.dataclass
class Corpus:
    """What a corpus holds, in official terms.

    Attributes:
      name: the module's NAME.
      splits: pre-training corpora: `train`, `validation`, ... with captions in the clips. Evaluation sets: one split
        `clips`, every video once. The order is that of the records. Where a split is too long to hold as objects, a
        function that yields its clips anew at each call; `Stream` is one that knows their number.
      annotations: evaluation sets: name -> rows, written as `<name>.jsonl`. Retrieval: clip_id, caption and, for a span
        of the video, start and end in seconds. Question answering: question_id, clip_id, question, answer, type.
        Multiple choice: question_id, clip_id, options, answer (index into options), and perhaps a question.
        Classification: clip_id, label.
      missing: ids that the annotations list and the disk lacks; what refers to them is left out above.
      notes: what the user should know, printed: parts left out because their files are absent, counts that differ from
        the official ones. One sentence a line.
    """

    name: str
    splits: dict[str, Sequence[Clip] | Callable[[], Iterable[Clip]]]
    annotations: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    notes: str = ""


# --- Files -----------------------------------------------------------------------------------------------------------


def find_videos(
    folder: pathlib.Path,
    ids: Collection[str],
    extensions: Sequence[str] = VIDEO_EXTENSIONS,
    *,
    listed: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, pathlib.Path]:
    """Finds the file of each id below `folder`, however deep, by one scan; symbolic links are followed.

    A file belongs to an id that is its name, or its name without the extension; an id that ends in one of `extensions`
    is found under the other ones too. Case counts in ids and not in extensions.

    Args:
      folder: holds the videos.
      ids: of the videos.
      extensions: that a video may have, "" for a name that ends in a dot.
      listed: id -> the file names by which the annotations call that video, in their order, for sets whose ids are not
        what is listed. A file belongs to the id as if each of them were an id, too: of `x.mov` the files `x.mov`,
        `x.mov.mp4` and `x.mp4` are found.

    Returns:
      id -> path, in the order of `ids`; ids without a file are left out, see `report_missing`. Of the files of a video
      that is listed under several names, the one of the name listed first is taken, and the first in sorted order where
      that leaves several.

    Raises:
      UserError: there is no such folder, or two files belong to an id that is not listed under several names.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no directory: expected the folder that holds the videos; check --root")
    endings = tuple(f".{e.lower()}" for e in extensions)
    listed = listed or {}

    def stems(i: str) -> dict[str, None]:  # without duplicates, in order
        return dict.fromkeys(stem for name in (*listed.get(i, ()), i) for stem in (name, _stem(name, endings)))

    found: dict[str, list[pathlib.Path]] = {stem: [] for i in ids for stem in stems(i)}
    for path in _files(folder):
        stem, ending = os.path.splitext(path.name)
        if ending.lower() in endings and stem in found:
            found[stem].append(path)
    paths = {}
    for i in ids:
        names = [_fold(name) for name in listed.get(i, ())]
        files = sorted((_place(path, names), path) for stem in stems(i) for path in found[stem])
        if len(files) > 1 and len(names) < 2:
            (_, first), (_, second) = files[:2]
            raise UserError(f"two files for the video {i!r}: {first} and {second}; keep one of them below {folder}")
        if files:
            paths[i] = files[0][1]
    return paths


def _stem(name: str, endings: tuple[str, ...]) -> str:
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in endings else name


def _fold(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem + ending.lower()


def _place(path: pathlib.Path, names: list[str]) -> int:
    """Which of `names` (folded) the file has, by itself or followed by another extension; their number if none."""
    own = (_fold(path.name), _fold(os.path.splitext(path.name)[0]))
    return next((place for place, name in enumerate(names) if name in own), len(names))


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    seen = set()
    for directory, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link to a folder above, or two ways to one folder
            below.clear()
            continue
        seen.add(real)
        below.sort()
        for name in names:
            yield pathlib.Path(directory, name)


def find_file(root: pathlib.Path, names: str | Sequence[str]) -> pathlib.Path | None:
    """Returns the first of `names`, relative to `root`, that is a file; None where none is."""
    for name in [names] if isinstance(names, str) else names:
        if (root / name).is_file():
            return root / name
    return None


def require_file(root: pathlib.Path, names: str | Sequence[str], where_from: str) -> pathlib.Path:
    """Returns the first of `names`, relative to `root`, that is a file.

    Raises:
      UserError: none is; the message names each, what the folder holds instead, and where to get it.
    """
    path = find_file(root, names)
    if path is not None:
        return path
    if not root.is_dir():
        raise UserError(f"--root {root}: no such directory. {where_from}")
    expected = names if isinstance(names, str) else " or ".join(names)
    raise UserError(f"--root {root}: expected the file {expected}; the folder holds {contents(root)}. {where_from}")


def contents(folder: pathlib.Path, shown: int = 12) -> str:
    """Names what a folder holds, for messages: up to `shown` entries, and the number of the rest."""
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(folder))
    more = f", ... ({len(names)} entries)" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more or "nothing"


def report_missing(
    name: str, missing: Collection[str], expected: str, where_from: str, *, listed: int, allow_share: float = 0.0
) -> list[str]:
    """Stops where more videos are absent than allowed.

    Args:
      name: the corpus.
      missing: ids that are listed and have no file.
      expected: where such a file would lie, e.g. `ROOT/videos/<video_id>.mp4`.
      where_from: the module's WHERE_FROM.
      listed: number of ids listed, present or not.
      allow_share: share of `listed` that may be missing, 0..1; `--allow-missing` sets it.

    Returns:
      `missing` as a list, for `Corpus.missing`, which is written to `missing.jsonl`.

    Raises:
      UserError: more than that share is missing, or all are.
    """
    first = list(itertools.islice(missing, 5))
    check_missing(name, len(missing), first, expected, where_from, listed=listed, allow_share=allow_share)
    return list(missing)


def check_missing(
    name: str, count: int, first: Sequence[str], expected: str, where_from: str, *, listed: int, allow_share: float
) -> None:
    """As `report_missing`, where the missing ids are counted and only the `first` few are held."""
    if not count or (count <= allow_share * listed and count < listed):
        return
    fix = "put them there, or go on without them by --allow-missing" if count < listed else "check --root"
    allowed = f" (--allow-missing {allow_share:g} allows {int(allow_share * listed)})" if 0 < allow_share < 1 else ""
    more = ", ..." if count > len(first) else ""
    raise UserError(
        f"{name}: {count} of {listed} listed files are missing{allowed}: {', '.join(first)}{more}; "
        f"expected each as {expected}; {fix}. {where_from}"
    )


def stream_present(
    name: str,
    rows: Callable[[], Iterable[tuple[str, Sequence[str], str]]],
    expected: str,
    where_from: str,
    *,
    allow_share: float,
) -> tuple[Stream, list[str], str]:
    """Makes a split of the rows whose file is there, without holding the rows: one byte each.

    Args:
      name: of the split, for messages.
      rows: yields, the same at each call, clip_id, the paths where the file may lie, and the caption.
      expected, where_from, allow_share: see `report_missing`.

    Returns:
      The split, the ids of the missing clips, and a note about empty captions ("" where there is none).

    Raises:
      UserError: more than that share is missing, or all are, or there is no row.
    """
    places = bytearray()  # of each row: 0 where its file is missing, otherwise 1 + the number of its path
    first: list[str] = []
    uncaptioned = 0
    for clip_id, paths, caption in rows():
        place = next((i for i, path in enumerate(paths, 1) if os.path.isfile(path)), 0)
        places.append(place)
        uncaptioned += not caption.strip()
        if not place and len(first) < 5:
            first.append(clip_id)
    if not places:
        raise UserError(f"{name}: its table holds no row; fetch it again. {where_from}")
    count = places.count(0)
    check_missing(name, count, first, expected, where_from, listed=len(places), allow_share=allow_share)
    missing = [row[0] for row, place in zip(rows(), places) if not place] if count else []

    def clips() -> Iterator[Clip]:
        for (clip_id, paths, caption), place in zip(rows(), places, strict=True):
            if place:
                yield Clip(clip_id, pathlib.Path(paths[place - 1]), caption)

    note = f"{name}: {uncaptioned} captions are empty; training marks such records invalid" if uncaptioned else ""
    return Stream(clips, len(places) - count), missing, note


# --- Annotations -----------------------------------------------------------------------------------------------------


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file; lone surrogates in its texts become U+FFFD.

    Raises:
      UserError: it is not JSON in UTF-8.
    """
    try:
        return encodable_json(json.loads(path.read_text(encoding="utf-8-sig")))
    except ValueError as e:  # JSON and Unicode errors alike
        raise UserError(f"{path}: expected JSON in UTF-8, but {e}; fetch the file again") from e


def read_table(
    path: pathlib.Path, columns: Sequence[str], *, delimiter: str = ",", quoted: bool = True
) -> Iterator[dict[str, str]]:
    """Yields the rows of a table with a header row, one at a time; blank lines are no rows.

    Args:
      path: the file, UTF-8.
      columns: names that the header must hold.
      delimiter: one character.
      quoted: False where quotation marks are plain characters.

    Raises:
      UserError: a column is missing, a row has fewer cells than the header, or the file is no such table.
    """
    # A short row leaves None in the cells that it lacks; a long one is kept under `extra`, which nobody asks for.
    csv.field_size_limit(2**31 - 1)  # captions of a megabyte exist
    with open(path, encoding="utf-8-sig", newline="") as file:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        table = csv.DictReader(file, delimiter=delimiter, quoting=quoting, restkey="extra")
        try:
            present = list(table.fieldnames or ())
            absent = [c for c in columns if c not in present]
            if absent:
                listed = ", ".join(map(repr, present)) or "nothing"
                raise UserError(f"{path}: expected a header with {', '.join(map(repr, absent))}; it holds {listed}")
            for row in table:
                if any(row[c] is None for c in columns):
                    raise UserError(f"{path}, line {table.line_num}: the row has fewer cells than the header: {row}")
                yield row
        except (UnicodeDecodeError, csv.Error) as e:
            raise UserError(f"{path}, after line {table.line_num}: expected a table in UTF-8, but {e}") from e
