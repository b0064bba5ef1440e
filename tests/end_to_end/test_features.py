"""Precomputed features by the binaries: made-up ones of the embedded clips, whose content is that of the caption."""

import json
import sys

import numpy as np
import pytest

from vlp_jax.input.ledger import Ledger

WIDTH = 32


@pytest.fixture(scope="module")
def trained(features, command, run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    changes = {"input.features.path": features, "input.features.width": WIDTH, "input.max_bad_share": 0.2}
    changes |= {"model.pruning.layers": (), "steps": 60, "optimizer.learning_rate": 5e-3, "checkpoint.every_steps": 60}
    done = run(command(workdir, config="configs/smaug.py:tiny_features", **changes))
    assert done.returncode == 0, done.stderr
    return workdir, done.stderr


def evaluate(run, workdir, *flags):
    done = run([sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}", *flags])
    assert done.returncode == 0, done.stderr
    return done


def test_a_run_on_features_learns_what_they_say_and_lists_clips_without_them(trained, run):
    workdir, said = trained
    ledger = Ledger(workdir / "ledger.jsonl", 1.0)
    assert ledger.bad > 0 and "bad clips: 2," in said and "no features of" in said
    evaluate(run, workdir, "--split=train", "--rerank=4")
    result = json.loads((workdir / "evaluation" / "retrieval_train_60_rerank4.json").read_text())
    assert result["undecodable"] == 2 and result["frames"] == 3
    found = [row["text_to_video_rank"] for row in result["per_query"] if row["text_to_video_rank"] <= 24]
    assert len(found) >= 20 and np.mean(found) < 6  # 12.5 by chance
    # Without the features nothing tells the clips apart.
    evaluate(run, workdir, "--split=train", "--ablate=video")
    blind = json.loads((workdir / "evaluation" / "retrieval_train_60_without-video.json").read_text())
    assert blind["text_to_video"]["mean_rank"] > result["text_to_video"]["mean_rank"]


def test_fine_tuning_takes_the_form_of_the_features_over_and_answers_questions(
    trained, features, shapes, tmp_path, run
):
    workdir, tuned = trained[0], tmp_path / "qa"
    changes = {"init_from": workdir, "input.path": shapes, "steps": 2, "epochs": 0.0, "input.max_bad_share": 0.5}
    changes |= {"evaluation.every_steps": 0, "evaluation.select_by": "", "batch_size": 8, "evaluation.batch_size": 8}
    flags = lambda more: [f"--config.{key}={value}" for key, value in {**changes, **more}.items()]
    name = "configs/finetune/question_answering.py:moving_shapes"
    start = [sys.executable, "-m", "vlp_jax.train", f"--config={name}", f"--workdir={tuned}"]
    refused = run([*start, *flags({})])
    assert refused.returncode == 2 and "set input.features.path" in refused.stderr, refused.stderr
    done = run([*start, *flags({"input.features.path": features})])
    assert done.returncode == 0, done.stderr
    evaluate(run, tuned, "--split=qa_test")
    result = json.loads((tuned / "evaluation" / "question_answering_qa_test_2.json").read_text())
    assert result["questions"] > 0 and result["undecodable"] == 0


def test_features_of_another_width_stop_the_run_with_both_numbers(features, command, run, tmp_path):
    changes = {"input.features.path": features, "input.features.width": 99, "model.pruning.layers": ()}
    done = run(command(tmp_path / "run", config="configs/smaug.py:tiny_features", **changes))
    assert done.returncode == 2 and f"width {WIDTH}, config.input.features.width = 99" in done.stderr, done.stderr


def test_singularity_trains_on_features_by_a_few_flags(features, command, run, tmp_path):
    changes = {"input.features.path": features, "input.features.width": WIDTH, "model.vision.positions": "none"}
    changes |= {"model.pruning.layers": (), "model.selection.frames": 0, "steps": 2, "input.max_bad_share": 1.0}
    done = run(command(tmp_path / "run", config="configs/singularity.py:tiny_stage2", **changes))
    assert done.returncode == 0, done.stderr
