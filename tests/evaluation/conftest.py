"""A small source of questions, choices or labelled clips, with what goes wrong in real ones."""

import dataclasses

import jax
import pyarrow as pa
import pytest

from tests.input.conftest import _make_clip
from vlp_jax import sharding
from vlp_jax.input.sources import Record
from vlp_jax.input.wordpiece import WordPiece

WORDS = "red green blue yellow circle square left right up down what colour shape which way is it moving yes no".split()


class Source:
    """Records in memory; counts how often each is read with its clip."""

    name = "memory"

    def __init__(self, records, columns):
        self.records, self.columns, self.reads = list(records), frozenset(columns), []

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        self.reads.append(int(index))
        return self.records[int(index)]

    def annotation(self, index):
        return dataclasses.replace(self.records[int(index)], video=b"")

    def column(self, name):
        assert name == "options"
        yield pa.array([list(record.options) for record in self.records], pa.list_(pa.string()))


def make_vocabulary():
    """A tokenizer of a few words, L = 6."""
    vocabulary = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n"
    return WordPiece(vocabulary.encode(), 6, "vocab.txt", True)


@pytest.fixture(scope="session")
def tokenizer():
    return make_vocabulary()


@pytest.fixture(scope="session")
def clips():
    """Bytes of five clips; the last does not decode."""
    return [*(_make_clip(count=8, seed=seed) for seed in range(4)), b"no video"]


@pytest.fixture(scope="session")
def one_device(tiny_config):
    return sharding.make_mesh(tiny_config(), jax.devices()[:1])


@pytest.fixture(scope="session")
def questions(clips):
    """12 questions on 5 clips: clip 0 begins with a malformed one, clip 3 has nothing else, clip 4 does not decode."""
    rows = [
        (0, "", "red", "what"),  # empty question
        (0, "what colour is it", "red", "what"),
        (1, "what shape is it", "circle", "what"),
        (0, "which way is it moving", "Left ", "which"),
        (2, "what colour is it what colour is it", "blue", "what"),  # cut
        (1, "is it moving up", "no", ""),
        (3, "what shape", " ", "what"),  # empty answer
        (4, "what colour", "green", "what"),  # no clip
        (4, "which way", "down", "which"),
        (2, "which way", "sideways", "which"),  # not in the list
        (2, "is it red", "yes", ""),
        (0, "is it blue", "no", ""),
    ]
    records = [
        Record(clips[clip], question, f"clip{clip}", question_id=f"q{i}" if i else "", answer=answer, type=kind)
        for i, (clip, question, answer, kind) in enumerate(rows)
    ]
    return lambda: Source(records, {"question", "answer", "type", "question_id"})
