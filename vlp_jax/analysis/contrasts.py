"""What a run can tell apart whatever its gallery holds: each clip's caption against the same one with one word changed.

Retrieval confuses only what its gallery offers. Here every caption is made wrong in one attribute, by another word of
the attribute's group, or by reversing its events, and the clip must be more similar to the true one (the foils of
FOIL-COCO, Shekhar et al., ACL 2017, and of Winoground, Thrush et al., CVPR 2022). Chance is 50%.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vlp_jax.analysis import drawing
from vlp_jax.analysis.loading import Loaded
from vlp_jax.analysis.retrieval import Retrieved
from vlp_jax.analysis.word_errors import (
    MOVING_SHAPES,
    ORDER,
    SEPARATOR,
    Share,
    attributes,
    draw_shares,
    events,
    plain_bars,
    share,
)
from vlp_jax.types import UserError

_BATCH = 256  # texts encoded at once


@dataclasses.dataclass(frozen=True)
class Foil:
    """A caption made wrong.

    Attributes:
      query: number of the caption.
      text: what it was made to.
      attribute: what is wrong, a group's name or `order`.
      word: the true word that was replaced, in lower case; '' for `order`.
    """

    query: int
    text: str
    attribute: str
    word: str


@dataclasses.dataclass(frozen=True)
class MinimalPairs:
    """How often clips preferred the foil; a tie counts as if they had.

    Attributes:
      by_attribute: group, or `order` -> shares of the foils that are wrong in it.
      by_word: true word -> the same of the foils that replace it.
    """

    by_attribute: dict[str, Share]
    by_word: dict[str, Share]


def foils(
    texts: Sequence[str], groups: Mapping[str, Sequence[str]] = MOVING_SHAPES, separator: str = SEPARATOR, seed: int = 0
) -> list[Foil]:
    """Makes a foil for each word of a group in each caption, and one of its events in reverse order.

    The other word is drawn uniformly from the rest of its group.

    Args:
      texts: Q captions.
      groups: attribute -> its words and phrases; a group of a single word makes no foil. Case does not count.
      separator: what stands between events.

    Raises:
      UserError: a word that two attributes hold, or an empty separator.
    """
    attribute_of = attributes(groups)
    longest_first = sorted(map(re.escape, attribute_of), key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(longest_first)})\b", re.IGNORECASE) if longest_first else None
    rng = np.random.default_rng(seed)
    found = []
    for query, text in enumerate(texts):
        for match in pattern.finditer(text) if pattern else ():
            word = match.group().lower()
            others = [x for x, attribute in attribute_of.items() if attribute == attribute_of[word] and x != word]
            if others:
                other = others[rng.integers(len(others))]
                foil = text[: match.start()] + other + text[match.end() :]
                found.append(Foil(query, foil, attribute_of[word], word))
        parts = events(text, separator)
        if [part.lower() for part in parts] != [part.lower() for part in parts[::-1]]:
            found.append(Foil(query, separator.join(parts[::-1]), ORDER, ""))
    return found


def minimal_pairs(
    loaded: Loaded,
    retrieved: Retrieved,
    groups: Mapping[str, Sequence[str]] = MOVING_SHAPES,
    separator: str = SEPARATOR,
    seed: int = 0,
) -> MinimalPairs:
    """Scores the foils of all captions whose clip decoded against the captions themselves.

    Args:
      retrieved: `retrieve(loaded)`.
      groups, separator, seed: as in `foils`.

    Raises:
      UserError: no caption has a word of a group or several events.
    """
    c = retrieved.captions
    good = c.valid_Q & retrieved.ranks.valid_C[c.clip_Q]
    made = [foil for foil in foils(c.texts, groups, separator, seed) if good[foil.query]]
    if not made:
        raise UserError(
            f"no caption of split {retrieved.split!r} has a word of groups = {dict(groups)} or several events: give "
            "groups of words that its captions have, such as {'colour': ('red', 'green')}"
        )
    query = np.array([foil.query for foil in made])
    clips = retrieved.ranks.clips_CxE[c.clip_Q[query]]
    # Together, as the embedding of a text differs by rounding with the batch that it is in.
    both = _embed(loaded, [*(foil.text for foil in made), *(c.texts[foil.query] for foil in made)])
    foil_NxE, true_NxE = both[: len(made)], both[len(made) :]
    wrong = (clips * foil_NxE).sum(1) >= (clips * true_NxE).sum(1)
    attribute: dict[str, list[tuple[bool, int]]] = collections.defaultdict(list)
    word: dict[str, list[tuple[bool, int]]] = collections.defaultdict(list)
    for foil, bad in zip(made, wrong.tolist()):
        outcome = bad, int(c.clip_Q[foil.query])
        attribute[foil.attribute].append(outcome)
        if foil.word:
            word[foil.word].append(outcome)
    return MinimalPairs(
        {name: share(attribute[name]) for name in (*groups, ORDER) if attribute[name]},
        {name: share(word[name]) for name in attributes(groups) if word[name]},
    )


def draw_minimal_pairs(found: MinimalPairs, title: str = "") -> Figure:
    """Draws how often clips preferred a foil, by attribute and by the word that it replaces."""
    figure = Figure(figsize=(10, 1.6 + 0.17 * max(len(found.by_word), 10)), layout="constrained")
    figure.suptitle(f"{title}: clips that prefer a caption with one thing wrong".removeprefix(": "), fontsize=11)
    left, right = figure.subplots(1, 2)
    draw_shares(left, found.by_attribute)
    left.set_title("what is wrong", fontsize=10)
    names = list(found.by_word)
    shares = [found.by_word[name] for name in names]
    right.barh(names, [100 * one.wrong / one.queries for one in shares], color=drawing.ORANGE, height=0.6)
    right.set_title("the word that is replaced", fontsize=10)
    plain_bars(right)
    for axis in (left, right):
        axis.axvline(50, color="black", linestyle=":", linewidth=1)
        axis.set_xlim(0, max(60, axis.get_xlim()[1]))
        axis.set_xlabel("% of the foils; dotted: chance", fontsize=9)
    return figure


def _embed_text(model: Any, ids: Any, mask: Any) -> Any:
    return model.embed_text(ids, mask)


def _embed(loaded: Loaded, texts: Sequence[str]) -> np.ndarray:
    """Embeddings of texts, float32 `[N, E]`; each distinct one is encoded once, so that equal ones tie."""
    ids, mask, _ = loaded.run.tokenizer.encode(texts)
    rows, back = np.unique(np.concatenate([ids, mask], axis=1), axis=0, return_inverse=True)
    ids, mask = rows[:, : ids.shape[1]].astype(ids.dtype), rows[:, ids.shape[1] :].astype(mask.dtype)
    parts = []
    for start in range(0, len(rows), _BATCH):
        own = np.minimum(np.arange(start, start + _BATCH), len(rows) - 1)  # one shape, compiled once
        parts.append(loaded.apply(_embed_text, ids[own], mask[own]))
    return np.concatenate(parts)[: len(rows)][back.reshape(-1)]
