"""WebVid in its official layout: the table's rows, the videos by page_dir, several sizes."""

import csv

import pytest

from data import prepare
from data.corpora import webvid
from vlp_jax.types import UserError

HEADER = ("videoid", "contentUrl", "duration", "page_dir", "name")


def write_table(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(HEADER)
        for videoid, page, name in rows:
            url = f"https://ak.picdn.net/shutterstock/videos/{videoid}/preview/stock-footage-x.mp4"
            table.writerow((videoid, url, "PT00H00M21S", page, name))


TRAIN = [
    ("1066674784", "030001_030050", 'Aerial shot, "winter" forest'),
    ("11", "030001_030050", "A dog\nruns"),
    ("12", "000051_000100", "Two cats"),
]
VALIDATION = [("21", "000051_000100", "A field of grain")]


@pytest.fixture
def root(make_video, tmp_path):
    root = tmp_path / "webvid"
    root.mkdir()
    write_table(root / "results_2M_train.csv", TRAIN)
    write_table(root / "results_2M_val.csv", VALIDATION)
    for i, (videoid, page, _) in enumerate(TRAIN + VALIDATION):
        folder = root / "videos" if videoid == "12" else root / "videos" / page  # one lies flat
        make_video(folder / f"{videoid}.mp4", count=4 + i)
    return root


def test_rows_become_records_with_their_videos_and_captions(root, read_records, tmp_path):
    out = tmp_path / "out"
    assert "3 train, 1 validation" in prepare.prepare(prepare.Settings("webvid", str(root)), out)
    got = read_records(out, "train")
    assert [(r["clip_id"], r["caption"]) for r in got] == [(videoid, name) for videoid, _, name in TRAIN]
    assert [r["video"] for r in got] == [
        (root / "videos" / name).read_bytes()
        for name in ("030001_030050/1066674784.mp4", "030001_030050/11.mp4", "12.mp4")
    ]
    assert [r["caption"] for r in read_records(out, "validation")] == ["A field of grain"]


def test_missing_videos_are_named_with_the_place_where_they_belong(root, read_records, read_lines, tmp_path):
    (root / "videos/030001_030050/11.mp4").unlink()
    with pytest.raises(
        UserError, match=r"1 of 3 .*: 11; .*videos/<page_dir>/<videoid>\.mp4; .*github\.com/m-bain/webvid"
    ):
        webvid.read(root)
    prepare.prepare(prepare.Settings("webvid", str(root), allow_missing=0.5), tmp_path / "out")
    assert [r["clip_id"] for r in read_records(tmp_path / "out", "train")] == ["1066674784", "12"]
    assert read_lines(tmp_path / "out" / "missing.jsonl") == [{"clip_id": "11"}]


def test_a_wrong_folder_names_the_tables_it_expected(tmp_path):
    with pytest.raises(UserError, match=r"results_2M_train\.csv or results_2M_val\.csv; the folder holds nothing"):
        webvid.read(tmp_path)


def test_the_subset_must_be_chosen_where_both_are_there(root):
    write_table(root / "results_10M_train.csv", TRAIN[:1])
    with pytest.raises(UserError, match="subset=10M"):
        webvid.read(root)
    with pytest.raises(UserError, match="subset=3M: expected one of 2M, 10M"):
        webvid.read(root, subset="3M")
    corpus = webvid.read(root, subset="10M")
    assert [len(clips) for clips in corpus.splits.values()] == [1]
    assert "results_10M_val.csv is not there" in corpus.notes


def test_a_table_without_its_columns_is_refused(root):
    (root / "results_2M_train.csv").write_text("id,caption\n1,x\n")
    with pytest.raises(
        UserError, match="'videoid', 'contentUrl', 'duration', 'page_dir', 'name'; it holds 'id', 'caption'"
    ):
        webvid.read(root)


def test_rows_are_not_held_in_memory(root, monkeypatch):
    """Oracle: reading the splits allocates far less than the rows themselves take."""
    import tracemalloc

    rows = 20_000
    write_table(root / "results_2M_train.csv", [("12", "000051_000100", f"caption number {i}") for i in range(rows)])
    monkeypatch.setattr("os.path.isfile", lambda path: True)
    tracemalloc.start()
    corpus = webvid.read(root)
    count = sum(1 for _ in corpus.splits["train"]())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == rows and peak < 40 * rows
