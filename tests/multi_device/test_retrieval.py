"""Ranking and matching on one device and on eight: the same numbers, and no clip's tokens between devices."""

import math
import re

import numpy as np
import pytest

from vlp_jax import config as config_lib

MESHES = {"one device": {}, "data=8": {"data": 8}, "data=2, fsdp=2, tensor=2": {"data": 2, "fsdp": 2, "tensor": 2}}

SCRIPT = """
import json, math, re, sys, types
import jax, numpy as np
from flax import nnx
from vlp_jax import config as config_lib, sharding, state as state_lib
from vlp_jax.evaluation import pairs, ranking

jax.config.update("jax_disable_most_optimizations", True)
assert len(jax.devices()) == 8
job = json.load(sys.stdin)
rng = np.random.Generator(np.random.Philox(0))
config = config_lib.from_json(job["config"])
i = config.input
CLIPS, TEXTS, BLOCK = 13, 20, 8
video = rng.integers(0, 256, (CLIPS + 3, i.frames, i.image_size, i.image_size, 3), np.uint8)
ids = rng.integers(5, 64, (TEXTS, i.max_text_tokens)).astype(np.int32)
mask = np.arange(i.max_text_tokens)[None] < rng.integers(3, i.max_text_tokens, TEXTS)[:, None]
chosen = rng.random((CLIPS, TEXTS)) < 0.6
chosen[4] = False  # a clip without any pair
clip_P, text_P = np.nonzero(chosen)
# Whole numbers: their scores are exact.
queries, gallery = rng.integers(-2, 3, (300, 3)), rng.integers(-2, 3, (150, 3))
own, groups, valid = rng.integers(0, 40, 300), np.arange(150) % 40, rng.random(150) < 0.9
out = {}
for name, axes in job["meshes"].items():
    own_config = config.copy_and_resolve_references()
    config_lib.update(own_config, {"mesh.data": 1, **{f"mesh.{axis}": size for axis, size in axes.items()}})
    mesh = sharding.make_mesh(own_config, jax.devices()[: math.prod(axes.values())])
    run = state_lib.setup(own_config, types.SimpleNamespace(**job["tokenizer"]), mesh, 10)
    with sharding.use_mesh(mesh):
        ranked = ranking.rank(queries, gallery, own, groups, valid, mesh=mesh, shortlist=9)
        params = run.create().params
        encode = jax.jit(lambda params, x: nnx.merge(run.graph, params).encode_clip(x))
        read = jax.jit(lambda params, *x: nnx.merge(run.graph, params).encode_text(*x))
        words = jax.device_get(read(params, ids, mask))
        whole = [
            (start, jax.device_get(encode(params, sharding.to_global(video[start : start + BLOCK], mesh))))
            for start in range(0, CLIPS, BLOCK)
        ]
        results = {}
        for size in (8, 48, 1024):
            scorer = pairs.PairScorer(run.graph, mesh, size)
            results[str(size)] = scorer.score(params, iter(whole), clip_P, text_P, words, mask).tolist()
        match = jax.jit(lambda params, *x: nnx.merge(run.graph, params).match(*x))
        direct = []
        for clip, text in zip(clip_P, text_P):
            block = jax.tree.map(lambda x: x[clip % BLOCK][None], whole[clip // BLOCK][1])
            one = (np.zeros(1, np.int32), words[text][None], mask[text][None])
            if name == "one device":
                direct.append(float(match(params, block, *one)[0]))
        # What a call of eight devices sends between them.
        shown = jax.tree.map(lambda x: x[: scorer.ways * scorer.clips], whole[0][1])
        shown = jax.tree.map(lambda x: np.concatenate([x] * 64)[: scorer.ways * scorer.clips], shown)
        first = np.zeros(scorer.ways * scorer.pairs, np.int32)
        args = sharding.to_global((shown, first, words[first], mask[first]), mesh)
        text = scorer._match.lower(params, *args).compile().as_text()
        kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
        sent = re.findall(rf"= (\\S+) (?:{kinds})(?:-start)?\\(", text)
        tokens = shown.tokens.shape
    out[name] = {
        "rank": ranked.rank_Q.tolist(),
        "shortlist": ranked.shortlist_QxK.tolist(),
        "listed": ranked.listed_QxK.tolist(),
        "logits": results,
        "direct": direct,
        "sent": sent,
        "tokens": tokens,
    }
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def results(tiny_config, fake_tokenizer, on_eight_devices):
    job = {"config": config_lib.to_json(tiny_config()), "meshes": MESHES, "tokenizer": vars(fake_tokenizer)}
    return on_eight_devices(SCRIPT, job)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "one device"])
def test_ranks_and_shortlists_on_many_devices_are_those_of_one(results, mesh):
    for what in ("rank", "shortlist", "listed"):
        assert results[mesh][what] == results["one device"][what]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("size", ["8", "48", "1024"])
def test_pairs_scored_many_at_once_have_the_logits_of_each_alone(results, mesh, size):
    direct = np.array(results["one device"]["direct"])
    assert len(direct) > 100 and np.ptp(direct) > 1e-3
    np.testing.assert_allclose(results[mesh]["logits"][size], direct, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_matching_sends_nothing_between_devices_that_hold_whole_parameters(results):
    assert results["data=8"]["sent"] == []


@pytest.mark.slow
def test_matching_with_split_parameters_sends_no_tokens_of_clips(results, tiny_config):
    """Parameters are collected, and the sums that split heads make over the words, `[pairs, L, D]`, are added up."""
    config = tiny_config()
    words = [config.input.max_text_tokens, config.model.text.width]
    sent = [
        [int(size) for size in re.search(r"\[(.*?)\]", shape)[1].split(",")]
        for shape in results["data=2, fsdp=2, tensor=2"]["sent"]
    ]
    other = [shape for shape in sent if shape[1:] != words]
    assert other  # the parameters
    of_a_device = math.prod(results["data=8"]["tokens"]) // 4
    assert max(map(math.prod, other)) < of_a_device
