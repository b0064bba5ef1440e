import dataclasses
import io
import json
import os
import tarfile

import pytest

from data import shards_to_array_record
from vlp_jax.input import sources
from vlp_jax.input.shards import ShardSource
from vlp_jax.types import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_JAX_CACHE", str(tmp_path / "cache"))


def pack(path, keys, caption="caption of {}"):
    with tarfile.open(path, "w") as tar:
        for key in keys:
            text = caption.format(key)
            for extension, content in (
                ("mp4", b"\0" + f"video {key}".encode() * 99),
                ("txt", text.encode()),
                ("json", json.dumps({"title": text.upper()}).encode()),
            ):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        pack(folder / f"{shard:02d}.tar", [f"{shard}-{i}" for i in range(5)])
    return folder


def every(source):
    return [source[i] for i in range(len(source))]


def test_the_dataset_holds_the_records_of_the_shards_in_their_order(shards, tmp_path, capsys):
    out = tmp_path / "datasets" / "out"
    assert shards_to_array_record.main(["--input", str(shards / "{00..02}.tar"), "--out", str(out)]) == 0
    assert every(sources.TfdsSource(str(out), "train")) == every(ShardSource(str(shards)))
    assert "15 samples of 15" in capsys.readouterr().out
    assert not (out / "skipped.jsonl").exists() and [p.name for p in out.parent.iterdir()] == ["out"]


def test_caption_key_and_split_are_taken(shards, tmp_path):
    shards_to_array_record.convert(str(shards), tmp_path / "out", caption_key="title", split="validation")
    assert sources.TfdsSource(str(tmp_path / "out"), "validation")[0].caption == "CAPTION OF 0-0"


def test_what_is_not_converted_is_listed_and_counted(shards, tmp_path, capsys):
    data = (shards / "01.tar").read_bytes()
    (shards / "01.tar").write_bytes(data[:-8000])
    pack(shards / "03.tar", ["silent"], caption=" ")
    with tarfile.open(shards / "04.tar", "w") as tar:
        info = tarfile.TarInfo("blind.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"text"))
    out = tmp_path / "out"
    assert shards_to_array_record.main(["--input", str(shards), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {row["clip_id"]: row["reason"] for row in rows if "clip_id" in row} == {
        "03/silent": "no caption",
        "04/blind": "no media",
    }
    assert [row["shard"] for row in rows if "shard" in row] == [str(shards / "01.tar")]
    said = capsys.readouterr().out
    written = len(sources.TfdsSource(str(out), "train"))
    assert f"{written} samples of {written + 2}; 2 samples skipped and 1 faults of shards" in said
    assert 10 < written < 15


def test_characters_without_utf8_are_written_as_replacements(shards, tmp_path, monkeypatch):
    """Whatever the source does with them: the records it gives are changed to hold some."""
    read = ShardSource.__getitem__

    def spoil(self, index):
        record = read(self, index)
        change = {"video": b""} if index == 1 else {"caption": "cut \ud83d"}
        return dataclasses.replace(record, clip_id=f"{record.clip_id}\udce9", **change)

    monkeypatch.setattr(ShardSource, "__getitem__", spoil)
    out = tmp_path / "out"
    assert shards_to_array_record.main(["--input", str(shards), "--out", str(out)]) == 0
    record = sources.TfdsSource(str(out), "train")[0]
    assert (record.caption, record.clip_id) == ("cut \ufffd", "00/0-0\ufffd")
    (row,) = [json.loads(line) for line in (out / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert row == {"clip_id": "00/0-1\ufffd", "reason": "no media"}


def test_a_second_run_does_nothing_and_other_arguments_are_refused(shards, tmp_path):
    out = tmp_path / "out"
    shards_to_array_record.convert(str(shards), out)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir())
    assert "nothing done" in shards_to_array_record.convert(str(shards), out)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir()) == before
    with pytest.raises(UserError, match="caption_key='' there, 'title' asked"):
        shards_to_array_record.convert(str(shards), out, caption_key="title")


def test_the_same_shards_are_the_same_however_they_are_named(shards, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shards_to_array_record.convert(str(shards), out)
    monkeypatch.chdir(tmp_path)
    for name in ("shards", "shards/*.tar", str(shards / "{00..02}.tar")):
        assert "nothing done" in shards_to_array_record.convert(name, out)


def change(shards):
    """Another caption of as many bytes: the tar keeps its size."""
    os.utime(shards / "01.tar", ns=(0, 0))
    pack(shards / "01.tar", [f"1-{i}" for i in range(5)], caption="CAPTION of {}")


@pytest.mark.parametrize(
    ("alter", "asked", "message"),
    [
        (change, "", r"made of 3 shards, and 3 are asked for: 1 changed since, the first .*shards/01\.tar; delete it"),
        (lambda shards: pack(shards / "03.tar", ["3-0"]), "", r"and 4 are .*: 1 not among them, the first .*03\.tar;"),
        (lambda shards: (shards / "02.tar").unlink(), "", r"and 2 are .*: 1 no longer asked for or there, .*02\.tar;"),
        (lambda shards: None, "{00..01}.tar", r"and 2 are .*: 1 no longer asked for or there, the first .*02\.tar;"),
    ],
)
def test_other_shards_than_those_that_it_was_made_of_are_refused(shards, tmp_path, alter, asked, message):
    out = tmp_path / "out"
    shards_to_array_record.convert(str(shards), out)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir())
    alter(shards)
    with pytest.raises(UserError, match=message):
        shards_to_array_record.convert(str(shards / asked), out)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir()) == before
    if not asked:
        shards_to_array_record.convert(str(shards), tmp_path / "new")
        assert "nothing done" in shards_to_array_record.convert(str(shards), tmp_path / "new")


def test_a_directory_that_does_not_tell_its_shards_is_refused(shards, tmp_path):
    out = tmp_path / "out"
    shards_to_array_record.convert(str(shards), out)
    settings = json.loads((out / "shards.json").read_text())
    del settings["shards"]
    (out / "shards.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="does not tell which shards"):
        shards_to_array_record.convert(str(shards), out)


def test_thousands_of_other_shards_are_counted_not_listed(shards, tmp_path):
    out = tmp_path / "out"
    shards_to_array_record.convert(str(shards), out)
    for number in range(2000):
        (shards / f"x{number:04d}.tar").symlink_to(shards / "00.tar")
    with pytest.raises(UserError, match="2000 not among them") as caught:
        shards_to_array_record.convert(str(shards), out)
    assert len(str(caught.value)) < 1000


def test_a_failure_leaves_nothing(shards, tmp_path, capsys, monkeypatch):
    out = tmp_path / "made" / "out"

    def broken(self, index):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ShardSource, "__getitem__", broken)
    assert shards_to_array_record.main(["--input", str(shards), "--out", str(out)]) == 2
    assert "Input/output error" in capsys.readouterr().err and not list(out.parent.iterdir())


def test_a_directory_with_something_else_is_not_touched(shards, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert shards_to_array_record.main(["--input", str(shards), "--out", str(tmp_path)]) == 2
    assert "expected a new or empty directory" in capsys.readouterr().err and (tmp_path / "file").exists()
