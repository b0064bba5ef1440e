"""A mixture of images and clips, and a second stage with more frames that starts from the first's parameters."""

import json

from vlp_jax.telemetry.writers import read_metrics


def stage(command, shapes, workdir, number, **changes):
    sources = {f"mixture.{name}.path": str(shapes) for name in ("webvid", "cc3m")}
    small = {"epochs": 0.0, "steps": 6, "input.crop_scale": (1.0, 1.0), "input.max_text_tokens": 18, "input.workers": 0}
    small |= {
        "compute_dtype": "float32",
        "model.vision.patch_size": 8,
        "model.selection.frames": 0,
        "input.flip": False,
    }
    changes = {**sources, **small, "mixture.webvid.weight": 2.0, "mixture.cc3m.weight": 1.0, **changes}
    return command(workdir, config=f"configs/smaug_5m.py:stage{number}", **changes)


def test_two_stages_train_on_both_sources_and_the_second_starts_where_the_first_ended(tmp_path, shapes, command, run):
    first, second = tmp_path / "stage1", tmp_path / "stage2"
    done = run(stage(command, shapes, first, 1, **{"input.frames": 1}))
    assert done.returncode == 0, done.stderr
    lines = read_metrics(first)
    assert (lines[-1]["examples/webvid"], lines[-1]["examples/cc3m"], lines[-1]["examples"]) == (32, 16, 48)
    done = run(
        stage(command, shapes, second, 2, **{"input.frames": 3, "model.selection.frames": 2, "init_from": str(first)})
    )
    assert done.returncode == 0, done.stderr
    assert "vision/time: 1 slots interpolated to 3" in done.stderr and "created: selector " in done.stderr
    assert read_metrics(second)[0]["loss"] < lines[0]["loss"]
    saved = json.loads((second / "config.json").read_text())
    assert saved["mixture"]["cc3m"]["frames"] == 1 and saved["init_from"] == str(first)
    again = run(stage(command, shapes, second, 2, **{"input.frames": 3, "model.selection.frames": 2, "init_from": ""}))
    assert again.returncode == 2 and "config.init_from" in again.stderr
