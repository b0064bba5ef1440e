"""Recipes on precomputed features: their losses train every parameter, and a bad clip changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax import validation
from vlp_jax.recipes import recipe

COMMON = {
    **{"input.features.path": "features", "input.features.width": 5, "model.vision.positions": "none"},
    **{"model.masking.kind": "none", "model.masking.ratio": 0.0, "model.pruning.layers": (), "loss.mvm": 0.0},
    **{"model.vision.layers": 1, "model.text.layers": 1},
}
ALIKE = {**COMMON, "model.selection.frames": 0, "model.vision.pool": "mean"}
VARIANTS = {
    "smaug": {**COMMON, "model.vision.attention": "joint"},
    "smaug, regions, mlp": {
        **COMMON,
        **{"input.features.regions": 3, "input.features.boxes": 6, "model.vision.feature_projection": "mlp"},
    },
    "smaug, projection alone": {**COMMON, "model.vision.layers": 0},
    "singularity": {**ALIKE, "recipe": "singularity", "model.temporal.layers": 1, "model.similarity": "frames"},
    "vindlu, regions": {
        **{**ALIKE, "recipe": "vindlu", "model.vision.temporal_attention": "zero_init", "input.features.regions": 2},
        "model.vision.time_positions": "learned",
    },
}
# Softmaxes are blind to what shifts all their logits alike; one key and one query have no choice.
IDLE = {"smaug": {"selector.frame.bias"}}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_recipe_trains_all_parameters_on_features(tiny_config, fake_tokenizer, random_batch, name):
    config = tiny_config(VARIANTS[name])
    validation.validate(config)
    with nnx.use_eager_sharding(False):
        graph, params = nnx.split(recipe.build(config, fake_tokenizer, nnx.Rngs(0)))
    if name.startswith("vindlu"):  # from zero, so that what it scales has no gradient yet
        params["vision"]["blocks"]["time_scale"][...] = jnp.ones(1)

    @jax.jit
    def run(params, batch):
        def loss(params):
            out = nnx.merge(graph, params).loss(batch, jax.random.key(0))
            return out.loss, out

        return jax.value_and_grad(loss, has_aux=True)(params)

    form = config_lib.clip_form(config.input)[0]
    clips = np.random.default_rng(0).normal(size=(8, *form)).astype(np.float32)
    batch = dataclasses.replace(random_batch(config), video=clips)
    (total, out), gradient = run(params, batch)
    assert set(out.terms) == {"vtc", "vtm", "mlm"} and np.isfinite(total)
    largest = max(abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(gradient))
    idle = {
        ".".join(map(str, path))
        for path, leaf in nnx.to_flat_state(gradient)
        if abs(np.asarray(leaf[...])).max() < 1e-8 * largest
    }
    assert idle == IDLE.get(name.split(",")[0], set())
    # What a bad clip holds is in no term.
    valid = np.arange(8) != 5
    changed = clips.copy()
    changed[5] = 3
    losses = [run(params, dataclasses.replace(batch, valid=valid, video=video))[0][0] for video in (clips, changed)]
    np.testing.assert_array_equal(*losses)
