"""Fine-tuning a miniature run: only --config.init_from is given; the best checkpoint is kept, evaluated, continued."""

import json
import shutil
import sys
import time

import pytest

from vlp_jax.checkpoint import Checkpointer
from vlp_jax.telemetry.writers import read_metrics

SHORT = {
    "steps": 8,
    "epochs": 0.0,
    "batch_size": 8,
    "log_every": 1,
    "input.frames": 3,
    "input.cache_gib": 0.0,
    "checkpoint.every_steps": 4,
    "evaluation.batch_size": 8,
    "evaluation.every_steps": 2,
    "evaluation.rerank": 0,
    "evaluation.bootstrap": 0,
}


@pytest.fixture(scope="session")
def fine_tune(finished, shapes):
    """Builds the training command of a fine-tuning config on the miniature data set, from the miniature run."""

    def build(workdir, config="retrieval.py:moving_shapes", **changes):
        values = {**SHORT, "init_from": str(finished), "input.path": str(shapes), **changes}
        flags = [f"--config.{key}={value}" for key, value in values.items()]
        return [
            sys.executable,
            "-m",
            "vlp_jax.train",
            f"--config=configs/finetune/{config}",
            f"--workdir={workdir}",
            *flags,
        ]

    return build


def evaluate(workdir, *flags):
    return [sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}", *flags]


def selected(workdir):
    reader = Checkpointer(workdir / "best", keep=1, asynchronous=False)
    metadata = reader.read_metadata()
    reader.close()
    return metadata["step"], metadata["selected"]


@pytest.fixture(scope="session")
def tuned(tmp_path_factory, fine_tune, run):
    """Workdir of an uninterrupted fine-tuning for retrieval, and what it printed."""
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    done = run(fine_tune(workdir))
    assert done.returncode == 0, done.stderr
    return workdir, done.stderr


def test_the_model_the_tokenizer_and_the_parameters_are_the_other_runs(tuned, finished):
    workdir, output = tuned
    ours, theirs = (json.loads((d / "config.json").read_text()) for d in (workdir, finished))
    assert ours["model"]["vision"] == theirs["model"]["vision"] and ours["input"]["image_size"] == 16
    assert (ours["model"]["masking"]["kind"], ours["loss"]["mvm"], ours["loss"]["vtm"]) == ("none", 0.0, 1.0)
    assert (workdir / "tokenizer.model").read_bytes() == (finished / "tokenizer.model").read_bytes()
    assert f"model of {finished} (smaug-tiny, recipe smaug)" in output
    assert "left out (only there): decoder" in output and "parameters, none of them frozen" in output
    listed = json.loads((workdir / "init.json").read_text())
    assert listed["parameters"]["vision/cls"]["origin"] == "vision/cls" and listed["step"] == 12
    assert any(name.startswith("word_head/") for name in listed["left_out"])


def test_the_best_checkpoint_is_the_first_highest_of_the_validation_split(tuned):
    workdir, output = tuned
    measured = [(m["step"], m["validation/text_to_video/R1"]) for m in read_metrics(workdir) if "loss" not in m]
    assert [step for step, _ in measured] == [2, 4, 6, 8]
    highest = max(value for _, value in measured)
    step, how = selected(workdir)
    assert step == next(s for s, value in measured if value == highest)
    assert how["value"] == highest and how["validation_split"] == "validation"
    assert f"step {step}, best text_to_video/R@1 = {highest:.4g} of validation" in output


def test_evaluation_takes_the_best_or_the_newest_and_titles_say_which_and_what_was_trained_on(tuned, run):
    workdir, _ = tuned
    step, how = selected(workdir)
    done = run(evaluate(workdir, "--checkpoint=best", "--frames=2"))
    assert done.returncode == 0, done.stderr
    title = done.stdout.splitlines()[0]
    assert f"step {step} (best text_to_video/R@1 = {how['value']:.4g} of validation)" in title
    assert "pre-trained on its split train and fine-tuned on its split train" in title and "zero-shot" not in title
    written = workdir / "evaluation" / f"retrieval_test_{step}_best_frames2.json"
    result = json.loads(written.read_text())
    assert result["selected"] == how and result["task"] == "retrieval" and result["frames"] == 2
    assert not result["selected_on_this_split"] and "flattering" not in title
    done = run(evaluate(workdir, "--checkpoint=best", "--split=validation"))
    assert done.returncode == 0, done.stderr
    assert "which chose the checkpoint: a flattering number" in done.stdout.splitlines()[0]
    result = json.loads((workdir / "evaluation" / f"retrieval_validation_{step}_best.json").read_text())
    assert result["selected_on_this_split"]
    done = run(evaluate(workdir))
    assert done.returncode == 0 and "step 8, test" in done.stdout, done.stderr


def test_killed_between_evaluations_the_same_best_is_kept_and_the_other_run_is_not_needed(
    tmp_path, tuned, finished, fine_tune, start, run
):
    source = shutil.copytree(finished, tmp_path / "pretrained")
    workdir = tmp_path / "run"
    command = fine_tune(workdir, init_from=str(source))
    process = start(command)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (workdir / "metrics.jsonl").exists() and any(m["step"] >= 6 for m in read_metrics(workdir)):
            break
        time.sleep(0.01)
    process.kill()
    process.communicate()
    shutil.rmtree(source)
    done = run(command)
    assert done.returncode == 0 and "continuing" in done.stderr, done.stderr
    assert selected(workdir) == selected(tuned[0])
    unstable = {"examples_per_second", "data_wait_share", "bad_clips", "device_hours", "mfu"}
    metrics = [
        [{k: v for k, v in m.items() if k not in unstable} for m in read_metrics(d)] for d in (workdir, tuned[0])
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init_from": ""}, ["config.init_from is empty", "--config.init_from=WORKDIR"]),
        ({"init_from": "nowhere"}, ["config.init_from = 'nowhere'", "expected the workdir"]),
        ({"model.vision.width": 32}, ["[2, 16", "there and [2, 32", "config.init_may_differ"]),
        ({"evaluation.select_by": "accuracy"}, ["select_by = 'accuracy'", "text_to_video/R@1"]),
        ({"evaluation.validation_split": "test"}, ["must not be chosen on what is reported"]),
        ({"evaluation.validation_split": "train[held_out]"}, ["must not be chosen on clips that it trained on"]),
        ({"optimizer.trainable": "('fusion',)"}, ["'fusion'", "matches the whole path of no parameter"]),
    ],
)
def test_bad_input_ends_with_one_clear_message(tmp_path, fine_tune, run, changes, words):
    done = run(fine_tune(tmp_path / "run", **changes))
    assert done.returncode == 2, done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ") and "Traceback" not in done.stderr
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--chekpoint=best"], ["Unknown command line flag 'chekpoint'", "checkpoint", "--help"]),
        (["--task=multiple_choice", "--rerank=4"], ["--rerank=4 with --task=multiple_choice", "retrieval"]),
        (["--clips=2"], ["--clips=2 with --task=retrieval", "reconstruction"]),
        (["--ablate=order", "--frames=1"], ["config.input.ablate = 'order'", "no order"]),
        (["--checkpoint=newest"], ["--checkpoint=newest", "a step, such as 500, or best"]),
        (["--checkpoint=best"], ["holds no best", "config.evaluation.select_by"]),
        (["--set=input.capton_column=x"], ["input.capton_column", "did you mean 'input.caption_column'"]),
        (["--set=model.vision.width=32"], ["model.vision.width is the checkpoint's own"]),
        (["--set=evaluation.token_gib=many"], ["--set=evaluation.token_gib=many", "a number"]),
        (["--task=question_answering"], ["fine-tune it first"]),
        (["--frames=32"], ["--frames = 32", "has 16 frames", "lower --frames"]),
        (["--split=qa_test"], ["needs rows with caption", "the splits of", "have captions"]),
    ],
)
def test_wrong_flags_of_evaluation_end_with_one_clear_message(finished, run, flags, words):
    done = run(evaluate(finished, *flags))
    assert done.returncode == 2, done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ") and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("config", "changes", "taken"),
    [
        ("question_answering.py:moving_shapes", {}, "taken from another place: head/blocks from fusion"),
        ("multiple_choice.py:moving_shapes", {}, "left out (only there): decoder"),
        ("classification.py:moving_shapes_probe", {}, "created: head/"),
    ],
)
def test_each_task_trains_from_pre_training_and_is_measured(tmp_path, fine_tune, run, config, changes, taken):
    workdir = tmp_path / "run"
    changes = {"steps": 2, **changes}
    done = run(fine_tune(workdir, config=config, **changes))
    assert done.returncode == 0 and taken in done.stderr, done.stderr
    _, how = selected(workdir)
    assert how["select_by"] == "accuracy" and 0 <= how["value"] <= 100
    done = run(evaluate(workdir, "--checkpoint=best"))
    assert done.returncode == 0, done.stderr
    (written,) = (workdir / "evaluation").glob("*_2_best.json")
    result = json.loads(written.read_text())
    assert result["per_query"] and f"{result['accuracy']:.2f}" in done.stdout


def test_answers_that_the_list_lacks_are_counted_in_training(tmp_path, shapes, fine_tune, run):
    (tmp_path / "answers.json").write_text('["red"]')
    changes = {"steps": 1, "task.head": "classifier", "task.answers": str(tmp_path / "answers.json")}
    done = run(fine_tune(tmp_path / "run", config="question_answering.py:moving_shapes", **changes))
    assert done.returncode == 0, done.stderr
    assert "of those seen are not among the 1 of the list; nothing was learned from these examples" in done.stderr


def test_a_pre_training_checkpoint_answers_choices_as_it_is(finished, run):
    done = run(evaluate(finished, "--task=multiple_choice", "--split=mc_test"))
    assert done.returncode == 0, done.stderr
    result = json.loads((finished / "evaluation" / "multiple_choice_mc_test_12.json").read_text())
    assert len(result["per_query"]) > 0 and "multiple choice" in done.stdout
