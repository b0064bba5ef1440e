"""WebVid-2M and WebVid-10M (Bain et al., Frozen in Time, ICCV 2021): stock videos with their captions."""

import functools
import pathlib
from collections.abc import Iterator

from data.corpora.corpus import Corpus, find_file, read_table, require_file, stream_present
from vlp_jax.types import UserError

NAME = "webvid"
WHERE_FROM = (
    "The tables results_2M_train.csv and results_2M_val.csv (or 10M) with the columns videoid, contentUrl, "
    "duration, page_dir, name, and the videos as videos/<page_dir>/<videoid>.mp4, as the download script of "
    "https://github.com/m-bain/webvid saves them from each contentUrl"
)
SUBSETS = ("2M", "10M")
_COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")


def read(root: pathlib.Path, *, allow_share: float = 0.0, subset: str = "") -> Corpus:
    """Reads the tables of one subset; tables of ten million rows are streamed.

    Videos lie at `videos/<page_dir>/<videoid>.mp4` or `videos/<videoid>.mp4`, or at either without `videos/`.

    Args:
      root: folder with the tables.
      allow_share: share of the videos that may be missing, 0..1.
      subset: 2M or 10M; "" where only one is there.

    Raises:
      UserError: no table or both subsets are there, a table lacks a column, or too many videos are missing.
    """
    if subset and subset not in SUBSETS:
        raise UserError(f"--option subset={subset}: expected one of {', '.join(SUBSETS)}")
    if not subset:
        there = [s for s in SUBSETS if find_file(root, [f"results_{s}_train.csv", f"results_{s}_val.csv"])]
        if len(there) > 1:
            raise UserError(f"--root {root} holds WebVid-2M and WebVid-10M: choose by --option subset=2M or subset=10M")
        subset = there[0] if there else SUBSETS[0]
    tables = {"train": f"results_{subset}_train.csv", "validation": f"results_{subset}_val.csv"}
    require_file(root, list(tables.values()), WHERE_FROM)
    corpus = Corpus(NAME, {})
    notes = []
    for split, table in tables.items():
        path = find_file(root, table)
        if path is None:
            notes.append(f"{table} is not there: no split {split}")
            continue
        corpus.splits[split], missing, note = stream_present(
            f"{NAME} {split} ({table})",
            functools.partial(_rows, path, root),
            f"{root / 'videos'}/<page_dir>/<videoid>.mp4",
            WHERE_FROM,
            allow_share=allow_share,
        )
        corpus.missing += missing
        notes += [note] if note else []
    corpus.notes = "\n".join(notes)
    return corpus


def _rows(table: pathlib.Path, root: pathlib.Path) -> Iterator[tuple[str, list[str], str]]:
    for row in read_table(table, _COLUMNS):
        file = f"{row['videoid']}.mp4"
        nested = f"{row['page_dir']}/{file}"
        yield (
            row["videoid"],
            [f"{root}/{name}" for name in (f"videos/{nested}", f"videos/{file}", nested, file)],
            row["name"],
        )
