"""The moving average as a teacher: it is the analytic one, its targets are NumPy's, and it survives a restore."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlp_jax import checkpoint, sharding, trees
from vlp_jax import state as state_lib
from vlp_jax.types import UserError

SHARE, DECAY = 0.4, 0.8
NOTHING_DRAWN = {
    "model.masking.kind": "none",
    "model.masking.ratio": 0.0,
    "model.pruning.layers": (),
    "model.selection.frames": 0,
    "loss.mvm": 0.0,
}
CHANGES = {
    **NOTHING_DRAWN,
    "loss.vtm": 0.0,
    "loss.mlm": 0.0,
    "loss.distill": SHARE,
    "optimizer.ema_decay": DECAY,
    "optimizer.warmup_share": 0.0,
    "optimizer.learning_rate": 1e-2,
}


def start(config, fake_tokenizer):
    """The run, its step, and a state; none of its buffers is given away by a step on a copy."""
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    run = state_lib.setup(config, fake_tokenizer, mesh, 10)
    places = jax.tree.map(lambda x: x.sharding, run.abstract)

    def step(state, batch):
        with sharding.use_mesh(mesh):
            return jax.device_get(compiled(jax.device_put(state, places), batch, np.asarray(True)))

    with sharding.use_mesh(mesh):
        compiled, state = state_lib.train_step(run), jax.device_get(run.create())
    return types.SimpleNamespace(run=run, step=step, state=state)


@pytest.fixture(scope="module")
def two_steps(tiny_config, fake_tokenizer, random_batch):
    """A run, the states before and after each of two steps, the batches and the metrics."""
    config = tiny_config(CHANGES)
    made = start(config, fake_tokenizer)
    states, metrics, batches = [made.state], [], [random_batch(config, seed=seed) for seed in range(2)]
    batches[1].positive_id[3], batches[1].valid[5] = batches[1].positive_id[2], False
    for batch in batches:
        state, measured = made.step(states[-1], batch)
        states.append(state)
        metrics.append(measured)
    return types.SimpleNamespace(run=made.run, step=made.step, states=states, metrics=metrics, batches=batches)


def test_after_two_steps_the_teacher_is_the_analytic_average(two_steps):
    """0.8^2 p0 + 0.2 * 0.8 p1 + 0.2 p2, the start being p0."""
    first, second, third = (trees.by_path(state.params) for state in two_steps.states)
    for name, average in trees.by_path(two_steps.states[2].ema).items():
        expected = DECAY**2 * first[name] + (1 - DECAY) * DECAY * second[name] + (1 - DECAY) * third[name]
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)


def test_each_parameters_average_has_the_decay_of_the_first_rule_that_matches_it(
    tiny_config, fake_tokenizer, random_batch
):
    rules = (("vision/blocks/.*", 0.5), ("vision/.*", 0.0))
    made = start(tiny_config({**CHANGES, "optimizer.ema_decays": rules}), fake_tokenizer)
    batch = random_batch(made.run.config)
    first, _ = made.step(made.state, batch)
    second, _ = made.step(first, batch)
    before, moved, after = (trees.by_path(x) for x in (first.ema, second.params, second.ema))
    kinds = set()
    for name, average in after.items():
        decay = 0.5 if name.startswith("vision/blocks/") else 0.0 if name.startswith("vision/") else DECAY
        kinds.add(decay)
        np.testing.assert_allclose(average, decay * before[name] + (1 - decay) * moved[name], rtol=1e-5, atol=1e-7)
    assert kinds == {0.5, 0.0, DECAY}


def test_a_rule_of_the_average_that_matches_nothing_is_refused(tiny_config, fake_tokenizer):
    with pytest.raises(UserError, match=r"ema_decays holds 'visoin/\.\*'"):
        start(tiny_config({**CHANGES, "optimizer.ema_decays": (("visoin/.*", 0.5),)}), fake_tokenizer)


def cosines(run, params, batch):
    """float64 cosines of clips and texts, by the capabilities that evaluation uses."""
    embed = jax.jit(
        lambda params, batch: (
            state_lib.merge(run, params).embed_video(batch.video),
            state_lib.merge(run, params).embed_text(batch.text_ids, batch.text_mask),
        )
    )
    video, text = embed(params, batch)
    return np.asarray(video, np.float64) @ np.asarray(text, np.float64).T


def oracle(student, taught, ids, valid):
    """Mean over the valid examples of the symmetric cross-entropy with ALBEF's targets."""
    rest = np.flatnonzero(valid)
    student, taught, ids = student[np.ix_(rest, rest)], taught[np.ix_(rest, rest)], np.asarray(ids)[rest]
    softmax = lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)
    same = ids[:, None] == ids[None]
    total = 0.0
    for s, q in ((student, taught), (student.T, taught.T)):
        target = SHARE * softmax(q) + (1 - SHARE) * same / same.sum(1, keepdims=True)
        total -= (target * np.log(softmax(s))).sum() / 2
    return total / len(rest)


@pytest.mark.parametrize("number", [0, 1])
def test_a_steps_loss_is_that_of_the_average_before_it_as_the_teacher(two_steps, number):
    state, batch = two_steps.states[number], two_steps.batches[number]
    temperature = float(trees.by_path(state.params)["temperature"])
    student, taught = (cosines(two_steps.run, p, batch) / temperature for p in (state.params, state.ema))
    expected = oracle(student, taught, batch.positive_id, batch.valid)
    np.testing.assert_allclose(two_steps.metrics[number]["loss"], expected, rtol=1e-4)
    if number:
        assert abs(oracle(student, student, batch.positive_id, batch.valid) - expected) > 1e-3  # it is not itself
    total, count = two_steps.metrics[number]["terms"]["vtc"]
    np.testing.assert_allclose(total / count, expected, rtol=1e-4)


def test_a_restored_run_has_its_teacher_back(two_steps, tmp_path):
    writer = checkpoint.Checkpointer(tmp_path / "checkpoints", keep=1, asynchronous=False)
    writer.save(1, jax.tree.map(jnp.asarray, two_steps.states[1]), {})
    _, restored, _ = writer.restore(two_steps.run.abstract)
    writer.close()
    state, metrics = two_steps.step(jax.device_get(restored), two_steps.batches[1])
    assert metrics["loss"] == two_steps.metrics[1]["loss"]
    for got, expected in zip(jax.tree.leaves(state), jax.tree.leaves(two_steps.states[2])):
        np.testing.assert_array_equal(got, expected)


def test_micro_batches_have_the_same_teacher(two_steps, tiny_config, fake_tokenizer):
    """Negatives and soft targets are of one micro-batch; the loss is the mean over them."""
    made = start(tiny_config({**CHANGES, "accumulate_steps": 2}), fake_tokenizer)
    state, batch = two_steps.states[1], two_steps.batches[0]
    _, metrics = made.step(state, batch)
    temperature = float(trees.by_path(state.params)["temperature"])
    student, taught = (cosines(two_steps.run, p, batch) / temperature for p in (state.params, state.ema))
    parts = [np.ix_(range(k, 8, 2), range(k, 8, 2)) for k in range(2)]
    ids = np.arange(4)
    expected = np.mean([oracle(student[part], taught[part], ids, np.ones(4, bool)) for part in parts])
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)


NEIGHBOUR = {**NOTHING_DRAWN, "model.vision.pool": "mean"}
OTHERS = {
    "smaug": {"model.masking.ratio": 0.5},
    "singularity": {**NEIGHBOUR, "model.temporal.layers": 1},
    "vindlu": {**NEIGHBOUR, "model.vision.temporal_attention": "zero_init"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_in_every_recipe_a_teacher_that_is_the_student_leaves_no_gradient_and_another_does(
    tiny_config, fake_tokenizer, random_batch, name
):
    """With alpha = 1 the targets are then the student's own softmax, where cross-entropy is at its minimum: the teacher
    sees what the student sees, the same visible patches too."""
    changes = {"optimizer.ema_decay": DECAY, "loss.distill": 1.0, "loss.vtm": 0.0, "loss.mlm": 0.0, "loss.mvm": 0.0}
    made = start(tiny_config({**OTHERS[name], **changes, "recipe": name}), fake_tokenizer)
    batch = random_batch(made.run.config)
    _, metrics = made.step(made.state, batch)
    assert metrics["grad_norm"] < 1e-4
    made.state.ema = jax.tree.map(lambda x: x + 0.1 * np.sign(x), made.state.ema)
    _, metrics = made.step(made.state, batch)
    assert metrics["grad_norm"] > 1e-3
