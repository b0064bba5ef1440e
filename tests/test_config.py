"""Config: each bad value gives one message with the value, what was expected and the fix; configs survive JSON."""

import fractions
import importlib.util
import json
import math
import pathlib

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_jax import config as config_lib
from vlp_jax import knobs, sharding, state, validation
from vlp_jax.types import UserError

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
RECIPE_FILES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")
SIZES = [
    f"{size}{variant}"
    for size in ("tiny", "small", "base", "large")
    for variant in ("", "_dense", "_stage1", "_stage2")
]


def load(recipe):
    spec = importlib.util.spec_from_file_location(recipe, CONFIGS / f"{recipe}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# key(s) changed -> words that the message must hold: the offending value, what was expected, what mends it.
BAD = [
    ({"compute_dtype": "bfloat"}, ["compute_dtype", "'bfloat'", "float32, bfloat16", "did you mean 'bfloat16'"]),
    ({"model.masking.kind": "tubes"}, ["model.masking.kind", "'tubes'", "did you mean 'tube'"]),
    ({"model.pruning.keep_rate": 0.0}, ["model.pruning.keep_rate", "0.0", "(0, 1]"]),
    ({"model.pruning.keep_rate": 1.5}, ["model.pruning.keep_rate", "1.5", "(0, 1]"]),
    ({"model.pruning.keep_rate": math.nan}, ["model.pruning.keep_rate", "nan", "(0, 1]"]),
    ({"model.masking.ratio": 1.0}, ["model.masking.ratio", "1.0", "[0, 1)"]),
    ({"model.masking.ratio": -0.1}, ["model.masking.ratio", "-0.1", "[0, 1)"]),
    ({"model.masking.ratio": 0.95}, ["model.masking.ratio", "0.95", "3 x 9", "lower the ratio"]),
    (
        {"model.masking.kind": "frame", "model.masking.ratio": 0.9, "model.decoder.attention": "joint"},
        ["0.9", "frame", "no visible patch", "lower the ratio"],
    ),
    ({"model.masking.kind": "frame"}, ["'frame'", "model.decoder.attention=joint"]),
    ({"model.masking.kind": "none"}, ["loss.mvm = 1.0", "hides none", "loss.mvm=0"]),
    ({"model.masking.ratio": 0.01}, ["loss.mvm = 1.0", "0.01", "raise the ratio"]),
    ({"model.text.mask_ratio": 0.0}, ["model.text.mask_ratio", "0.0", "(0, 1)"]),
    ({"model.decoder.share": 0.0}, ["model.decoder.share", "(0, 1]"]),
    ({"model.temperature": 0.7}, ["model.temperature", "0.7", "[0.001, 0.5]"]),
    ({"optimizer.ema_decay": 1.0}, ["optimizer.ema_decay", "1.0", "[0, 1)"]),
    ({"model.adapters.reduction": 5}, ["adapters.reduction = 5", "width 16 of the vision tower", "0 for no adapters"]),
    ({"model.adapters.reduction": -1}, ["adapters.reduction", "-1", "[0, inf)"]),
    ({"model.adapters.towers": ("vision", "txt")}, ["adapters.towers = ('vision', 'txt')", "vision, text, fusion"]),
    ({"model.adapters.towers": ()}, ["adapters.towers = ()", "reduction=0"]),
    (
        {"model.adapters.reduction": 4, "model.adapters.towers": ("fusion",), "loss.vtm": 0.0, "loss.mlm": 0.0},
        ["fusion has no blocks here"],
    ),
    ({"optimizer.layer_decay": 1.5}, ["optimizer.layer_decay", "1.5", "(0, 1]"]),
    (
        {"optimizer.layer_decay": 0.5, "optimizer.layer_decay_stacks": ()},
        ["layer_decay = 0.5", "layer_decay_stacks = ()", "name stacks"],
    ),
    ({"optimizer.layer_decay_stacks": ("visi(",)}, ["layer_decay_stacks holds 'visi('", "regular expression"]),
    ({"optimizer.multipliers": (("vision/(", 0.5),)}, ["multipliers holds 'vision/('", "regular expression"]),
    ({"optimizer.multipliers": (("vision/.*", 0.0),)}, ["('vision/.*', 0.0)", "above 0", "optimizer.trainable"]),
    ({"optimizer.multipliers": (("vision/.*", math.nan),)}, ["('vision/.*', nan)", "finite number above 0"]),
    ({"optimizer.multipliers": ("vision/.*", 0.5)}, ["multipliers holds 'vision/.*'", "(pattern, factor)"]),
    ({"optimizer.ema_decays": (("vision/.*", 1.0),)}, ["('vision/.*', 1.0)", "[0, 1)"]),
    ({"optimizer.ema_decays": ("vision/.*", 0.5)}, ["ema_decays holds 'vision/.*'", "(pattern, decay)"]),
    ({"optimizer.ema_decays": (("(", 0.5),)}, ["ema_decays holds '('", "regular expression"]),
    ({"optimizer.ema_decays": ((".*", 0.5),)}, ["ema_decays = (('.*', 0.5),)", "set ema_decay"]),
    ({"optimizer.learning_rate": 0.0}, ["optimizer.learning_rate", "(0, inf)"]),
    ({"loss.vtc": -1.0}, ["loss.vtc", "-1.0"]),
    ({"loss.vtc": math.inf}, ["loss.vtc", "inf", "[0, inf)"]),
    ({"model.attention_kernel": "cudnn"}, ["'cudnn'", "'float32'", "compute_dtype=bfloat16"]),
    ({"model.masking.kind": "none", "loss.mvm": 0.0}, ["masking.ratio = 0.5", "hides nothing", "ratio=0"]),
    ({"batch_size": 0}, ["batch_size", "0", "above 0"]),
    ({"checkpoint.keep": 0}, ["checkpoint.keep", "above 0"]),
    ({"batch_size": 9, "accumulate_steps": 2}, ["batch_size = 9", "accumulate_steps = 2"]),
    ({"model.vision.heads": 3}, ["model.vision.width = 16", "heads = 3"]),
    ({"model.text.heads": 5}, ["model.text.width = 16", "heads = 5"]),
    ({"model.decoder.heads": 3}, ["model.decoder.width = 16", "heads = 3"]),
    ({"model.vision.width": 18}, ["model.vision.width = 18", "divisible by 4"]),
    ({"model.decoder.width": 18}, ["model.decoder.width = 18", "divisible by 4"]),
    ({"steps": 0}, ["none of them", "steps", "epochs", "examples"]),
    ({"epochs": 2.0}, ["config.steps=10", "config.epochs=2.0", "set the others to 0"]),
    ({"steps": -5}, ["config.steps=-5", "positive"]),
    ({"steps": 0, "epochs": math.nan}, ["config.epochs=nan"]),
    ({"model.selection.frames": 4}, ["model.selection.frames = 4", "0 (all) to 3", "frames 3 / tubelet 1"]),
    ({"model.selection.frames": -1}, ["model.selection.frames = -1"]),
    ({"model.pruning.layers": (2, 1)}, ["pruning.layers = (2, 1)", "[0, 2]", "3 blocks"]),
    ({"model.pruning.layers": (1, 1)}, ["pruning.layers = (1, 1)"]),
    ({"model.pruning.layers": (3,)}, ["pruning.layers = (3,)", "[0, 2]"]),
    ({"input.image_size": 20}, ["input.image_size = 20", "patch_size = 8"]),
    ({"model.vision.tubelet": 2}, ["input.frames = 3", "tubelet = 2"]),
    ({"input.crop_scale": (0.9, 0.5)}, ["crop_scale = (0.9, 0.5)", "low <= high"]),
    ({"init_may_differ": ("fusion/(",)}, ["'fusion/('", "regular expression", "unterminated"]),
    ({"input.path": ""}, ["input.path is empty", "data.moving_shapes"]),
    ({"loss.vtc": 0.0, "loss.vtm": 0.0, "loss.mlm": 0.0, "loss.mvm": 0.0}, ["every weight", "nothing to train"]),
    ({"loss.distill": 0.4}, ["loss.distill = 0.4", "ema_decay = 0.0", "set ema_decay"]),
    (
        {"loss.distill": 0.4, "optimizer.ema_decay": 0.9, "loss.vtc": 0.0, "loss.vtm": 0.0},
        ["loss.distill = 0.4", "loss.vtc = 0.0", "loss.vtc above 0"],
    ),
    (
        {"loss.distill": 0.4, "optimizer.ema_decay": 0.9, "task.kind": "multiple_choice"},
        ["distill = 0.4", "task.kind = 'multiple_choice'", "loss.distill=0"],
    ),
    ({"loss.distill": 1.5}, ["loss.distill", "1.5", "[0, 1]"]),
    ({"loss.vtm_group": 3}, ["loss.vtm_group = 3", "divide the 8 examples"]),
    ({"loss.vtm_group": 1}, ["loss.vtm_group = 1", "2 and more"]),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[str(changes) for changes, _ in BAD])
def test_a_bad_value_is_refused_with_value_expectation_and_fix(tiny_config, changes, words):
    with pytest.raises(UserError) as caught:
        validation.validate(tiny_config(changes))
    message = str(caught.value)
    assert message.count("\n") == 0
    for word in words:
        assert word in message


GOOD = [
    {},
    {"model.pruning.keep_rate": 1.0, "model.selection.frames": 0},
    {"model.pruning.layers": ()},
    {"model.pruning.layers": (0, 1, 2)},
    {"model.masking.kind": "none", "model.masking.ratio": 0.0, "loss.mvm": 0.0},
    {"model.attention_kernel": "cudnn", "compute_dtype": "bfloat16"},
    {"model.masking.kind": "frame", "model.decoder.attention": "joint", "model.selection.frames": 0},
    {"steps": 0, "examples": 100},
    {"loss.vtc": 0.0, "loss.vtm": 0.0, "loss.mlm": 0.0},
]


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_values_at_the_edge_of_their_range_are_accepted(tiny_config, changes):
    validation.validate(tiny_config(changes))


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("model.vision.widht", "model.vision.width"),
        ("batchsize", "batch_size"),
        ("qqqq", "`vlp_jax/knobs.py` lists every key"),
        ("model.vision", "model.vision."),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(tiny_config, key, suggestion):
    with pytest.raises(UserError) as caught:
        config_lib.update(tiny_config(), {key: 1})
    assert repr(key) in str(caught.value)
    assert suggestion in str(caught.value)


def test_a_value_of_the_wrong_type_is_refused_by_name(tiny_config):
    with pytest.raises(UserError) as caught:
        config_lib.update(tiny_config(), {"model.vision.width": "wide"})
    assert "model.vision.width" in str(caught.value)
    assert "'wide'" in str(caught.value)
    assert "int" in str(caught.value)


def test_json_restores_every_value_and_type(tiny_config):
    config = tiny_config({"model.pruning.layers": (), "input.crop_scale": (0.3, 0.9), "input.flip": False})
    restored = config_lib.from_json(config_lib.to_json(config))
    before, after = config_lib.leaves(config), config_lib.leaves(restored)
    assert before == after
    assert {key: type(value) for key, value in before.items()} == {key: type(value) for key, value in after.items()}
    assert config_lib.freeze(restored) == config_lib.freeze(config)
    assert hash(config_lib.freeze(restored)) == hash(config_lib.freeze(config))


def test_json_of_another_version_is_refused_by_the_key(tiny_config):
    text = config_lib.to_json(tiny_config())
    with pytest.raises(UserError, match="lacks batch_size"):
        config_lib.from_json(text.replace('"batch_size": 8,', ""))
    with pytest.raises(UserError, match=r"unknown config key 'batch_sizes'.*'batch_size'"):
        config_lib.from_json(text.replace('"batch_size": 8,', '"batch_size": 8, "batch_sizes": 8,'))


def test_a_saved_config_may_lack_what_was_added_since_and_then_has_its_default(tiny_config):
    saved = json.loads(config_lib.to_json(tiny_config()))
    for key in knobs.ADDED:
        *folders, name = key.split(".")
        section = saved
        for folder in folders:
            section = section[folder]
        del section[name]
    assert config_lib.leaves(config_lib.from_json(json.dumps(saved))) == config_lib.leaves(tiny_config())


def test_defaults_are_locked_and_fresh_each_time():
    config = config_lib.defaults()
    config.batch_size = 1
    assert config_lib.defaults().batch_size != 1
    with pytest.raises((AttributeError, KeyError)):
        config.model.vision.depth = 3


# --- Configs of the repository ----------------------------------------------------------------------------------------


def test_the_repository_has_configs():
    assert "smaug" in RECIPE_FILES


@pytest.mark.parametrize("recipe", RECIPE_FILES)
def test_every_config_is_valid_once_it_has_data(recipe):
    config = load(recipe).get_config()
    validation.validate(config_lib.update(config, {"input.path": "somewhere"}))


@pytest.mark.parametrize("size", SIZES)
def test_every_size_of_smaug_is_valid_and_dense_only_where_it_says_so(size):
    config = load("smaug").get_config(size)
    validation.validate(config_lib.update(config, {"input.path": "somewhere"}))
    dense = size.endswith("_dense")
    assert (config_lib.visible_patches(config) == config_lib.grid(config)) == dense
    assert bool(config.model.pruning.layers) != dense


def test_a_dense_opponent_differs_only_in_masking_and_sparsification():
    sparse, dense = (config_lib.leaves(load("smaug").get_config(size)) for size in ("tiny", "tiny_dense"))
    for key in sparse:
        if not key.startswith(("model.masking.", "model.pruning.", "model.selection.")) and key not in (
            "name",
            "loss.mvm",
        ):
            assert sparse[key] == dense[key], key


@pytest.mark.parametrize("size", ["huge", "tiny_sparse", "_dense"])
def test_an_unknown_size_is_refused(size):
    with pytest.raises(UserError, match=f"{size}.*tiny, small, base, large"):
        load("smaug").get_config(size)


# --- Derived values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 7}, 7),
        ({"steps": 0, "epochs": 2.0}, 25),
        ({"steps": 0, "epochs": 0.001}, 1),
        ({"steps": 0, "examples": 80}, 10),
    ],
)
def test_total_steps_from_each_length(tiny_config, changes, expected):
    assert config_lib.total_steps(tiny_config(changes), dataset_size=100) == expected


@given(st.integers(1, 4000), st.integers(1, 10**6))
def test_kept_after_is_the_exact_ceiling_and_never_zero(count, millionths):
    rate = millionths / 10**6
    kept = config_lib.kept_after(count, rate)
    assert kept == math.ceil(fractions.Fraction(millionths, 10**6) * count)
    assert 1 <= kept <= count


@pytest.mark.parametrize(("count", "rate", "kept"), [(196, 0.7, 138), (10, 0.7, 7), (10, 0.3, 3), (9, 1.0, 9)])
def test_kept_after_at_known_values(count, rate, kept):
    assert config_lib.kept_after(count, rate) == kept


@pytest.mark.parametrize(
    ("kind", "ratio", "expected"),
    [("none", 0.0, (3, 9)), ("random", 0.5, (3, 5)), ("tube", 0.75, (3, 2)), ("frame", 0.5, (1, 9))],
)
def test_visible_patches(tiny_config, kind, ratio, expected):
    # round(4.5) = 4 patches are hidden, round(6.75) = 7; round(1.5) = 2 frames.
    assert config_lib.visible_patches(tiny_config({"model.masking.kind": kind, "model.masking.ratio": ratio})) == (
        expected
    )


@pytest.mark.parametrize(("share", "masked"), [(0.0, 10), (0.2, 8), (0.99, 0)])
def test_masked_steps_come_first_and_leave_the_share_of_unmasked_ones(tiny_config, share, masked):
    assert config_lib.masked_steps(tiny_config({"model.masking.unmasked_share": share}), 10) == masked


# --- Mesh -------------------------------------------------------------------------------------------------------------


def fake_devices(count):
    """One device many times over: enough to shape a mesh, not to run on it."""
    return jax.devices()[:1] * count


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mesh.data": 3}, ["data=3", "8 devices"]),
        ({"mesh.data": -1, "mesh.fsdp": 3}, ["fsdp=3", "8 devices"]),
        ({"mesh.data": -1, "mesh.fsdp": -1}, ["data=-1", "fsdp=-1", "at most one"]),
        ({"mesh.data": 0}, ["data=0", "1 or more"]),
    ],
)
def test_a_mesh_that_does_not_fill_the_devices_is_refused(tiny_config, changes, words):
    with pytest.raises(UserError) as caught:
        sharding.make_mesh(tiny_config(changes), fake_devices(8))
    for word in words:
        assert word in str(caught.value)


def test_the_free_axis_of_a_mesh_takes_the_remaining_devices(tiny_config):
    mesh = sharding.make_mesh(tiny_config({"mesh.data": -1, "mesh.tensor": 2}), fake_devices(8))
    assert dict(mesh.shape) == {"replica": 1, "data": 4, "fsdp": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 12}, ["batch_size = 12", "8 devices", "multiple of 8"]),
        ({"batch_size": 8, "accumulate_steps": 2}, ["batch_size = 8", "micro-batches of 4", "multiple of 16"]),
        ({"batch_size": 6, "mesh.tensor": 2}, ["batch_size = 6", "4 devices", "multiple of 4"]),
        ({"batch_size": 32, "similarity_rows": 3}, ["similarity_rows = 3", "4 examples", "divisor"]),
    ],
)
def test_a_batch_that_does_not_divide_over_the_devices_is_refused_with_both_numbers(tiny_config, changes, words):
    config = tiny_config(changes)
    mesh = sharding.make_mesh(config, fake_devices(8))
    with pytest.raises(UserError) as caught:
        sharding.check_batch(config, mesh)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mesh.rules": (("embed", "model"),)}, ["'model'", "fsdp"]),
        ({"mesh.rules": (("embd", "fsdp"),)}, ["'embd'", "embed"]),
        (
            {"mesh.rules": (("embed", "tensor"), ("mlp", "tensor"))},
            ["two dimensions", "kernel", "tensor", "'embed'", "'mlp'"],
        ),
        ({"mesh.fsdp": 8, "model.text.width": 20}, ["bias", "'embed'", "20", "8 devices", "'fsdp'"]),
    ],
)
def test_parameters_that_do_not_fit_on_the_mesh_are_refused(tiny_config, fake_tokenizer, changes, words):
    config = tiny_config(changes)
    mesh = sharding.make_mesh(config, fake_devices(8))
    with pytest.raises(UserError) as caught:
        state.setup(config, fake_tokenizer, mesh, 10)
    for word in words:
        assert word in str(caught.value)
