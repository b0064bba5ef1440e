"""Mixtures: every source gets its share of the steps, in an order that the step alone decides."""

import hypothesis
import numpy as np
import pytest
from absl import flags
from hypothesis import strategies as st
from ml_collections import config_flags

from vlp_jax import config as config_lib
from vlp_jax import validation
from vlp_jax.input import mixture, pipeline
from vlp_jax.input.tables import TableSource
from vlp_jax.input.tokenizer import open_tokenizer
from vlp_jax.types import UserError

WEIGHTS = st.lists(st.floats(0.05, 20), min_size=1, max_size=5)


@hypothesis.given(weights=WEIGHTS, steps=st.integers(1, 300))
def test_shares_hold_at_any_time_and_nothing_depends_on_the_length_of_the_run(weights, steps):
    part_of = mixture.schedule(tuple(weights), steps)
    assert part_of.shape == (steps,) and part_of.min() >= 0 and part_of.max() < len(weights)
    share = np.array(weights) / sum(weights)
    for step in range(0, steps, 17):
        batches = np.bincount(part_of[: step + 1], minlength=len(weights))
        assert np.abs(batches - share * (step + 1)).max() < 2
    np.testing.assert_array_equal(mixture.schedule(tuple(weights), steps + 50)[:steps], part_of)


def test_equal_weights_alternate():
    assert mixture.schedule((1.0, 1.0), 6).tolist() == [0, 1, 0, 1, 0, 1]
    assert mixture.schedule((2.0, 1.0), 6).tolist() == [0, 1, 0, 0, 1, 0]


@pytest.fixture
def config(tmp_path, make_clip):
    """A mixture of 5 clips of 12 frames, three of which are taken, and 4 of which one is taken, in batches of 2."""
    for name, count in (("clips", 5), ("stills", 4)):
        (tmp_path / name).mkdir()
        for i in range(count):
            make_clip(tmp_path / name / f"{i}.mp4", count=12)
        rows = "".join(f"{i}.mp4,{name} number {i}\n" for i in range(count))
        (tmp_path / name / "table.csv").write_text("video,caption\n" + rows)
    config = config_lib.defaults()
    values = {"input.kind": "table", "input.split": "all", "input.frames": 3, "input.image_size": 16}
    values |= {
        "model.vision.patch_size": 4,
        "input.path": str(tmp_path / "clips" / "table.csv"),
        "batch_size": 2,
        "input.max_text_tokens": 8,
    }
    config_lib.update(config, {**values, "model.selection.frames": 2, "epochs": 1.0})
    config_lib.add_source(config, "clips", weight=2)
    config_lib.add_source(config, "stills", weight=1, path=str(tmp_path / "stills" / "table.csv"), frames=1)
    validation.validate(config)
    return config


def batches(config, model, start, stop):
    tokenizer, opened = open_tokenizer(model, 8), mixture.open_mixture(config)
    return list(pipeline.train_batches(config, opened, tokenizer, start_step=start, stop_step=stop))


def test_each_batch_is_of_one_source_and_each_source_is_read_in_permuted_epochs(config, model):
    seen = batches(config, model, 0, 15)
    assert [b.source for b in seen[:6]] == ["clips", "stills", "clips", "clips", "stills", "clips"]
    for name, frames, count in (("clips", 3, 5), ("stills", 1, 4)):
        own = [b for b in seen if b.source == name]
        assert {b.batch.video.shape for b in own} == {(2, frames, 16, 16, 3)}
        assert all(caption.startswith(name) for b in own for caption in b.captions)
        records = np.concatenate([b.records for b in own])
        for epoch in range(len(records) // count):
            assert sorted(records[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert np.concatenate([b.batch.index for b in seen]).tolist() == list(range(30))


def test_a_mixture_resumes_at_any_step(config, model):
    whole, rest = batches(config, model, 0, 8), batches(config, model, 5, 8)
    for a, b in zip(whole[5:], rest, strict=True):
        assert a.source == b.source
        np.testing.assert_array_equal(a.batch.video, b.batch.video)
        np.testing.assert_array_equal(a.records, b.records)


def test_examples_are_counted_by_source(config):
    opened = mixture.open_mixture(config)
    assert len(opened) == 9
    assert opened.examples(opened.schedule(100)[:6], 2) == {"clips": 8, "stills": 4}


def test_a_single_source_needs_no_name(config):
    with config.unlocked():
        config.mixture = {}
    opened = mixture.open_mixture(config)
    assert [part.name for part in opened.parts] == [""] and len(opened) == 5
    assert opened.examples(opened.schedule(4), 2) == {}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"weight": 0}, ["'more'", "weight = 0", "above 0"]),
        ({"weight": float("inf")}, ["'more'", "weight = inf", "finite"]),
        ({"weight": 1, "frames": 0}, ["'more'", "input.frames"]),
        ({"weight": 1, "kind": "tabel"}, ["'more'", "tabel", "did you mean 'table'"]),
    ],
)
def test_a_source_with_a_wrong_value_is_refused_by_name(config, values, words):
    config_lib.add_source(config, "more", **values)
    with pytest.raises(UserError) as caught:
        validation.validate(config)
    for word in words:
        assert word in str(caught.value)


def test_a_source_with_an_unknown_key_or_name_is_refused(config):
    with pytest.raises(UserError, match="did you mean 'frames'"):
        config_lib.add_source(config, "more", weight=1, frame=1)
    with pytest.raises(UserError, match="'my clips'"):
        config_lib.add_source(config, "my clips", weight=1)


def test_the_command_line_may_set_what_a_source_inherits(config):
    flag_values = flags.FlagValues()
    words = ["train", "--config.mixture.stills.kind=shards", "--config.mixture.stills.crop_scale=(0.5,1.0)"]
    config_flags.DEFINE_config_dict("config", config, flag_values=flag_values, sys_argv=words)
    flag_values(words)
    own = config_lib.source_input(config, "stills")
    assert (own.kind, own.crop_scale, own.frames) == ("shards", (0.5, 1.0), 1)
    assert config_lib.source_input(config, "clips").kind == "table"


def test_errors_of_a_source_name_it_and_its_knobs(config):
    config.mixture.stills.frames = 20
    with pytest.raises(UserError, match=r"source 'stills' .* config\.mixture\.stills\.\*: .* 20, but clip"):
        pipeline.probe(mixture.open_mixture(config))
    config.mixture.stills.path = "nowhere.csv"
    with pytest.raises(UserError, match=r"source 'stills' of config.mixture.*nowhere\.csv"):
        mixture.open_mixture(config)


def test_the_saved_config_keeps_the_sources(config):
    again = config_lib.from_json(config_lib.to_json(config))
    assert again == config and config_lib.source_input(again, "stills").frames == 1
    assert isinstance(mixture.open_mixture(again).parts[0].source, TableSource)
