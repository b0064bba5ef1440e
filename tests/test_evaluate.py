"""The evaluation binary's small decisions: what --set takes, names of results, and what counts as zero-shot."""

import itertools
import math
import os

import jax
import numpy as np
import pytest

from vlp_jax import config as config_lib
from vlp_jax import evaluate, inherit, runs, sharding
from vlp_jax import state as state_lib
from vlp_jax.checkpoint import Checkpointer
from vlp_jax.trees import by_path
from vlp_jax.types import UserError


def test_settings_are_parsed_to_the_type_of_the_knob(tiny_config):
    pairs = ["input.caption_column=text", "evaluation.token_gib=4", "input.threads=3", "input.clip_timeout_s=0.5"]
    found = evaluate.settings(tiny_config(), pairs)
    assert found == {
        "input.caption_column": "text",
        "evaluation.token_gib": 4,
        "input.threads": 3,
        "input.clip_timeout_s": 0.5,
    }
    config = config_lib.update(tiny_config(), found)
    assert config.input.threads == 3 and config.evaluation.token_gib == 4


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("evaluation.token_gib=inf", math.inf),
        ("input.threads=007", 7),
    ],
)
def test_a_setting_is_read_as_a_flag_of_the_config_is(tiny_config, pair, value):
    assert list(evaluate.settings(tiny_config(), [pair]).values()) == [value]


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("input.caption_column", "expected KEY=VALUE"),
        ("input.captions=x", r"unknown config key 'input.captions'"),
        ("input.image_size=48", r"input.image_size is the checkpoint's own"),
        ("input.features.width=512", r"input.features.width is the checkpoint's own"),
        ("loss.vtc=0", r"loss.vtc is the checkpoint's own"),
        ("input.flip=False", r"input.flip has a part in training alone$"),
        ("evaluation.token_gib=much", r"expected a number, as in 8.0"),
        ("evaluation.ensemble=mean", r"use --ensemble=mean"),
        ("evaluation.rerank=4", r"use --rerank=4"),
        ("input.split=test", r"input.split has a part in training alone; --split says"),
        ("evaluation.validation_split=test", r"has a part in training alone"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_config, pair, words):
    with pytest.raises(UserError, match=words):
        evaluate.settings(tiny_config(), [pair])
    with pytest.raises(UserError, match="twice"):
        evaluate.settings(tiny_config(), ["input.threads=1", "input.threads=2"])


def test_results_under_different_conditions_have_different_names(tiny_config):
    choices = {
        "evaluation.frames": (0, 6),
        "evaluation.ensemble": ("concat", "mean", "lse"),
        "input.ablate": ("", "order", "video"),
        "evaluation.rerank": (0, 8),
        "evaluation.split": ("test", "a/b"),
    }
    # Nothing is matched in plain retrieval, so that an ensemble of scores has no part in it.
    plain = tiny_config({"evaluation.ensemble": "mean"})
    for task, named in (("retrieval", False), ("question_answering", False), ("multiple_choice", True)):
        assert ("mean" in evaluate.stem(plain, task, 7, False, None, [])) is named
    choices["evaluation.rerank"] = (4, 8)
    others = itertools.product((False, True), (None, "x" * 150), ([], ["input.caption_column=text"]))
    names = []
    for values, (best, path, pairs) in itertools.product(itertools.product(*choices.values()), list(others)):
        config = tiny_config(dict(zip(choices, values)))
        names.append(evaluate.stem(config, "retrieval", 7, best, path, pairs))
    assert len(set(names)) == len(names)
    assert all(len(name) < 200 and "/" not in name for name in names)


def test_zero_shot_is_a_data_set_that_no_stage_of_the_run_saw(tiny_config, tmp_path):
    def saved(name, config, history):
        writer = Checkpointer(tmp_path / name / "checkpoints", keep=1, asynchronous=False)
        writer.save(1, {"x": np.zeros(1)}, {"config": config.to_dict(), "trained_on": history})
        writer.close()
        return str(tmp_path / name)

    first = tiny_config({"input.path": "datasets/webvid"})
    config_lib.add_source(first, "clips", weight=1, path="datasets/webvid")
    config_lib.add_source(first, "stills", weight=1, path="datasets/cc3m", split="all")
    pretrained = saved("pretrained", first, inherit.trained_on(first))
    second = tiny_config({"input.path": "datasets/msrvtt", "input.split": "train_9k[kept]", "init_from": pretrained})
    (stage,) = {item["stage"] for item in inherit.trained_on(second)}
    assert stage == "pre-trained"  # a second stage of pre-training is no fine-tuning
    second.init_model = True
    history = inherit.trained_on(second)
    on = lambda path: evaluate.training(tiny_config({"input.path": path}), history)
    assert on("datasets/msrvtt") == "fine-tuned on its split train_9k[kept]"
    assert on(os.path.abspath("datasets/../datasets/cc3m")) == "pre-trained on its split all"
    assert on("datasets/didemo") == "zero-shot"
    alone = evaluate.training(first, inherit.trained_on(first))
    assert alone == "trained on its split train"


@pytest.mark.parametrize("name", ["dataset_info.json", "clips.csv"])
def test_a_data_set_that_was_moved_is_no_zero_shot(tiny_config, tmp_path, name):
    def write(folder, text):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
        return str(tmp_path / folder / ("" if name == "dataset_info.json" else name))

    first, copy, other = write("first", "a set"), write("copy", "a set"), write("other", "another")
    config = tiny_config({"input.path": first})
    history = inherit.trained_on(config)
    on = lambda path, history: evaluate.training(tiny_config({"input.path": path}), history)
    assert on(copy, history) == "trained on its split train" and on(other, history) == "zero-shot"
    # A run that goes on with its data at another path knows both.
    continued = inherit.trained_on(tiny_config({"input.path": other}), history)
    assert on(other, continued) == on(first, continued) == "trained on its split train"
    assert inherit.trained_on(config, history) == history


def test_the_recipe_of_a_tasks_run_embeds_as_the_tasks_model_does(tiny_config, fake_tokenizer, random_batch):
    config = tiny_config({"task.kind": "multiple_choice", "loss.mlm": 0.0, "loss.mvm": 0.0})
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    with sharding.use_mesh(mesh):
        setup = state_lib.setup(config, fake_tokenizer, mesh, 10)
        params = setup.create().params
        run = runs.Run(config, fake_tokenizer, setup, params, 1, None, {})
        model = state_lib.merge(setup, params)
        alone = runs.recipe_alone(run)
        video = random_batch(config).video
        expected = model.recipe.embed_video(video)
        np.testing.assert_array_equal(state_lib.merge(alone.setup, alone.params).embed_video(video), expected)
    names = by_path(alone.setup.abstract.params).keys()
    assert names == by_path(alone.params).keys() and not any(name.startswith("recipe/") for name in names)
    assert alone.config.task.kind == "pretrain"


def test_a_classifier_has_nothing_to_retrieve_with(classifier_run, tmp_path):
    with pytest.raises(UserError, match="only the video encoder is there"):
        runs.recipe_alone(runs.Run(classifier_run[1], None, None, None, 1, None, {}))


@pytest.fixture
def classifier_run(tiny_config, fake_tokenizer, tmp_path):
    """Workdir of a classifier over three classes, its parameters, and a fresh one's with its config."""
    changes = {"task.kind": "classification", "loss.vtc": 0.0, "loss.vtm": 0.0, "loss.mlm": 0.0, "loss.mvm": 0.0}
    made = []
    for seed in (3, 4):
        config = tiny_config({**changes, "seed": seed, "init_from": str(tmp_path), "init_may_differ": ("head/.*",)})
        mesh = sharding.make_mesh(config, jax.devices()[:1])
        with sharding.use_mesh(mesh):
            made.append((config, state_lib.setup(config, fake_tokenizer, mesh, 10, 3).create().params))
    (config, params), (other, fresh) = made
    writer = Checkpointer(tmp_path / "checkpoints", keep=1, asynchronous=False)
    writer.save(1, {"params": params}, {"config": config.to_dict()})
    writer.close()
    (tmp_path / "answers.json").write_bytes(b'["a", "b", "c"]')
    return params, other, fresh


@pytest.mark.parametrize(("answers", "taken"), [(b'["a", "b", "c"]', True), (b'["a", "c", "b"]', False)])
def test_a_head_over_a_list_is_taken_over_the_same_list_alone(classifier_run, answers, taken):
    params, config, fresh = classifier_run
    new, report = inherit.parameters(config, fresh, answers)
    before, after, own = by_path(params), by_path(new), by_path(fresh)
    np.testing.assert_array_equal(after["recipe/vision/cls"], before["recipe/vision/cls"])
    np.testing.assert_array_equal(after["head/kernel"], (before if taken else own)["head/kernel"])
    assert report.taken["head/kernel"].how == ("loaded" if taken else "created")
    assert ("head/kernel" in report.left_out) is not taken
