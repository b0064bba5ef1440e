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
      by_attribute: attribute -> of the queries that name it, those whose first hit has another; `order`, of the queries
        with several events, those whose first hit has them in another order, perhaps with other words.
      by_word: word of a group -> `(wrong, queries)`: of the queries that say it, those whose first hit says another.
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
    """Word or phrase -> its attribute.

    Raises:
      UserError: two attributes hold one word.
    """
    found: dict[str, str] = {}
    for attribute, words in groups.items():
        for word in words:
            if word in found:
                raise UserError(f"groups: {word!r} belongs to {found[word]!r} and to {attribute!r}: expected one")
            found[word] = attribute
    return found


def confusions(
    answers: Sequence[Answer], groups: Mapping[str, Sequence[str]] = MOVING_SHAPES, separator: str = SEPARATOR
) -> Confusions:
    """Counts what the first hits of missed queries have in place of what was asked for.

    An attribute can be confused only as far as the gallery holds clips that differ in it and are alike in the rest:
    what is compared, runs or attributes, must share a gallery.

    Args:
      answers: of `Retrieved.answers`.
      groups: attribute -> its words and phrases.
      separator: what stands between events.

    Raises:
      UserError: no answers, or a word that two attributes hold.
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
        events = split(answer.true)
        words = {word for event in events for word in event}
        unknown.update(word for event in events for word in event if word not in attribute_of)
        changed, ordered = set(), True
        if answer.rank > 1:
            difference = _compare(events, split(answer.found))
            kinds[difference.kind] += 1
            pairs.update(difference.substitutions)
            changed = {true for true, _ in difference.substitutions}
            ordered = "order" not in difference.kind
        asked = words & attribute_of.keys()
        words_asked.update(asked)
        words_wrong.update(asked & changed)
        for attribute in {attribute_of[word] for word in asked}:
            outcomes[attribute].append((any(attribute_of.get(word) == attribute for word in changed), answer.clip))
        if len(events) > 1:
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
    wrong as well. What one caption has more events is told as a whole.
    """
    split = _tokeniser([word for words in groups.values() for word in words], separator)
    return _compare(split(true), split(found))


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
    right.barh(labels, [count for _, count in rows], color="#D55E00", height=0.6)
    right.set_title(f"asked for → found, {len(rows)} of {len(found.substitutions)}", fontsize=10)
    right.set_xlabel("missed queries", fontsize=9)
    right.xaxis.get_major_locator().set_params(integer=True)
    plain_bars(right)
    return figure


def draw_shares(axis: Any, shares: Mapping[str, Share]) -> None:
    """Bars of what is wrong, in percent, with intervals and counts."""
    names, values = list(shares), np.array([100 * one.wrong / one.queries for one in shares.values()])
    ends = 100 * np.array([[one.low, one.high] for one in shares.values()]).reshape(-1, 2).T
    axis.barh(names, values, color="#0072B2", height=0.6)
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
    return lambda text: [tuple(pattern.findall(event)) for event in text.lower().split(separator) if event.strip()]


def _compare(true: list[tuple[str, ...]], found: list[tuple[str, ...]]) -> Difference:
    if true == found:
        return Difference("same caption", ())
    count = max(len(true), len(found))
    padded: list[tuple[str, ...]] = [*found, *[()] * (count - len(found))]
    true = [*true, *[()] * (count - len(true))]
    straight = tuple(range(count))
    orders = itertools.permutations(straight) if count <= _MOST_EVENTS else [straight]
    # The first of equal ones is the order as it stands.
    best = min(orders, key=lambda order: sum(_distance(a, padded[b]) for a, b in zip(true, order)))
    pairs = [pair for a, b in zip(true, best) for pair in _substitutions(a, padded[b])]
    if () in true or () in padded:
        return Difference("number of events", tuple(pairs))
    if best == straight:
        return Difference("words", tuple(pairs))
    return Difference("words and order" if pairs else "order", tuple(pairs))


def _substitutions(a: tuple[str, ...], b: tuple[str, ...]) -> list[tuple[str, str]]:
    """What stands in b in place of what in a: word by word where a stretch has as many, else the stretch."""
    if not a or not b:
        return [(" ".join(a), " ".join(b))] if a or b else []
    out = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "replace" and j - i == m - k:
            out += list(zip(a[i:j], b[k:m]))
        elif kind != "equal":
            out.append((" ".join(a[i:j]), " ".join(b[k:m])))
    return out


def _distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    return sum(max(len(x.split()), len(y.split())) for x, y in _substitutions(a, b))
