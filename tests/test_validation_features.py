"""What a config of precomputed features may hold; each refusal quotes the value and the flag that mends it."""

import pytest

from configs import singularity, smaug, vindlu
from vlp_jax import config as config_lib
from vlp_jax import validation
from vlp_jax.recipes import recipe
from vlp_jax.types import UserError

FEATURES = {"input.path": "clips", "input.features.path": "features", "input.features.width": 512}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input.features.width": 0}, "features.path = 'features' with .*width = 0.*set input.features.width"),
        ({"input.features.path": ""}, "features.path = '' with .*width = 512.*set input.features.path"),
        ({"input.features.width": -1}, "features.width = -1: expected a number in"),
        ({"input.features.regions": 3, "input.features.boxes": 5}, "boxes = 5: expected 0, 4 or 6"),
        ({"input.features.boxes": 4}, "boxes = 4 with .*regions = 0.*set input.features.regions, or"),
        ({"loss.mvm": 1.0}, "config.loss.mvm = 1.0 .*no pixels.*set loss.mvm=0"),
        ({"model.masking.kind": "tube"}, "masking.kind = 'tube' .*set model.masking.kind=none, model.masking.ratio=0"),
        ({"model.pruning.layers": (1,)}, r"pruning.layers = \(1,\) .*set model.pruning.layers=\(\)"),
        ({"model.vision.positions": "sincos"}, "positions = 'sincos' .*set model.vision.positions=none"),
        ({"model.vision.tubelet": 2}, "tubelet = 2 .*set model.vision.tubelet=1"),
        ({"model.vision.init_from": "beit"}, "init_from = 'beit' .*set model.vision.init_from=''"),
        ({"model.vision.feature_projection": "tanh"}, "'tanh': expected one of linear, mlp"),
    ],
)
def test_what_does_not_go_with_features_is_refused_with_the_flag_that_mends_it(changes, message):
    config = config_lib.update(smaug.get_config("tiny_features"), FEATURES)
    validation.validate(config)
    with pytest.raises(UserError, match=message):
        validation.validate(config_lib.update(config, changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.vision.layers": 0}, "layers = 0 without precomputed features.*set model.vision.layers=1 or more"),
        ({"model.vision.feature_projection": "mlp"}, "'mlp' without precomputed.*feature_projection=linear"),
        ({"input.features.regions": 2}, "regions = 2 with .*width = 0"),
    ],
)
def test_what_features_alone_have_is_refused_without_them(tiny_config, changes, message):
    with pytest.raises(UserError, match=message):
        validation.validate(tiny_config(changes))


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (smaug.get_config("tiny_features"), {}),
        (smaug.get_config("base_features"), {"model.vision.layers": 0, "model.vision.pool": "mean"}),
        (singularity.get_config("tiny_stage1"), {"model.vision.positions": "none"}),
        (singularity.get_config("base_stage2"), {"model.vision.positions": "none", "input.features.regions": 30}),
        (vindlu.get_config("tiny"), {"model.vision.positions": "none"}),
        (smaug.get_config("tiny_features"), {"input.image_size": 50, "input.features.regions": 3}),
    ],
)
def test_every_recipe_takes_features(config, changes):
    validation.validate(config_lib.update(config, {**FEATURES, **changes}))
    recipe.load(config)


@pytest.mark.parametrize(
    ("form", "grid", "shape"),
    [
        ({}, (4, 1), (4, 1, 512)),
        ({"regions": 30}, (4, 30), (4, 30, 512)),
        ({"regions": 3, "boxes": 6}, (4, 3), (4, 3, 518)),
    ],
)
def test_the_form_of_a_clip_follows_the_features(form, grid, shape):
    config = config_lib.update(smaug.get_config("tiny_features"), FEATURES)
    config_lib.update(config, {f"input.features.{key}": value for key, value in form.items()})
    assert config_lib.grid(config) == grid
    assert config_lib.clip_form(config.input) == (shape, "float32")
    assert config_lib.clip_form(config.input, 7)[0] == (7, *shape[1:])
