"""Models of tasks: what trains, what may influence the loss, and where parameters come from."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from flax import nnx

from vlp_jax import sharding, trees, validation
from vlp_jax import state as state_lib
from vlp_jax.recipes import recipe
from vlp_jax.tasks import task
from vlp_jax.types import UserError

ANSWERS = 12
KEY = jax.random.key(5)
LEAN = {"loss.vtc": 0.0, "loss.vtm": 0.0, "loss.mvm": 0.0}
KINDS = {
    "decoder": {"task.kind": "question_answering", **LEAN},
    "classifier": {"task.kind": "question_answering", "task.head": "classifier", **LEAN},
    "choice": {"task.kind": "multiple_choice", "loss.mlm": 0.0, "loss.mvm": 0.0},
    "classes": {"task.kind": "classification", "loss.mlm": 0.0, **LEAN},
    "classes of mean-pooled patches": {
        "task.kind": "classification",
        "model.vision.pool": "mean",
        "model.pruning.fused_token": True,
        "loss.mlm": 0.0,
        **LEAN,
    },
    "frozen decoder": {"task.kind": "question_answering", "optimizer.trainable": ("head/.*",), **LEAN},
    "probe": {"task.kind": "classification", "optimizer.trainable": ("head/.*",), "loss.mlm": 0.0, **LEAN},
}
# Parts of the recipe that a task has no use for.
UNUSED = {
    "decoder": r"recipe/word_head/.*",
    "classifier": r"recipe/word_head/.*",
    "choice": r"recipe/(temperature|(video|text)_projection/.*)",
    "classes of mean-pooled patches": r"",
    "frozen decoder": r"recipe/.*",
    "probe": r"recipe/.*",
}
# A softmax, over frames or options, is blind to what shifts all scores alike: its gradient is nothing but rounding.
BLIND = ("recipe/selector/frame/bias", "recipe/match_head/out/bias")


@pytest.fixture(scope="module")
def model(tiny_config, fake_tokenizer):
    @functools.cache
    def make(name):
        config = tiny_config(KINDS[name])
        validation.validate(config)
        with nnx.use_eager_sharding(False):
            return config, *nnx.split(task.build(config, fake_tokenizer, nnx.Rngs(0), ANSWERS))

    return make


@pytest.fixture(scope="module")
def loss(model):
    @functools.cache
    def make(name, masked=True):
        _, graph, _ = model(name)

        def run(params, batch, key):
            out = nnx.merge(graph, params).loss(batch, key, masked)
            return out.loss, out

        return jax.jit(jax.value_and_grad(run, has_aux=True))

    return make


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_trains_every_parameter_of_the_head_and_those_of_the_recipe_that_it_uses(
    model, loss, task_batch, name
):
    config, _, params = model(name)
    (value, out), gradient = loss(name)(params, task_batch(config), KEY)
    ((total, count),) = out.terms.values()
    assert float(count) == config.batch_size
    np.testing.assert_allclose(value, total / count, rtol=1e-6)
    largest = {path: abs(np.asarray(leaf)).max() for path, leaf in trees.by_path(gradient).items()}
    for path in BLIND:
        largest.pop(path, None)
    unused = {path for path in largest if re.fullmatch(UNUSED.get(name, ""), path)}
    assert {path for path, size in largest.items() if size == 0} == unused
    assert all(path.startswith(("recipe/", "head/")) for path in largest)


@pytest.mark.parametrize("name", ["decoder", "classifier", "choice", "classes"])
def test_what_is_not_valid_has_no_influence(model, loss, task_batch, name):
    config, _, params = model(name)
    batch = task_batch(config)
    valid = np.arange(config.batch_size) != 3
    other = task_batch(config, seed=9)
    mix = lambda a, b: np.where(valid.reshape(-1, *[1] * (np.ndim(a) - 1)), a, b)
    first = dataclasses.replace(batch, valid=valid)
    second = dataclasses.replace(jax.tree.map(mix, batch, other), valid=valid, index=batch.index)
    one, two = (loss(name)(params, x, KEY) for x in (first, second))
    jax.tree.map(np.testing.assert_array_equal, one[0][1].measurements, two[0][1].measurements)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, two)
    ((_, count),) = one[0][1].terms.values()
    assert float(count) == config.batch_size - 1


@pytest.mark.parametrize("name", ["decoder", "classifier", "choice", "classes"])
def test_an_example_does_not_depend_on_the_others_nor_on_their_order(model, loss, task_batch, name):
    config, _, params = model(name)
    batch = task_batch(config)
    order = np.random.default_rng(0).permutation(config.batch_size)
    shuffled = jax.tree.map(lambda x: x[order], batch)
    (one, _), (two, _) = (loss(name)(params, x, KEY) for x in (batch, shuffled))
    np.testing.assert_allclose(two[0], one[0], rtol=1e-5)
    doubled = jax.tree.map(lambda x: np.concatenate([x[:4], x[:4]]), batch)
    doubled = dataclasses.replace(doubled, valid=np.arange(8) < 4)
    only = dataclasses.replace(batch, valid=np.arange(8) < 4)
    (one, _), (two, _) = (loss(name)(params, x, KEY) for x in (only, doubled))
    np.testing.assert_allclose(two[0], one[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["decoder", "choice"])
def test_the_clip_is_seen_whole_and_only_the_choice_of_frames_is_drawn(model, loss, task_batch, name):
    config, _, params = model(name)
    batch = task_batch(config)
    (masked, _), _ = loss(name)(params, batch, KEY)
    (unmasked, _), _ = loss(name, False)(params, batch, KEY)
    np.testing.assert_allclose(unmasked, masked, rtol=1e-6)
    (other, _), _ = loss(name)(params, batch, jax.random.key(6))
    assert abs(other - masked) > 1e-6


def test_an_answer_outside_the_list_trains_the_decoder_and_not_the_classifier(model, loss, task_batch):
    counts = {}
    for name in ("decoder", "classifier", "classes"):
        config, _, params = model(name)
        batch = task_batch(config)
        batch.targets["label"][[1, 4]] = -1
        (value, out), gradient = loss(name)(params, batch, KEY)
        ((_, count),) = out.terms.values()
        counts[name] = config.batch_size - int(count)
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert counts == {"decoder": 0, "classifier": 2, "classes": 2}


def test_a_batch_without_any_example_has_loss_zero(model, loss, task_batch):
    config, _, params = model("classes")
    batch = dataclasses.replace(task_batch(config), valid=np.zeros(config.batch_size, bool))
    (value, _), gradient = loss("classes")(params, batch, KEY)
    assert float(value) == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def test_the_classes_are_read_from_the_normalised_mean_over_the_frames(model, task_batch):
    for name in ("classes", "classes of mean-pooled patches"):
        config, graph, params = model(name)
        module, video = nnx.merge(graph, params), task_batch(config).video
        tokens, kept = module.recipe.encode_video(video).tokens, module.recipe.encode_video(video).kept
        # The fused token at the end is no patch.
        frames = tokens[:, :, 0] if name == "classes" else tokens[:, :, 1 : 1 + kept.shape[-1]].mean(2)
        assert tokens.shape[2] == 1 + kept.shape[-1] + config.model.pruning.fused_token
        x = np.asarray(frames, np.float64).mean(1)
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(module.features(video), x, rtol=1e-3, atol=1e-4)
        expected = x @ np.asarray(module.head.kernel[...]) + np.asarray(module.head.bias[...])
        np.testing.assert_allclose(module.classify(video), expected, rtol=1e-3, atol=1e-4)


def test_pretraining_builds_the_recipe_itself(tiny_config, fake_tokenizer):
    with nnx.use_eager_sharding(False):
        built = task.build(tiny_config(), fake_tokenizer, nnx.Rngs(0))
        plain = recipe.build(tiny_config(), fake_tokenizer, nnx.Rngs(0))
    assert type(built) is type(plain)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(built), nnx.state(plain))
    assert task.recipe_of(built) is built


@pytest.mark.parametrize("name", ["classifier", "classes"])
def test_a_head_over_no_answers_is_refused(tiny_config, fake_tokenizer, name):
    with pytest.raises(ValueError, match="over 0"), nnx.use_eager_sharding(False):
        task.build(tiny_config(KINDS[name]), fake_tokenizer, nnx.Rngs(0))


@pytest.mark.parametrize("name", ["decoder", "choice", "classes"])
def test_a_recipe_that_lacks_what_the_task_needs_is_refused_by_name(tiny_config, fake_tokenizer, monkeypatch, name):
    class Blind(nnx.Module):
        pass

    monkeypatch.setattr(recipe, "build", lambda *_: Blind())
    with pytest.raises(UserError, match="Blind is not one"):
        task.build(tiny_config(KINDS[name]), fake_tokenizer, nnx.Rngs(0), ANSWERS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task.kind": "question_answering", "loss.vtm": 0.0, "loss.mlm": 0.0}, ["loss.mlm = 0", "set loss.mlm=1"]),
        ({"task.kind": "multiple_choice", "loss.vtm": 0.0}, ["loss.vtm = 0", "loss.vtc=1"]),
    ],
)
def test_weights_that_leave_out_a_part_that_the_task_needs_are_refused(tiny_config, changes, words):
    with pytest.raises(UserError) as caught:
        validation.validate(tiny_config(changes))
    for word in words:
        assert word in str(caught.value)


def test_every_parameter_of_a_task_may_start_from_a_pretraining_run_but_for_lists_of_answers(
    model, tiny_config, fake_tokenizer
):
    with nnx.use_eager_sharding(False):
        pretrained = task.build(tiny_config(), fake_tokenizer, nnx.Rngs(0))
    there = trees.by_path(nnx.state(pretrained))
    for name in ("decoder", "classifier", "choice", "classes"):
        config, _, params = model(name)
        for path, leaf in trees.by_path(params).items():
            found = [origin for origin in task.origins(path) if origin in there]
            if path.startswith("head/") and name != "decoder":
                assert task.origins(path) == ()
                continue
            assert len(found) == 1, path
            if path == "head/position":
                assert leaf.shape == (config.task.max_answer_tokens, *there[found[0]].shape[1:])
            else:
                assert leaf.shape == there[found[0]].shape, path


def test_origins_of_each_place():
    assert task.origins("recipe/vision/cls") == task.origins("vision/cls") == ("vision/cls",)
    assert task.origins("head/blocks/mlp/up/kernel") == ("fusion/blocks/mlp/up/kernel",)
    assert task.origins("head/embedding") == ("text/embedding",)
    assert task.origins("head/out/kernel") == task.origins("head/norm_hidden/scale") == ()


def test_the_state_of_a_run_is_that_of_its_task(tiny_config, fake_tokenizer, task_batch):
    config = tiny_config({**KINDS["classifier"], "optimizer.warmup_share": 0.0, "optimizer.learning_rate": 3e-3})
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    run = state_lib.setup(config, fake_tokenizer, mesh, 10, ANSWERS)
    batch = task_batch(config)
    with sharding.use_mesh(mesh):
        state, step = run.create(), state_lib.train_step(run)
        losses = []
        for _ in range(8):
            state, metrics = step(state, batch, np.asarray(True))
            losses.append(float(metrics["loss"]))
    assert set(metrics["terms"]) == {"answer"}
    assert losses[-1] < losses[0] - 0.3
