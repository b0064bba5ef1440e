"""The best state by a validation metric: strictly better ones are kept, through kills and resumes."""

import contextlib
import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp_jax import best as best_lib
from vlp_jax import checkpoint, validation
from vlp_jax import config as config_lib
from vlp_jax.evaluation import evaluators
from vlp_jax.types import UserError

SELECT = {"evaluation.select_by": "text_to_video/R@1", "evaluation.every_steps": 1}


class Killed(Exception):
    pass


@dataclasses.dataclass
class Run:
    """A run of one evaluation a step, which saves a checkpoint every `every` steps, and can be killed in between."""

    workdir: object
    config: object
    values: list
    every: int
    done: int = 0

    def go(self, kill_after=math.inf):
        """Trains from the newest checkpoint; `kill_after` counts the events (evaluations, checkpoints) survived."""
        best = best_lib.Best(self.workdir, self.config)
        events = 0
        try:
            for step in range(self.done + 1, len(self.values) + 1):
                if events >= kill_after:
                    raise Killed
                best.offer(step, self.values[step - 1], {"x": np.asarray(step)}, {"config": self.config.to_dict()})
                events += 1
                if step % self.every == 0:
                    if events >= kill_after:
                        raise Killed
                    self.done = step
                    events += 1
        finally:
            best.close()


def kept(workdir):
    """Step, value and state of WORKDIR/best, and how many folders it holds; None where there is none."""
    if not (workdir / "best").is_dir():
        return None
    reader = checkpoint.Checkpointer(workdir / "best", keep=1, asynchronous=False)
    _, state, metadata = reader.restore({"x": jax.ShapeDtypeStruct((), np.int64)})
    reader.close()
    folders = [p for p in (workdir / "best").iterdir() if p.name.isdigit()]
    return metadata["step"], metadata["selected"]["value"], int(state["x"]), len(folders)


def oracle(values):
    """The first step of the highest value that is a number."""
    numbers = [(value, -step) for step, value in enumerate(values, 1) if not math.isnan(value)]
    if not numbers:
        return None
    value, step = max(numbers)
    return -step, value, -step, 1


VALUES = st.lists(st.sampled_from([0.0, 12.5, 50.0, math.nan]), min_size=1, max_size=5)


@settings(max_examples=8)
@given(VALUES, st.lists(st.integers(0, 7), max_size=2), st.integers(1, 3))
def test_however_often_it_is_killed_the_first_highest_value_is_kept(
    tmp_path_factory, tiny_config, values, kills, every
):
    workdir = tmp_path_factory.mktemp("run")
    run = Run(workdir, tiny_config(SELECT), values, every)
    for kill in kills:
        with contextlib.suppress(Killed):
            run.go(kill)
    run.go()
    assert kept(workdir) == oracle(values)


def test_a_better_value_at_a_step_before_the_best_one_is_taken(tmp_path, tiny_config):
    # After a resume on hardware whose sums are not repeatable.
    run = Run(tmp_path, tiny_config(SELECT), [1.0, 2.0, 3.0, 4.0], every=100)
    run.go()
    run.values = [1.0, 5.0, 3.0, 4.0]
    run.go()
    assert kept(tmp_path) == (2, 5.0, 2, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"evaluation.select_by": "text_to_video/R@5"}, r"select_by = 'text_to_video/R@1'.*'text_to_video/R@5'"),
        ({"evaluation.validation_split": "other"}, r"validation_split = 'validation'.*'other'"),
        ({"evaluation.rerank": 8}, r"rerank = 0.*8"),
    ],
)
def test_values_that_do_not_compare_are_refused(tmp_path, tiny_config, change, words):
    Run(tmp_path, tiny_config(SELECT), [1.0], every=1).go()
    with pytest.raises(UserError, match=words):
        best_lib.Best(tmp_path, tiny_config({**SELECT, **change}))


def test_titles_say_how_it_was_chosen_and_that_the_split_is_a_part_of_train(tmp_path, tiny_config):
    held_out = {"input.split": "train_9k[kept]", "evaluation.validation_split": "train_9k[held_out]"}
    config = tiny_config({**SELECT, **held_out})
    Run(tmp_path, config, [12.5], every=1).go()
    reader = checkpoint.Checkpointer(tmp_path / "best", keep=1, asynchronous=False)
    text = best_lib.describe(reader.read_metadata())
    reader.close()
    assert text == "best text_to_video/R@1 = 12.5 of train_9k[held_out], a part of the training split"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation.every_steps": 0}, r"every_steps = 0"),
        ({"evaluation.select_by": "R@1"}, r"select_by = 'R@1': .*text_to_video/R@1, .*video_to_text/mean_recall"),
        ({"evaluation.select_by": "text_to_video/median_rank"}, r"higher being better"),
        (
            {"evaluation.validation_split": "test"},
            r"validation_split = 'test'.*must not be chosen.*'train\[held_out\]'",
        ),
        ({"evaluation.validation_split": "train[held_out]"}, r"trained on; .*config.input.split=train\[kept\]"),
        ({"evaluation.validation_split": "train"}, r"trained on; .*config.input.split=train\[kept\] and"),
        (
            {"input.split": "train[kept]", "evaluation.validation_split": "train"},
            r"'train' and config.input.split = 'train\[kept\]' may have clips in common",
        ),
        ({"evaluation.validation_split": "test[:50%]"}, r"= 'test\[:50%\]' and .*split = 'test'.*what is reported"),
        ({"evaluation.validation_split": "validation+test"}, r"must not be chosen on what is reported"),
        ({"evaluation.validation_split": "train[:10%]"}, r"must not be chosen on clips that it trained on"),
    ],
)
def test_a_choice_that_flatters_or_cannot_be_made_is_refused_before_training(tiny_config, changes, words):
    validation.validate(tiny_config(SELECT))
    with pytest.raises(UserError, match=words):
        validation.validate(tiny_config({**SELECT, **changes}))


def test_no_source_of_a_mixture_trains_on_what_a_checkpoint_is_chosen_on(tiny_config):
    def mixed(split, path="somewhere"):
        config = tiny_config({**SELECT, "evaluation.validation_split": "train[held_out]"})
        config_lib.add_source(config, "clips", weight=1, split=split, path=path)
        return config

    with pytest.raises(UserError, match=r"config.mixture.clips.split = 'train' may have clips in common"):
        validation.validate(mixed("train"))
    validation.validate(mixed("train[kept]"))
    validation.validate(mixed("train", path="elsewhere"))
    with pytest.raises(UserError, match=r"config.mixture.clips.split = 'train' may have clips"):
        validation.validate(mixed("train", path="./somewhere/"))


def test_tables_and_shards_need_no_test_split_to_choose_a_checkpoint(tiny_config):
    # config.evaluation.split stays at its default, which neither can have.
    rows = {"input.kind": "table", "input.split": "split=train", "evaluation.validation_split": "split=val"}
    validation.validate(tiny_config({**SELECT, **rows}))
    shards = {"input.kind": "shards", "input.split": "shards=0..7", "evaluation.validation_split": "shards=8..9"}
    validation.validate(tiny_config({**SELECT, **shards}))
    with pytest.raises(UserError, match=r"set another validation_split$"):
        validation.validate(tiny_config({**SELECT, **shards, "input.split": "shards=0..8"}))
    parts = {"input.kind": "table", "input.split": "all[kept]", "evaluation.validation_split": "all[held_out]"}
    validation.validate(tiny_config({**SELECT, **parts, "evaluation.split": "all[held_out]"}))
    with pytest.raises(UserError, match=r"set another config.evaluation.split, or another validation_split$"):
        validation.validate(tiny_config({**SELECT, **parts, "evaluation.split": "all"}))


def test_a_held_out_part_may_be_chosen_on(tiny_config):
    held = {"input.split": "train[kept]", "evaluation.validation_split": "train[held_out]"}
    validation.validate(tiny_config({**SELECT, **held, "evaluation.split": "train[held_out]"}))


def test_a_metric_is_found_in_nested_results():
    assert evaluators.metric({"text_to_video": {"R@1": 3}}, "text_to_video/R@1") == 3.0
    assert evaluators.metric({"accuracy": 0.5}, "accuracy") == 0.5
