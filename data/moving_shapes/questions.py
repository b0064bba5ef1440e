"""Questions, multiple choice and classes about the clips of each split, made from what happens in them."""

import collections
import itertools
import json
import pathlib
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from data.moving_shapes.scenes import COLORS, MOTIONS, SHAPES, SIZES, SPLITS, Event, Scene, caption

_VALUES = {"size": SIZES, "color": tuple(COLORS), "shape": tuple(SHAPES), "motion": MOTIONS}
_COUNTS = ("zero", "one", "two")
ANSWERS = (*COLORS, *SHAPES, *SIZES, *MOTIONS, *_COUNTS, "yes", "no")  # every answer that a question may have
OPTIONS = 5


def write(directory: pathlib.Path, scenes: Sequence[Scene]) -> None:
    """Writes the annotation tables of `scenes` into `directory`, for each split that has clips.

    `qa_<split>.jsonl`, `mc_<split>.jsonl`, `cls_<split>.jsonl` (where a clip has one event) and `clips_<split>.txt`,
    the clip ids in the order of the records; `qa_answers.jsonl`, every answer and how often training questions have it.
    """
    plan = {split: [scene for scene in scenes if scene.split == split] for split in SPLITS}
    # What is true of a clip that evaluation asks about is no wrong option in training, or it would be learned as one.
    evaluated = frozenset(scene.caption for scene in scenes if scene.split != "train")
    counts: collections.Counter[str] = collections.Counter()
    for split, clips in plan.items():
        if not clips:
            continue
        asked = question_answering(clips)
        if split == "train":
            counts.update(row["answer"] for row in asked)
        _write_lines(directory / f"qa_{split}.jsonl", asked)
        forbidden = evaluated if split == "train" else frozenset()
        _write_lines(directory / f"mc_{split}.jsonl", (multiple_choice(scene, forbidden) for scene in clips))
        classes = classification(clips)
        if classes:
            _write_lines(directory / f"cls_{split}.jsonl", classes)
        ids = "".join(f"{scene.clip_id}\n" for scene in clips)
        (directory / f"clips_{split}.txt").write_text(ids, encoding="utf-8")
    answers = sorted(ANSWERS, key=lambda answer: (-counts[answer], answer))
    _write_lines(directory / "qa_answers.jsonl", ({"answer": a, "count": counts[a]} for a in answers))


def _write_lines(path: pathlib.Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --- Question answering -----------------------------------------------------------------------------------------------


def question_answering(scenes: Sequence[Scene]) -> list[dict]:
    """Returns one question of each type that applies to each clip: color, shape, size, motion, count and order.

    Each row holds question_id, clip_id, question, answer and type. Every description fits exactly one object of the
    clip. Where a clip allows several questions of a type, the one with the answer used least so far is taken, so that
    answers are as balanced as the clips allow.
    """
    used: collections.Counter = collections.Counter()
    rows = []
    for scene in scenes:
        rng = scene.rng(2)
        for kind, templates in _candidates(scene.events).items():
            # The template is drawn before the answer is balanced: the wording alone must not give the answer away.
            template = sorted(templates)[rng.integers(len(templates))]
            candidates = [templates[template][i] for i in rng.permutation(len(templates[template]))]
            question, answer = min(candidates, key=lambda qa: used[kind, template, qa[1]])
            used[kind, template, answer] += 1
            rows.append(
                {
                    "question_id": f"{scene.clip_id}_{kind}",
                    "clip_id": scene.clip_id,
                    "question": question,
                    "answer": answer,
                    "type": kind,
                }
            )
    return rows


def _candidates(events: tuple[Event, ...]) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Returns type -> template -> (question, answer) pairs, all unambiguous for a clip of these events."""
    asks = {
        "color": "what color is {}?",
        "shape": "what shape is {}?",
        "size": "is {} small or large?",
        "motion": "what does {} do?",
    }
    out: dict[str, dict[str, list[tuple[str, str]]]] = {
        kind: {kind: [(ask.format(d), getattr(e, kind)) for e in events for d in _descriptions(e, events, kind)]}
        for kind, ask in asks.items()
    }
    out["count"] = {"objects": [("how many objects are there?", _COUNTS[len(events)])]}
    for kind in ("size", "color", "shape"):
        out["count"][kind] = [
            (f"how many {_plural(kind, value)} are there?", _COUNTS[sum(getattr(e, kind) == value for e in events)])
            for value in _VALUES[kind]
        ]
    if len(events) == 2:
        out["order"] = {}
        for kind in ("color", "shape"):
            if getattr(events[0], kind) != getattr(events[1], kind):
                out["order"][kind] = [
                    (f"what {kind} is the object that acts {rank}?", getattr(event, kind))
                    for rank, event in zip(("first", "second"), events)
                ]
        names = [_descriptions(event, events, "motion") for event in events]
        out["order"]["before"] = [
            *((f"does {a} act before {b}?", "yes") for a, b in itertools.product(*names)),
            *((f"does {b} act before {a}?", "no") for a, b in itertools.product(*names)),
        ]
    filled = {kind: {name: pairs for name, pairs in templates.items() if pairs} for kind, templates in out.items()}
    return {kind: templates for kind, templates in filled.items() if templates}


def _descriptions(event: Event, events: tuple[Event, ...], hidden: str) -> list[str]:
    """Returns the descriptions of `event` by one or two attributes other than `hidden` that fit no other event."""
    kinds = [kind for kind in _VALUES if kind != hidden]
    out = []
    for chosen in [*itertools.combinations(kinds, 1), *itertools.combinations(kinds, 2)]:
        if sum(all(getattr(e, k) == getattr(event, k) for k in chosen) for e in events) == 1:
            words = ["the", *(getattr(event, k) for k in ("size", "color") if k in chosen)]
            words.append(event.shape if "shape" in chosen else "object")
            out.append(" ".join(words) + (f" that {event.motion}" if "motion" in chosen else ""))
    return out


def _plural(kind: str, value: str) -> str:
    if kind != "shape":
        return f"{value} objects"
    return f"{value}es" if value.endswith("s") else f"{value}s"


# --- Multiple choice --------------------------------------------------------------------------------------------------


def multiple_choice(scene: Scene, forbidden: Collection[str] = ()) -> dict:
    """Returns question_id, clip_id, options (5 captions, all different) and answer (index of the true one).

    Wrong options are near misses: the events in the other order, an attribute swapped between the two objects (the same
    words, bound otherwise), then one attribute of one object changed. A caption says everything about its clip, so
    one that differs is false. None shows a pairing held out from training or a circle that spins, unless the clip has
    such a pairing itself: a model must not tell wrong options by never having read them. None is among `forbidden`.
    """
    rng = scene.rng(3)
    events = scene.events
    wrong: list[tuple[Event, ...]] = []

    def add(option: tuple[Event, ...]) -> None:
        fits = all(e.possible and (not e.held_out or e in events) for e in option) and caption(option) not in forbidden
        if fits and option != events and option not in wrong and len(wrong) < OPTIONS - 1:
            wrong.append(option)

    if len(events) == 2:
        add(events[::-1])
        swaps = [_swap(events, kind) for kind in _VALUES]
        for i in rng.permutation(len(swaps))[:2]:
            add(swaps[i])
    # One attribute at a time, each kind once before any comes again.
    while len(wrong) < OPTIONS - 1:
        for i in rng.permutation(len(_VALUES)):
            add(_change(events, list(_VALUES)[i], rng))
    answer = int(rng.integers(OPTIONS))
    options = [caption(option) for option in wrong]
    options.insert(answer, scene.caption)
    return {"question_id": f"{scene.clip_id}_choice", "clip_id": scene.clip_id, "options": options, "answer": answer}


def _replace(event: Event, kind: str, value: str) -> Event:
    return Event(**{k: value if k == kind else getattr(event, k) for k in _VALUES})


def _swap(events: tuple[Event, ...], kind: str) -> tuple[Event, ...]:
    a, b = events
    return _replace(a, kind, getattr(b, kind)), _replace(b, kind, getattr(a, kind))


def _change(events: tuple[Event, ...], kind: str, rng: np.random.Generator) -> tuple[Event, ...]:
    which = int(rng.integers(len(events)))
    others = [value for value in _VALUES[kind] if value != getattr(events[which], kind)]
    changed = _replace(events[which], kind, others[rng.integers(len(others))])
    return tuple(changed if i == which else event for i, event in enumerate(events))


# --- Classification ---------------------------------------------------------------------------------------------------


def classification(scenes: Sequence[Scene]) -> list[dict]:
    """Returns clip_id and label of each clip with one event: its motion, which no single frame shows."""
    return [{"clip_id": scene.clip_id, "label": scene.events[0].motion} for scene in scenes if len(scene.events) == 1]
