"""What is confused where retrieval goes wrong: words, attributes, events and their order."""

import collections
import dataclasses
import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vlp_jax.analysis import drawing
from vlp_jax.analysis.retrieval import Answer
from vlp_jax.evaluation import statistics
from vlp_jax.types import UserError

# The words of the embedded data set, data/moving_shapes. A group may hold phrases; they count as one word.
MOVING_SHAPES: dict[str, tuple[str, ...]] = {
    "size": ("small", "large"),
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple"),
    "shape": ("circle", "square", "triangle", "star", "cross"),
    "motion": (
        *("moves left", "moves right", "moves up", "moves down"),
        *("grows", "shrinks", "spins", "fades", "darkens"),
    ),
}
SEPARATOR = ", then "  # between events
KINDS = ("same caption", "order", "words", "words and order", "number of events")
ORDER = "order"
_MOST_EVENTS = 6  # that are matched in every order
_SAMPLES = 1000
_Words = tuple[str, ...]
_Pair = tuple[_Words, _Words]  # true and found


@dataclasses.dataclass(frozen=True)
class Difference:
    """How a caption that was found differs from the true one.

    Attributes:
      kind: one of KINDS.
      substitutions: `(true, found)` words or phrases; '' for none.
    """

    kind: str
    substitutions: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Share:
    """Of how many queries something is wrong.

    Attributes:
      wrong, queries: counts.
      low, high: 95% bootstrap interval of wrong / queries, clips being resampled.
    """

    wrong: int
    queries: int
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Confusions:
    """What was confused, over all queries.

    Attributes:
      queries, missed: counts.
      kinds: of the missed, kind -> count; only kinds that occur.
      substitutions: `(true, found)` -> count, most frequent first; '' for none.
      by_attribute: attribute -> of the queries that name it, those whose first hit has another, one more or none of it
        in the event that is matched; `order`, of the queries with several events, those whose first hit has them in
        another order, perhaps with other words.
      by_word: word of a group -> `(wrong, queries)`: of the queries that say it, those whose first hit has another or
        none in its place.
      unknown: words of the queries' captions that no group holds -> count.
    """

    queries: int
    missed: int
    kinds: dict[str, int]
    substitutions: dict[tuple[str, str], int]
    by_attribute: dict[str, Share]
    by_word: dict[str, tuple[int, int]]
    unknown: dict[str, int]


def attributes(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Word or phrase in lower case -> its attribute.

    Raises:
      UserError: two attributes hold one word, or one holds it twice.
    """
    found: dict[str, str] = {}
    for attribute, words in groups.items():
        for word in [words.lower()] if isinstance(words, str) else map(str.lower, words):
            if word in found:
                raise UserError(f"groups: {word!r} belongs to {found[word]!r} and to {attribute!r}: expected one")
            found[word] = attribute
    return found


def events(text: str, separator: str) -> list[str]:
    """The events of a caption, whatever the case of its separators.

    Raises:
      UserError: an empty separator.
    """
    if not separator:
        raise UserError(f"separator = '': expected what stands between events, such as {SEPARATOR!r}")
    return re.split(re.escape(separator), text, flags=re.IGNORECASE)


def confusions(
    answers: Sequence[Answer], groups: Mapping[str, Sequence[str]] = MOVING_SHAPES, separator: str = SEPARATOR
) -> Confusions:
    """Counts what the first hits of missed queries have in place of what was asked for.

    An attribute can be confused only as far as the gallery holds clips that differ in it and are alike in the rest:
    what is compared, runs or attributes, must share a gallery.

    Args:
      answers: of `Retrieved.answers`.
      groups: attribute -> its words and phrases; case does not count.
      separator: what stands between events.

    Raises:
      UserError: no answers, a word that two attributes hold, or an empty separator.
    """
    if not answers:
        raise UserError("confusions([]): expected the answers of a split of which at least one clip decodes")
    attribute_of = attributes(groups)
    split = _tokeniser(attribute_of, separator)
    kinds: collections.Counter[str] = collections.Counter()
    pairs: collections.Counter[tuple[str, str]] = collections.Counter()
    unknown: collections.Counter[str] = collections.Counter()
    outcomes: dict[str, list[tuple[bool, int]]] = collections.defaultdict(list)  # attribute -> wrong, clip
    words_asked: collections.Counter[str] = collections.Counter()
    words_wrong: collections.Counter[str] = collections.Counter()
    for answer in answers:
        true = split(answer.true)
        unknown.update(word for event in true for word in event if word not in attribute_of)
        changed: set[str] = set()  # words
        wrong: set[str] = set()  # attributes
        ordered = True
        if answer.rank > 1:
            kind, by_event = _compare(true, split(answer.found), attribute_of)
            kinds[kind] += 1
            ordered = "order" not in kind
            for event, differences in by_event:
                pairs.update(_joined(differences))
                named = {attribute_of.get(word) for word in event}
                changed |= {word for left, _ in differences for word in left}
                wrong |= {attribute_of[w] for both in differences for w in sum(both, ()) if w in attribute_of} & named
        asked = {word for event in true for word in event} & attribute_of.keys()
        words_asked.update(asked)
        words_wrong.update(asked & changed)
        for attribute in {attribute_of[word] for word in asked}:
            outcomes[attribute].append((attribute in wrong, answer.clip))
        if len(true) > 1:
            outcomes[ORDER].append((not ordered, answer.clip))
    return Confusions(
        queries=len(answers),
        missed=sum(answer.rank > 1 for answer in answers),
        kinds={kind: kinds[kind] for kind in KINDS if kinds[kind]},
        substitutions=dict(sorted(pairs.items(), key=lambda item: (-item[1], item[0]))),
        by_attribute={name: share(outcomes[name]) for name in (*groups, ORDER) if outcomes[name]},
        by_word={word: (words_wrong[word], words_asked[word]) for word in attribute_of if words_asked[word]},
        unknown=dict(unknown.most_common()),
    )


def difference(
    true: str, found: str, groups: Mapping[str, Sequence[str]] = MOVING_SHAPES, separator: str = SEPARATOR
) -> Difference:
    """How the caption that was found differs from the true one.

    Events are matched in the order in which they differ least. Where that is another than their own, their order is
    wrong as well. What one caption has more events is told as a whole. Within an event, words stand against words of
    their own attribute as far as there are any.
    """
    attribute_of = attributes(groups)
    split = _tokeniser(attribute_of, separator)
    kind, by_event = _compare(split(true), split(found), attribute_of)
    return Difference(kind, tuple(pair for _, differences in by_event for pair in _joined(differences)))


def share(outcomes: Sequence[tuple[bool, int]]) -> Share:
    """Of `(wrong, clip)` of each query."""
    wrong = np.array([bad for bad, _ in outcomes], np.float64)
    clips = [clip for _, clip in outcomes]
    low, high = statistics.interval(wrong, np.mean, groups_Q=clips, samples=_SAMPLES, seed=0)
    return Share(int(wrong.sum()), len(wrong), low, high)


def draw_confusions(found: Confusions, title: str = "", most: int = 15) -> Figure:
    """Draws the share of queries whose first hit has another attribute, and what stands in place of what.

    Args:
      most: substitutions shown.
    """
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    figure.suptitle(f"{title}: {found.missed} of {found.queries} queries missed".removeprefix(": "), fontsize=11)
    left, right = figure.subplots(1, 2)
    draw_shares(left, found.by_attribute)
    left.set_title("wrong in the first hit", fontsize=10)
    left.set_xlabel("% of the queries that name it; 95% interval", fontsize=9)
    rows = list(found.substitutions.items())[:most]
    labels = [f"{true or '(nothing)'} → {other or '(nothing)'}" for (true, other), _ in rows]
    right.barh(labels, [count for _, count in rows], color=drawing.ORANGE, height=0.6)
    right.set_title(f"asked for → found, {len(rows)} of {len(found.substitutions)}", fontsize=10)
    right.set_xlabel("missed queries", fontsize=9)
    right.xaxis.get_major_locator().set_params(integer=True)
    plain_bars(right)
    return figure


def draw_shares(axis: Any, shares: Mapping[str, Share]) -> None:
    """Bars of what is wrong, in percent, with intervals and counts."""
    names, values = list(shares), np.array([100 * one.wrong / one.queries for one in shares.values()])
    ends = 100 * np.array([[one.low, one.high] for one in shares.values()]).reshape(-1, 2).T
    axis.barh(names, values, color=drawing.BLUE, height=0.6)
    # An interval of resamples need not hold the value itself.
    reach = np.maximum([values - ends[0], ends[1] - values], 0)
    axis.errorbar(values, names, xerr=reach, fmt="none", ecolor="black", elinewidth=1)
    for row, one in enumerate(shares.values()):
        axis.text(100 * one.high, row, f"  {one.wrong} of {one.queries}", va="center", fontsize=8)
    axis.set_xlim(0, max(1.0, ends.max(initial=0)) * 1.35)
    plain_bars(axis)


def plain_bars(axis: Any) -> None:
    """First bar on top, faint lines behind, no box."""
    axis.invert_yaxis()
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _tokeniser(known, separator):
    """A function of a caption: its events, each a tuple of words, phrases that are known being one word."""
    phrases = sorted((word for word in known if " " in word), key=len, reverse=True)
    pattern = re.compile("|".join([*(rf"\b{re.escape(phrase)}\b" for phrase in phrases), r"\w+(?:['’-]\w+)*"]))
    return lambda text: [tuple(pattern.findall(event)) for event in events(text.lower(), separator) if event.strip()]


def _compare(
    true: list[_Words], found: list[_Words], attribute_of: Mapping[str, str]
) -> tuple[str, list[tuple[_Words, list[_Pair]]]]:
    """The kind of a difference, and each true event with what differs in the event that it is matched with."""
    if true == found:
        return "same caption", []
    count = max(len(true), len(found))
    padded: list[_Words] = [*found, *[()] * (count - len(found))]
    true = [*true, *[()] * (count - len(true))]
    straight = tuple(range(count))
    orders = itertools.permutations(straight) if count <= _MOST_EVENTS else [straight]
    table = [[_differences(a, b, attribute_of) for b in padded] for a in true]
    cost = [[sum(max(_length(x), _length(y)) for x, y in cell) for cell in row] for row in table]
    # The first of equal ones is the order as it stands.
    best = min(orders, key=lambda order: sum(cost[i][j] for i, j in enumerate(order)))
    by_event = [(event, table[i][j]) for i, (event, j) in enumerate(zip(true, best))]
    if () in true or () in padded:
        return "number of events", by_event
    if best == straight:
        return "words", by_event
    return ("words and order" if any(pairs for _, pairs in by_event) else "order"), by_event


def _differences(a: _Words, b: _Words, attribute_of: Mapping[str, str]) -> list[_Pair]:
    """What stands in event b in place of what in event a.

    Of the stretches in which they differ, words of one attribute are paired, in the nearest stretches first. Of what is
    left, a stretch stands against a stretch, unless both hold words of other attributes: these have no counterpart.
    """
    if not a or not b:
        return [(a, b)] if a or b else []
    codes = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    stretches = [(list(a[i:j]), list(b[k:m])) for kind, i, j, k, m in codes if kind != "equal"]
    out: list[_Pair] = []
    numbers = range(len(stretches))
    for i, j in sorted(itertools.product(numbers, numbers), key=lambda ij: abs(ij[0] - ij[1])):
        out += _pair_attributes(stretches[i][0], stretches[j][1], attribute_of)
    for left, right in stretches:
        known = [[word for word in side if word in attribute_of] for side in (left, right)]
        if all(known):
            out += [((word,), ()) for word in known[0]] + [((), (word,)) for word in known[1]]
            left, right = ([word for word in side if word not in attribute_of] for side in (left, right))
        if len(left) == len(right):
            out += [((x,), (y,)) for x, y in zip(left, right)]
        else:
            out.append((tuple(left), tuple(right)))
    return out


def _pair_attributes(left: list[str], right: list[str], attribute_of: Mapping[str, str]) -> list[_Pair]:
    """Takes words of one attribute out of both lists, in pairs; a word that only stands elsewhere is no difference."""
    out: list[_Pair] = []
    for alike in (True, False):
        for word in [word for word in left if word in attribute_of]:
            others = [x for x in right if (x == word if alike else attribute_of.get(x) == attribute_of[word])]
            if others:
                left.remove(word)
                right.remove(others[0])
                out += [] if alike else [((word,), (others[0],))]
    return out


def _joined(differences: list[_Pair]) -> list[tuple[str, str]]:
    return [(" ".join(left), " ".join(right)) for left, right in differences]


def _length(words: _Words) -> int:
    return len(" ".join(words).split())
