"""Ranking of answers against brute force, and what a question's scores may depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tasks.conftest import answer_tokens
from vlp_jax import config as config_lib
from vlp_jax.models import answer_decoder
from vlp_jax.tasks import question_answering

P, LQ, LA, D, V, C = 5, 6, 5, 16, 64, 12
RNG = np.random.default_rng(3)
QUESTION = RNG.normal(size=(P, LQ, D)).astype(np.float32)
MASK = np.arange(LQ) < np.array([6, 3, 4, 2, 6])[:, None]


@pytest.fixture(scope="module")
def answers():
    ids, mask = answer_tokens(C, LA, seed=1)
    ids[7, 1], ids[3, 1] = ids[2, 1], ids[2, 1]  # several answers begin alike
    return ids, mask


@pytest.fixture(scope="module")
def decoder(tiny_config, build_module):
    config = config_lib.freeze(tiny_config({"task.max_answer_tokens": LA}))
    module = build_module(answer_decoder.AnswerDecoder, config, V, dtype=jnp.float32)
    # Sharper than at random, so that orders are clear.
    module.embedding[...] = module.embedding[...] * 20
    return module


@pytest.fixture(scope="module")
def rank(decoder, answers):
    graph, params = nnx.split(decoder)

    def run(question, mask, shortlist, chunk_bytes=2**28):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(question_answering, "_CHUNK_BYTES", chunk_bytes)
            fresh = jax.jit(lambda q, m: question_answering.rank(nnx.merge(graph, params), q, m, *answers, shortlist))
            return np.asarray(fresh(question, mask))

    return run


@pytest.fixture(scope="module")
def brute_force(decoder, answers):
    """Each answer of each question by itself, token by token; and the probability of each one's first token."""
    ids, mask = answers
    full, first = np.zeros((P, C)), np.zeros((P, C))
    log_softmax = lambda x: x - np.log(np.exp(x - x.max()).sum()) - x.max()
    for p in range(P):
        each = np.repeat(QUESTION[p : p + 1], C, 0), np.repeat(MASK[p : p + 1], C, 0)
        logits = np.asarray(decoder(ids, *each), np.float64)
        for c in range(C):
            steps = [log_softmax(logits[c, i])[ids[c, i + 1]] for i in range(LA - 1) if mask[c, i + 1]]
            full[p, c], first[p, c] = sum(steps), steps[0]
    return full, first


def test_with_all_answers_in_the_shortlist_scores_are_their_likelihoods(rank, brute_force):
    np.testing.assert_allclose(rank(QUESTION, MASK, 128), brute_force[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shortlist", [1, 3, 5])
def test_the_shortlist_holds_the_likeliest_first_tokens_and_of_equal_ones_the_first_in_the_list(
    rank, brute_force, shortlist
):
    full, first = brute_force
    got = rank(QUESTION, MASK, shortlist)
    for p in range(P):
        # Rounded, so that equal first tokens are equal; a stable sort leaves them in the list's order.
        kept = np.argsort(-first[p].round(4), kind="stable")[:shortlist]
        assert set(np.flatnonzero(np.isfinite(got[p]))) == set(kept)
        np.testing.assert_allclose(got[p][kept], full[p][kept], rtol=1e-4, atol=1e-4)
        assert (got[p][np.setdiff1d(np.arange(C), kept)] == -np.inf).all()


@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 60_000])
def test_chunks_of_any_size_give_the_same_scores(rank, chunk_bytes):
    np.testing.assert_allclose(rank(QUESTION, MASK, 7, chunk_bytes), rank(QUESTION, MASK, 7), rtol=1e-5, atol=1e-5)


def test_a_questions_ranks_do_not_depend_on_the_batch(rank):
    together = rank(QUESTION, MASK, 6)
    for size in (1, 2):
        parts = [rank(QUESTION[i : i + size], MASK[i : i + size], 6) for i in range(0, P, size)]
        apart = np.concatenate(parts)
        np.testing.assert_array_equal(np.isfinite(apart), np.isfinite(together))
        np.testing.assert_array_equal(np.argsort(-apart, axis=1), np.argsort(-together, axis=1))


def test_logits_of_all_answers_are_never_held(decoder):
    """What the compiled program takes follows the chunk, and not P x C x V."""
    ids, mask = answer_tokens(800, LA)
    all_logits = 4 * P * len(ids) * (LA - 1) * V

    def memory(chunk_bytes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(question_answering, "_CHUNK_BYTES", chunk_bytes)
            run = jax.jit(lambda q: question_answering.rank(decoder, q, MASK, ids, mask, len(ids)))
            return run.lower(QUESTION).compile().memory_analysis().temp_size_in_bytes

    assert memory(all_logits * 4) > all_logits
    assert memory(all_logits // 50) < all_logits / 2
