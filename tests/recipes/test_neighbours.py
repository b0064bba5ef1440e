"""Singularity and VindLU: their losses, what they refuse, their frames and ensembles, and their configs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import singularity, smaug, vindlu
from vlp_jax import config as config_lib
from vlp_jax import validation
from vlp_jax.objectives import contrastive
from vlp_jax.recipes import recipe
from vlp_jax.types import UserError

KEY = jax.random.key(7)
SIZES = ("tiny", "small", "base")
DENSE = smaug.DENSE
COMMON = {**DENSE, "model.vision.positions": "relative", "model.vision.pool": "mean", "model.similarity": "frames"}
VARIANTS = {
    "singularity, one frame": {
        **COMMON,
        "recipe": "singularity",
        "model.vision.time_positions": "none",
        "input.frames": 1,
    },
    "singularity, three frames": {
        **COMMON,
        "recipe": "singularity",
        "model.vision.time_positions": "none",
        "model.temporal.layers": 1,
    },
    "singularity, contrast over time": {
        **COMMON,
        "recipe": "singularity",
        "model.vision.time_positions": "none",
        "model.temporal.layers": 1,
        "model.temporal.embed": True,
    },
    "vindlu": {
        **COMMON,
        "recipe": "vindlu",
        "model.vision.time_positions": "learned",
        "model.vision.temporal_attention": "zero_init",
    },
}


@pytest.fixture(scope="module")
def model(tiny_config, fake_tokenizer):
    """`model(name, changes)` -> (config, graph, params)."""

    @functools.cache
    def make(name, items):
        config = tiny_config({**VARIANTS[name], **dict(items)})
        validation.validate(config)
        with nnx.use_eager_sharding(False):
            return config, *nnx.split(recipe.build(config, fake_tokenizer, nnx.Rngs(0)))

    return lambda name, changes=None: make(name, tuple((changes or {}).items()))


@pytest.fixture(scope="module")
def frames_of(random_batch, tiny_config):
    """A batch with clips of as many frames as asked."""
    return lambda frames, size=4: random_batch(tiny_config({"input.frames": frames}), size)


# --- Losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_has_the_three_terms_and_trains_every_parameter(model, random_batch, name):
    config, graph, params = model(name)
    if name == "vindlu":  # from zero, so that what it scales has no gradient yet
        params["vision"]["blocks"]["time_scale"][...] = jnp.ones(3)

    @jax.jit
    def run(params, batch):
        def loss(params):
            out = nnx.merge(graph, params).loss(batch, KEY)
            return out.loss, out

        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, out), gradient = run(params, random_batch(config))
    assert set(out.terms) == {"vtc", "vtm", "mlm"}
    np.testing.assert_allclose(total, sum(float(a) / float(b) for a, b in out.terms.values()), rtol=1e-5)
    largest = max(abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(gradient))
    idle = {
        ".".join(map(str, path))
        for path, leaf in nnx.to_flat_state(gradient)
        if abs(np.asarray(leaf[...])).max() < 1e-8 * largest
    }
    assert idle == set()


def test_vtc_is_the_mean_over_frames_of_cosines(model, frames_of):
    _, graph, params = model("singularity, three frames", {"model.temporal.layers": 0})
    module, batch = nnx.merge(graph, params), frames_of(3)
    video, text = module.embed_video(batch.video), module.embed_text(batch.text_ids, batch.text_mask)
    # Without layers over time a frame's cosine is that of a clip of one frame.
    each = [contrastive.similarities(module.embed_video(batch.video[:, t : t + 1]), text, 1.0) for t in range(3)]
    np.testing.assert_allclose(contrastive.similarities(video, text, 1.0), np.mean(each, axis=0), atol=1e-5)
    out = module.loss(batch, KEY)
    valid = jnp.asarray(batch.valid)
    expected = contrastive.vtc(contrastive.Similarities(video, text, 0.07, jnp.asarray(batch.positive_id), valid))
    np.testing.assert_allclose(out.terms["vtc"], expected, rtol=1e-4)


def test_contrast_sees_the_order_of_frames_only_behind_the_layers_over_time(model, frames_of):
    video = frames_of(3).video
    for name, sees in (("singularity, three frames", False), ("singularity, contrast over time", True)):
        _, graph, params = model(name)
        params["temporal"]["time"][...] = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16)), jnp.float32)
        module = nnx.merge(graph, params)
        first, second = module.embed_video(video), module.embed_video(video[:, ::-1])
        assert (abs(np.asarray(first) - np.asarray(second)).max() > 1e-4) == sees
        # What is fused sees it in either.
        tokens = [np.asarray(module.encode_clip(v).tokens) for v in (video, video[:, ::-1])]
        assert abs(tokens[0] - tokens[1][:, ::-1]).max() > 1e-4


def test_embedding_a_clip_that_was_encoded_before_gives_the_same(model, frames_of):
    for name in VARIANTS:
        _, graph, params = model(name)
        module, video = nnx.merge(graph, params), frames_of(3).video
        np.testing.assert_allclose(module.embed_clip(module.encode_clip(video)), module.embed_video(video), atol=1e-5)


def test_vindlu_on_images_is_its_image_encoder_whatever_the_layers_over_time_hold(model, frames_of):
    _, graph, params = model("vindlu")
    image = frames_of(1).video
    before = np.asarray(nnx.merge(graph, params).embed_video(image))
    params["vision"]["blocks"]["time_scale"][...] = jnp.full(3, 9.0)
    np.testing.assert_array_equal(nnx.merge(graph, params).embed_video(image), before)


# --- Frames at test ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_trained_model_takes_any_number_of_frames(model, frames_of, name, frames):
    config, graph, params = model(name)
    module, batch = nnx.merge(graph, params), frames_of(frames)
    assert module.embed_video(batch.video).shape == (4, config.model.projection)
    words = module.encode_text(batch.text_ids, batch.text_mask)
    scores = module.match(module.encode_clip(batch.video), jnp.arange(4), words, batch.text_mask)
    assert np.isfinite(scores).all() and scores.shape == (4,)


@pytest.mark.parametrize("ensemble", ["mean", "max", "lse"])
def test_late_ensembles_put_together_a_score_for_each_frame(model, frames_of, ensemble):
    name = "singularity, one frame"
    _, graph, params = model(name, {"evaluation.ensemble": ensemble})
    module, batch = nnx.merge(graph, params), frames_of(3)
    words = module.encode_text(batch.text_ids, batch.text_mask)
    clip = jnp.array([2, 0, 0, 1, 3])
    texts, mask = words[jnp.array([0, 1, 2, 3, 0])], batch.text_mask[np.array([0, 1, 2, 3, 0])]
    got = module.match(module.encode_clip(batch.video), clip, texts, mask)
    one = nnx.merge(*model(name)[1:])  # concat, of clips of one frame
    each = [one.match(one.encode_clip(batch.video[:, t : t + 1]), clip, texts, mask) for t in range(3)]
    together = {"mean": np.mean, "max": np.max, "lse": lambda x, axis: np.log(np.exp(x).sum(axis))}[ensemble]
    np.testing.assert_allclose(got, together(np.stack(each), axis=0), atol=1e-4)


def test_early_fusion_is_none_of_the_late_ensembles(model, frames_of):
    batch, scores = frames_of(3), {}
    for ensemble in ("concat", "mean", "max", "lse"):
        _, graph, params = model("singularity, one frame", {"evaluation.ensemble": ensemble})
        module = nnx.merge(graph, params)
        words = module.encode_text(batch.text_ids, batch.text_mask)
        scores[ensemble] = np.asarray(
            module.match(module.encode_clip(batch.video), jnp.arange(4), words, batch.text_mask)
        )
    assert (scores["max"] >= scores["mean"]).all() and (scores["lse"] >= scores["max"]).all()
    assert all(abs(scores["concat"] - scores[late]).max() > 1e-4 for late in ("mean", "max", "lse"))


# --- Configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("singularity, one frame", "model.masking.kind", "tube"),
        ("singularity, one frame", "model.selection.frames", 2),
        ("singularity, one frame", "loss.mvm", 1.0),
        ("singularity, one frame", "model.vision.pool", "cls"),
        ("vindlu", "model.pruning.layers", (1,)),
        ("vindlu", "evaluation.ensemble", "max"),
    ],
)
def test_a_knob_that_the_recipe_has_no_use_for_is_refused(tiny_config, fake_tokenizer, name, key, value):
    config = tiny_config({**VARIANTS[name], key: value})
    with pytest.raises(UserError, match=re.escape(f"config.{key} = {value!r}: the recipe")):
        recipe.build(config, fake_tokenizer, nnx.Rngs(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.vision.positions": "relative", "model.vision.attention": "joint"}, "set attention=frame"),
        ({"model.vision.positions": "relative", "model.pruning.fused_token": True}, "set fused_token=False"),
        ({"model.vision.temporal_attention": "zero_init"}, "the same patches in every frame"),
        (
            {"model.vision.temporal_attention": "divided", "model.vision.attention": "joint"},
            "divided attention sees a frame at a time",
        ),
        ({"model.temporal.embed": True}, "set layers above 0"),
        ({"model.vision.cls": False}, r"config.model.pruning.layers = \(1,\) with config.model.vision.cls = False"),
        ({"model.vision.cls": False, "model.pruning.layers": ()}, "pool = 'cls' with config.model.vision.cls = False"),
        ({"model.vision.positions": "sequence"}, "set time_positions=none"),
        ({"model.text.causal": True}, "set text.pool=last"),
        ({"model.decoder.from_file": True}, "expected a ViT-MAE or VideoMAE to start from"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(tiny_config, changes, message):
    with pytest.raises(UserError, match=message):
        validation.validate(tiny_config(changes))


@pytest.mark.parametrize(
    "config",
    [
        *(
            singularity.get_config(f"{size}_{stage}")
            for size in ("tiny", "small", "base")
            for stage in singularity.STAGES
        ),
        *(vindlu.get_config(size) for size in SIZES),
    ],
    ids=lambda config: config.name,
)
def test_every_config_is_valid_and_its_recipe_takes_it(config):
    validation.validate(config)
    recipe.load(config)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_opponents_differ_from_dense_smaug_by_what_their_papers_differ(size):
    dense = config_lib.leaves(smaug.get_config(f"{size}_dense"))
    for config, own in (
        (singularity.get_config(f"{size}_stage1"), {**singularity.MODEL, **singularity.STAGES["stage1"]}),
        (vindlu.get_config(size), vindlu.MODEL),
    ):
        differs = {key for key, value in config_lib.leaves(config).items() if value != dense[key]}
        assert differs <= {*own, "name"}


def test_an_unknown_size_or_stage_is_refused():
    with pytest.raises(UserError, match="expected tiny, small or base"):
        singularity.get_config("small")
    with pytest.raises(UserError, match="expected tiny, small or base"):
        vindlu.get_config("huge")
