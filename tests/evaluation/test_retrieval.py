"""The retrieval evaluator against a brute-force oracle, on a model whose every score is known."""

import types

import hypothesis
import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

from tests.evaluation import stand_in
from tests.evaluation.stand_in import WORDS, Lookup, Numbers
from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax.evaluation import ranking, retrieval, statistics
from vlp_jax.input import video
from vlp_jax.input.sources import Record
from vlp_jax.recipes import recipe
from vlp_jax.types import UserError


class Source:
    """Rows of (clip number, caption); the bytes of a clip are its number, b'broken' where it cannot be decoded."""

    name = "rows"
    columns = frozenset({"caption"})

    def __init__(self, rows, broken=()):
        self.rows, self.broken, self.read = rows, broken, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        clip, caption = self.rows[index]
        self.read.append(clip)
        return Record(b"broken" if clip in self.broken else bytes([clip]), caption, f"clip {clip}")

    def annotation(self, index):
        clip, caption = self.rows[index]
        return Record(b"", caption, f"clip {clip}")


@pytest.fixture(autouse=True)
def decoder(monkeypatch):
    """Decodes the bytes of `Source`; returns the list of what was decoded."""
    decoded = []

    def decode(data, **options):
        decoded.append(data)
        return stand_in.decode(data, **options)

    monkeypatch.setattr(video, "decode", decode)
    return decoded


def build(config, model, source, rerank=0):
    graph, params = nnx.split(model)
    mesh = sharding.make_mesh(config)
    return retrieval.Retrieval(graph, params, config, source, Numbers(), mesh, rerank=rerank), params


def evaluate(config, model, source, rerank=0):
    evaluator, params = build(config, model, source, rerank)
    return evaluator.run(params)


@pytest.fixture
def config(tiny_config):
    return tiny_config({"evaluation.batch_size": 2, "evaluation.bootstrap": 0})


def oracle(rows, broken, dual, match, k, shared=False):
    """Ranks of both directions, from full matrices in plain loops."""
    clips = list(dict.fromkeys(clip for clip, _ in rows))
    if shared:  # what a clip has beside its first caption is empty, or the same
        of = {clip: next((t for c, t in rows if c == clip and t), "") for clip in clips}
        queries = [([c for c in clips if of[c] == text], text) for text in dict.fromkeys(of.values())]
    else:
        queries = [([clip], caption) for clip, caption in rows]
    text = [int(caption) if caption else None for _, caption in queries]

    def one(right, scores, others, missed):
        """`scores` and `others` of the items that can be found; the place of the first right one."""
        items = [i for i, s in enumerate(scores) if s is not None]
        lowest = lambda x: -np.inf if np.isnan(x) else x
        order = sorted(items, key=lambda i: (-lowest(scores[i]), right[i]))
        listed = [i for i in order[:k] if np.isfinite(lowest(scores[i]))]
        rest = [i for i in order if i not in listed]
        order = sorted(listed, key=lambda i: (-lowest(others[i]), right[i])) + rest
        # What has no score at all stands among what cannot be found.
        nothing = sum(s is None and not right[i] for i, s in enumerate(scores))
        for place, i in enumerate(order):
            if right[i]:
                return 1 + place + (nothing if np.isnan(scores[i]) else 0)
        return missed

    to_video, to_text = [], []
    for (right, _), t in zip(queries, text):
        hidden = set(right) <= broken or t is None
        scores = [None if hidden or c in broken else dual[c, t] for c in clips]
        others = [None if hidden else match[c, t] for c in clips]
        to_video.append(one([c in right for c in clips], scores, others, max(len(clips) + 1, 11)))
    for clip in clips:
        scores = [None if clip in broken or t is None else dual[clip, t] for t in text]
        others = [None if t is None else match[clip, t] for t in text]
        to_text.append(one([clip in right for right, _ in queries], scores, others, max(len(queries) + 1, 11)))
    return to_video, to_text


@st.composite
def cases(draw):
    """Rows with several captions a clip, equal captions of different clips, empty ones and broken clips; scores with
    ties and NaN."""
    rng = np.random.Generator(np.random.Philox(draw(st.integers(0, 2**32 - 1))))
    clips = draw(st.integers(1, 5))
    owners = [*range(clips), *rng.integers(0, clips, draw(st.integers(0, 6)))]
    rng.shuffle(owners)
    texts = rng.integers(draw(st.integers(0, 1)), WORDS, len(owners))
    rows = [(int(clip), str(text) if text else "") for clip, text in zip(owners, texts)]
    broken = set(np.flatnonzero(rng.random(clips) < 0.2).tolist()) if draw(st.booleans()) else set()
    embed_clips, embed_texts = (rng.integers(-2, 3, (n, 2)).astype(np.float32) for n in (clips, WORDS))
    match = rng.integers(0, 4, (clips, WORDS)).astype(np.float32)
    if draw(st.booleans()):
        match[rng.random(match.shape) < 0.2] = np.nan
        embed_clips[rng.random(clips) < 0.2] = np.nan
    return rows, broken, embed_clips, embed_texts, match


@hypothesis.settings(max_examples=30, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(cases(), st.sampled_from([0, 1, 2, 3, 20]), st.integers(1, 4), st.booleans())
def test_both_directions_equal_a_brute_force_oracle(config, case, rerank, batch_size, in_memory):
    rows, broken, embed_clips, embed_texts, match = case
    own = config.copy_and_resolve_references()
    config_lib.update(own, {"evaluation.batch_size": batch_size, "evaluation.token_gib": 8.0 if in_memory else 0.0})
    got = evaluate(own, Lookup(embed_clips, embed_texts, match), Source(rows, broken), rerank)
    to_video, to_text = oracle(rows, broken, embed_clips @ embed_texts.T, match, rerank)
    assert [row["text_to_video_rank"] for row in got["per_query"]] == to_video
    of_clip = dict(zip(dict.fromkeys(clip for clip, _ in rows), to_text))
    assert [row["video_to_text_rank"] for row in got["per_query"]] == [of_clip[clip] for clip, _ in rows]
    assert got["text_to_video"] == ranking.summarise(np.array(to_video))
    assert got["video_to_text"] == ranking.summarise(np.array(to_text))


@hypothesis.settings(max_examples=30, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(cases(), st.sampled_from([0, 1, 2, 20]), st.integers(1, 4))
def test_where_clips_share_captions_each_is_one_query_and_all_its_clips_are_right(config, case, rerank, batch_size):
    rows, broken, embed_clips, embed_texts, match = case
    of = dict(reversed(rows))
    rows = [(clip, text and of[clip]) for clip, text in rows]  # one caption a clip, or none
    own = config.copy_and_resolve_references()
    config_lib.update(own, {"evaluation.batch_size": batch_size, "input.positives": "caption"})
    got = evaluate(own, Lookup(embed_clips, embed_texts, match), Source(rows, broken), rerank)
    to_video, to_text = oracle(rows, broken, embed_clips @ embed_texts.T, match, rerank, shared=True)
    assert got["text_to_video"] == ranking.summarise(np.array(to_video))
    assert got["video_to_text"] == ranking.summarise(np.array(to_text))
    assert [row["video_to_text_rank"] for row in got["per_query"]] == to_text
    of_caption = {row["caption"].strip(): row["text_to_video_rank"] for row in got["per_query"]}
    assert list(of_caption.values()) == to_video


def test_shared_captions_are_counted_and_chance_is_that_of_any_right_clip(config):
    config.input.positives = "caption"
    result = evaluate(config, lookup(), Source([(0, "1"), (1, "2"), (2, "1"), (3, "1")]))
    assert (result["queries"], result["clips"], result["positives"]) == (2, 4, "caption")
    assert result["clips_per_caption"] == {"min": 1, "max": 3}
    text = retrieval.table(result, "")
    assert "1 to 3 clips a caption, all right for it" in text and "chance R@1 50.00" in text


def test_a_clip_of_two_captions_cannot_share_them(config):
    config.input.positives = "caption"
    with pytest.raises(UserError, match=r"clip 'clip 0' has the captions '3' and '4'.*expected one a clip"):
        evaluate(config, lookup(), Source([(0, "3"), (1, "3"), (0, "4")]))


def lookup(clips=4):
    rng = np.random.Generator(np.random.Philox(3))
    return Lookup(
        *(rng.normal(size=(n, 3)).astype(np.float32) for n in (clips, WORDS)),
        rng.normal(size=(clips, WORDS)).astype(np.float32),
    )


ROWS = [(2, "1"), (0, "3"), (2, "4"), (1, ""), (0, "3"), (1, "5 and more"), (2, "2"), (3, "")]


@pytest.mark.parametrize(("gib", "passes"), [(8.0, 1), (0.0, 2)])
def test_each_clip_is_decoded_once_whatever_its_captions_or_twice_without_room_for_tokens(config, decoder, gib, passes):
    config.evaluation.token_gib = gib
    result = evaluate(config, lookup(), Source(ROWS), rerank=2)
    # Clip 3, whose every caption is empty, stands in the gallery all the same.
    assert sorted(decoder) == sorted([bytes([clip]) for clip in (0, 1, 2, 3)] * passes)
    assert result["clip_passes"] == passes
    assert ("encoded twice" in retrieval.table(result, "")) == (passes == 2)
    decoder.clear()
    assert evaluate(config, lookup(), Source(ROWS))["clip_passes"] == 1 and len(decoder) == 4


def test_the_result_says_what_kind_of_queries_these_are_and_what_was_missed(config):
    result = evaluate(config, lookup(), Source(ROWS, broken={0}))
    assert result["captions_per_clip"] == {"min": 1, "max": 3} and result["words_per_caption"] == 1
    assert (result["queries"], result["clips"], result["cut_captions"]) == (8, 4, 1)
    assert result["undecodable"] == 1 and result["empty_captions"] == 2
    assert [(bad["clip_id"], bad["error"]) for bad in result["bad_clips"]] == [("clip 0", "it is broken")]
    text = retrieval.table(result, "title")
    assert "1 to 3 captions a clip, 1 words a caption (median); 3 frames a clip" in text
    assert "1 clips did not decode and count as missed: 1 x it is broken;" in text
    assert "2 captions are empty and count as missed" in text and "1 captions were cut" in text
    for row in result["per_query"]:
        if row["clip_id"] in ("clip 0", "clip 3"):
            assert min(row["text_to_video_rank"], row["video_to_text_rank"]) >= ranking.MISSED


def test_queries_are_named_by_clip_and_number_of_the_caption(config):
    rows = evaluate(config, lookup(), Source(ROWS))["per_query"]
    assert [row["query_id"] for row in rows] == [
        *("clip 2:0", "clip 0:0", "clip 2:1", "clip 1:0", "clip 0:1", "clip 1:1", "clip 2:2", "clip 3:0")
    ]


def test_frames_at_test_are_those_of_the_config(config):
    config.evaluation.frames = 7
    source, seen = Source(ROWS), []
    model = lookup()
    evaluator, params = build(config, model, source)
    run = evaluator._encode_clips
    evaluator._encode_clips = lambda params, video: (seen.append(video.shape), run(params, video))[1]
    assert evaluator.run(params)["frames"] == 7 and {shape[1] for shape in seen} == {7}


def test_intervals_hold_each_metric_and_draw_the_captions_of_a_clip_together(config):
    config.evaluation.bootstrap = 60
    result = evaluate(config, lookup(), Source(ROWS))
    assert set(result["intervals"]) == {f"{d}/{m}" for d in retrieval.DIRECTIONS for m in ranking.METRICS}
    ranks = np.array([row["text_to_video_rank"] for row in result["per_query"]])
    low, high = statistics.interval(
        ranks, lambda x: x.mean(), groups_Q=[clip for clip, _ in ROWS], samples=60, seed=config.seed
    )
    # Groups are numbered by name here and by their first row there: the same clips, drawn in another order.
    np.testing.assert_allclose(result["intervals"]["text_to_video/mean_rank"], [low, high], atol=1.5)
    for name, (low, high) in result["intervals"].items():
        direction, metric = name.split("/")
        assert low <= result[direction][metric] <= high
    ends = result["intervals"]["text_to_video/R@1"]
    assert f"{ends[0]:.2f}-{ends[1]:.2f}" in retrieval.table(result, "title")
    assert "60 resamples of the clips" in retrieval.table(result, "title")


def test_scalars_have_names_that_tensorboard_takes(config):
    result = evaluate(config, lookup(), Source(ROWS))
    scalars = retrieval.log_scalars(result, "validation")
    assert scalars["validation/text_to_video/R1"] == result["text_to_video"]["R@1"]
    assert scalars["validation/video_to_text/mean_recall"] == result["video_to_text"]["mean_recall"]
    assert len(scalars) == 2 * len(ranking.METRICS)


def test_a_model_without_the_trained_parts_is_refused(config, tiny_config):
    headless = Lookup(*(np.zeros((WORDS, WORDS), np.float32) for _ in range(3)), match_head=None)
    with pytest.raises(UserError, match=r"rerank = 4 needs a matching head"):
        build(config, headless, Source(ROWS), rerank=4)
    with pytest.raises(UserError, match=r"config.loss.vtc = 0"):
        build(tiny_config({"loss.vtc": 0.0}), lookup(), Source(ROWS))
    with pytest.raises(UserError, match="retrieval needs a recipe that is a DualEncoder; Linear is not one"):
        build(config, nnx.Linear(1, 1, rngs=nnx.Rngs(0)), Source(ROWS))


def test_rows_without_captions_are_refused_before_anything_is_trained_or_encoded(config):
    asked = Source(ROWS)
    asked.columns = frozenset({"question", "answer"})
    with pytest.raises(UserError, match="needs rows with caption; rows has answer, question"):
        build(config, lookup(), asked)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_the_room_for_tokens_is_checked(tiny_config, value):
    from vlp_jax import validation

    with pytest.raises(UserError, match=r"config\.evaluation\.token_gib"):
        validation.validate(tiny_config({"evaluation.token_gib": value}))


def test_a_tokenizer_is_asked_once_for_all_captions(config):
    asked = []
    tokenizer = types.SimpleNamespace(encode=lambda texts: (asked.append(list(texts)), Numbers().encode(texts))[1])
    captions = retrieval.Captions(Source(ROWS), tokenizer)
    assert asked == [[caption for _, caption in ROWS]]
    # "3" twice and "" twice: six distinct texts.
    assert len(captions.token_ids) == 6 and captions.token_ids[captions.text_Q, 1].tolist() == [1, 3, 4, 0, 3, 5, 2, 0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_recipes_reranking_orders_a_whole_gallery_as_matching_each_pair_does(
    tiny_config, fake_tokenizer, monkeypatch, dtype
):
    changes = {"compute_dtype": dtype, "evaluation.batch_size": 2, "evaluation.bootstrap": 0, "evaluation.frames": 5}
    config = tiny_config({**changes, "input.max_text_tokens": 3})
    noise = lambda data, frames, size: np.random.Generator(np.random.Philox(data[0])).integers(
        0, 256, (frames, size, size, 3), np.uint8
    )
    monkeypatch.setattr(video, "decode", lambda data, *, frames, size, **_: noise(data, frames, size))
    with nnx.use_eager_sharding(False):
        graph, params = nnx.split(recipe.build(config, fake_tokenizer, nnx.Rngs(0)))
    rows = [(clip, str(10 + word)) for word, clip in enumerate((0, 1, 2, 3, 4, 0))]
    mesh = sharding.make_mesh(config)
    result = retrieval.Retrieval(graph, params, config, Source(rows), Numbers(), mesh, rerank=6).run(params)

    ids, mask, _ = Numbers().encode([text for _, text in rows])
    every = np.stack([noise(bytes([i]), 5, config.input.image_size) for i in range(5)])
    clip_P, text_P = np.divmod(np.arange(30, dtype=np.int32), 6)

    @jax.jit
    def match(params):
        model = nnx.merge(graph, params)
        return model.match(model.encode_clip(every), clip_P, model.encode_text(ids, mask)[text_P], mask[text_P])

    logits = np.asarray(match(params)).reshape(5, 6)
    near = {"float32": 1e-6, "bfloat16": 0.02}[dtype]  # rounding decides between scores that are closer
    assert np.ptp(logits, axis=0).min() > 3 * near
    own = np.array([clip for clip, _ in rows])
    for i, row in enumerate(result["per_query"]):
        wrong, right = np.delete(logits[:, i], own[i]), logits[own[i], i]
        assert (wrong > right + near).sum() <= row["text_to_video_rank"] - 1 <= (wrong > right - near).sum()
