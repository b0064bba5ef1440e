"""SMAUG as a whole: what its terms are made of, what may influence them, and what they train."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import byte_pairs
from vlp_jax import config as config_lib
from vlp_jax import validation
from vlp_jax.input.tokenizer import open_tokenizer
from vlp_jax.models.vision import patchify
from vlp_jax.objectives import contrastive, masked_vision
from vlp_jax.recipes import recipe
from vlp_jax.types import UserError

DENSE = {
    "model.masking.kind": "none",
    "model.masking.ratio": 0.0,
    "model.pruning.layers": (),
    "model.selection.frames": 0,
    "loss.mvm": 0.0,
}
VARIANTS = {
    "sparse": {},
    "dense": DENSE,
    "tube, joint, mean pool, survivors, fused token": {
        "model.masking.kind": "tube",
        "model.vision.attention": "joint",
        "model.vision.pool": "mean",
        "model.pruning.fused_token": True,
        "model.pruning.layers": (0, 2),
        "model.decoder.source": "survivors",
        "model.decoder.attention": "joint",
        "loss.vtc": 0.5,
        "loss.vtm": 2.0,
        "loss.mlm": 0.25,
        "loss.mvm": 3.0,
    },
    "block, tubelet 2, shared decoding, always": {
        "model.masking.kind": "block",
        "input.frames": 6,
        "model.vision.tubelet": 2,
        "model.decoder.share": 0.5,
        "model.text.mask_policy": "always",
    },
    "whole frames": {
        "model.masking.kind": "frame",
        "model.masking.ratio": 0.3,
        "model.decoder.attention": "joint",
    },
}
# The softmax over frames is blind to what shifts all their scores alike.
UNTRAINED = {"selector.frame.bias"}
KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def model(tiny_config, fake_tokenizer):
    """`model(name)` -> (config, graph, params) of a variant."""

    @functools.cache
    def make(name):
        config = tiny_config(VARIANTS[name])
        validation.validate(config)
        with nnx.use_eager_sharding(False):
            return config, *nnx.split(recipe.build(config, fake_tokenizer, nnx.Rngs(0)))

    return make


@pytest.fixture(scope="module")
def loss(model):
    """`loss(name)` -> jitted (params, batch, key) -> ((loss, Outputs), gradient)."""

    @functools.cache
    def make(name):
        _, graph, _ = model(name)

        def run(params, batch, key):
            out = nnx.merge(graph, params).loss(batch, key)
            return out.loss, out

        return jax.jit(jax.value_and_grad(run, has_aux=True))

    return make


@pytest.fixture(scope="module")
def call(model):
    """`call(name, method, *arguments)`: a method of a variant, compiled."""

    @functools.cache
    def make(name, method):
        _, graph, _ = model(name)
        return jax.jit(lambda params, *args: getattr(nnx.merge(graph, params), method)(*args))

    return lambda name, method, *args: make(name, method)(model(name)[2], *args)


@pytest.fixture(scope="module")
def batch(model, random_batch):
    return lambda name, **changes: dataclasses.replace(random_batch(model(name)[0]), **changes)


def means(out):
    return {name: float(total) / float(count) for name, (total, count) in out.terms.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_is_the_weighted_sum_of_its_terms_and_trains_every_parameter(model, loss, batch, name):
    config, _, params = model(name)
    (total, out), gradient = loss(name)(params, batch(name), KEY)
    weights = {term: weight for term, weight in config_lib.loss_weights(config).items() if weight}
    assert set(out.terms) == set(weights)
    assert np.isfinite(total)
    np.testing.assert_allclose(total, sum(weights[t] * mean for t, mean in means(out).items()), rtol=1e-5)
    largest = max(abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(gradient))
    idle = set()
    for path, leaf in nnx.to_flat_state(gradient):
        values = abs(np.asarray(leaf[...]))
        assert np.isfinite(values).all()
        layers = values.reshape(values.shape[0], -1).max(-1) if "blocks" in path else values.max()
        if (layers < 1e-8 * largest).any():
            idle.add(".".join(map(str, path)))
    assert idle <= UNTRAINED


def test_a_fresh_model_knows_nothing(model, loss, batch):
    """Terms near their value at chance: ln V for words, ln 2 for pairs, and about variance one for pixels."""
    _, out = loss("sparse")(model("sparse")[2], batch("sparse"), KEY)[0]
    found = means(out)
    assert abs(found["mlm"] - np.log(64)) < 0.5
    assert 0.5 < found["vtm"] < 2.5
    assert 0.9 < found["mvm"] < 2.5


# --- Invalid examples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sparse", "tube, joint, mean pool, survivors, fused token"])
def test_an_invalid_example_has_no_influence_on_loss_metrics_and_gradient(model, loss, batch, name):
    valid = np.array([True, True, False, True, True, False, True, True])
    first = batch(name, valid=valid)
    rng = np.random.default_rng(5)
    video, ids, mask, positive = (np.array(x) for x in (first.video, first.text_ids, first.text_mask, first.index))
    video[~valid] = rng.integers(0, 256, video[~valid].shape)
    ids[~valid], mask[~valid], positive[~valid] = 0, False, 3
    second = dataclasses.replace(first, video=video, text_ids=ids, text_mask=mask, positive_id=positive)
    params = model(name)[2]
    a, b = (loss(name)(params, x, KEY) for x in (first, second))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b)
    terms = a[0][1].terms
    assert float(terms["vtc"][1]) == 6
    assert float(terms["vtm"][1]) == 18
    config = model(name)[0]
    hidden = config_lib.grid(config)[1] - config_lib.visible_patches(config)[1]
    assert float(terms["mvm"][1]) == 6 * 3 * hidden


def test_terms_with_an_invalid_example_are_those_of_the_batch_without_it(model, loss, call, batch):
    """VTM is left out: which negatives are drawn depends on the number of candidates."""
    valid = np.array([True, True, False, True, True, False, True, True])
    full = batch("sparse", valid=valid)
    less = jax.tree.map(lambda x: x[valid], full)
    params = model("sparse")[2]
    a, b = loss("sparse")(params, full, KEY)[0][1].terms, call("sparse", "loss", less, KEY).terms
    for term in ("vtc", "mlm", "mvm"):
        np.testing.assert_allclose(a[term], b[term], rtol=1e-4)


def test_a_batch_without_any_valid_example_is_zero_and_trains_nothing(model, loss, batch):
    (total, out), gradient = loss("sparse")(model("sparse")[2], batch("sparse", valid=np.zeros(8, bool)), KEY)
    assert float(total) == 0
    assert all(float(x) == 0 for pair in out.terms.values() for x in pair)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def test_rows_without_any_negative_are_not_counted(model, loss, batch):
    _, out = loss("sparse")(model("sparse")[2], batch("sparse", positive_id=np.zeros(8, np.int32)), KEY)[0]
    assert float(out.terms["vtm"][1]) == 8  # the positive pairs alone
    # All texts are positives of all clips: the target is even, and its cross-entropy at least ln 8.
    assert float(out.terms["vtc"][0]) / 8 >= np.log(8) - 1e-4


# --- Random numbers ---------------------------------------------------------------------------------------------------


def test_masks_belong_to_examples_not_to_rows(model, loss, batch):
    """The same examples in another order give the same terms (VTM's draw depends on the order of its candidates)."""
    order = np.array([3, 0, 7, 1, 6, 2, 5, 4])
    first = batch("sparse")
    params = model("sparse")[2]
    a, b = (loss("sparse")(params, x, KEY)[0][1].terms for x in (first, jax.tree.map(lambda leaf: leaf[order], first)))
    for term in ("vtc", "mlm", "mvm"):
        np.testing.assert_allclose(a[term], b[term], rtol=1e-4)


def test_key_and_position_in_the_stream_change_the_masks(model, loss, batch):
    params = model("sparse")[2]
    run = lambda key, index: means(loss("sparse")(params, batch("sparse", index=index), key)[0][1])
    index = np.arange(8, dtype=np.int32)
    first, other_key, later = run(KEY, index), run(jax.random.key(12), index), run(KEY, index + 8)
    assert first == run(KEY, index)
    for term in first:
        assert first[term] != other_key[term]
        assert first[term] != later[term]


# --- Sparsification ---------------------------------------------------------------------------------------------------


def test_training_tries_every_frame_and_evaluation_keeps_the_best(model, batch):
    config, graph, params = model("sparse")
    texts, clip = jnp.zeros((200, config.model.text.width)), jnp.zeros(200, jnp.int32)

    def select(params, video, keys):
        module = nnx.merge(graph, params)
        encoded = module.vision(video)
        return module.select(encoded, texts, clip, keys)[0], module.select(encoded, texts, clip, None)[0]

    tried, best = jax.jit(select)(params, batch("sparse").video[:1], jax.random.split(jax.random.key(0), 200))
    assert {tuple(row) for row in np.asarray(tried).tolist()} == {(0, 1), (0, 2), (1, 2)}
    assert len({tuple(row) for row in np.asarray(best).tolist()}) == 1


def test_unmasked_tuning_sees_whole_clips_as_evaluation_does_and_rebuilds_nothing(model, call, batch):
    _, graph, params = model("sparse")
    b = batch("sparse")
    out = jax.jit(lambda params, batch: nnx.merge(graph, params).loss(batch, KEY, masked=False))(params, b)
    assert set(out.terms) == {"vtc", "vtm", "mlm"}
    v, w = call("sparse", "embed_video", b.video), call("sparse", "embed_text", b.text_ids, b.text_mask)
    valid = jnp.asarray(b.valid)
    expected = contrastive.vtc(contrastive.Similarities(v, w, 0.07, jnp.asarray(b.positive_id), valid))
    np.testing.assert_allclose(out.terms["vtc"], expected, rtol=1e-4)


# --- Loss weights -----------------------------------------------------------------------------------------------------

PARTS = {
    "vtc": {"text", "video_projection", "text_projection", "temperature"},
    "vtm": {"text", "video_projection", "text_projection", "fusion", "selector", "match_head"},
    "mlm": {"text", "fusion", "selector", "word_head"},
    "mvm": {"decoder"},
}


@pytest.mark.parametrize("terms", [("vtc",), ("vtm",), ("mlm",), ("mvm",), ("vtc", "mlm"), ("vtm", "mvm")], ids=str)
def test_a_weight_of_zero_removes_the_term_and_the_parts_it_alone_needs(
    tiny_config, fake_tokenizer, random_batch, terms
):
    config = tiny_config({f"loss.{term}": float(term in terms) for term in PARTS})
    batch = random_batch(config)

    def run():
        module: Any
        with nnx.use_eager_sharding(False):
            module = recipe.build(config, fake_tokenizer, nnx.Rngs(0))
        return nnx.state(module), module.loss(batch, KEY)

    params, out = jax.eval_shape(run)
    assert set(out.terms) == set(terms)
    assert {path[0] for path, _ in nnx.to_flat_state(params)} == {"vision"}.union(*(PARTS[term] for term in terms))


# --- Capabilities -----------------------------------------------------------------------------------------------------


def test_smaug_offers_every_capability(model):
    module = nnx.merge(*model("sparse")[1:])
    for capability in (recipe.Trainable, recipe.DualEncoder, recipe.Matcher, recipe.Reconstructor):
        recipe.require(module, capability, "the test")
    able = "object is not one: take a run of config.recipe = "
    with pytest.raises(UserError, match=f"rerank needs .* a Matcher; {able}singularity or smaug or vindlu"):
        recipe.require(object(), recipe.Matcher, "rerank")
    with pytest.raises(UserError, match=f"pictures needs .* a Reconstructor; {able}smaug$"):
        recipe.require(object(), recipe.Reconstructor, "pictures")


def test_an_unknown_recipe_is_refused(tiny_config, fake_tokenizer):
    with pytest.raises(UserError, match=re.escape("'smug': expected one of singularity, smaug, vindlu")):
        recipe.build(tiny_config({"recipe": "smug"}), fake_tokenizer, nnx.Rngs(0))


def test_a_tokenizer_without_a_mask_trains_all_but_masked_language_modelling(tiny_config, random_batch):
    tokenizer = open_tokenizer(byte_pairs.encoded(byte_pairs.train("clip", ["a red circle"])), 6)
    with pytest.raises(UserError, match=r"config.loss.mlm = 1.0, but the tokenizer has no .*\[MASK\].*loss.mlm=0"):
        recipe.build(tiny_config(), tokenizer, nnx.Rngs(0))
    config = tiny_config({"loss.mlm": 0.0, "model.text.whole_words": True})

    def run():
        module: Any
        with nnx.use_eager_sharding(False):
            module = recipe.build(config, tokenizer, nnx.Rngs(0))
        return module.loss(random_batch(config), KEY)

    assert set(jax.eval_shape(run).terms) == {"vtc", "vtm", "mvm"}


@pytest.mark.parametrize("name", ["sparse", "dense"])
def test_embeddings_have_unit_length(call, batch, name):
    b = batch(name)
    for out in (call(name, "embed_video", b.video), call(name, "embed_text", b.text_ids, b.text_mask)):
        assert out.shape == (8, 16)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, atol=1e-4)


def test_vtc_of_the_dense_recipe_is_that_of_its_embeddings(model, loss, call, batch):
    b = batch("dense", positive_id=np.array([0, 1, 2, 1, 4, 5, 6, 7], np.int32))
    v, w = call("dense", "embed_video", b.video), call("dense", "embed_text", b.text_ids, b.text_mask)
    valid = jnp.asarray(b.valid)
    total, _ = contrastive.vtc(contrastive.Similarities(v, w, 0.07, jnp.asarray(b.positive_id), valid))
    _, out = loss("dense")(model("dense")[2], b, KEY)[0]
    np.testing.assert_allclose(out.terms["vtc"][0], total, rtol=1e-4)
    np.testing.assert_allclose(out.measurements["temperature"][0], 0.07, rtol=1e-5)


def test_vtm_of_the_positives_is_that_of_match(model, loss, call, batch):
    """With one id for all there are no negatives: what remains is -log sigmoid(match) of the true pairs."""
    b = batch("dense", positive_id=np.zeros(8, np.int32))
    clips, words = call("dense", "encode_clip", b.video), call("dense", "encode_text", b.text_ids, b.text_mask)
    logits = np.asarray(call("dense", "match", clips, np.arange(8, dtype=np.int32), words, b.text_mask))
    _, out = loss("dense")(model("dense")[2], b, KEY)[0]
    np.testing.assert_allclose(out.terms["vtm"][0], np.log1p(np.exp(-logits)).sum(), rtol=1e-4)


def test_match_scores_each_pair_alone(call, batch):
    b = batch("sparse")
    clips, words = call("sparse", "encode_clip", b.video), call("sparse", "encode_text", b.text_ids, b.text_mask)
    match = lambda clip, text: np.asarray(
        call("sparse", "match", clips, np.asarray(clip, np.int32), words[np.array(text)], b.text_mask[text])
    )
    clip, text = [0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]
    first = match(clip, text)
    assert first.shape == (8,)
    assert first.dtype == np.float32
    order = np.array([7, 2, 0, 1, 6, 4, 5, 3])
    np.testing.assert_allclose(match(np.array(clip)[order], np.array(text)[order]), first[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(match([3] * 8, [3] * 8), first[3], rtol=1e-4, atol=1e-5)
    assert len(np.unique(first.round(5))) > 6


@pytest.mark.parametrize("name", ["sparse", "whole frames", "tube, joint, mean pool, survivors, fused token"])
def test_a_reconstruction_reports_the_choices_of_training(model, loss, call, batch, name):
    config, _, params = model(name)
    b = batch(name)
    got = jax.device_get(call(name, "reconstruct", b, KEY))
    slots, count = config_lib.grid(config)
    seen_slots, seen = config_lib.visible_patches(config)
    hidden_shape = (8, slots - seen_slots, count) if seen_slots < slots else (8, slots, count - seen)
    assert got.mask.visible.shape == (8, seen_slots, seen)
    assert got.mask.hidden.shape == hidden_shape
    assert got.predicted.shape == (*hidden_shape, 192)
    assert got.kept.shape[:2] == got.scores.shape == (8, seen_slots)
    assert got.frames.shape == (8, 2)
    assert (np.diff(got.frames, axis=-1) > 0).all()
    for row in range(8):
        visible = set(got.mask.visible[row].ravel().tolist())
        assert visible | set(got.mask.hidden[row].ravel().tolist()) == set(range(slots * count))
        assert set(got.kept[row].ravel().tolist()) < visible
        # The kept frames, by their number in the clip, are the visible ones of the highest scores.
        numbers = got.mask.visible[row, :, 0] // count
        best = sorted(numbers[np.argsort(-got.scores[row])[:2]].tolist())
        assert got.frames[row].tolist() == best
    # Its pixels have the very error that training reports: same masks, same decoder.
    patches = np.asarray(patchify(b.video, 8, 1)).reshape(8, slots * count, -1) / np.float32(127.5) - 1
    truth = np.take_along_axis(patches, got.mask.hidden.reshape(8, -1, 1), 1).reshape(got.predicted.shape)
    error, patches_counted = masked_vision.mvm(
        got.predicted, masked_vision.normalise_patches(jnp.asarray(truth)), jnp.asarray(b.valid)
    )
    _, out = loss(name)(params, b, KEY)[0]
    np.testing.assert_allclose(out.terms["mvm"], (error, patches_counted), rtol=1e-3)


# --- Golden numbers ---------------------------------------------------------------------------------------------------

GOLDEN = {
    "mlm": 4.17165,
    "mvm": 1.13801,
    "vtc": 4.72685,
    "vtm": 0.920858,
    "loss": 10.9574,
    "gradient norm": 128.11,
    "mlm count": 10.0,
    "mvm count": 96.0,
    "vtc count": 8.0,
    "vtm count": 24.0,
}


def test_one_step_gives_the_stored_numbers(model, loss, batch):
    (total, out), gradient = loss("sparse")(model("sparse")[2], batch("sparse"), KEY)
    norm = np.sqrt(sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(gradient)))
    found = {**means(out), "loss": float(total), "gradient norm": float(norm)}
    found |= {f"{name} count": float(count) for name, (_, count) in out.terms.items()}
    close = found.keys() == GOLDEN.keys() and all(np.isclose(found[name], GOLDEN[name], rtol=1e-3) for name in found)
    assert close, (
        "the numbers of one fixed training step changed. Where that was not intended, the last change altered the "
        "model, its initialisation, the masks or a loss. Where it was, say so in the commit and store\n"
        f"GOLDEN = { ({name: float(f'{value:.6g}') for name, value in found.items()}) }"
    )
