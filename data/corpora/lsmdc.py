"""LSMDC 2016 (Rohrbach et al., IJCV 2017): retrieval, and the multiple-choice test.

Annotations, each where its file is there:

    train, validation, test        the official split; a clip may have several sentences
    test_1k                        the 1,000 clips that retrieval is reported on
    mc_train, mc_validation, mc_test
                                   five sentences, of which one describes the clip. The first two files list the right
                                   one first: score each option by itself.
"""

import pathlib

from data.corpora import corpus, rows
from data.corpora.rows import Row
from vlp_jax.types import UserError

NAME = "lsmdc"
WHERE_FROM = (
    "LSMDC needs a permission: https://sites.google.com/site/describingmovies/download says how to get it. "
    "LSMDC16_annos_training.csv, LSMDC16_annos_val.csv, LSMDC16_annos_test.csv, "
    "LSMDC16_challenge_1000_publictect.csv and LSMDC16_multiple_choice_*.csv go into ROOT, the clips, "
    "<movie>/<clip>.avi, below ROOT/videos."
)

_FOLDERS = ("annotations",)
_FILES = {
    "train": "LSMDC16_annos_training.csv",
    "validation": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_annos_test.csv",
    "test_1k": "LSMDC16_challenge_1000_publictect.csv",
}
_CHOICE_FILES = {
    "mc_train": "LSMDC16_multiple_choice_train.csv",
    "mc_validation": "LSMDC16_multiple_choice_valid.csv",
    "mc_test": "LSMDC16_multiple_choice_test_randomized.csv",
}

_OFFICIAL = {
    "train": (None, 101_079),
    "validation": (None, 7408),
    "test": (None, 10_053),
    "test_1k": (1000, 1000),
    "mc_train": (None, 101_079),
    "mc_validation": (None, 7408),
    "mc_test": (None, 10_053),
}


def read(root: pathlib.Path, *, allow_share: float = 0.0) -> corpus.Corpus:
    """Reads the annotations below `root`, and finds their videos.

    The clips on disk are cut out of the movies already, so that rows carry no start and end.

    Args:
      root: holds the csv files, in annotations/ or by themselves; the clips lie in videos/, or anywhere below.
      allow_share: share of the clips that may be absent.

    Raises:
      UserError: no annotation file is there, clips are absent, or a file has another layout.
    """
    notes: list[str] = []
    annotations: dict[str, list[Row]] = {}
    for part, name in (_FILES | _CHOICE_FILES).items():
        path = rows.find(root, _FOLDERS, name)
        if path is None:
            notes.append(rows.absent(part, [name], root))
        elif part in _FILES:
            cells = _table(path, 6, notes)
            annotations[part] = [{"clip_id": row[0], "caption": row[5]} for row in cells]
        else:
            annotations[part] = _choices(path, notes)
    if "test_1k" in annotations:
        rows.check_distinct((row["clip_id"] for row in annotations["test_1k"]), _FILES["test_1k"])
    if not annotations:
        corpus.require_file(root, [*_FILES.values(), *_CHOICE_FILES.values()], WHERE_FROM)
    return rows.assemble(
        NAME,
        annotations,
        corpus.find_videos(rows.video_folder(root), rows.clip_ids(annotations)),
        expected="ROOT/videos/<movie>/<clip>.avi",
        where_from=WHERE_FROM,
        official=_OFFICIAL,
        notes=notes,
        allow_share=allow_share,
    )


def _table(path: pathlib.Path, width: int, notes: list[str]) -> list[list[str]]:
    """Rows of `width` cells: clip, start and end aligned, start and end extracted, then what the file is about.

    The files have no header, and quotation marks are plain characters.
    """
    cells = [[cell.strip() for cell in line.split("\t")] for line in rows.lines(path)]
    malformed = [f"{len(row)} cells, not {width}: {row[:2]}" for row in cells if len(row) != width]
    rows.report_malformed(malformed, len(cells), path, notes)
    return [row for row in cells if len(row) == width]


def _choices(path: pathlib.Path, notes: list[str]) -> list[Row]:
    randomized = path.name == _CHOICE_FILES["mc_test"]
    choices = []
    for number, row in enumerate(_table(path, 11 if randomized else 10, notes)):
        if randomized and not row[10].isdecimal():
            raise UserError(f"{path}: clip {row[0]!r} has the answer {row[10]!r}, expected 1 to 5")
        choices.append(
            {
                # Several questions may be about one clip.
                "question_id": f"{path.stem}_{number:06d}",
                "clip_id": row[0],
                "options": row[5:10],
                "answer": int(row[10]) - 1 if randomized else 0,
            }
        )
    return rows.check_choices(choices, 5, path)
