"""The text encoder and the word head."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax.models import text


@pytest.fixture(scope="module")
def encoder(tiny_config, build_module):
    graph, params = nnx.split(build_module(text.TextEncoder, config_lib.freeze(tiny_config()), 64, dtype=jnp.float32))
    run = jax.jit(lambda params, ids, mask: nnx.merge(graph, params)(ids, mask))
    return params, run


@pytest.fixture(scope="module")
def texts(tiny_config, random_batch):
    batch = random_batch(tiny_config(), 4)
    assert not batch.text_mask.all()
    return batch.text_ids, batch.text_mask


def test_what_stands_in_the_padding_has_no_influence(encoder, texts):
    params, run = encoder
    ids, mask = texts
    other = np.where(mask, ids, 33).astype(np.int32)
    np.testing.assert_array_equal(np.asarray(run(params, ids, mask))[mask], np.asarray(run(params, other, mask))[mask])


def test_a_text_without_its_padding_has_the_same_features(encoder, texts):
    params, run = encoder
    ids, mask = texts
    padded = np.asarray(run(params, ids, mask))
    for row in range(len(ids)):
        length = mask[row].sum()
        alone = run(params, ids[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_allclose(alone[0], padded[row, :length], rtol=1e-4, atol=1e-5)
        if row == 1:
            break  # each length compiles anew


def test_padding_gets_no_gradient(encoder, texts):
    params, run = encoder
    ids, mask = texts
    marked = np.where(mask, ids, 63).astype(np.int32)
    marked = np.where(mask & (marked == 63), 62, marked).astype(np.int32)
    gradient = jax.grad(lambda p: (run(p, marked, mask) * mask[..., None] ** 1).astype(jnp.float32)[..., 0].sum())(
        params
    )
    rows = abs(np.asarray(gradient["embedding"][...])).max(-1)
    assert rows[63] == 0
    assert (rows[np.unique(marked[mask])] > 0).all()


def test_order_words_and_text_beside_it(encoder, texts):
    params, run = encoder
    ids, mask = np.array(texts[0]), np.ones_like(texts[1])
    swapped = ids.copy()
    swapped[0, [1, 2]] = [40, 41]
    ids[0, [1, 2]] = [41, 40]
    a, b = np.asarray(run(params, ids, mask)), np.asarray(run(params, swapped, mask))
    assert abs(a[0, 0] - b[0, 0]).max() > 1e-5  # word order matters to the CLS
    np.testing.assert_array_equal(a[1:], b[1:])


def test_an_invalid_row_without_any_token_stays_finite(encoder, texts):
    params, run = encoder
    ids = np.zeros_like(texts[0])
    assert np.isfinite(run(params, ids, np.zeros(ids.shape, bool))).all()


@pytest.fixture(scope="module")
def causal(tiny_config, build_module):
    changes = {"model.text.causal": True, "model.text.pool": "last", "model.text.norm_embedding": False}
    module = build_module(text.TextEncoder, config_lib.freeze(tiny_config(changes)), 64, dtype=jnp.float32)
    graph, params = nnx.split(module)
    assert not any("norm_embedding" in path for path, _ in nnx.to_flat_state(params))
    return params, jax.jit(lambda params, ids, mask: nnx.merge(graph, params)(ids, mask))


def test_causal_words_see_those_before_them_alone(causal, texts):
    params, run = causal
    ids, mask = np.array(texts[0]), np.ones_like(texts[1])
    other = ids.copy()
    other[:, 3] = 50
    moved = abs(np.asarray(run(params, ids, mask)) - np.asarray(run(params, other, mask))).max((0, 2)) > 1e-6
    np.testing.assert_array_equal(moved, np.arange(ids.shape[1]) >= 3)


def test_the_last_piece_stands_for_a_text_where_the_config_says_so(causal, texts):
    words, mask = np.random.default_rng(0).normal(size=(*texts[0].shape, 4)).astype(np.float32), texts[1]
    np.testing.assert_array_equal(text.pooled(words, mask, "cls"), words[:, 0])
    expected = [row[np.flatnonzero(m)[-1]] for row, m in zip(words, mask)]
    np.testing.assert_array_equal(text.pooled(words, mask, "last"), expected)
    assert text.pooled(words, np.zeros_like(mask), "last").shape == (len(words), 4)  # padding of a batch


def test_word_head_is_affine_gelu_norm_and_the_tied_embedding(build_module):
    sizes = types.SimpleNamespace(width=8, norm_epsilon=1e-6, activation="gelu")
    head = build_module(text.WordHead, sizes, 20, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    x, table = rng.normal(size=(2, 3, 8)).astype(np.float32), rng.normal(size=(20, 8)).astype(np.float32)
    head.bias[...] = jnp.asarray(rng.normal(size=20), jnp.float32)
    h = x @ np.asarray(head.transform.kernel[...], np.float64)
    h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(head(x, table), h @ table.T + np.asarray(head.bias[...]), rtol=1e-3, atol=1e-4)
