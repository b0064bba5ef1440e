"""Writing a corpus: every record once, in order, as it was on disk or re-encoded; nothing vanishes."""

import os
import pathlib
import sys

import pytest

from data import array_record
from data.corpora import encoding, writer
from data.corpora.corpus import Clip, Corpus, Stream
from data.corpora.reencode import reencode
from vlp_jax.input import sources, video
from vlp_jax.types import UserError


@pytest.fixture
def clips(make_video, tmp_path):
    """Six videos of 4 to 9 frames."""
    made = []
    for i in range(6):
        path = tmp_path / "videos" / f"v{i}.mp4"
        make_video(path, count=4 + i)
        made.append(Clip(f"v{i}", path, f"caption {i} 日本"))
    return made


def expected(clips):
    return [{"video": c.path.read_bytes(), "caption": c.caption, "clip_id": c.clip_id} for c in clips]


# --- Records ----------------------------------------------------------------------------------------------------------


def test_records_are_the_files_in_order_split_by_split(clips, read_records, tmp_path):
    written = writer.write(tmp_path, Corpus("some", {"train": clips[:4], "validation": clips[4:]}), workers=2)
    assert written.counts == {"train": 4, "validation": 2} and not written.failed
    assert read_records(written.path, "train") == expected(clips[:4])
    assert read_records(written.path, "validation") == expected(clips[4:])


def test_what_is_written_is_read_as_a_source_of_training(clips, tmp_path):
    written = writer.write(tmp_path, Corpus("some", {"train": clips}))
    source = sources.TfdsSource(str(written.path), "train")
    assert len(source) == 6
    assert source[5].caption == clips[5].caption and source[5].clip_id == "v5"
    assert video.decode(source[5].video, frames=9, size=16).shape == (9, 16, 16, 3)


def test_no_tensorflow_is_loaded(clips, tmp_path):
    writer.write(tmp_path, Corpus("some", {"train": clips}))
    assert "tensorflow" not in sys.modules


def test_a_stream_is_read_clip_by_clip(clips, read_records, tmp_path):
    """Oracle: the generator never runs ahead of the records by more than the window."""
    pulled = 0

    def generate():
        nonlocal pulled
        for clip in clips:
            pulled += 1
            yield clip

    records = writer._records("train", Stream(generate, 6), writer.Encoding(), 1, [])
    for i, record in enumerate(records):
        assert record["clip_id"] == f"v{i}" and pulled <= i + 2
    written = writer.write(tmp_path, Corpus("some", {"train": Stream(generate, 6)}))
    assert read_records(written.path, "train") == expected(clips)


def test_many_bytes_make_several_shards_in_order(clips, read_records, tmp_path, monkeypatch):
    monkeypatch.setattr(array_record, "_SHARD_BYTES", 3 * clips[0].path.stat().st_size)
    written = writer.write(tmp_path, Corpus("some", {"train": clips * 5}))
    assert len(list(written.path.glob("*train*array_record*"))) > 3
    assert read_records(written.path, "train") == expected(clips * 5)


@pytest.mark.parametrize("workers", [1, 3])
def test_reencoded_records_do_not_depend_on_the_number_of_workers(clips, read_records, tmp_path, workers):
    small = writer.Encoding(short_side=32, fps=2)
    written = writer.write(tmp_path, Corpus("some", {"train": clips}), small, workers=workers)
    got = read_records(written.path, "train")
    assert [r["clip_id"] for r in got] == [c.clip_id for c in clips] and not written.failed
    assert [r["video"] for r in got] == [reencode(str(c.path), short_side=32, fps=2) for c in clips]


# --- What fails -------------------------------------------------------------------------------------------------------


def test_a_clip_that_cannot_be_reencoded_keeps_its_bytes_and_is_listed(clips, read_records, tmp_path):
    damaged = clips[2].path.read_bytes()[:900]
    clips[2].path.write_bytes(damaged)
    written = writer.write(tmp_path, Corpus("some", {"train": clips}), writer.Encoding(fps=2), workers=2)
    assert read_records(written.path, "train")[2] == {"video": damaged, "caption": "caption 2 日本", "clip_id": "v2"}
    (row,) = written.failed
    assert (row["split"], row["record"], row["clip_id"], row["path"]) == ("train", 2, "v2", str(clips[2].path))
    assert row["error"]


@pytest.mark.parametrize("how", [writer.Encoding(), writer.Encoding(fps=2)])
def test_a_file_that_cannot_be_read_becomes_a_record_without_bytes_and_is_listed(clips, read_records, tmp_path, how):
    clips[1].path.unlink()
    written = writer.write(tmp_path, Corpus("some", {"train": clips}), how)
    got = read_records(written.path, "train")
    assert len(got) == 6 and got[1]["video"] == b"" and got[0]["video"] and got[2]["video"]
    assert [row["clip_id"] for row in written.failed] == ["v1"]
    assert "No such file" in written.failed[0]["error"]


def test_a_file_larger_than_a_record_is_listed(clips, read_records, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "LARGEST", max(c.path.stat().st_size for c in clips) - 1)
    written = writer.write(tmp_path, Corpus("some", {"train": clips}))
    assert [row["clip_id"] for row in written.failed] == ["v5"] and "--fps" in written.failed[0]["error"]
    assert read_records(written.path, "train")[5]["video"] == b""


class Deadly(type(pathlib.Path())):
    """Ends the process that receives it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_clip_that_ends_the_process_costs_no_other_clip(clips, read_records, tmp_path):
    clips[3] = Clip("v3", Deadly(clips[3].path), "deadly")
    written = writer.write(tmp_path, Corpus("some", {"train": clips}), writer.Encoding(fps=2), workers=2)
    got = read_records(written.path, "train")
    assert [r["clip_id"] for r in got] == [f"v{i}" for i in range(6)]
    assert got[3]["video"] == clips[3].path.read_bytes()
    assert [r["video"] for i, r in enumerate(got) if i != 3] == [
        reencode(str(c.path), fps=2) for i, c in enumerate(clips) if i != 3
    ]
    assert [(row["clip_id"], row["error"]) for row in written.failed] == [("v3", "re-encoding it ended the process")]


def test_an_inconsistent_corpus_is_refused_before_anything_is_written(clips):
    row = {"clip_id": "v0", "caption": "x"}
    for corpus, message in [
        (Corpus("some", {}), "no split"),
        (Corpus("some", {"train": []}), "'train' has no clip"),
        (Corpus("some", {"clips": [clips[0], clips[0]]}, {"test": [row]}), "more than once: v0"),
        (Corpus("some", {"clips": clips}, {"test": [row, {"clip_id": "v9"}]}), "test have no clip: v9"),
    ]:
        with pytest.raises(UserError, match=message):
            writer.check(corpus)
    writer.check(Corpus("some", {"clips": clips}, {"test": [row, row], "answers": [{"answer": "yes"}]}))


def test_a_stream_that_ends_at_once_is_refused(tmp_path):
    with pytest.raises(UserError, match="'train' has no record"):
        writer.write(tmp_path, Corpus("some", {"train": Stream(lambda: [], 0)}))
