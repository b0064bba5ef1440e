"""The answer decoder: what each logit may depend on, and that its blocks are the fusion's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax.models import answer_decoder, attention, fusion

P, LQ, LA, D, V = 3, 6, 4, 16, 64
RNG = np.random.default_rng(0)
QUESTION = RNG.normal(size=(P, LQ, D)).astype(np.float32)
MASK = np.arange(LQ) < np.array([6, 3, 4])[:, None]
IDS = RNG.integers(5, V, (P, LA)).astype(np.int32)


@pytest.fixture(scope="module")
def config(tiny_config):
    return config_lib.freeze(
        tiny_config({"model.fusion.layers": 2, "model.vision.width": 24, "task.max_answer_tokens": LA})
    )


@pytest.fixture(scope="module")
def module(config, build_module):
    return build_module(answer_decoder.AnswerDecoder, config, V, dtype=jnp.float32)


@pytest.fixture(scope="module")
def decode(module):
    graph, params = nnx.split(module)
    run = jax.jit(lambda *args: nnx.merge(graph, params)(*args))
    return lambda *args: np.asarray(run(*args))


@pytest.mark.parametrize("place", range(1, LA))
def test_a_token_changes_no_logit_before_it_and_the_one_at_it(decode, place):
    other = IDS.copy()
    other[:, place] = (IDS[:, place] - 5 + 7) % (V - 5) + 5
    before, after = decode(IDS, QUESTION, MASK), decode(other, QUESTION, MASK)
    np.testing.assert_array_equal(after[:, :place], before[:, :place])
    assert (abs(after[:, place:] - before[:, place:]).max((1, 2)) > 1e-3).all()


def test_a_shorter_beginning_has_the_same_logits(decode):
    np.testing.assert_allclose(
        decode(IDS[:, :2], QUESTION, MASK), decode(IDS, QUESTION, MASK)[:, :2], rtol=1e-4, atol=1e-5
    )


def test_every_logit_sees_its_own_question_without_its_padding_and_no_other(decode):
    before = decode(IDS, QUESTION, MASK)
    padding = np.where(MASK[..., None], QUESTION, 5.0).astype(np.float32)
    np.testing.assert_array_equal(decode(IDS, padding, MASK), before)
    other = QUESTION.copy()
    other[1, 0] += 1
    after = decode(IDS, other, MASK)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert (abs(after[1] - before[1]).max(-1) > 1e-4).all()


def test_several_answers_of_a_question_are_each_as_alone(decode):
    question = np.array([2, 0, 2, 1, 0], np.int32)
    ids = IDS[[0, 1, 2, 0, 2]]
    together = decode(ids, QUESTION, MASK, question)
    for row, of in enumerate(question):
        alone = decode(ids[row : row + 1], QUESTION[of : of + 1], MASK[of : of + 1])
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-4, atol=1e-5)


def test_logits_are_the_direct_computation(module, decode):
    graph, params = nnx.split(module.blocks)
    x = np.asarray(module.embedding[...])[IDS] + np.asarray(module.position[...])[:LA]
    x = module.norm_embedding(x)
    causal = np.where(np.arange(LA)[:, None] >= np.arange(LA), 0.0, -1e9)
    for i in range(2):
        block = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], params))
        x = x + block.self_attention(block.norm_self(x), causal)
        kv = block.cross_attention.keys_values(QUESTION)
        x = x + block.cross_attention(block.norm_cross(x), kv, attention.padding_bias(MASK))
        x = x + block.mlp(block.norm_mlp(x))
    expected = module.word_head(module.norm(x), module.embedding[...])
    got = decode(IDS, QUESTION, MASK)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_the_blocks_are_the_fusions_but_for_the_width_of_what_is_looked_at(config, module, build_module):
    fused = build_module(fusion.Fusion, config, dtype=jnp.float32)
    shapes = lambda m: {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(m))}
    ours, theirs = shapes(module.blocks), shapes(fused.blocks)
    assert ours.keys() == theirs.keys()
    differ = [path for path in ours if ours[path] != theirs[path]]
    assert differ == [("cross_attention", "key_value", "kernel")]


def test_the_classifier_gives_float32_logits_of_the_list(build_module):
    head = build_module(answer_decoder.AnswerClassifier, D, 9, dtype=jnp.bfloat16)
    got = head(jnp.asarray(QUESTION[:, 0], jnp.bfloat16))
    assert (got.shape, got.dtype) == ((P, 9), jnp.float32)
    head = build_module(answer_decoder.AnswerClassifier, D, 9, dtype=jnp.float32)
    hidden = QUESTION[:, 0] @ np.asarray(head.hidden.kernel[...]) + np.asarray(head.hidden.bias[...])
    hidden = np.asarray(jax.nn.gelu(hidden, approximate=False))
    hidden = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(hidden.var(-1, keepdims=True) + 1e-6)
    expected = hidden @ np.asarray(head.out.kernel[...])
    np.testing.assert_allclose(head(QUESTION[:, 0]), expected, rtol=1e-3, atol=1e-5)
