"""DiDeMo (Hendricks et al., ICCV 2017): paragraph retrieval, and moments.

Annotations, each where its file is there:

    train, validation, test        one paragraph a video: its descriptions, joined in the file's order
    moments_train, moments_validation, moments_test
                                   one row a description; start and end are the interval that most annotators chose,
                                   the first of them in a tie, `times` those of all, in seconds

A video is known by its name without the extension: the official files list some under two, `x.mov` and `x.mp4`, and
only together do they give the 1,065 and 1,004 videos of the validation and test splits. Where files of both lie there,
that of the name listed first is taken.
"""

import collections
import os
import pathlib

from data.corpora import corpus, rows
from data.corpora.rows import Row
from vlp_jax.types import UserError

NAME = "didemo"
WHERE_FROM = (
    "train_data.json, val_data.json and test_data.json are in the folder data of "
    "https://github.com/LisaAnne/LocalizingMoments, whose README says how to get the videos (its "
    "download_videos_AWS.py saves them as <listed name>.mp4, such as x.mov.mp4); they go below ROOT/videos, so or "
    "under the listed names, or with another extension in place of the listed one. In place of each json there may be "
    "DiDeMo_train.tsv, DiDeMo_val.tsv or DiDeMo_test.tsv with the columns sentences and file."
)

_FOLDERS = ("data", "annotations", "meta_data")
_FILES = {
    "train": ("train_data.json", "DiDeMo_train.tsv"),
    "validation": ("val_data.json", "DiDeMo_val.tsv"),
    "test": ("test_data.json", "DiDeMo_test.tsv"),
}
# As Flickr names them; "" is a name that ends in a dot, which the official files have too.
_EXTENSIONS = (*corpus.VIDEO_EXTENSIONS, "m4v", "mpg", "mpeg", "wmv", "3gp", "3g2", "mts", "m2ts", "")

_SEGMENT_S = 5  # annotators chose among segments of five seconds
_MAX_SEGMENTS = 6  # videos were cut to 30 s

_OFFICIAL = {
    "train": (8395, 8395),
    "validation": (1065, 1065),
    "test": (1004, 1004),
    "moments_train": (8395, 33_005),
    "moments_validation": (1065, 4180),
    "moments_test": (1004, 4021),
}


def read(root: pathlib.Path, *, allow_share: float = 0.0) -> corpus.Corpus:
    """Reads the annotations below `root`, and finds their videos.

    The last segment of a video may be shorter than 5 s (25 to 30 s may mean 25 s to the end).

    Args:
      root: holds the json or tsv files, in data/ or by themselves; the videos lie in videos/, or anywhere below.
      allow_share: share of the videos that may be absent.

    Raises:
      UserError: no annotation file is there, videos are absent, or a file has another layout.
    """
    notes: list[str] = []
    annotations: dict[str, list[Row]] = {}
    files: list[str] = []
    for part, (moments, paragraphs) in _FILES.items():
        path = rows.find(root, _FOLDERS, moments)
        if path is not None:
            descriptions = rows.json_rows(path, ["annotation_id", "description", "times", "video", "num_segments"])
            annotations[part], annotations[f"moments_{part}"] = _moments(descriptions, path)
            files += [row["video"] for row in descriptions]
            continue
        path = rows.find(root, _FOLDERS, paragraphs)
        if path is None:
            notes.append(rows.absent(part, [moments, paragraphs], root))
            continue
        table = list(corpus.read_table(path, ["sentences", "file"], delimiter="\t"))
        annotations[part] = [{"clip_id": rows.stem(row["file"]), "caption": row["sentences"]} for row in table]
        files += [row["file"] for row in table]
        notes.append(f"moments_{part} left out: {path.name} holds paragraphs only, moments are in {moments}.")
    if not annotations:
        corpus.require_file(root, [name for names in _FILES.values() for name in names], WHERE_FROM)
    listed: dict[str, list[str]] = {}
    for name in dict.fromkeys(map(os.path.basename, files)):
        listed.setdefault(rows.stem(name), []).append(name)
    return rows.assemble(
        NAME,
        annotations,
        corpus.find_videos(rows.video_folder(root), rows.clip_ids(annotations), _EXTENSIONS, listed=listed),
        expected="ROOT/videos/<listed name>, <listed name>.mp4 or <video>.mp4",
        where_from=WHERE_FROM,
        official=_OFFICIAL,
        notes=notes,
        allow_share=allow_share,
    )


def _moments(listed: list[Row], path: pathlib.Path) -> tuple[list[Row], list[Row]]:
    """Returns one row a video, and one row a description."""
    rows.check_distinct((str(row["annotation_id"]) for row in listed), f"{path}, annotation_id")
    paragraphs: dict[str, list[str]] = {}
    moments = []
    for row in listed:
        clip = rows.stem(row["video"])
        paragraphs.setdefault(clip, []).append(row["description"].strip())
        times = [_interval(pair, row, path) for pair in row["times"]]
        if not times:
            raise UserError(f"{path}, annotation {row['annotation_id']}: no times, expected at least one pair")
        # most_common keeps the order of appearance among equals
        (start, end), _ = collections.Counter(times).most_common(1)[0]
        moments.append(
            {
                "clip_id": clip,
                "caption": row["description"],
                "start": start,
                "end": end,
                "times": [list(pair) for pair in times],
            }
        )
    return [{"clip_id": clip, "caption": " ".join(texts)} for clip, texts in paragraphs.items()], moments


def _interval(pair: list[int], row: Row, path: pathlib.Path) -> tuple[float, float]:
    """First and last segment, both counted in, to seconds."""
    count = min(row["num_segments"], _MAX_SEGMENTS)
    if len(pair) != 2 or not 0 <= pair[0] <= pair[1] < count:
        raise UserError(
            f"{path}, annotation {row['annotation_id']}: times {pair!r}, expected [first, last] segment of 0 to "
            f"{count - 1}"
        )
    return float(pair[0] * _SEGMENT_S), float((pair[1] + 1) * _SEGMENT_S)
