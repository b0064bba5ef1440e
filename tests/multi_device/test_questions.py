"""Answers, choices and classes are the same on one device and on eight.

JAX fixes the number of devices when it starts, so the evaluators run in a process of their own.
"""

import pytest

SCRIPT = """
import json
import jax
import numpy as np
from tests.conftest import TINY
from tests.evaluation.conftest import WORDS, Source, make_vocabulary
from tests.input.conftest import _make_clip
from vlp_jax import config as config_lib, sharding, state as state_lib
from vlp_jax.evaluation import classification, multiple_choice, question_answering
from vlp_jax.input.answers import AnswerList
from vlp_jax.input.sources import Record

jax.config.update("jax_disable_most_optimizations", True)
assert len(jax.devices()) == 8
rng = np.random.default_rng(0)
clips = [_make_clip(count=8, seed=seed) for seed in range(5)]
text = lambda count: " ".join(rng.choice(WORDS, count))
numbers = rng.integers(0, 5, 40)
asked = [Record(clips[n], text(3), f"c{n}", answer=WORDS[int(rng.integers(12))]) for n in numbers]
chosen = [Record(clips[n], "", f"c{n}", options=(text(1), text(2), text(3)), answer="1") for n in numbers]
classes = [Record(clip, "", f"c{n}", answer=WORDS[n]) for n, clip in enumerate(clips)]
sources = {
    "question_answering": (question_answering.QuestionAnswering, Source(asked, {"question", "answer"})),
    "multiple_choice": (multiple_choice.MultipleChoice, Source(chosen, {"options", "answer"})),
    "classification": (classification.Classification, Source(classes, {"label"})),
}
tokenizer, answers, out = make_vocabulary(), AnswerList(tuple(WORDS[:12])), {}
for devices in (1, 8):
    for kind, (evaluator, source) in sources.items():
        changes = {"task.kind": kind, "task.shortlist": 5, "mesh.data": devices, "evaluation.batch_size": 8}
        config = config_lib.update(config_lib.defaults(), {**TINY, **changes, "evaluation.bootstrap": 20})
        mesh = sharding.make_mesh(config, jax.devices()[:devices])
        setup = state_lib.setup(config, tokenizer, mesh, 10, len(answers))
        with sharding.use_mesh(mesh):
            params = setup.create().params
        result = evaluator(
            setup.graph, setup.abstract.params, config, source, tokenizer, mesh, answers=answers
        ).run(params)
        out[f"{kind} on {devices}"] = result
print(json.dumps(out))
"""


@pytest.mark.slow
def test_results_on_eight_devices_are_those_of_one(on_eight_devices):
    results = on_eight_devices(SCRIPT)
    for kind, questions in (("question_answering", 40), ("multiple_choice", 40), ("classification", 5)):
        one, eight = results[f"{kind} on 1"], results[f"{kind} on 8"]
        assert one["questions"] == questions and one["undecodable"] == 0
        said = [row["predicted"] for row in one["per_query"]]
        assert all(said) and len(set(said)) > 1, said
        assert eight == one
