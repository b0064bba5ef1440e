"""The browser ranks as the evaluator does, names what was missed, and draws it."""

import dataclasses
import json
import types

import numpy as np
import pytest

from vlp_jax import analysis
from vlp_jax.evaluation import retrieval as evaluation
from vlp_jax.input import tokenizer as tokenizer_lib
from vlp_jax.types import UserError


@pytest.fixture(scope="module")
def loaded(workdir):
    return analysis.load(workdir)


@pytest.fixture(scope="module")
def retrieved(loaded):
    return analysis.retrieve(loaded)


def images(axis):
    return [image for image in axis.images if axis.get_visible()]


def test_ranks_are_those_of_the_evaluator_and_of_the_scores(loaded, retrieved):
    run, source = loaded.run, loaded.source()
    setup = run.setup
    evaluator = evaluation.Retrieval(
        setup.graph, setup.abstract.params, loaded.config, source, run.tokenizer, setup.mesh
    )
    rows = evaluator.run(run.params)["per_query"]
    assert [a.rank for a in retrieved.answers()] == [row["text_to_video_rank"] for row in rows]
    assert [a.rank for a in retrieved.answers("video_to_text")] == [row["video_to_text_rank"] for row in rows]
    s = retrieved.scores_QxC
    # A fresh model's scores lie close together: what differs by rounding may tie in one and not in the other.
    for ranks, scores in ((retrieved.ranks.rank_Q, s), (retrieved.ranks.rank_C, s.T)):
        right = np.diag(scores)[:, None]
        least, most = (scores > right + 1e-6).sum(1) + 1, (scores >= right - 1e-6).sum(1)
        assert ((least <= ranks) & (ranks <= most)).all()


def test_answers_name_the_caption_that_was_found_and_the_worst_come_first(retrieved):
    c = retrieved.captions
    for answer in retrieved.answers():
        first = retrieved.ranks.to_video.shortlist_QxK[answer.query, 0]
        assert answer.true == c.texts[answer.query]
        assert answer.found == c.texts[first] and (answer.rank == 1) == (first == answer.clip)
        scores = retrieved.scores_QxC[answer.query]
        assert answer.margin == pytest.approx(scores[first] - scores[answer.clip], abs=1e-7)
    worst = retrieved.worst(4)
    ranks = sorted((a.rank for a in retrieved.answers()), reverse=True)
    assert [a.rank for a in worst] == ranks[:4] and len(worst) == 4


def test_of_several_captions_and_of_shared_ones_the_best_that_is_right_counts():
    """Captions 0 and 1 are of clip 0 and caption 2 of clips 1 and 2, which share it; caption 3, of clip 3, is empty."""
    scores = np.array([[0.5, 0.9, 0.1, 0], [0.7, 0.2, 0.1, 0], [0.6, 0.1, 0.8, 0], [0, 0, 0, 0]], np.float32)
    captions = types.SimpleNamespace(
        texts=["a0", "b0", "c1", " "],
        group_Q=np.array([0, 0, 1, 2]),
        group_C=np.array([0, 1, 1, 2]),
        valid_Q=np.array([True, True, True, False]),
    )
    listed = lambda x: types.SimpleNamespace(shortlist_QxK=np.array(x)[:, None])
    ranks = types.SimpleNamespace(
        rank_Q=np.array([2, 1, 1, 11]),
        rank_C=np.array([1, 2, 1, 11]),
        to_video=listed([1, 0, 2, 3]),
        to_text=listed([1, 0, 2, 3]),
        valid_C=np.ones(4, bool),
    )
    found = analysis.Retrieved("title", "test", captions, ranks, scores)
    texts = [(a.query, a.clip, a.rank, a.true, a.found, round(a.margin, 3)) for a in found.answers()]
    assert texts == [(0, 0, 2, "a0", "c1", 0.4), (1, 0, 1, "b0", "b0", 0), (2, 2, 1, "c1", "c1", 0)]
    clips = [(a.query, a.rank, a.true, a.found, round(a.margin, 3)) for a in found.answers("video_to_text")]
    assert clips == [(0, 1, "b0", "b0", 0), (1, 2, "c1", "a0", 0.8), (2, 1, "c1", "c1", 0)]


def test_clips_that_do_not_decode_are_in_no_answer_and_no_thumbnail(loaded, monkeypatch):
    source = loaded.source()
    real = type(source).__getitem__

    def broken(self, index):
        record = real(self, index)
        return type(record)(b"no video", record.caption, record.clip_id) if index == 2 else record

    monkeypatch.setattr(type(source), "__getitem__", broken)
    found = analysis.retrieve(loaded)
    assert np.isnan(found.scores_QxC[:, 2]).all() and not np.isnan(np.delete(found.scores_QxC, 2, 1)).any()
    for direction in ("text_to_video", "video_to_text"):
        assert [a.query for a in found.answers(direction)] == [0, 1, *range(3, 10)]
    assert 2 not in found.ranks.to_video.shortlist_QxK
    with pytest.raises(UserError, match="the clip of 2 did not decode"):
        analysis.draw_queries(loaded, found, [2])
    figure = analysis.draw_queries(loaded, found, [0])
    assert sum(len(images(axis)) for axis in figure.subfigs[0].axes) == 6
    texts, clips, _ = analysis.project(found)
    assert np.isnan(clips).any(1).tolist() == [i == 2 for i in range(10)] and not np.isnan(texts).any()
    analysis.draw_projection(found, ["small", "large"]).canvas.draw()
    analysis.draw_similarity(found).canvas.draw()


def test_thumbnails_are_the_right_clip_and_then_the_best_five_with_their_scores(loaded, retrieved, tmp_path):
    query = retrieved.worst(1)[0].query
    figure = analysis.draw_queries(loaded, retrieved, [query, (query + 1) % 10])
    first, *rest = figure.subfigs[0].axes
    video = loaded.clips(records=[query]).batch.video[0]
    drawn = np.asarray(images(first)[0].get_array())
    np.testing.assert_array_equal(drawn[:, :16], video[0])
    np.testing.assert_array_equal(drawn[:, -16:], video[-1])
    scores = [float(axis.get_title().split()[-1]) for axis in rest]
    assert len(rest) == 5 and scores == sorted(scores, reverse=True)
    order = retrieved.ranks.to_video.shortlist_QxK[query]
    np.testing.assert_allclose(scores, retrieved.scores_QxC[query, order], atol=6e-4)
    assert all(("right" in axis.get_title()) == (clip == query) for axis, clip in zip(rest, order))
    assert f"rank {retrieved.ranks.rank_Q[query]} of 10" in figure.subfigs[0]._suptitle.get_text()
    figure.savefig(tmp_path / "queries.png")


def test_orders_keep_pairs_together_and_the_picture_follows_them(retrieved):
    texts = retrieved.captions.texts
    for by in ("split", "component", "caption"):
        queries, clips = retrieved.order(by)
        assert sorted(clips) == list(range(10)) and queries.tolist() == clips.tolist()  # a caption a clip here
        drawn = np.asarray(analysis.draw_similarity(retrieved, by).axes[0].images[0].get_array())
        np.testing.assert_array_equal(drawn, retrieved.scores_QxC[np.ix_(queries, clips)])
    assert [texts[c] for c in retrieved.order("caption")[1]] == sorted(texts)
    line = analysis.principal_components(retrieved.ranks.clips_CxE, 1)[0][retrieved.order("component")[1], 0]
    assert (np.diff(line) >= 0).all()


def test_components_are_the_eigenvectors_of_the_covariance():
    x = np.random.default_rng(0).normal(size=(30, 5)) * [5, 3, 1, 0.5, 0.1] + 7
    points, share = analysis.principal_components(x, 2)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    expected = (x - x.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), rtol=1e-6)
    np.testing.assert_allclose(share, values[::-1][:2] / values.sum())
    assert analysis.principal_components(np.ones((3, 2)), 2)[1].tolist() == [0, 0]


def test_the_projection_has_each_sides_mean_at_the_origin_unless_the_gap_is_wanted(retrieved):
    texts, clips, axes = analysis.project(retrieved)
    np.testing.assert_allclose([texts.mean(0), clips.mean(0)], 0, atol=1e-6)
    assert axes.startswith("principal components 1 and 2, ")
    texts, clips, _ = analysis.project(retrieved, centred=False)
    assert np.abs(texts.mean(0) - clips.mean(0)).max() > 1e-3
    figure = analysis.draw_projection(retrieved, analysis.MOVING_SHAPES["motion"])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[-2:] == ["clip", "caption"] and set(names) & {"grows", "moves left", "spins", "fades"}


def test_foils_change_one_word_of_a_group_or_reverse_the_events():
    groups = {"colour": ("red", "blue", "green"), "motion": ("moves", "moves left", "grows"), "alone": ("star",)}
    found = analysis.foils(["A red star moves left, then a blue star grows", "nothing of it"], groups)
    assert [(foil.query, foil.attribute, foil.word) for foil in found] == [
        (0, "colour", "red"),
        (0, "motion", "moves left"),
        (0, "colour", "blue"),
        (0, "motion", "grows"),
        (0, "order", ""),
    ]
    assert found[0].text in [f"A {word} star moves left, then a blue star grows" for word in ("blue", "green")]
    assert found[1].text in [f"A red star {word}, then a blue star grows" for word in ("moves", "grows")]
    assert found[4].text == "a blue star grows, then A red star moves left"
    assert analysis.foils(["a star, then a star"], {}) == []


def test_minimal_pairs_compare_each_clip_with_its_caption_and_the_foil(loaded, retrieved):
    found = analysis.minimal_pairs(loaded, retrieved)
    made = analysis.foils(retrieved.captions.texts)
    embed = lambda texts: np.asarray(loaded.model.embed_text(*loaded.run.tokenizer.encode(texts)[:2]))
    clips = retrieved.ranks.clips_CxE[[foil.query for foil in made]]
    true, foil = (embed(t) for t in ([retrieved.captions.texts[f.query] for f in made], [f.text for f in made]))
    margin = (clips * true).sum(1) - (clips * foil).sum(1)
    for name, one in found.by_attribute.items():
        mine = np.array([f.attribute == name for f in made])
        assert one.queries == mine.sum()
        close = np.abs(margin[mine]) < 1e-6
        assert abs(one.wrong - (margin[mine] <= 0).sum()) <= close.sum()
    assert sum(one.queries for one in found.by_word.values()) == sum(bool(f.word) for f in made)
    left, right = analysis.draw_minimal_pairs(found, "title").axes
    assert len(left.patches) == len(found.by_attribute) and len(right.patches) == len(found.by_word)


def test_foils_ignore_case_and_need_a_separator():
    groups = {"Colour": ("Red", "BLUE")}
    (first, second, order) = analysis.foils(["A RED star, Then a blue star"], groups)
    assert (first.word, first.text) == ("red", "A blue star, Then a blue star")
    assert (second.word, second.text) == ("blue", "A RED star, Then a red star")
    assert order.text == "a blue star, then A RED star"
    assert analysis.foils(["A star, then a star"], groups) == []
    with pytest.raises(UserError, match="separator = ''"):
        analysis.foils(["a star"], groups, separator="")


def test_a_foil_that_reads_like_its_caption_ties_however_the_evaluator_embedded_it(loaded, retrieved):
    """Of captions cut after their first word of a group, foils in later words have the same ids."""
    shorter = tokenizer_lib.open_tokenizer(loaded.config.input.tokenizer, 4, loaded.config.input.lowercase)
    cut = dataclasses.replace(loaded, run=dataclasses.replace(loaded.run, tokenizer=shorter))
    # As if it had rounded in favour of every true caption.
    c, ranks = retrieved.captions, retrieved.ranks
    better = ranks.texts_QxE + np.float32(1e-3) * ranks.clips_CxE[c.clip_Q]
    found = analysis.minimal_pairs(
        cut, dataclasses.replace(retrieved, ranks=dataclasses.replace(ranks, texts_QxE=better))
    )
    ids = lambda text: shorter.encode([text])[0].tolist()
    same = [foil for foil in analysis.foils(c.texts) if ids(foil.text) == ids(c.texts[foil.query])]
    motion = [foil for foil in same if foil.attribute == "motion"]
    assert len(motion) == found.by_attribute["motion"].queries == found.by_attribute["motion"].wrong > 0


def test_the_evaluators_result_does_not_change_by_what_the_browser_asks(retrieved):
    assert retrieved.ranks.to_video.shortlist_QxK.shape == (10, 5)
    assert json.dumps(retrieved.ranks.bad_clips) == "[]" and retrieved.ranks.clip_passes == 1


def test_what_is_not_there_is_refused_by_name(loaded, retrieved, monkeypatch):
    for call, message in [
        (lambda: retrieved.answers("text"), "direction = 'text': expected text_to_video or video_to_text"),
        (lambda: retrieved.order("size"), "order = 'size': expected one of split, component, caption"),
        (lambda: analysis.draw_queries(loaded, retrieved, [10]), r"queries = \[10\]: expected 0 to 9"),
        (lambda: analysis.draw_queries(loaded, retrieved, []), "queries = \\[\\]"),
        (lambda: analysis.draw_queries(loaded, retrieved, [True]), r"queries = \[True\]: expected 0 to 9, integers"),
        (lambda: retrieved.worst(-1), "count = -1: expected an integer above 0"),
        (lambda: analysis.draw_projection(retrieved, "zebra"), r"words = \['zebra'\]: no caption of split 'test'"),
        (lambda: analysis.project(retrieved, "tsne"), "method = 'tsne': expected pca or umap"),
        (lambda: analysis.draw_projection(retrieved, []), "words = \\[\\]"),
        (lambda: analysis.minimal_pairs(loaded, retrieved, {"x": ("y", "z")}, separator="|"), "no caption of split"),
        (lambda: analysis.retrieve(loaded, "tset"), "tset"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(UserError, match="pip install umap-learn"):
        analysis.project(retrieved, "umap")
