"""The command: atomic, repeatable, and its messages."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from data import prepare
from data.corpora.corpus import Clip, Corpus
from vlp_jax.types import UserError


@pytest.fixture
def root(make_image, tmp_path):
    root = tmp_path / "in"
    for name in ("a.jpg", "b.jpg"):
        make_image(root / name)
    (root / "Train_GCC-training.tsv").write_text("first\ta.jpg\nsecond\tb.jpg\n")
    return root


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_command_writes_a_dataset_that_is_complete_and_alone(root, tmp_path, read_records):
    out = tmp_path / "new" / "out"
    command = [sys.executable, "-m", "data.prepare", "cc3m", f"--root={root}", f"--out={out}"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    assert f"wrote {out}" in made.stdout and "2 train" in made.stdout
    assert "no split validation" in made.stderr and "train: 2/2 clips (100.0%)" in made.stderr
    assert len(read_records(out, "train")) == 2
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_again_does_nothing_and_other_arguments_are_refused(root, tmp_path):
    settings, out = prepare.Settings("cc3m", str(root)), tmp_path / "out"
    prepare.prepare(settings, out)
    before = files(out)
    assert "already holds this dataset (2 train" in prepare.prepare(settings, out, workers=1)
    assert files(out) == before
    with pytest.raises(UserError, match=r"fps=0\.0 there, 2\.0 asked"):
        prepare.prepare(prepare.Settings("cc3m", str(root), fps=2.0), out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing").write_text("x")
    with pytest.raises(UserError, match=r"has no prepare\.json"):
        prepare.prepare(settings, tmp_path / "other")
    assert files(tmp_path / "other") == {"thing": b"x"}


def test_failure_leaves_nothing_behind(root, tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise OSError("no space left")

    monkeypatch.setattr(prepare.writer, "write_annotations", fail)
    with pytest.raises(OSError, match="no space left"):
        prepare.prepare(prepare.Settings("cc3m", str(root)), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("begun", ("out.*", "**/*array_record*"), ids=("start", "records"))
def test_ctrl_c_ends_the_command_and_its_processes_in_one_line_and_leaves_nothing(root, tmp_path, begun):
    (root / "Train_GCC-training.tsv").write_text("first\ta.jpg\nsecond\tb.jpg\n" * 10_000)
    command = [sys.executable, "-m", "data.prepare", "cc3m", f"--root={root}", f"--out={tmp_path / 'new/out'}"]
    # A background job is started deaf to Ctrl-C, and its children inherit that.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", heed, *command, "--short-side=16"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as made:
        watchdog = threading.Timer(100, made.kill)
        watchdog.start()
        while not any((tmp_path / "new").glob(begun)) and made.poll() is None:
            time.sleep(0.02)
        os.killpg(made.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
        said = made.communicate()[1]
        watchdog.cancel()
    assert made.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted: what was not finished is removed" and "Traceback" not in said
    assert not list((tmp_path / "new").iterdir())


def test_an_evaluation_set_gets_its_annotations_and_lists(make_video, read_records, read_lines, tmp_path, monkeypatch):
    for name in "ab":
        make_video(tmp_path / f"{name}.mp4")
    (tmp_path / "c.mp4").write_bytes(b"not a video")
    rows = {
        "test": [{"clip_id": "a", "caption": "ä"}, {"clip_id": "a", "caption": "b", "start": 0.0, "end": 2.0}],
        "qa_test": [{"question_id": "0", "clip_id": "b", "question": "who?", "answer": "he", "type": "who"}],
    }

    def read(root, *, allow_share=0.0, part=""):
        clips = [Clip(n, root / f"{n}.mp4") for n in "bac"]
        return Corpus("some", {"clips": clips}, rows, missing=["d"], notes=f"part {part}\nsecond")

    module = types.SimpleNamespace(NAME="some", WHERE_FROM="Mars", read=read)
    monkeypatch.setattr(prepare, "corpora", lambda: {"some": module})
    out = tmp_path / "out"
    said = prepare.prepare(prepare.Settings("some", str(tmp_path), fps=2.0, options={"part": "7"}), out, workers=1)
    assert [r["clip_id"] for r in read_records(out, "clips")] == ["b", "a", "c"]
    assert (out / "clips.txt").read_text() == "b\na\nc\n"
    assert read_lines(out / "test.jsonl") == rows["test"] and read_lines(out / "qa_test.jsonl") == rows["qa_test"]
    assert read_lines(out / "missing.jsonl") == [{"clip_id": "d"}]
    (failed,) = read_lines(out / "failed.jsonl")
    assert failed["clip_id"] == "c" and failed["record"] == 2
    assert "3 clips; annotations test 2, qa_test 1; 1 listed videos are missing" in said and "1 files are not" in said
    assert json.loads((out / "prepare.json").read_text())["notes"] == "part 7\nsecond"
    with pytest.raises(UserError, match="--option portion=1: some takes part"):
        prepare.prepare(prepare.Settings("some", str(tmp_path), options={"portion": "1"}), tmp_path / "new")


def test_spans_with_few_frames_at_the_rate_asked_are_counted(make_video, tmp_path, monkeypatch, capsys):
    make_video(tmp_path / "a.mp4")
    spans = [{"clip_id": "a", "start": 0.2 * i, "end": 0.2 * i + seconds} for i, seconds in enumerate((0.5, 1.9, 2.0))]
    moments = [{**span, "caption": "x"} for span in spans]
    options = [{"clip_id": "a", "start": 1.0, "end": 1.5}, {"clip_id": "a", "start": 1.0, "end": 9.0}]
    rows = {
        "test": [{"clip_id": "a", "caption": "whole"}],
        "moments_test": moments,
        "mcq": [{"question_id": "0", "caption": "x", "options": options, "answer": 0}],
        "mc_test": [{"question_id": "0", "clip_id": "a", "options": ["b", "c"], "answer": 0}],
    }

    def read(root, *, allow_share=0.0):
        return Corpus("some", {"clips": [Clip("a", tmp_path / "a.mp4")]}, rows)

    monkeypatch.setattr(prepare, "corpora", lambda: {"some": types.SimpleNamespace(read=read)})
    prepare.prepare(prepare.Settings("some", str(tmp_path), fps=2.0), tmp_path / "slow", workers=1)
    said = "--fps 2: 3 of 5 annotation spans hold fewer than 4 frames at that rate"
    assert f"some: {said}" in capsys.readouterr().err
    assert said in json.loads((tmp_path / "slow/prepare.json").read_text())["notes"]
    for fps in (0.0, 8.0):
        prepare.prepare(prepare.Settings("some", str(tmp_path), fps=fps), tmp_path / f"out{fps}", workers=1)
    assert "annotation spans" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--short-side", "8"], "--short-side 8: expected pixels from 16"),
        (["--fps", "-1"], "--fps -1: expected frames"),
        (["--allow-missing", "2"], "--allow-missing 2: expected a share"),
        (["--workers", "0"], "--workers 0: expected an integer from 1"),
        (["--option", "a=b"], "--option a=b: cc3m takes no option"),
    ],
)
def test_numbers_out_of_range_are_refused(root, tmp_path, capsys, flags, message):
    assert prepare.main(["cc3m", "--root", str(root), "--out", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_use_of_the_command_is_refused(root, capsys):
    for flags in (
        ["cc3m", "--root", str(root)],
        ["nothing"],
        ["cc3m", "--root", "r", "--out", "o", "--beam-options=x"],
    ):
        with pytest.raises(SystemExit):
            prepare.main(flags)
    assert "expected --beam beside it" in capsys.readouterr().err


def test_the_list_names_every_corpus_and_its_files(capsys):
    assert prepare.main(["--list"]) == 0
    said = capsys.readouterr().out
    for text in ("webvid: ", "results_2M_train.csv", "cc3m: ", "Train_GCC-training.tsv"):
        assert text in said
