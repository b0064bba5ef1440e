"""The door for a user's own videos: a folder and a CSV file, with real footage where it is at hand."""

import json
import pathlib
import sys

import pytest

from vlp_jax.telemetry.writers import read_metrics

GMDCSA24 = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "gmdcsa24"


@pytest.mark.skipif(not GMDCSA24.is_dir(), reason="the GMDCSA-24 clips are not beside this checkout")
def test_real_clips_pre_train_and_are_retrieved_through_a_csv_file(tmp_path, run):
    table, tokenizer, workdir = GMDCSA24 / "captions.csv", tmp_path / "tokenizer.model", tmp_path / "run"
    flags = ["--input", str(table), "--caption-column", "caption", "--output", str(tokenizer)]
    made = run([sys.executable, "-m", "data.train_tokenizer", *flags])
    assert made.returncode == 0, made.stderr
    small = {"steps": 4, "model.vision.layers": 3, "model.text.layers": 1, "log_every": 1, "input.workers": 1}
    changes = {"input.path": table, "input.tokenizer": tokenizer, **small}
    trained = run(
        [
            *[sys.executable, "-m", "vlp_jax.train", "--config=configs/own_videos.py:gmdcsa24", f"--workdir={workdir}"],
            *[f"--config.{key}={value}" for key, value in changes.items()],
        ]
    )
    assert trained.returncode == 0, trained.stderr
    assert "bad clips: none" in trained.stderr
    assert [line["step"] for line in read_metrics(workdir)] == [1, 2, 3, 4]
    evaluated = run([sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}", "--split=all"])
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads((workdir / "evaluation" / "retrieval_all_4.json").read_text())
    assert result["queries"] == 23 and result["undecodable"] == 0
    assert {row["clip_id"].split("_")[0] for row in result["per_query"]} == {f"subject{i}" for i in range(1, 5)}
