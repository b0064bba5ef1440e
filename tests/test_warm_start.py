"""Starting from another run's parameters: all of them, the temporal table interpolated, nothing taken loosely."""

import jax
import numpy as np
import pytest

from vlp_jax import checkpoint, sharding, state, warm_start
from vlp_jax.types import UserError


def make(config, fake_tokenizer, seed):
    config.seed = seed
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    with sharding.use_mesh(mesh):
        setup = state.setup(config, fake_tokenizer, mesh, 10)
        return setup.create()


@pytest.fixture
def saved(tmp_path, tiny_config, fake_tokenizer):
    """Workdir of a run of one learned temporal slot that has saved two steps, and its parameters at the last."""
    config = tiny_config({"input.frames": 1, "model.selection.frames": 0, "model.vision.time_positions": "learned"})
    writer = checkpoint.Checkpointer(tmp_path / "run" / "checkpoints", keep=2, asynchronous=False)
    for step in (3, 5):
        run = make(config, fake_tokenizer, step)
        run.params["vision"]["time"][...] = run.params["vision"]["time"][...] + step
        writer.save(step, run, {})
    writer.close()
    return tmp_path / "run", checkpoint.by_path(run.params)


FOUR = {"input.frames": 4, "model.selection.frames": 0, "model.vision.time_positions": "learned"}


def test_a_curriculum_takes_every_parameter_and_interpolates_the_temporal_table(saved, tiny_config, fake_tokenizer):
    workdir, before = saved
    fresh = make(tiny_config(FOUR), fake_tokenizer, 7)
    params, report = warm_start.load(str(workdir), (), fresh.params)
    after = checkpoint.by_path(params)
    assert jax.tree.structure(params) == jax.tree.structure(fresh.params)
    for name, value in after.items():
        if name == "vision/time":
            np.testing.assert_array_equal(value, np.broadcast_to(before[name], (4, 16)))
        else:
            np.testing.assert_array_equal(value, before[name])
    assert "vision/time: 1 slots interpolated to 4" in report and "step 5" in report
    assert f"{len(before) - 1} parameters loaded" in report


def test_an_earlier_checkpoint_can_be_named(saved, tiny_config, fake_tokenizer):
    workdir, _ = saved
    fresh = make(tiny_config(FOUR), fake_tokenizer, 7)
    params, report = warm_start.load(str(workdir / "checkpoints" / "000000003"), (), fresh.params)
    np.testing.assert_array_equal(checkpoint.by_path(params)["vision/time"], np.full((4, 16), 3.0))
    assert "step 3" in report


def test_any_other_difference_is_refused_by_name_unless_the_config_lists_it(saved, tiny_config, fake_tokenizer):
    workdir, before = saved
    fresh = make(tiny_config({**FOUR, "model.projection": 12, "loss.mvm": 0.0}), fake_tokenizer, 7)
    with pytest.raises(UserError) as caught:
        warm_start.load(str(workdir), (), fresh.params)
    for text in ("decoder/", "is only there", "config.init_may_differ"):
        assert text in str(caught.value)
    with pytest.raises(UserError, match=r"video_projection/kernel is \[16, \d+\] there and \[16, 12\] here"):
        warm_start.load(str(workdir), ("decoder/.*",), fresh.params)
    params, report = warm_start.load(str(workdir), ("decoder/.*", ".*_projection/.*", "selector/.*"), fresh.params)
    after, own = checkpoint.by_path(params), checkpoint.by_path(fresh.params)
    np.testing.assert_array_equal(after["video_projection/kernel"], own["video_projection/kernel"])
    np.testing.assert_array_equal(after["vision/embed/kernel"], before["vision/embed/kernel"])
    assert "created: video_projection/kernel" in report and "left out: decoder/" in report


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, tiny_config, fake_tokenizer):
    fresh = make(tiny_config(FOUR), fake_tokenizer, 7)
    with pytest.raises(UserError, match="expected the workdir of a run"):
        warm_start.load(str(tmp_path), (), fresh.params)
