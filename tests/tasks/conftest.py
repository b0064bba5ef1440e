"""Batches with targets, as the input side fills them."""

import dataclasses

import numpy as np
import pytest

ANSWERS = 12  # C, of the tests' answer lists


def answer_tokens(count, length, seed=0):
    """`[CLS] words [SEP]` of 1 to `length` - 2 words, and their mask."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, length - 1, count)[:, None]
    place = np.arange(length)[None]
    ids = np.where(place == 0, 2, np.where(place == words + 1, 3, rng.integers(5, 64, (count, length))))
    return np.where(place <= words + 1, ids, 0).astype(np.int32), place <= words + 1


@pytest.fixture(scope="session")
def task_batch(random_batch):
    """`task_batch(config, seed=0)`: a batch with the targets of `config.task.kind`; O = 3 options, C = ANSWERS."""

    def build(config, seed=0, options=3):
        batch, rng = random_batch(config, seed=seed), np.random.default_rng(seed + 1)
        size, length = batch.text_ids.shape
        label = rng.integers(0, ANSWERS, size).astype(np.int32)
        if config.task.kind == "question_answering":
            ids, mask = answer_tokens(size, config.task.max_answer_tokens, seed)
            targets = {"label": label, "answer_ids": ids, "answer_mask": mask}
        elif config.task.kind == "multiple_choice":
            ids, mask = answer_tokens(size * options, length, seed)
            targets = {
                "option_ids": ids.reshape(size, options, length),
                "option_mask": mask.reshape(size, options, length),
                "label": label % options,
            }
        else:
            targets = {"label": label}
        return dataclasses.replace(batch, targets=targets)

    return build
