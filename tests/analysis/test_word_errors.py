"""What is confused is counted word by word, by attribute, by event and by the order of events."""

import collections
import itertools

import numpy as np
import pytest

from vlp_jax import analysis
from vlp_jax.analysis import Answer
from vlp_jax.types import UserError

GROUPS = {"colour": ("red", "blue"), "motion": ("moves left", "moves", "grows"), "shape": ("star", "cross")}


def answer(query, true, found, rank=2):
    return Answer(query, query, rank, true, found, 0.1)


@pytest.mark.parametrize(
    ("true", "found", "kind", "pairs"),
    [
        ("a red star grows", "a blue star grows", "words", {("red", "blue")}),
        ("a red star moves left", "a red cross grows", "words", {("star", "cross"), ("moves left", "grows")}),
        ("a red star grows, then a blue cross moves", "a blue cross moves, then a red star grows", "order", set()),
        (
            "a red star grows, then a blue cross moves",
            "a blue cross grows, then a red star grows",
            "words and order",
            {("moves", "grows")},
        ),
        ("A red star grows.", "a red star grows", "same caption", set()),
        (
            "a red star grows",
            "a blue cross moves, then a red star grows",
            "number of events",
            {("", "a blue cross moves")},
        ),
        (
            "a blue cross moves, then a red star grows",
            "a red star moves",
            "number of events",
            {("grows", "moves"), ("a blue cross moves", "")},
        ),
        ("a red star grows", "a red star gets larger now", "words", {("grows", "gets larger now")}),
        # Captions that nobody made by a template.
        ("a man plays guitar on stage", "a woman plays the guitar", "words", {("man", "woman"), ("", "the")}),
        ("a star", "", "number of events", {("a star", "")}),
        # Stretches of unequal length.
        ("a red star grows", "a cross grows", "words", {("red", ""), ("star", "cross")}),
        ("a star grows", "a blue cross grows", "words", {("", "blue"), ("star", "cross")}),
        ("a red grows", "a cross grows", "words", {("red", ""), ("", "cross")}),
        ("a red star grows", "a star that is blue grows", "words", {("red", "blue"), ("", "that is")}),
        ("a red star and a blue cross", "a blue star and a red cross", "words", {("red", "blue"), ("blue", "red")}),
    ],
)
def test_a_pair_of_captions_differs_in(true, found, kind, pairs):
    difference = analysis.difference(true, found, GROUPS)
    assert difference.kind == kind
    assert set(difference.substitutions) >= pairs
    if "man" not in true:
        assert set(difference.substitutions) == pairs


def test_a_word_inside_another_is_not_the_word():
    groups = {"size": ("large",), "other": ("star",)}
    assert analysis.difference("an enlarged star", "an enlarged cross", groups).substitutions == (("star", "cross"),)
    phrase = analysis.difference("a star moves leftover", "a star moves leftovers", GROUPS)
    assert phrase.substitutions == (("leftover", "leftovers"),)


def test_equal_orders_keep_the_events_where_they_stand():
    # Both orders differ in two words.
    found = analysis.difference("a red star, then a blue star", "a red cross, then a red star", GROUPS)
    assert found.kind in ("words", "words and order")
    same = analysis.difference("a red star, then a red star", "a blue star, then a blue star", GROUPS)
    assert (same.kind, same.substitutions) == ("words", (("red", "blue"), ("red", "blue")))


def test_confusions_are_counted_as_a_loop_over_templates_counts_them():
    rng = np.random.default_rng(0)
    colours, shapes, motions = GROUPS["colour"], GROUPS["shape"], GROUPS["motion"]
    words = np.stack([rng.integers(0, 2, (2, 60)), rng.integers(0, 2, (2, 60)), rng.integers(0, 3, (2, 60))], 2)
    text = lambda w: f"a {colours[w[0]]} {shapes[w[1]]} {motions[w[2]]}"
    hits = rng.random(60) < 0.4
    answers = [
        answer(i, text(true), text(true) if hit else text(found), 1 if hit else 2)
        for i, (true, found, hit) in enumerate(zip(*words, hits))
    ]
    found = analysis.confusions(answers, GROUPS)
    wrong = (words[0] != words[1]) & ~hits[:, None]
    assert (found.queries, found.missed) == (60, int((~hits).sum()))
    for column, name in enumerate(("colour", "shape", "motion")):
        assert (found.by_attribute[name].wrong, found.by_attribute[name].queries) == (wrong[:, column].sum(), 60)
        mean = wrong[:, column].mean()
        assert found.by_attribute[name].low <= mean <= found.by_attribute[name].high
        for number, word in enumerate(GROUPS[name]):
            says = words[0][:, column] == number
            assert found.by_word[word] == (wrong[says, column].sum(), says.sum())
            for other, instead in enumerate(GROUPS[name]):
                both = says & (words[1][:, column] == other) & wrong[:, column]
                assert found.substitutions.get((word, instead), 0) == both.sum()
    same = int((~hits & ~wrong.any(1)).sum())
    assert found.kinds.get("same caption", 0) == same and found.kinds["words"] == found.missed - same
    assert found.unknown == {"a": 60}
    counts = list(found.substitutions.values())
    assert counts == sorted(counts, reverse=True)


def test_attributes_and_words_are_counted_wherever_events_or_words_are_missing():
    """Every caption of one or two events against every other, by the words that each event has of a group."""
    groups = {"size": ("small", "large"), "colour": ("red", "blue")}
    event = [("small", "red"), ("large", "red"), ("large", ""), ("", "blue"), ("", "")]
    text = lambda words: " ".join(["a", *filter(None, words), "star"])
    # The second event says what it is, so that it is matched with none but itself.
    second = ", then some very long words about another thing that is {}"
    captions = [((x,), text(x)) for x in event]
    captions += [((x, ("", y)), text(x) + second.format(y)) for x in event[:3] for y in ("red", "blue")]
    for (true, a), (found, b) in itertools.product(captions, captions):
        result = analysis.confusions([answer(0, a, b)], groups)
        wrong, named, lost, said = set(), set(), collections.Counter(), set()
        for number, words in enumerate(true):
            other = found[number] if number < len(found) else ("", "")
            named |= {column for column in (0, 1) if words[column]}
            wrong |= {column for column in (0, 1) if words[column] and words[column] != other[column]}
            said |= set(filter(None, words))
            lost += collections.Counter(filter(None, words)) - collections.Counter(other)
        by_attribute = {name: one.wrong for name, one in result.by_attribute.items() if name != "order"}
        assert by_attribute == {name: int(i in wrong) for i, name in enumerate(groups) if i in named}, (a, b)
        assert result.by_word == {word: (int(lost[word] > 0), 1) for word in said}, (a, b)


def test_a_word_left_out_beside_another_counts_against_its_attribute():
    found = analysis.confusions([answer(0, "a small red circle moves left", "a large circle moves left")])
    assert found.substitutions == {("red", ""): 1, ("small", "large"): 1}
    assert {name: one.wrong for name, one in found.by_attribute.items()} == {
        **{"size": 1, "colour": 1},
        **{"shape": 0, "motion": 0},
    }
    assert found.by_word["small"] == found.by_word["red"] == (1, 1)
    gone = analysis.confusions(
        [answer(0, "a small red circle grows, then a large red star spins", "a large red star spins")]
    )
    assert gone.substitutions == {("a small red circle grows", ""): 1}
    assert all(one.wrong for name, one in gone.by_attribute.items() if name != "order")
    assert gone.by_word["circle"] == gone.by_word["red"] == (1, 1) and gone.by_word["star"] == (0, 1)


def test_case_counts_neither_in_captions_nor_in_groups():
    loud = {name.upper(): tuple(word.upper() for word in words) for name, words in GROUPS.items()}
    texts = ("A RED star grows, THEN a blue star", "a Blue STAR grows, then a blue star")
    found = analysis.confusions([answer(0, *texts)], loud)
    assert found.substitutions == {("red", "blue"): 1} and found.kinds == {"words": 1}
    assert found.by_attribute["COLOUR"].wrong == 1 and found.unknown == {"a": 2}
    assert analysis.difference(*texts, loud) == analysis.difference(*(text.lower() for text in texts), GROUPS)


def test_order_is_an_attribute_of_the_queries_that_have_one():
    answers = [
        answer(0, "a red star, then a blue star", "a blue star, then a red star"),
        answer(1, "a red star, then a blue star", "a red star, then a blue star", 1),
        answer(2, "a red star", "a blue star"),
        answer(3, "a red star grows, then a blue cross", "a blue cross, then a red star moves"),
    ]
    found = analysis.confusions(answers, GROUPS)
    assert (found.by_attribute["order"].wrong, found.by_attribute["order"].queries) == (2, 3)
    assert (found.by_attribute["colour"].wrong, found.by_attribute["colour"].queries) == (1, 4)
    assert found.kinds == {"order": 1, "words": 1, "words and order": 1}


def test_the_default_groups_hold_every_word_of_the_embedded_data():
    from data.moving_shapes import scenes

    assert {
        "size": tuple(scenes.SIZES),
        "colour": tuple(scenes.COLORS),
        "shape": tuple(scenes.SHAPES),
        "motion": tuple(scenes.MOTIONS),
    } == analysis.MOVING_SHAPES
    events = tuple(scenes.Event(s, c, "star", m) for s, c, m in [("small", "red", "spins"), ("large", "blue", "fades")])
    found = analysis.confusions([answer(0, scenes.caption(events), scenes.caption(events[::-1]))])
    assert found.kinds == {"order": 1} and found.unknown == {"a": 2}


def test_the_figure_shows_every_attribute_and_the_most_frequent_substitutions():
    answers = [answer(0, "a red star grows", "a blue cross grows"), answer(1, "a red star grows", "a blue star grows")]
    figure = analysis.draw_confusions(analysis.confusions(answers, GROUPS), "title", most=1)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["colour", "motion", "shape"]
    np.testing.assert_allclose([bar.get_width() for bar in left.patches], [100, 0, 50])
    assert [label.get_text() for label in right.get_yticklabels()] == ["red → blue"]
    nothing = analysis.confusions([answer(0, "some words", "some words", 1)], {})
    analysis.draw_confusions(nothing).canvas.draw()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="expected the answers of a split"):
        analysis.confusions([])
    with pytest.raises(UserError, match="'star' belongs to 'a' and to 'b'"):
        analysis.confusions([answer(0, "x", "y")], {"a": ["star"], "b": ["star"]})
    with pytest.raises(UserError, match="separator = '': expected what stands between events"):
        analysis.confusions([answer(0, "x", "y")], separator="")
    with pytest.raises(UserError, match="'red' belongs to 'a' and to 'a'"):
        analysis.foils(["x"], {"a": ["red", "RED"]})
    assert analysis.confusions([answer(0, "a star", "a cross")], {"shape": "star"}).by_word == {"star": (1, 1)}
