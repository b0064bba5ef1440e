"""Starting from another run's parameters: all of them, the temporal table interpolated, nothing taken loosely."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlp_jax import checkpoint, inherit, sharding, state, tables, trees, warm_start
from vlp_jax import config as config_lib
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
    return tmp_path / "run", trees.by_path(run.params)


def test_patches_numbered_in_one_row_are_refused_in_another_grid(tmp_path, tiny_config, fake_tokenizer):
    form = {"model.vision.positions": "sequence", "model.vision.time_positions": "none"}
    config = tiny_config(form)
    run = make(config, fake_tokenizer, 1)
    writer = checkpoint.Checkpointer(tmp_path / "run" / "checkpoints", keep=1, asynchronous=False)
    writer.save(1, run, {"config": json.loads(config_lib.to_json(config))})
    writer.close()
    here = {**form, "init_from": str(tmp_path / "run")}
    new, _ = inherit.parameters(tiny_config(here), make(tiny_config(here), fake_tokenizer, 2).params)
    np.testing.assert_array_equal(trees.by_path(new)["vision/cls"], trees.by_path(run.params)["vision/cls"])
    larger = tiny_config({**here, "input.image_size": 32})
    with pytest.raises(UserError, match=r"makes 4 x 4 patches .* has 3 x 3: .* set input.image_size=24"):
        inherit.parameters(larger, make(larger, fake_tokenizer, 2).params)


def test_a_part_that_the_other_runs_loss_never_made_is_named_with_its_weight(tmp_path, tiny_config, fake_tokenizer):
    writer = checkpoint.Checkpointer(tmp_path / "run" / "checkpoints", keep=1, asynchronous=False)
    writer.save(1, make(tiny_config({"loss.mlm": 0.0}), fake_tokenizer, 1), {})
    writer.close()
    fresh = make(tiny_config(), fake_tokenizer, 7)
    words = "word_head/.* is not there.* word_head where config.loss.mlm is above 0, .*: start from its pre-training"
    with pytest.raises(UserError, match=words):
        warm_start.load(str(tmp_path / "run"), (), fresh.params)


FOUR = {"input.frames": 4, "model.selection.frames": 0, "model.vision.time_positions": "learned"}


def test_a_curriculum_takes_every_parameter_and_interpolates_the_temporal_table(saved, tiny_config, fake_tokenizer):
    workdir, before = saved
    fresh = make(tiny_config(FOUR), fake_tokenizer, 7)
    params, report = warm_start.load(str(workdir), (), fresh.params)
    after = trees.by_path(params)
    assert jax.tree.structure(params) == jax.tree.structure(fresh.params)
    for name, value in after.items():
        if name == "vision/time":
            np.testing.assert_array_equal(value, np.broadcast_to(before[name], (4, 16)))
        else:
            np.testing.assert_array_equal(value, before[name])
    text = str(report)
    assert "vision/time: 1 slots interpolated to 4" in text and "step 5" in text
    assert f"{len(before) - 1} parameters loaded" in text


def test_an_earlier_checkpoint_can_be_named(saved, tiny_config, fake_tokenizer):
    workdir, _ = saved
    fresh = make(tiny_config(FOUR), fake_tokenizer, 7)
    params, report = warm_start.load(str(workdir / "checkpoints" / "000000003"), (), fresh.params)
    np.testing.assert_array_equal(trees.by_path(params)["vision/time"], np.full((4, 16), 3.0))
    assert "step 3" in str(report)


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
    after, own = trees.by_path(params), trees.by_path(fresh.params)
    np.testing.assert_array_equal(after["video_projection/kernel"], own["video_projection/kernel"])
    np.testing.assert_array_equal(after["vision/embed/kernel"], before["vision/embed/kernel"])
    assert report.why_created["video_projection/kernel"] == "is [16, 16] there and [16, 12] here"
    assert {name.split("/")[0] for name in report.left_out} == {"decoder"}
    lines = str(report).splitlines()
    assert any(line.startswith("  created: ") and "video_projection 2" in line for line in lines)
    assert f"  left out (only there): decoder {len(report.left_out)}" in lines


@pytest.mark.parametrize(("positions", "table"), [("learned", "space"), ("relative", "blocks/relative")])
def test_a_run_of_larger_pictures_interpolates_the_places_of_patches(
    tmp_path, tiny_config, fake_tokenizer, positions, table
):
    small = make(tiny_config({"model.vision.positions": positions}), fake_tokenizer, 1).params
    value = trees.by_path(small)[f"vision/{table}"]
    noise = np.random.Generator(np.random.Philox(0)).normal(size=value.shape)
    node = small["vision"] if positions == "learned" else small["vision"]["blocks"]
    node[table.split("/")[-1]][...] = value + noise
    workdir = save_as(tmp_path / "run", small)
    fresh = make(tiny_config({"model.vision.positions": positions, "input.image_size": 32}), fake_tokenizer, 7)
    params, report = warm_start.load(workdir, (), fresh.params)
    name = f"vision/{table}"
    there, here = (trees.by_path(x)[name] for x in (small, params))
    np.testing.assert_allclose(here, tables.resize(name, np.asarray(there), here.shape[-2]), rtol=1e-6)
    assert f"{name}: 3 x 3 patches interpolated to 4 x 4" in str(report) and not np.allclose(here, 0)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, tiny_config, fake_tokenizer):
    fresh = make(tiny_config(FOUR), fake_tokenizer, 7)
    with pytest.raises(UserError, match="expected the workdir of a run"):
        warm_start.load(str(tmp_path), (), fresh.params)


def as_task(params, head):
    """Parameters as those of a task: a pre-training run's below recipe/, and a head of these leaves."""
    return {"recipe": nnx.to_pure_dict(params), "head": head}


def save_as(workdir, params, metadata=None):
    writer = checkpoint.Checkpointer(workdir / "checkpoints", keep=1, asynchronous=False)
    writer.save(1, {"params": params}, metadata or {})
    writer.close()
    return str(workdir)


def origins(name):
    return (name.replace("head/", "text/"), name.replace("head/", "fusion/")) if name.startswith("head/") else (name,)


MAY_DIFFER = ("head/.*",)


@pytest.fixture
def task_params(tiny_config, fake_tokenizer):
    """Builds a task's parameters of a seed: a recipe with 4 rows of text positions, and a head."""

    def build(seed, classes=3):
        params = make(tiny_config({**FOUR, "input.max_text_tokens": 4}), fake_tokenizer, seed).params
        width = params["text"]["embedding"][...].shape
        head = {
            "position": jnp.full((2, width[1]), 9.0),
            "embedding": jnp.full(width, 9.0),
            "norm": {"scale": jnp.full(width[1], 9.0)},
            "kernel": jnp.full((width[1], classes), float(seed)),
        }
        return as_task(params, head)

    return build


def test_a_task_takes_its_recipe_and_its_head_from_pre_training(saved, task_params):
    workdir, before = saved
    fresh = task_params(7)
    own = trees.by_path(fresh)
    params, report = warm_start.load(str(workdir), MAY_DIFFER, fresh, origins)
    after = trees.by_path(params)
    assert after.keys() == own.keys()
    for name in before:
        value = np.asarray(before[name])
        if name == "vision/time":
            value = np.broadcast_to(value, (4, 16))
        if name == "text/position":
            value = value[:4]
        np.testing.assert_array_equal(after[f"recipe/{name}"], value, err_msg=name)
    np.testing.assert_array_equal(after["head/position"], before["text/position"][:2])
    np.testing.assert_array_equal(after["head/embedding"], before["text/embedding"])
    np.testing.assert_array_equal(after["head/norm/scale"], before["text/norm/scale"])
    np.testing.assert_array_equal(after["head/kernel"], own["head/kernel"])
    for text in (
        "head/embedding from text, 1",
        "head/norm from text, 1",
        "recipe/vision/time: 1 slots interpolated to 4",
        "recipe/text/position: the first 4 of 6 rows",
        "head/position: the first 2 of 6 rows",
        "created: head/kernel 1",
    ):
        assert text in str(report), text
    listed = report.to_json()
    assert listed["parameters"].keys() == after.keys() and json.dumps(listed)
    assert listed["parameters"]["recipe/vision/time"] == {
        "origin": "vision/time",
        "how": "interpolated from 1 to 4 slots",
        "shape": [4, 16],
        "origin_shape": [1, 16],
    }
    assert listed["parameters"]["head/kernel"]["how"] == "created"


def test_what_two_parameters_are_taken_from_lies_in_two_buffers(saved, task_params):
    # The step gives its buffers back, and no buffer can be given back twice.
    params, _ = warm_start.load(str(saved[0]), MAY_DIFFER, task_params(7), origins)
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(params)


def test_more_text_positions_than_there_begin_anew_beyond_those(saved, tiny_config, fake_tokenizer):
    workdir, before = saved
    fresh = make(tiny_config({**FOUR, "input.max_text_tokens": 9}), fake_tokenizer, 7).params
    params, report = warm_start.load(str(workdir), (), fresh)
    after, own = trees.by_path(params)["text/position"], trees.by_path(fresh)["text/position"]
    np.testing.assert_array_equal(after[:6], before["text/position"])
    np.testing.assert_array_equal(after[6:], own[6:])
    assert "text/position: 6 rows taken, 3 beyond them created" in str(report)


def test_a_tasks_checkpoint_starts_another_task_and_a_retrieval_run(tmp_path, task_params, tiny_config, fake_tokenizer):
    first = task_params(3)
    workdir = save_as(tmp_path / "task", first)
    before = trees.by_path(first)
    # A head of another meaning is not taken, though it has the shape.
    for same_head, origin in ((True, first), (False, None)):
        fresh = task_params(7)
        params, report = warm_start.load(workdir, MAY_DIFFER, fresh, origins, same_head=same_head)
        after = trees.by_path(params)
        expected = (origin or fresh)["head"]["kernel"]
        np.testing.assert_array_equal(after["head/kernel"], expected)
        np.testing.assert_array_equal(after["recipe/text/embedding"], before["recipe/text/embedding"])
    assert report.taken["head/norm/scale"].origin == "text/norm/scale"
    plain = make(tiny_config({**FOUR, "input.max_text_tokens": 4}), fake_tokenizer, 7).params
    with pytest.raises(UserError, match="head/embedding is only there"):
        warm_start.load(workdir, (), plain)
    params, report = warm_start.load(workdir, MAY_DIFFER, plain)
    for name, value in trees.by_path(params).items():
        np.testing.assert_array_equal(value, before[f"recipe/{name}"], err_msg=name)
    assert {name.split("/")[0] for name in report.left_out} == {"head"}


def test_a_head_that_nothing_serves_must_be_listed(saved, task_params):
    with pytest.raises(UserError, match=r"head/kernel is not there.*config\.init_may_differ"):
        warm_start.load(str(saved[0]), ("head/(?!kernel).*",), task_params(7), origins)


def test_the_best_checkpoint_of_a_run_can_be_named(saved, tiny_config, fake_tokenizer):
    workdir, before = saved
    (workdir / "checkpoints").rename(workdir / "best")
    fresh = make(tiny_config(FOUR), fake_tokenizer, 7)
    params, _ = warm_start.load(str(workdir / "best"), (), fresh.params)
    np.testing.assert_array_equal(trees.by_path(params)["vision/cls"], before["vision/cls"])
