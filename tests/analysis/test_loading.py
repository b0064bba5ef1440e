"""A run opens with its own config, weights and data; clips that do not decode are passed over and named."""

import dataclasses

import numpy as np
import pytest

from vlp_jax import analysis
from vlp_jax.analysis import loading
from vlp_jax.trees import by_path
from vlp_jax.types import UserError


@pytest.fixture(scope="module")
def loaded(workdir):
    return analysis.load(workdir)


def embed(model, video):
    return model.embed_video(video)


def test_a_run_opens_with_its_step_config_and_weights(make_run, tmp_path):
    params = by_path(make_run(tmp_path / "run", {"seed": 3}))
    loaded = analysis.load(str(tmp_path / "run"), step=7)
    assert (loaded.run.step, loaded.config.seed, loaded.title) == (7, 3, "smaug-tiny, step 7")
    for name, value in by_path(loaded.run.params).items():
        np.testing.assert_array_equal(value, params[name])


def test_clips_are_those_of_the_split_in_its_order(loaded):
    source, clips = loaded.source("test"), loaded.clips(3, split="test")
    assert clips.captions == [source.annotation(i).caption for i in range(3)]
    assert clips.clip_ids == [source.annotation(i).clip_id for i in range(3)]
    assert clips.batch.video.shape == (3, 3, 16, 16, 3) and clips.batch.valid.all() and not clips.skipped
    some = loaded.clips(split="test", records=[2, 0])
    np.testing.assert_array_equal(some.batch.video, clips.batch.video[[2, 0]])
    assert some.records.tolist() == [2, 0]


def test_a_function_of_the_model_runs_compiled_as_the_model_does(loaded):
    video = loaded.clips(2).batch.video
    out = loaded.apply(embed, video)
    np.testing.assert_allclose(out, loaded.model.embed_video(video), rtol=1e-5, atol=1e-6)
    assert isinstance(out, np.ndarray)


def test_clips_that_do_not_decode_are_passed_over_and_named(loaded, monkeypatch):
    first = loaded.source().annotation(0).clip_id
    real = type(loaded.source()).__getitem__

    def broken(self, index):
        record = real(self, index)
        return type(record)(b"no video", record.caption, record.clip_id) if index == 0 else record

    monkeypatch.setattr(type(loaded.source()), "__getitem__", broken)
    clips = loaded.clips(2)
    assert clips.records.tolist() == [1, 2] and list(clips.skipped) == [first]
    with pytest.raises(UserError, match=f"0 of 1 decode; {first}: "):
        loaded.clips(records=[0])


def test_what_is_not_there_is_refused_by_name(loaded, workdir, tmp_path):
    for call, message in [
        (lambda: loaded.clips(99), "99 clips of split 'test' were asked for, 10 of 10 decode"),
        (lambda: loaded.clips(0), "expected one clip or more"),
        (lambda: loaded.clips(records=[3, 10]), r"records = \[10\]: expected 0 to 9"),
        (lambda: loaded.clips(records=np.arange(10) < 2), r"records = \[.*True.*\]: expected 0 to 9, integers"),
        (lambda: loaded.clips(records=[True, 2]), r"records = \[True\]: expected 0 to 9, integers"),
        (lambda: loaded.clips(records=[1.5]), r"records = \[1.5\]: expected 0 to 9, integers"),
        (lambda: loaded.clips(records=[]), "expected one clip or more"),
        (lambda: loaded.changed({"model.pruning.keep_rate": 7.0}), r"keep_rate = 7.0: expected a number in \(0, 1\]"),
        (lambda: analysis.load(workdir, step=7, best=True), "step=7, best=True"),
        (lambda: analysis.load(workdir, step=8), "8"),
        (lambda: analysis.load(workdir, best=True), "holds no best"),
        (lambda: analysis.load(tmp_path), "holds no checkpoints"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def row_sums(model, rows, factor):
    return rows["a"].sum(1) * factor, rows["b"]


def test_rows_are_filled_up_to_the_devices_and_come_back_as_many(loaded, monkeypatch):
    monkeypatch.setattr(type(loaded), "ways", 4)
    sums, same = loaded.apply_rows(row_sums, {"a": np.arange(10).reshape(5, 2), "b": np.arange(5)}, 3)
    assert sums.tolist() == [3, 15, 27, 39, 51] and same.tolist() == [0, 1, 2, 3, 4]


def test_a_changed_run_has_the_same_parameters_and_leaves_the_first_as_it_was(loaded):
    video = loaded.clips(2).batch.video
    other = loaded.changed({"evaluation.frames": 2})
    assert (other.config.evaluation.frames, loaded.config.evaluation.frames) == (2, 0)
    assert other.clips(1).batch.video.shape[1] == 2
    np.testing.assert_array_equal(other.apply(embed, video[:, :2]), loaded.apply(embed, video[:, :2]))
    with pytest.raises(UserError, match=r"would have other parameters .*model.pruning.keep_rate"):
        loaded.changed({"model.projection": 8})
    with pytest.raises(UserError, match=r"unknown config key 'model.pruning.keep': did you mean"):
        loaded.changed({"model.pruning.keep": 0.5})


def test_a_run_of_questions_asks_for_a_split_of_captions(loaded):
    other = loaded.changed({"evaluation.split": "qa_test"})
    config = {**loaded.run.metadata["config"], "task": {"kind": "question_answering"}}
    metadata = {**loaded.run.metadata, "config": config}
    tuned = dataclasses.replace(other, run=dataclasses.replace(other.run, metadata=metadata))
    message = (
        "fine-tuned for question answering, and split 'qa_test' has .*question.*: pass split=NAME of one with capt"
    )
    for call in (tuned.clips, lambda: analysis.retrieve(tuned), lambda: tuned.clips(split="qa_test")):
        with pytest.raises(UserError, match=message):
            call()
    assert tuned.clips(1, split="test").captions == loaded.clips(1).captions


def test_relative_data_is_found_from_a_folder_below_and_above(make_run, shapes, tmp_path, monkeypatch):
    """A notebook's folder is not the one that the run was trained from."""
    root = tmp_path / "repository"
    (root / "notebooks").mkdir(parents=True)
    (root / "runs").mkdir()
    (root / "datasets").symlink_to(shapes.parent)
    monkeypatch.chdir(root)
    make_run(root / "runs" / "run", {"input.path": "datasets/moving_shapes"})
    captions = analysis.load("runs/run").clips(1).captions
    monkeypatch.chdir(root / "notebooks")
    assert analysis.load("../runs/run").clips(1).captions == captions
    # The workdir lies elsewhere, and the folder above this one has the data.
    (root / "runs" / "run").rename(tmp_path / "moved")
    assert analysis.load(tmp_path / "moved").clips(1).captions == captions
    # Nothing is where it was: the run opens, its clips are asked for by name.
    monkeypatch.chdir(tmp_path)
    (root / "datasets").unlink()
    loaded = analysis.load("moved")
    with pytest.raises(UserError, match=r"'datasets/moving_shapes' of moved is relative .* load\(WORKDIR, data=PATH\)"):
        loaded.clips(1)
    assert analysis.load("moved", data=str(shapes)).clips(1).captions == captions


@pytest.mark.parametrize("pattern", ["shards/{00000..00003}.tar", "shards/part-*.csv", "shards/[ab]/x.jsonl"])
def test_a_pattern_is_found_by_the_folder_before_it(loaded, tmp_path, monkeypatch, pattern):
    run = loaded.changed({"input.path": pattern}).run
    (tmp_path / "shards").mkdir()
    assert loading._found(run, "input.path", tmp_path / "run") == str(tmp_path / pattern)
    monkeypatch.chdir(tmp_path)
    assert loading._found(run, "input.path", tmp_path / "run") == pattern
