"""The fine-tuning configs: complete but for the run to start from, whose model they take over."""

import importlib

import numpy as np
import pytest

from configs import smaug, smaug_5m
from tests import byte_pairs
from vlp_jax import config as config_lib
from vlp_jax import inherit, validation, warm_start
from vlp_jax.checkpoint import Checkpointer
from vlp_jax.input import tokenizer
from vlp_jax.types import UserError

FILES = ("retrieval", "question_answering", "multiple_choice", "classification")
ALL = [(file, name) for file in FILES for name in importlib.import_module(f"configs.finetune.{file}").SETS]


def config_of(file, name, **changes):
    config = importlib.import_module(f"configs.finetune.{file}").get_config(name)
    return config_lib.update(config, changes)


@pytest.fixture
def runs(tmp_path):
    """Builds the workdir of a run of this config, as far as its config goes."""

    def build(config, name="pretrained"):
        writer = Checkpointer(tmp_path / name / "checkpoints", keep=1, asynchronous=False)
        writer.save(1, {"x": np.zeros(1)}, {"config": config.to_dict()})
        writer.close()
        return str(tmp_path / name)

    return build


@pytest.mark.parametrize(("file", "name"), ALL)
def test_every_config_is_valid_on_every_kind_of_run(runs, file, name):
    for number, there in enumerate((smaug.get_config("tiny"), smaug.get_config("base_dense"), smaug_5m.get_config())):
        config = config_of(file, name, init_from=runs(there, str(number)))
        inherit.model_config(config)
        validation.validate(config)
        assert config.model.vision.width == there.model.vision.width
        assert config.input.image_size == there.input.image_size
        assert (config.model.masking.kind, config.loss.mvm, config.evaluation.select_by != "") == ("none", 0.0, True)
        assert config.evaluation.validation_split not in (config.evaluation.split, config.input.split)
        assert config.input.tokenizer == ""


@pytest.mark.parametrize("file", FILES)
def test_another_argument_is_refused_with_those_that_exist(file):
    module = importlib.import_module(f"configs.finetune.{file}")
    with pytest.raises(UserError, match=rf"finetune/{file}.py has no data set 'cats': .*moving_shapes"):
        module.get_config("cats")
    with pytest.raises(UserError, match="needs a data set: expected one of"):
        module.get_config()


def test_the_model_is_the_other_runs_but_for_what_the_command_line_sets(runs):
    there = config_lib.update(smaug.get_config("small"), {"model.vision.heads": 3, "compute_dtype": "bfloat16"})
    config = config_of("retrieval", "msrvtt", init_from=runs(there), **{"model.pruning.keep_rate": 0.9})
    text = inherit.model_config(config, {"model.pruning.keep_rate", "init_from"})
    ours, theirs = config_lib.leaves(config), config_lib.leaves(there)
    changed = {"model.pruning.keep_rate", "model.selection.frames", "model.vision.time_slots"}
    for key in ours:
        if key.startswith("model.") and not key.startswith("model.masking.") and key not in changed:
            assert ours[key] == theirs[key], key
    assert config.compute_dtype == "bfloat16" and config.input.image_size == 64 and config.model.vision.heads == 3
    assert config.input.frames == 12 and config.model.masking.kind == "none"
    assert "set on the command line instead: config.model.pruning.keep_rate = 0.9 (0.7 there)" in text
    # Of three times as many frames the selector keeps three times as many.
    assert config.model.selection.frames == 6 and "6 of 12 temporal slots (2 of 4 there)" in text
    # The same moment of a clip keeps its fixed position.
    assert config.model.vision.time_slots == 4 and "its fixed time positions interpolated to 12" in text
    assert there.name in text and "smaug" in text


def test_a_continued_run_needs_no_other_run(runs, tmp_path):
    config = config_of("retrieval", "msrvtt", init_from=runs(smaug.get_config("small")))
    inherit.model_config(config)
    again = config_of("retrieval", "msrvtt", init_from=str(tmp_path / "gone"))
    inherit.model_config(again, saved=config)
    again.init_from = config.init_from
    assert config_lib.leaves(again) == config_lib.leaves(config)


def test_without_a_run_to_start_from_the_message_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match=r"give --config\.init_from=WORKDIR"):
        inherit.model_config(config_of("retrieval", "msrvtt"))
    with pytest.raises(UserError, match="expected the workdir of a run"):
        inherit.model_config(config_of("retrieval", "msrvtt", init_from=str(tmp_path)))


def test_the_tokenizer_is_the_other_runs_and_no_other(runs, tmp_path):
    vocabulary = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nred\n"
    workdir = runs(smaug.get_config("tiny"))
    own = warm_start.find(workdir).workdir / "vocab.txt"
    own.write_bytes(vocabulary)
    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    same.write_bytes(vocabulary)
    other.write_bytes(vocabulary + b"blue\n")
    for given in ("", str(same)):
        config = config_of("retrieval", "msrvtt", init_from=workdir, **{"input.tokenizer": given})
        assert inherit.tokenizer_file(config) == own
    config = config_of("retrieval", "msrvtt", init_from=workdir, **{"input.tokenizer": str(other)})
    with pytest.raises(UserError, match=r"other.txt' \(8 pieces\) is not that of .*vocab.txt \(7 pieces\)"):
        inherit.tokenizer_file(config)


def test_two_files_that_are_the_other_runs_one_tokenizer_are_taken(runs, tmp_path):
    workdir = runs(smaug.get_config("tiny"))
    given = byte_pairs.write_pair(tmp_path, byte_pairs.train("roberta", ["a red circle"]))
    own = warm_start.find(workdir).workdir / "tokenizer.json"
    own.write_bytes(tokenizer.read(given))
    config = config_of("retrieval", "msrvtt", init_from=workdir, **{"input.tokenizer": str(given)})
    assert inherit.tokenizer_file(config) == own


PUBLISHED = {
    ("retrieval", "msrvtt"): (1e-5, 0.0, 5, 32),
    ("retrieval", "didemo"): (1e-5, 0.0, 10, 64),
    ("retrieval", "activitynet"): (1e-5, 0.0, 10, 150),
    ("retrieval", "ssv2"): (1e-5, 0.0, 10, 25),
    ("retrieval", "ssv2_template"): (1e-4, 0.0, 10, 22),
    ("question_answering", "msrvtt_qa"): (1e-5, 0.05, 10, 25),
}


@pytest.mark.parametrize(("file", "name"), PUBLISHED)
def test_rates_schedules_and_lengths_are_those_of_singularitys_released_configs(file, name):
    config = config_of(file, name)
    o = config.optimizer
    found = o.learning_rate, o.warmup_share, config.epochs, config.input.max_text_tokens
    assert found == PUBLISHED[file, name]
    assert (o.weight_decay, o.end_share, o.clip_norm, o.b1, o.b2) == (0.02, 0.1, 0.0, 0.9, 0.999)
