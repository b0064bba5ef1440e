"""Token pruning and frame selection against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlp_jax.models import sparsify

B, T, S, D, A, DH = 2, 3, 7, 5, 2, 4
RNG = np.random.default_rng(0)
Q = RNG.normal(size=(B, T, A, DH)).astype(np.float32) * 2
K = RNG.normal(size=(B, T, S, A, DH)).astype(np.float32)
X = RNG.normal(size=(B, T, S, D)).astype(np.float32)
SCORES = RNG.random((B, T, S)).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("own_frame_only", [True, False])
def test_cls_scores_are_the_mean_attention_of_each_frames_cls(own_frame_only):
    got = np.asarray(sparsify.cls_scores(jnp.asarray(Q), jnp.asarray(K), own_frame_only))
    assert got.dtype == np.float32
    q, k = Q.astype(np.float64), K.astype(np.float64)
    for b, t in np.ndindex(B, T):
        expected = np.zeros(S)
        for a in range(A):
            frames = [t] if own_frame_only else range(T)
            logits = [q[b, t, a] @ k[b, u, s, a] / np.sqrt(DH) for u in frames for s in range(S)]
            weights = softmax(np.array(logits)).reshape(len(frames), S)
            expected += weights[0 if own_frame_only else t] / A
        np.testing.assert_allclose(got[b, t], expected, rtol=1e-4)


def test_no_gradient_flows_through_the_scores():
    gradient = jax.grad(lambda q: sparsify.cls_scores(q, jnp.asarray(K), True).max())(jnp.asarray(Q))
    assert (np.asarray(gradient) == 0).all()


@pytest.mark.parametrize("had_fused", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kept", [1, 3, 5])
def test_prune_tokens_keeps_cls_and_best_in_order_and_fuses_the_rest(kept, fused, had_fused):
    tokens, index = sparsify.prune_tokens(jnp.asarray(X), jnp.asarray(SCORES), kept, fused, had_fused)
    assert tokens.shape == (B, T, 1 + kept + fused, D)
    for b, t in np.ndindex(B, T):
        patches = range(1, S - had_fused)
        best = sorted(sorted(patches, key=lambda s: -SCORES[b, t, s])[:kept])
        dropped = [s for s in range(1, S) if s not in best]
        expected = [X[b, t, 0], *(X[b, t, s] for s in best)]
        if fused:
            weight = np.array([SCORES[b, t, s] for s in dropped], np.float64)
            expected.append(sum(w * X[b, t, s] for w, s in zip(weight / weight.sum(), dropped)))
        np.testing.assert_allclose(tokens[b, t], np.array(expected), rtol=1e-4, atol=1e-5)
        assert np.asarray(index)[b, t].tolist() == [s - 1 for s in best]


def test_the_fused_token_is_a_mean_however_little_the_cls_attends_to_the_dropped():
    scores = SCORES.copy()
    scores[..., 1:4] = 1e-9 * np.arange(1, 4)
    tokens, _ = sparsify.prune_tokens(jnp.asarray(X), jnp.asarray(scores), 3, True, False)
    np.testing.assert_allclose(
        tokens[:, :, -1], np.einsum("s,btsd->btd", [1 / 6, 2 / 6, 3 / 6], X[:, :, 1:4]), rtol=1e-4
    )


def test_pruning_nothing_keeps_every_token():
    tokens, index = sparsify.prune_tokens(jnp.asarray(X), jnp.asarray(SCORES), S - 1, False, False)
    np.testing.assert_array_equal(tokens, X)
    np.testing.assert_array_equal(index, np.broadcast_to(np.arange(S - 1), (B, T, S - 1)))
    tokens, _ = sparsify.prune_tokens(jnp.asarray(X), jnp.asarray(SCORES), S - 1, True, False)
    np.testing.assert_array_equal(tokens[:, :, -1], 0)


def test_the_gradient_reaches_kept_and_fused_tokens_only():
    def total(fused):
        return np.asarray(
            jax.grad(lambda x: sparsify.prune_tokens(x, jnp.asarray(SCORES), 3, fused, False)[0].sum())(jnp.asarray(X))
        )

    _, index = sparsify.prune_tokens(jnp.asarray(X), jnp.asarray(SCORES), 3, False, False)
    alive = np.zeros((B, T, S), bool)
    alive[:, :, 0] = True
    np.put_along_axis(alive, np.asarray(index) + 1, True, axis=-1)
    assert (total(False) == alive[..., None]).all()
    assert (total(True) != 0).all()


# --- Frames -----------------------------------------------------------------------------------------------------------


def test_selector_scores_are_scaled_dot_products_of_projections(build_module):
    selector = build_module(sparsify.FrameSelector, 5, 6, 8, dtype=jnp.float32)
    cls, text = RNG.normal(size=(2, 3, 5)), RNG.normal(size=(2, 6))
    frame = cls @ np.asarray(selector.frame.kernel[...]) + np.asarray(selector.frame.bias[...])
    query = text @ np.asarray(selector.text.kernel[...]) + np.asarray(selector.text.bias[...])
    expected = [[frame[p, t] @ query[p] / np.sqrt(8) for t in range(3)] for p in range(2)]
    got = selector.scores(selector.keys(jnp.asarray(cls, jnp.float32)), jnp.asarray(text, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert got.dtype == jnp.float32


FRAME_SCORES = RNG.normal(size=(5, 4)).astype(np.float32)


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_the_best_frames_are_kept_in_temporal_order_with_the_log_softmax_over_them(kept):
    frames, gate = sparsify.select_frames(jnp.asarray(FRAME_SCORES), kept)
    for row, scores in enumerate(FRAME_SCORES):
        best = sorted(sorted(range(4), key=lambda t: -scores[t])[:kept])
        assert np.asarray(frames)[row].tolist() == best
        np.testing.assert_allclose(gate[row], np.log(softmax(scores[best].astype(np.float64))), rtol=1e-4, atol=1e-6)


def test_the_gate_has_the_gradient_of_the_softmax_over_the_kept_frames():
    frames, _ = sparsify.select_frames(jnp.asarray(FRAME_SCORES), 2)
    weight = RNG.normal(size=(5, 2)).astype(np.float32)
    got = jax.grad(lambda s: (sparsify.select_frames(s, 2)[1] * weight).sum())(jnp.asarray(FRAME_SCORES))
    expected = np.zeros((5, 4))
    for row, kept in enumerate(np.asarray(frames)):
        p = softmax(FRAME_SCORES[row, kept].astype(np.float64))
        expected[row, kept] = weight[row] - weight[row].sum() * p
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_noise_samples_frames_without_replacement_from_the_softmax():
    scores = np.array([2.0, 1.0, 0.0, -1.0], np.float32)
    many = jnp.broadcast_to(scores, (6000, 4))
    frames, gate = sparsify.select_frames(many, 2, jax.random.split(jax.random.key(0), 6000), 1.0)
    frames = np.asarray(frames)
    p = softmax(scores.astype(np.float64))
    for i in range(4):
        for j in range(i + 1, 4):
            expected = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
            share = ((frames[:, 0] == i) & (frames[:, 1] == j)).mean()
            np.testing.assert_allclose(share, expected, atol=0.025)
    # The gate is of the scores themselves: noise chooses, it does not weigh.
    first = np.log(softmax(scores[frames[0]].astype(np.float64)))
    np.testing.assert_allclose(gate[0], first, rtol=1e-4, atol=1e-6)


def test_without_noise_or_key_the_choice_is_the_best():
    keys = jax.random.split(jax.random.key(0), 5)
    best, _ = sparsify.select_frames(jnp.asarray(FRAME_SCORES), 2)
    silent, _ = sparsify.select_frames(jnp.asarray(FRAME_SCORES), 2, keys, 0.0)
    np.testing.assert_array_equal(best, silent)


def test_the_choice_of_a_pair_depends_on_its_own_key_only():
    keys = jax.random.split(jax.random.key(0), 5)
    together, _ = sparsify.select_frames(jnp.asarray(FRAME_SCORES), 2, keys, 3.0)
    alone, _ = sparsify.select_frames(jnp.asarray(FRAME_SCORES[3:4]), 2, keys[3:4], 3.0)
    np.testing.assert_array_equal(together[3], alone[0])
