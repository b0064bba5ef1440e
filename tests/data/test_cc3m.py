"""CC3M: a tsv with paths, or what img2dataset leaves on disk."""

import io
import json
import os

import av
import pytest

from data import prepare
from data.corpora import cc3m
from vlp_jax.types import UserError

TSV = "Train_GCC-training.tsv"
VALIDATION_TSV = "Validation_GCC-1.1.0-Validation.tsv"


def flags(changes):
    return [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]


def settings(root, **changes):
    return prepare.Settings("cc3m", str(root), **changes)


def test_a_tsv_with_paths_gives_captions_and_images(make_image, read_records, tmp_path):
    root, out = tmp_path / "cc3m", tmp_path / "out"
    images = [make_image(root / "images" / name, codec=c) for name, c in (("a.jpg", "mjpeg"), ("b.png", "png"))]
    (root / TSV).write_text('a "very" typical bus station\timages/a.jpg\nsierra looked\timages/b.png\n')
    (root / VALIDATION_TSV).write_text("author : a life\timages/a.jpg\n")
    prepare.prepare(settings(root), out)
    assert read_records(out, "train") == [
        {"video": images[0], "caption": 'a "very" typical bus station', "clip_id": "images/a"},
        {"video": images[1], "caption": "sierra looked", "clip_id": "images/b"},
    ]
    assert [r["caption"] for r in read_records(out, "validation")] == ["author : a life"]


@pytest.fixture
def downloaded(make_image, tmp_path):
    """Two shards for training and one for validation, as img2dataset --output_format files writes them."""
    root = tmp_path / "cc3m"
    (root / "train").mkdir(parents=True)
    for split, shard, key, caption in [
        ("train", "00000", "000000000", "a bus"),
        ("train", "00000", "000000002", "a cat"),
        ("train", "00001", "000010000", "a dog"),
        ("validation", "00000", "000000000", "a life"),
    ]:
        folder = root / split / shard
        make_image(folder / f"{key}.jpg")
        (folder / f"{key}.txt").write_text(caption)
        details = {"caption": caption, "url": "http://x/y.jpg", "key": key, "status": "success", "width": 64}
        (folder / f"{key}.json").write_text(json.dumps(details))
    for shard, count, successes in (("00000", 4, 2), ("00001", 1, 1)):
        stats = {"count": count, "successes": successes, "failed_to_download": count - successes}
        (root / "train" / f"{shard}_stats.json").write_text(json.dumps(stats))
        (root / "train" / f"{shard}.parquet").write_bytes(b"")
    return root


def test_folders_of_img2dataset_give_captions_and_images_in_order(downloaded, read_records, tmp_path):
    (downloaded / TSV).write_text("a bus\thttp://x/y.jpg\n")  # the list of urls may lie beside them
    prepare.prepare(settings(downloaded), tmp_path / "out")
    got = read_records(tmp_path / "out", "train")
    assert [(r["clip_id"], r["caption"]) for r in got] == [
        ("train/00000/000000000", "a bus"),
        ("train/00000/000000002", "a cat"),
        ("train/00001/000010000", "a dog"),
    ]
    assert got[1]["video"] == (downloaded / "train/00000/000000002.jpg").read_bytes()
    assert [r["clip_id"] for r in read_records(tmp_path / "out", "validation")] == ["validation/00000/000000000"]
    assert "could not download 2 of 5 images" in cc3m.read(downloaded).notes


def test_the_training_folders_may_be_the_root_itself(downloaded):
    corpus = cc3m.read(downloaded / "train")
    assert [clip.caption for clip in corpus.splits["train"]()] == ["a bus", "a cat", "a dog"]
    assert "no split validation" in corpus.notes


def test_the_caption_comes_from_the_json_where_there_is_no_text_and_may_be_lost(downloaded):
    shard = downloaded / "train/00000"
    for key in ("000000000", "000000002"):
        (shard / f"{key}.txt").unlink()
    (shard / "000000002.json").write_text('{"caption": "cut')
    assert [c.caption for c in cc3m.read(downloaded).splits["train"]()] == ["a bus", "", "a dog"]


@pytest.mark.parametrize("changes", ({}, {"short_side": 32}))
def test_texts_and_names_without_utf8_are_written_with_a_replacement(downloaded, read_records, tmp_path, changes):
    shard = downloaded / "train/00000"
    (shard / "000000000.txt").unlink()
    (shard / "000000000.json").write_text('{"caption": "cut \\ud83d"}')
    for extension in ("jpg", "txt", "json"):
        os.rename(shard / f"000000002.{extension}", os.fsencode(shard / "caf") + b"\xe9." + extension.encode())
    assert prepare.main(["cc3m", f"--root={downloaded}", f"--out={tmp_path / 'out'}", *flags(changes)]) == 0
    got = read_records(tmp_path / "out", "train")
    assert [(r["clip_id"], r["caption"]) for r in got] == [
        ("train/00000/000000000", "cut \ufffd"),
        ("train/00000/caf\ufffd", "a cat"),
        ("train/00001/000010000", "a dog"),
    ]
    assert got[1]["video"][:2] == b"\xff\xd8" and not (tmp_path / "out/failed.jsonl").exists()


def test_a_name_without_utf8_can_be_missing_or_fail(downloaded, read_lines, tmp_path):
    shard = os.fsencode(downloaded / "train/00000")
    os.rename(shard + b"/000000002.txt", shard + b"/caf\xe9.txt")
    with open(shard + b"/broken\xe9.jpg", "wb") as file:
        file.write(b"no picture")
    out = tmp_path / "out"
    prepare.prepare(settings(downloaded, allow_missing=1.0, short_side=32), out)
    assert read_lines(out / "missing.jsonl") == [{"clip_id": "train/00000/caf\ufffd"}]
    (failed,) = read_lines(out / "failed.jsonl")
    assert failed["clip_id"] == "train/00000/broken\ufffd" and failed["path"].endswith("broken\ufffd.jpg")


def test_a_sample_without_its_image_is_missing(downloaded):
    (downloaded / "train/00000/000000002.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 .*: train/00000/000000002; "):
        cc3m.read(downloaded)
    corpus = cc3m.read(downloaded, allow_share=0.5)
    assert corpus.missing == ["train/00000/000000002"] and len(corpus.splits["train"]) == 2


def test_missing_images_of_a_tsv_are_named(make_image, tmp_path):
    make_image(tmp_path / "a.jpg")
    (tmp_path / TSV).write_text("x\ta.jpg\ny\tb.jpg\n")
    with pytest.raises(UserError, match=r"1 of 2 .*: b; "):
        cc3m.read(tmp_path)
    assert cc3m.read(tmp_path, allow_share=1.0).missing == ["b"]


def test_urls_without_images_say_how_to_download_them(tmp_path):
    (tmp_path / TSV).write_text("a bus\thttp://x/y.jpg\n")
    with pytest.raises(UserError, match=r"Train_GCC-training\.tsv holds urls, .*img2dataset"):
        cc3m.read(tmp_path)


def test_a_wrong_folder_names_what_was_expected(tmp_path):
    (tmp_path / "00000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"Train_GCC-training\.tsv or .*; the folder holds 00000\.tar\. .*shards"):
        cc3m.read(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        cc3m.read(tmp_path / "absent")


@pytest.mark.parametrize("line", ["only a caption", "a\tb\tc", "caption\t"])
def test_a_line_that_is_not_caption_and_path_is_refused_by_number(tmp_path, line):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / TSV).write_text(f"x\ta.jpg\n{line}\n")
    with pytest.raises(UserError, match="line 2: expected caption TAB path"):
        cc3m.read(tmp_path)


def test_images_can_be_made_small(make_image, read_records, tmp_path):
    make_image(tmp_path / "in" / "a.jpg", width=200, height=160)
    (tmp_path / "in" / TSV).write_text("x\ta.jpg\n")
    prepare.prepare(settings(tmp_path / "in", short_side=32), tmp_path / "out")
    (record,) = read_records(tmp_path / "out", "train")
    assert record["video"][:2] == b"\xff\xd8"
    with av.open(io.BytesIO(record["video"])) as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == (40, 32)
