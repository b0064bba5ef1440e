"""The training binary: what it leaves behind, stopping, resuming, and refusing."""

import json
import random
import re
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from vlp_jax.telemetry.writers import read_metrics

# Wall-clock measurements differ between two runs; a ledger's counts may, after a kill.
UNSTABLE = {"examples_per_second", "data_wait_share", "bad_clips", "device_hours", "mfu"}


def losses(workdir):
    return [{k: v for k, v in line.items() if k not in UNSTABLE} for line in read_metrics(workdir)]


def test_a_run_leaves_checkpoints_metrics_tokenizer_and_config(finished):
    lines = losses(finished)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert {"vtc", "vtm", "mlm", "mvm", "loss", "grad_norm", "learning_rate", "temperature"} <= set(lines[0])
    assert all(np.isfinite(value) for line in lines for value in line.values())
    # The last fifth of the steps sees whole clips.
    flops = np.diff([0, *(line["flops"] for line in lines)])
    assert len(set(flops[:10])) == len(set(flops[10:])) == 1 and flops[0] != flops[-1] and flops.min() > 0
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["000000008", "000000012"]
    assert list((finished / "tensorboard").glob("events*"))
    assert json.loads((finished / "config.json").read_text())["model"]["vision"]["width"] == 16
    assert (finished / "tokenizer.model").stat().st_size > 0


def test_the_output_shows_parameters_progress_and_bad_clips(tmp_path, command, run):
    done = run(command(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    for text in ("Total:", "12/12", "examples/s", "data wait", "bad clips: none", "done: 12 steps"):
        assert text in done.stderr, f"{text!r} missing in:\n{done.stderr}"
    assert re.search(
        r"smaug-tiny: [\d.e+]+ FLOPs, [\d.e-]+ CPU-hours, \d+% MFU, 96 examples, data wait \d+%", done.stderr
    )


def test_running_a_finished_command_again_changes_nothing(tmp_path, finished, command, run):
    workdir = shutil.copytree(finished, tmp_path / "run")
    done = run(command(workdir))
    assert done.returncode == 0, done.stderr
    assert losses(workdir) == losses(finished)
    # Nothing was trained, and nothing is paid for twice.
    assert "96 examples" in done.stderr


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_a_run_continues_bit_for_bit(tmp_path, finished, command, start, run, seed):
    workdir, rng = tmp_path / "run", random.Random(seed)
    for _ in range(2):
        process = start(command(workdir))
        deadline = time.monotonic() + 120
        target = rng.randint(1, 11)
        while process.poll() is None and time.monotonic() < deadline:
            if (workdir / "metrics.jsonl").exists() and len(read_metrics(workdir)) >= target:
                break
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.communicate()
    done = run(command(workdir))
    assert done.returncode == 0, done.stderr
    assert losses(workdir) == losses(finished)


def test_a_run_with_worker_processes_has_the_same_losses(tmp_path, finished, command, run):
    done = run(command(tmp_path / "run", **{"input.workers": 2}))
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == losses(finished)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_signal_saves_and_says_so(tmp_path, finished, command, start, run, number, status):
    workdir = tmp_path / "run"
    # Evaluation at each step makes the run last longer than the signal travels.
    slow = {"checkpoint.every_steps": 1000, "evaluation.every_steps": 1}
    process = start(command(workdir, **slow))
    while not ((workdir / "metrics.jsonl").exists() and read_metrics(workdir)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == status, output
    assert re.search(rf"{number.name}: saved step \d+ of 12", output), output
    done = run(command(workdir, **slow))
    assert done.returncode == 0 and "continuing" in done.stderr
    assert [line for line in losses(workdir) if "loss" in line] == losses(finished)


@pytest.mark.slow
def test_a_run_at_an_address_goes_on_on_another_machine(tmp_path, finished, command, run):
    """The store is a folder behind an address; what a machine has of the run is lost with it."""
    address = f"file://{tmp_path}/bucket/run"

    def on(machine, words):
        done = run(words, VLP_JAX_STAGING=str(tmp_path / machine))
        assert done.returncode == 0, done.stderr
        return done.stderr

    on("one", command(address))
    shutil.rmtree(tmp_path / "bucket" / "run" / "checkpoints" / "000000012")
    assert "from step 8 of 12" in on("two", command(address))
    assert losses(tmp_path / "bucket" / "run") == losses(finished)
    on("three", [sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={address}", "--bootstrap=0"])
    assert (tmp_path / "bucket" / "run" / "evaluation" / "retrieval_test_12.json").exists()


def test_a_corrupt_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, finished, command, run):
    workdir = shutil.copytree(finished, tmp_path / "run")
    newest = workdir / "checkpoints" / "000000012"
    victim = max(
        (p for p in newest.rglob("*") if p.is_file() and p.name != "manifest.json"), key=lambda p: p.stat().st_size
    )
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = run(command(workdir))
    assert done.returncode == 0, done.stderr
    assert "step 12" in done.stderr and "corrupt" in done.stderr and "falling back to step 8" in done.stderr
    assert losses(workdir) == losses(finished)


def test_a_loss_that_is_not_finite_stops_with_step_term_and_examples(tmp_path, command, run):
    workdir = tmp_path / "run"
    done = run(
        command(workdir, **{"optimizer.learning_rate": 1e30, "optimizer.warmup_share": 0.0, "optimizer.clip_norm": 0.0})
    )
    assert done.returncode == 2
    step = int(re.search(r"error: step (\d+) is not finite", done.stderr).group(1))
    assert "train_0000" in done.stderr and f"saved as step {step - 1}" in done.stderr
    listed = json.loads((workdir / f"not_finite_{step}.json").read_text())
    assert len(listed["clip_ids"]) == 8
    assert (workdir / "checkpoints" / f"{step - 1:09d}").is_dir()
    assert [line["step"] for line in read_metrics(workdir)] == list(range(1, step))


def test_bad_clips_are_counted_listed_and_harmless(tmp_path, shapes, command, run):
    from data.moving_shapes import builder

    folder = tmp_path / "folder"
    builder.prepare(folder, builder.Settings(train=16, validation=2, test=4, compositional=2, format="folder"), 1)
    videos = sorted((folder / "videos").glob("train_*.mp4"))
    videos[0].write_bytes(b"")
    videos[1].write_bytes(videos[1].read_bytes()[:500])
    csv = {"input.kind": "table", "input.path": str(folder / "clips.csv"), "input.split": "split=train"}
    csv |= {"evaluation.split": "split=test", "input.max_bad_share": 0.5}
    workdir = tmp_path / "run"
    done = run(command(workdir, **csv))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (workdir / "ledger.jsonl").read_text().splitlines()]
    named = {row["clip_id"]: row["error"] for row in rows if "clip_id" in row}
    assert len(named) == 2 and all(named.values())
    assert read_metrics(workdir)[-1]["bad_clips"] > 0
    assert "bad clips: 2" in done.stderr
    strict = run(command(tmp_path / "strict", **{**csv, "input.max_bad_share": 0.01}))
    assert strict.returncode == 2 and "max_bad_share" in strict.stderr
    # What was trained until then is kept, and once the clips are repaired the run goes on.
    for video in videos[:2]:
        video.write_bytes(videos[2].read_bytes())
    mended = run(command(tmp_path / "strict", **{**csv, "input.max_bad_share": 0.01}))
    assert mended.returncode == 0 and "continuing" in mended.stderr, mended.stderr

    next((folder / "videos").glob("test_0*.mp4")).write_bytes(b"")
    evaluated = run([sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}"])
    assert "1 clips did not decode and count as missed: 1 x empty" in evaluated.stdout, evaluated.stderr
    (written,) = (workdir / "evaluation").glob("*.json")
    result = json.loads(written.read_text())
    (bad,) = result["bad_clips"]
    assert (
        bad["origin"].endswith(f"{bad['clip_id'].removesuffix('.mp4').split('/')[-1]}.mp4") and "empty" in bad["error"]
    )
    assert max(row["text_to_video_rank"] for row in result["per_query"]) == 11  # beyond R@10 of four clips


def refusals(tmp_path):
    """Name -> (changes to the config, workdir, what the message must say)."""
    workdir = tmp_path / "run"
    table = tmp_path / "clips.csv"
    table.write_text("file,text\na.mp4,hello\n")
    empty = tmp_path / "empty.csv"
    empty.write_text("video,caption\n")
    return {
        "missing workdir parent": ({}, tmp_path / "no" / "run", ["does not exist", str(tmp_path / "no")]),
        "unknown key": (
            {"optimizer.learnin_rate": 1},
            workdir,
            ["learnin_rate", "did you mean", "optimizer.learning_rate"],
        ),
        "batch over devices": ({"batch_size": 9, "mesh.data": 8}, workdir, ["batch_size = 9", "8 devices"]),
        "keep rate 0": ({"model.pruning.keep_rate": 0.0}, workdir, ["keep_rate = 0.0", "(0, 1]"]),
        "keep rate above 1": ({"model.pruning.keep_rate": 1.5}, workdir, ["keep_rate = 1.5", "(0, 1]"]),
        "nothing visible": ({"model.masking.ratio": 0.99}, workdir, ["ratio = 0.99", "no visible patch"]),
        "frames above the clip's": (
            {"input.frames": 32},
            workdir,
            ["input.frames = 32", "has 16 frames"],
        ),
        "CSV without columns": (
            {"input.kind": "table", "input.path": table, "input.split": "all"},
            workdir,
            ["video", "file", "text"],
        ),
        "empty dataset": ({"input.kind": "table", "input.path": empty, "input.split": "all"}, workdir, ["empty.csv"]),
        "unknown split": ({"input.split": "trian"}, workdir, ["trian", "train"]),
        "missing tokenizer": ({"input.tokenizer": "nowhere.model"}, workdir, ["nowhere.model", "data.train_tokenizer"]),
        "no length": ({"steps": 0}, workdir, ["config.steps", "config.epochs"]),
        "two lengths": ({"epochs": 1.0}, workdir, ["config.steps=12", "config.epochs=1.0"]),
        "wrong kernel": ({"model.attention_kernel": "flash"}, workdir, ["flash", "xla"]),
    }


NAMES = [
    "missing workdir parent",
    "unknown key",
    "batch over devices",
    "keep rate 0",
    "keep rate above 1",
    "nothing visible",
    "frames above the clip's",
    "CSV without columns",
    "empty dataset",
    "unknown split",
    "missing tokenizer",
    "no length",
    "two lengths",
    "wrong kernel",
]


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_ends_with_one_clear_message(tmp_path, command, run, name, eight_devices):
    refused = refusals(tmp_path)
    assert sorted(refused) == sorted(NAMES)
    changes, workdir, expected = refused[name]
    done = run(command(workdir, **changes), **(eight_devices if "devices" in name else {}))
    assert done.returncode == 2, done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert all(text in message for text in expected), message
    assert "Traceback" not in done.stderr


def test_a_tuple_given_twice_is_refused(tmp_path, command, run):
    done = run([*command(tmp_path / "run"), "--config.model.pruning.layers=(0,)"])
    assert done.returncode == 2
    assert "--config.model.pruning.layers is given 2 times" in done.stderr


def test_another_config_in_a_used_workdir_is_refused_by_key_and_both_values(finished, command, run):
    done = run(command(finished, **{"model.vision.width": 32}))
    assert done.returncode == 2
    assert "config.model.vision.width = 16" in done.stderr and "32" in done.stderr
