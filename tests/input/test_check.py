import dataclasses
import io
import json
import multiprocessing
import os
import signal
import time

import av
import numpy as np
import pytest
from PIL import Image

from vlp_jax.config import defaults, update
from vlp_jax.input import check, scan
from vlp_jax.input.sources import Record
from vlp_jax.types import UserError


@pytest.fixture
def folder(make_clip, tmp_path):
    """Six sound clips in two folders, a truncated one, an empty one, a picture and a note."""
    root = tmp_path / "videos"
    (root / "more").mkdir(parents=True)
    for i in range(6):
        make_clip(root / ("more" if i % 2 else "") / f"{i}.mp4", count=16, seed=i)
    data = (root / "0.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(data[: len(data) // 2])
    (root / "empty.mp4").write_bytes(b"")
    (root / "still.png").write_bytes(picture())
    (root / "notes.txt").write_text("no clip")
    return root


def picture():
    target = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(target, "PNG")
    return target.getvalue()


@pytest.fixture
def in_process(monkeypatch):
    """Examines in this process: worker processes take seconds to start."""

    def examine_all(parts, records, workers):
        for part, number in records:
            yield scan.examine(parts, part, number)

    monkeypatch.setattr(scan, "scan", examine_all)


class Trap:
    """Records of which some end or stop the process that reads them; the first process reads them unharmed."""

    name = "trap"

    def __init__(self, clip, count=12, crashes=(), hangs=()):
        self.clip, self.count, self.crashes, self.hangs = clip, count, crashes, hangs

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if multiprocessing.parent_process() is not None:
            if index in self.crashes:
                os.kill(os.getpid(), signal.SIGSEGV)
            if index in self.hangs:
                time.sleep(1000)
        return Record(self.clip, "a caption", f"clip{index}")


# --- scan -------------------------------------------------------------------------------------------------------------


def test_a_clip_that_crashes_or_hangs_its_process_is_a_bad_one_and_the_rest_is_examined(make_clip, monkeypatch):
    monkeypatch.setattr(scan, "_GRACE_S", 3.0)
    source = Trap(make_clip(), crashes=(2, 11), hangs=(7,))
    parts = (scan.Part("trap", source, size=16, timeout_s=1.0),)
    found = {f.number: f for f in scan.scan(parts, [(0, i) for i in range(12)], 2)}
    assert sorted(found) == list(range(12))
    bad = {n: f.error for n, f in found.items() if f.error}
    assert sorted(bad) == [2, 7, 11]
    assert bad[2] == bad[11] == "crashes the decoder (exit status -11)"
    assert bad[7] == "hangs the decoder: no answer within 5 s"
    assert found[2].clip_id == "clip2" and found[2].origin == "trap"
    assert (found[0].codec, found[0].width, found[0].height, found[0].frames) == ("h264", 64, 48, 16)


def test_a_record_that_cannot_be_read_is_a_bad_one():
    class Broken(Trap):
        def __getitem__(self, index):
            raise ValueError("bad block\nat 7")

    found = scan.examine((scan.Part("b", Broken(b"")),), 0, 3)
    assert (found.number, found.error) == (3, "unreadable record: ValueError: bad block")


def test_an_empty_caption_is_bad_where_captions_are_needed(make_clip):
    class Silent(Trap):
        def __getitem__(self, index):
            return Record(self.clip, "", "clip")

    source = Silent(make_clip())
    assert scan.examine((scan.Part("s", source, size=16),), 0, 0).error == "empty caption"
    assert scan.examine((scan.Part("s", source, size=16, captions=False),), 0, 0).error == ""


def test_every_frame_finds_what_a_sample_misses(make_clip):
    data = bytearray(make_clip(count=40, options={"x264-params": "keyint=10:bframes=0"}))
    sound = scan.examine((scan.Part("s", Trap(make_clip(count=40)), size=16, every_frame=True),), 0, 0)
    assert sound.error == "" and sound.frames == 40
    with av.open(io.BytesIO(data)) as container:
        last = [p.pos for p in container.demux(video=0) if p.size][-1]
    data[last : last + 4] = b"\xff" * 4  # the length of its first unit
    source = Trap(bytes(data))
    assert scan.examine((scan.Part("s", source, size=16),), 0, 0).error == ""
    assert "undecodable" in scan.examine((scan.Part("s", source, size=16, every_frame=True),), 0, 0).error


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_folder_is_scanned_by_worker_processes_and_summed_up(folder, tmp_path, capfd):
    out = tmp_path / "bad.jsonl"
    assert check.main([str(folder), "--out", str(out), "--workers=2", "--config.input.image_size=16"]) == 1
    printed = capfd.readouterr().out
    for line in (
        "1 files that are no video or image were left out",
        "9 clips examined: 7 good, 2 bad (22.22%)",
        "empty: 0 bytes",
        "64 x 48",
        "frames: 1 to 16, half of them up to 16",
        "over the limit: 22.22% of the clips are bad, at most 5.00% may be",
    ):
        assert line in printed, printed
    rows = {r["clip_id"]: r for r in map(json.loads, out.read_text().splitlines())}
    assert set(rows) == {"cut.mp4", "empty.mp4"}
    empty = rows["empty.mp4"]
    assert empty["origin"] == str(folder / "empty.mp4") and empty["error"] == "empty: 0 bytes"
    assert empty["source"] == str(folder) and empty["count"] == 1


def test_the_limit_decides_the_exit_status(folder, in_process, capsys):
    assert check.main([str(folder), "--max-bad-share=0.3"]) == 0
    assert check.main([str(folder), "--max-bad-share=0.2"]) == 1
    assert check.main([str(folder), "--config.input.max_bad_share=0.3"]) == 0


def test_a_table_and_a_run_config_are_checked(folder, tmp_path, in_process, capsys):
    table = folder / "clips.csv"
    table.write_text("file,caption\n0.mp4,one\n2.mp4,\nmissing.mp4,three\n")
    assert check.main([str(table), "--config.input.video_column=file"]) == 1
    printed = capsys.readouterr().out
    assert "3 clips examined: 1 good, 2 bad" in printed
    chosen = [str(table), "--config.input.video_column=file", "--config.input.split=caption=one"]
    assert check.main(chosen) == 0 and "1 clips examined: 1 good" in capsys.readouterr().out
    assert "empty caption" in printed and "file not readable: No such file or directory" in printed
    config = tmp_path / "run.py"
    config.write_text(
        "from vlp_jax.config import defaults, update\n\n\ndef get_config():\n"
        "    changes = {'input.kind': 'table', 'input.split': 'all'}\n"
        f"    return update(defaults(), {{**changes, 'input.path': {str(table)!r}}})\n"
    )
    assert check.main([f"--config={config}", "--config.input.video_column=file", "--max-bad-share=0.7"]) == 0
    assert "3 clips examined: 1 good, 2 bad" in capsys.readouterr().out


def test_a_sample_is_evenly_spaced_over_all_parts():
    parts = tuple(scan.Part(str(n), Trap(b"", count=n)) for n in (10, 0, 30))
    for sample in (1, 7, 20, 40, 99):
        count, records = check.spread(parts, sample)
        places = [{0: 0, 2: 10}[part] + number for part, number in records]
        assert count == len(places) == min(sample, 40)
        assert places == [i * 40 // count for i in range(count)]
    assert len(list(check.spread(parts, 0)[1])) == 40


def test_ctrl_c_prints_what_was_found_so_far(folder, monkeypatch, capsys):
    def interrupted(parts, records, workers):
        for part, number in list(records)[:4]:
            yield scan.examine(parts, part, number)
        raise KeyboardInterrupt

    monkeypatch.setattr(scan, "scan", interrupted)
    assert check.main([str(folder)]) == 130
    assert "4 clips examined, 5 were not reached: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a SOURCE or a --config=FILE"),
        (["nowhere"], "no such file or folder"),
        (["a.csv", "--config=b.py"], "not both"),
        (["a", "--smaple=3"], "unexpected argument '--smaple=3'"),
        (["a", "--config.input.capton_key=x"], "did you mean 'input.caption_key'"),
        (["--config=b.py", "--split=test"], "--config.input.split instead"),
        (["a", "--split=test", "--config.input.split=train"], "expected one of the two"),
        (["a", "--max-bad-share=7"], "expected a share from 0 to 1"),
        (["a", "--config.input.frames=0"], "input.frames = 0"),
        (["a", "--workers=0"], "expected 1 or more"),
    ],
)
def test_mistakes_in_the_command_are_explained(arguments, message):
    with pytest.raises(UserError, match=message):
        check.main(arguments)


@dataclasses.dataclass
class FakeSource:
    split: str
    columns: frozenset = frozenset({"caption"})


def test_every_split_of_a_dataset_directory_is_checked(monkeypatch, tmp_path):
    splits = [{"name": "train", "shardLengths": ["3", "2"]}, {"name": "clips", "shardLengths": ["4"]}]
    splits.append({"name": "empty", "shardLengths": ["0"]})
    (tmp_path / "dataset_info.json").write_text(json.dumps({"splits": splits}))
    monkeypatch.setattr(check.sources, "TfdsSource", lambda path, split: FakeSource(split))
    parts = check.open_parts(str(tmp_path), update(defaults(), {"input.frames": 6}))
    assert [(p.name, p.source.split, p.captions, p.frames) for p in parts] == [
        ("split train", "train", True, 6),
        ("split clips", "clips", False, 6),
    ]
    assert [p.source.split for p in check.open_parts(str(tmp_path), defaults(), "test_1ka")] == ["test_1ka"]
