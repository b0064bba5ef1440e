"""The evaluators of questions, choices and classes against plain loops, on models whose every score is known."""

import collections
import types

import hypothesis
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from flax import nnx
from hypothesis import strategies as st

from tests.evaluation import stand_in
from tests.evaluation.stand_in import WORDS, Lookup, Numbers
from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax.evaluation import classification, multiple_choice, question_answering
from vlp_jax.input import video
from vlp_jax.input.answers import AnswerList
from vlp_jax.input.sources import Record
from vlp_jax.tasks.classification import Classification
from vlp_jax.tasks.question_answering import QuestionAnswering

ANSWERS = AnswerList(("1", "2", "3 of a kind", "4"))
# The answer that a row gives -> its number in the list: spaces and case do not count.
WRITTEN = {"1": 0, " 2": 1, "3 Of A Kind": 2, "4": 3, "5": -1, " ": None}
odd_inputs = hypothesis.settings(
    max_examples=40, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
seeds = st.integers(0, 2**32 - 1)


class Answers(QuestionAnswering):
    """Scores of (clip, question, answer) from a table."""

    def __init__(self, table_CxUxA):
        self.recipe = Lookup(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)))
        self.table, self.decodes = nnx.Param(jnp.asarray(table_CxUxA)), False
        self.head = types.SimpleNamespace(out=types.SimpleNamespace(kernel=np.zeros((1, table_CxUxA.shape[-1]))))

    def answer(self, clips, clip_P, ids_PxL, mask_PxL, answer_ids, answer_mask):
        return self.table[...][clips["number"][clip_P], ids_PxL[:, 1]]


class Classes(Classification):
    """Scores of (clip, class) from a table."""

    def __init__(self, table_CxA):
        self.table, self.head = nnx.Param(jnp.asarray(table_CxA)), types.SimpleNamespace(kernel=table_CxA)

    def classify(self, video):
        return self.table[...][stand_in.clip_numbers(video)]


class Source:
    """Records in memory."""

    name = "rows"

    def __init__(self, records, columns):
        self.records, self.columns = records, frozenset(columns)

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[int(index)]

    annotation = __getitem__

    def column(self, name):
        yield pa.array([list(record.options) for record in self.records], pa.list_(pa.string()))


@pytest.fixture(autouse=True)
def decoder(monkeypatch):
    monkeypatch.setattr(video, "decode", stand_in.decode)


@pytest.fixture
def evaluate(tiny_config):
    """`evaluate(Evaluator, model, source, batch_size, kind)` -> the result."""

    def run(evaluator, model, source, batch_size, kind):
        config = tiny_config({"evaluation.bootstrap": 0, "task.kind": kind})
        config_lib.update(config, {"evaluation.batch_size": batch_size})
        graph, params = nnx.split(model)
        made = evaluator(graph, params, config, source, Numbers(), sharding.make_mesh(config), answers=ANSWERS)
        return made.run(params)

    return run


def clips_of(rng, rows):
    """Numbers of the clips that `rows` rows are about, and which of them do not decode."""
    count = int(rng.integers(1, 6))
    return rng.integers(0, count, rows).tolist(), set(np.flatnonzero(rng.random(count) < 0.25).tolist()), count


def scores(rng, *shape):
    """Ties, and now and then no number."""
    out = rng.integers(0, 4, shape).astype(np.float32)
    out[rng.random(shape) < 0.15] = np.nan
    return out


def first_best(row):
    """The first of the highest scores; None where none is a number."""
    found = None
    for number, score in enumerate(row):
        if np.isfinite(score) and (found is None or score > row[found]):
            found = number
    return found


def check_counts(result, rows, broken, problems, hits):
    """What every evaluator counts, of rows `(clip, type)`; `hits` says which are right."""
    fine = [not problem for problem in problems]
    lost = [ok and clip in broken for ok, (clip, _) in zip(fine, rows)]
    assert (result["questions"], result["clips"]) == (len(rows), len({clip for clip, _ in rows}))
    assert [row["correct"] for row in result["per_query"]] == [int(hit) for hit in hits]
    assert result["accuracy"] == pytest.approx(100 * sum(hits) / len(rows))
    assert result["lost_questions"] == sum(lost)
    assert sorted(clip["clip_id"] for clip in result["bad_clips"]) == sorted(
        {f"clip {clip}" for (clip, _), gone in zip(rows, lost) if gone}
    )
    assert [odd["error"] for odd in result["malformed_questions"]] == [problem for problem in problems if problem]
    kinds = sorted({kind for _, kind in rows})
    for kind in kinds if kinds != [""] else []:
        chosen = [hit for hit, (_, own) in zip(hits, rows) if own == kind]
        row = result["by_type"][kind or "(none)"]
        assert (row["count"], row["accuracy"]) == (len(chosen), pytest.approx(100 * sum(chosen) / len(chosen)))
    assert len(result["by_type"]) == (len(kinds) if kinds != [""] else 0)


def payload(clip, broken):
    return b"broken" if clip in broken else bytes([clip])


@odd_inputs
@hypothesis.given(seeds, st.integers(1, 9), st.integers(1, 4))
def test_answers_are_the_first_best_of_the_list_and_every_question_counts(evaluate, seed, count, batch_size):
    rng = np.random.Generator(np.random.Philox(seed))
    clips, broken, total = clips_of(rng, count)
    words = rng.integers(0, WORDS, count).tolist()
    given, kinds = rng.choice(list(WRITTEN), count).tolist(), rng.choice(["", "what", "is"], count).tolist()
    table = scores(rng, total, WORDS, len(ANSWERS))
    records = [
        Record(payload(clip, broken), str(word) if word else "", f"clip {clip}", answer=answer, type=kind)
        for clip, word, answer, kind in zip(clips, words, given, kinds)
    ]
    source = Source(records, {"question", "answer", "type"})
    result = evaluate(question_answering.QuestionAnswering, Answers(table), source, batch_size, "question_answering")
    problems = [
        "empty question" if not word else "empty answer" if WRITTEN[answer] is None else ""
        for word, answer in zip(words, given)
    ]
    said = [
        None if problem or clip in broken else first_best(table[clip, word])
        for clip, word, problem in zip(clips, words, problems)
    ]
    hits = [number is not None and number == WRITTEN[answer] for number, answer in zip(said, given)]
    check_counts(result, list(zip(clips, kinds)), broken, problems, hits)
    assert [row["predicted"] for row in result["per_query"]] == [
        "" if number is None else ANSWERS.texts[number] for number in said
    ]
    outside = sum(not problem and WRITTEN[answer] == -1 for problem, answer in zip(problems, given))
    reachable = sum(not problem and WRITTEN[answer] != -1 for problem, answer in zip(problems, given))
    assert result["outside_answers"] == outside
    assert result["upper_bound"] == pytest.approx(100 * reachable / count)


@odd_inputs
@hypothesis.given(seeds, st.integers(1, 9), st.integers(1, 4))
def test_the_option_above_all_others_is_taken_and_every_choice_counts(evaluate, seed, count, batch_size):
    rng = np.random.Generator(np.random.Philox(seed))
    clips, broken, total = clips_of(rng, count)
    lengths = np.where(rng.random(count) < 0.2, rng.integers(2, 5, count), 3).tolist()
    options = [rng.integers(0 if rng.random() < 0.2 else 1, WORDS, n).tolist() for n in lengths]
    answers = rng.choice(["0", "1", " 2 ", "3", "-1", "red", ""], count).tolist()
    table = scores(rng, total, WORDS)
    records = [
        Record(
            payload(clip, broken), "", f"clip {clip}", options=tuple(str(w) if w else " " for w in row), answer=answer
        )
        for clip, row, answer in zip(clips, options, answers)
    ]
    model = Lookup(np.zeros((total, 1)), np.zeros((WORDS, 1)), table)
    source = Source(records, {"options", "answer"})
    result = evaluate(multiple_choice.MultipleChoice, model, source, batch_size, "multiple_choice")
    asked = collections.Counter(lengths).most_common(1)[0][0]

    def problem(row, answer):
        if len(row) != asked:
            return f"{len(row)} options where the data set has {asked}"
        if 0 in row:
            return f"empty option {row.index(0)}"
        if answer.strip() not in [str(n) for n in range(asked)]:
            return f"the answer {answer!r} is none of the options 0 to {asked - 1}"
        return ""

    problems = [problem(row, answer) for row, answer in zip(options, answers)]
    hits, ties = [], 0
    for clip, row, answer, odd in zip(clips, options, answers, problems):
        if odd or clip in broken:
            hits.append(False)
            continue
        values = [-np.inf if np.isnan(table[clip, word]) else table[clip, word] for word in row]
        true = values.pop(int(answer))
        hits.append(true > max(values))
        ties += true == max(values) > -np.inf
    check_counts(result, [(clip, "") for clip in clips], broken, problems, hits)
    assert (result["options"], result["ties"]) == (asked, ties)


@odd_inputs
@hypothesis.given(seeds, st.integers(1, 9), st.integers(1, 4))
def test_a_clips_class_is_the_first_best_and_every_clip_counts(evaluate, seed, count, batch_size):
    rng = np.random.Generator(np.random.Philox(seed))
    broken = set(np.flatnonzero(rng.random(count) < 0.25).tolist())
    given = rng.choice(list(WRITTEN), count).tolist()
    table = scores(rng, count, len(ANSWERS))
    records = [Record(payload(n, broken), "", f"clip {n}", answer=label) for n, label in enumerate(given)]
    source = Source(records, {"label"})
    result = evaluate(classification.Classification, Classes(table), source, batch_size, "classification")
    problems = ["empty class" if WRITTEN[label] is None else "" for label in given]
    said = [None if p or n in broken else first_best(table[n]) for n, p in enumerate(problems)]
    hits = [number is not None and number == WRITTEN[label] for number, label in zip(said, given)]
    check_counts(result, [(n, "") for n in range(count)], broken, problems, hits)
    assert result["outside_answers"] == sum(WRITTEN[label] == -1 for label in given)
