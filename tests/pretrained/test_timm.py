"""Image encoders by timm's names and their authors', in timm's folders and in single files."""

import json

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from vlp_jax import trees
from vlp_jax.pretrained import importing, timm
from vlp_jax.pretrained.rules import give
from vlp_jax.types import UserError

BEIT = {"model.vision.positions": "relative", "model.vision.layer_scale": 0.1}
FORMS = {"timm-vit": {"model.vision.positions": "learned"}, "timm-beit": BEIT, "timm-beit-shared": BEIT}
SIZES = {"embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
RELATIVE = "vision/blocks/relative"


@pytest.fixture
def written(create, tmp_path):
    """`written(family)` is a timm folder of a random encoder, its weights as ours, and its tensors."""

    def build(family, config=None, rename=lambda name: name, **others):
        _, params = create(FORMS[family])
        rng = np.random.Generator(np.random.Philox(1))
        ours = {name: np.asarray(x) for name, x in trees.by_path(params).items() if name.startswith("vision/")}
        ours = {name: x + rng.normal(size=x.shape).astype(np.float32) for name, x in ours.items()}
        if "beit" in family:  # its keys have no bias
            ours["vision/blocks/attention/qkv/bias"][:, 1] = 0
        if "shared" in family:
            ours[RELATIVE] = ours[RELATIVE][:1].repeat(3, 0)
        kind = timm.FAMILIES[family]
        theirs = give([*kind.embedding, *kind.layer], ours)
        folder = tmp_path / family
        folder.mkdir()
        made = {"architecture": f"{family.split('-')[1]}_tiny_patch8_24", "num_features": 16, "model_args": SIZES}
        if config is not False:
            (folder / "config.json").write_text(json.dumps({**made, **(config or {})}))
        tensors = {rename(name): x for name, x in theirs.items()}
        safetensors_numpy.save_file({**tensors, **others}, folder / "model.safetensors")
        return folder, ours, theirs

    return build


def load(create, family, folder, changes=None):
    config, params = create({**FORMS[family], "model.vision.init_from": str(folder), **(changes or {})}, seed=5)
    new, report = importing.tower("vision", config, params)
    return trees.by_path(params), trees.by_path(new), report


@pytest.mark.parametrize("family", list(FORMS))
def test_each_parameter_is_taken_no_other_and_given_back(create, written, family):
    folder, ours, theirs = written(family, **{"head.weight": np.ones((5, 16), np.float32)})
    before, after, report = load(create, family, folder)
    for name, value in after.items():
        fresh = "beit" in family and name.startswith("vision/norm/")
        expected = ours[name] if name.startswith("vision/") and not fresh else before[name]
        np.testing.assert_array_equal(value, expected)
    assert f"({family})" in str(report) and list(report.left_out) == ["head.weight"]
    kind = timm.FAMILIES[family]
    back = give([*kind.embedding, *kind.layer], after)
    assert back.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    # Rows of the one tensor are the query's, the key's, then the value's, and of each one head's after another's.
    qkv = theirs["blocks.1.attn.qkv.weight"].reshape(3, 2, 8, 16)
    np.testing.assert_array_equal(after["vision/blocks/attention/qkv/kernel"][1], qkv.transpose(3, 0, 1, 2))
    shared = f"{RELATIVE}: one table of all layers, copied into each"
    assert (shared in str(report)) == (family == "timm-beit-shared")


@pytest.mark.parametrize("family", list(FORMS))
def test_a_file_alone_is_known_by_its_names_and_says_what_it_does_not_know(create, written, family):
    more = {"mask_token": np.ones((1, 1, 16), np.float32)}
    if family == "timm-vit":  # MAE's decoder
        more |= {f"module.decoder_blocks.{i}.norm1.bias": np.ones(8, np.float32) for i in range(2)}
    folder, ours, _ = written(family, config=False, rename=lambda name: f"module.{name}", **more)
    _, after, report = load(create, family, folder / "model.safetensors")
    np.testing.assert_array_equal(after["vision/blocks/mlp/up/kernel"], ours["vision/blocks/mlp/up/kernel"])
    for words in ("heads no config.json says: 2 taken", "taken as trained on pixels of mean and deviation 0.5"):
        assert words in str(report)
    assert "left out (only there): " in str(report) and "mask_token 1" in str(report)
    assert ("decoder_blocks 2" in str(report)) == (family == "timm-vit")


def test_one_table_of_all_layers_is_interpolated_and_copied_into_each(create, written):
    folder, _, _ = written("timm-beit-shared")
    _, after, report = load(create, "timm-beit-shared", folder, {"input.image_size": 32})
    table = np.asarray(after[RELATIVE])
    assert table.shape[1] == 7 * 7 + 3 and (table == table[:1]).all()
    assert f"{RELATIVE}: 3 x 3 patches interpolated to 4 x 4" in str(report) and "copied into each" in str(report)


@pytest.mark.parametrize("nested", [True, False])
def test_pixels_of_timms_config_are_folded_as_those_of_a_preprocessor_are(create, written, nested):
    mean, deviation = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    numbers = {"mean": mean, "std": deviation, "input_size": [3, 24, 24]}
    folder, ours, _ = written("timm-vit", {"pretrained_cfg": numbers} if nested else numbers)
    _, after, report = load(create, "timm-vit", folder)
    assert "pixels' mean [0.4, 0.5, 0.6] and deviation [0.2, 0.25, 0.3] folded" in str(report)
    kernel, bias = (np.asarray(ours[f"vision/embed/{x}"], np.float64) for x in ("kernel", "bias"))
    pixels = np.random.Generator(np.random.Philox(0)).random((5, 64, 3))
    expected = ((pixels - mean) / deviation).reshape(5, -1) @ kernel + bias
    got = (2 * pixels - 1).reshape(5, -1) @ after["vision/embed/kernel"] + after["vision/embed/bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "config", "changes", "words"),
    [
        ("timm-vit", {"architecture": "swin_tiny_patch4"}, {}, r"architecture = 'swin_tiny_patch4' .*; expected vit_"),
        ("timm-vit", {"model_args": {**SIZES, "num_heads": 4}}, {}, r"heads = 2\): set --config.model.vision.heads=4"),
        ("timm-vit", {"model_args": {}}, {}, r"set --config.model.vision.heads=3 --config.model.vision.mlp_ratio=4"),
        ("timm-vit", {}, {"model.vision.norm_epsilon": 1e-12}, r"set --config.model.vision.norm_epsilon=1e-06"),
        ("timm-vit", {"pretrained_cfg": {"input_size": [3, 24, 32]}}, {}, r"expected \[3, H, H\], square pictures"),
        (
            "timm-vit",
            {"mean": [0, 0, 0], "std": [0, 1, 1]},
            {},
            r"config.json: mean .* std .*: expected three numbers, the latter > 0",
        ),
        ("timm-vit", False, {"model.vision.positions": "sincos"}, r"set --config.model.vision.positions=learned"),
        ("timm-vit", False, {"model.vision.layers": 2}, r"has 3 layers, config.model.vision.layers = 2: set it to 3"),
        (
            "timm-beit",
            {},
            {"model.vision.layer_scale": 0.0},
            r"holds blocks.\d.gamma_1, but this model has no vision/blocks/scale_attention: compare config",
        ),
    ],
)
def test_an_encoder_of_another_form_stops_with_what_mends_it(create, written, family, config, changes, words):
    folder, _, _ = written(family, config)
    with pytest.raises(UserError, match=words):
        load(create, family, folder, changes)


def test_another_tensor_of_a_variant_is_refused_by_its_name(create, written):
    for name, shape in (("norm_pre.weight", (16,)), ("blocks.0.ls1.scale", (16,)), ("dist_token", (1, 1, 16))):
        folder, _, _ = written("timm-vit", **{name: np.ones(shape, np.float32)})
        with pytest.raises(UserError, match=rf"a timm-vit model does not have, such as {name}"):
            load(create, "timm-vit", folder)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
