"""Image encoders of ViT's and BEiT's form into a new run's parameters."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import numpy as safetensors_numpy

from vlp_jax import tables, trees, validation
from vlp_jax.models import layers
from vlp_jax.models.vision import VideoEncoder
from vlp_jax.pretrained import importing, rules, weights
from vlp_jax.pretrained.rules import GRID, Rule, give
from vlp_jax.types import UserError

DECODER = {"model.decoder.from_file": True, "loss.mvm": 1.0}
FORMS = {
    "vit": {"model.vision.positions": "learned"},
    "beit": {"model.vision.positions": "relative", "model.vision.layer_scale": 0.1},
    "vit_mae": {
        "model.vision.positions": "learned", "model.decoder.positions": "learned", "model.decoder.cls": True, **DECODER,
    },
    "videomae": {
        "model.vision.positions": "sequence", "model.vision.time_positions": "none", "model.vision.attention": "joint",
        "model.vision.cls": False, "model.vision.pool": "mean", "model.vision.tubelet": 2, "input.frames": 4,
        "model.pruning.layers": (), "model.decoder.positions": "sequence", "model.decoder.attention": "joint",
        "model.decoder.target": "channel", **DECODER,
    },
    "timesformer": {
        "model.vision.positions": "learned", "model.vision.time_positions": "learned", "model.pruning.layers": (),
        "model.vision.temporal_attention": "divided", "model.masking.kind": "tube",
    },
    "clip": {
        "model.vision.positions": "learned", "model.vision.norm_embedding": True,
        "model.vision.activation": "quick_gelu",
    },
}  # fmt: skip
# What a family's file lacks, and what stays as it was.
FRESH = {
    "videomae": ("decoder/embed/bias",),
    "clip": ("vision/embed/bias", "video_projection/bias"),
}
THEIRS = {
    "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 3, "patch_size": 8,
    "image_size": 24, "layer_norm_eps": 1e-6, "hidden_act": "gelu", "use_relative_position_bias": True,
    "use_shared_relative_position_bias": False, "use_absolute_position_embeddings": False,
    "decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1,
}  # fmt: skip


@pytest.fixture
def written(create, tmp_path):
    """`written(family)` is a folder with the weights of a random encoder, and these as ours."""

    def build(family, **changes):
        _, params = create(FORMS[family])
        rng = np.random.Generator(np.random.Philox(1))
        ours = {name: np.asarray(x) for name, x in trees.by_path(params).items()}
        ours = {name: x + abs(rng.normal(size=x.shape)).astype(np.float32) for name, x in ours.items()}
        for part in ("vision", "decoder"):
            if family in ("beit", "videomae"):  # their keys have no bias
                ours[f"{part}/blocks/attention/qkv/bias"][:, 1] = 0
        kind = importing.VISION[family]
        folder = tmp_path / family
        folder.mkdir()
        more = {
            "beit": {"layer_scale_init_value": 0.1},
            "clip": {"hidden_act": "quick_gelu"},
            "vit_mae": {"norm_pix_loss": True},
        }.get(family, {})
        (folder / "config.json").write_text(json.dumps({"model_type": family, **THEIRS, **more, **changes}))
        decoder = kind.decoder.rules if kind.decoder else ()
        theirs = give([*kind.embedding, *kind.layer, *kind.optional, *decoder], ours)
        safetensors_numpy.save_file(theirs, folder / "model.safetensors")
        return folder, ours

    return build


@pytest.mark.parametrize("family", list(FORMS))
def test_each_parameter_of_the_encoder_is_taken_and_no_other(create, written, family):
    folder, ours = written(family)
    config, params = create({**FORMS[family], "model.vision.init_from": str(folder)}, seed=5)
    new, reports = importing.towers(config, params)
    before, after = (trees.by_path(x) for x in (params, new))
    taken = {"vit_mae": ("vision/", "decoder/"), "videomae": ("vision/", "decoder/")}.get(family, ("vision/",))
    taken += ("video_projection/", "temperature") if family == "clip" else ()
    for name, value in after.items():
        here = name.startswith(taken) and not name.startswith(FRESH.get(family, ("nothing",)))
        np.testing.assert_allclose(value, ours[name] if here else before[name], rtol=1e-6 if family == "clip" else 0)
    assert f"({family})" in str(reports["vision"]) and list(reports) == ["vision"]


def test_both_towers_start_at_once(create, written, tmp_path):
    from tests.pretrained import made

    folder, ours = written("beit")
    text_ours, theirs = made.weights_of("bert", 3)
    text = made.folder(tmp_path / "bert", "bert", theirs)
    post = {"model.text.norm": "post", "model.text.norm_epsilon": 1e-12, "model.text.init_from": str(text)}
    config, params = create({**FORMS["beit"], **post, "model.vision.init_from": str(folder)}, seed=5)
    new, reports = importing.towers(config, params)
    after = trees.by_path(new)
    np.testing.assert_array_equal(after["vision/cls"], ours["vision/cls"])
    np.testing.assert_array_equal(after["text/embedding"], text_ours["text/embedding"])
    assert set(reports) == {"text", "vision"}


def test_the_family_is_known_by_its_names_where_there_is_no_config(create, written):
    for family in FORMS:
        folder, _ = written(family)
        (folder / "config.json").unlink()
        config, params = create({**FORMS[family], "model.vision.init_from": str(folder)}, seed=5)
        _, reports = importing.towers(config, params)
        assert f"({family})" in str(reports["vision"])


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("vit", {"patch_size": 4}, r"patch_size = 8.*set --config.model.vision.patch_size=4"),
        ("vit", {"num_hidden_layers": 12}, r"has 12 layers, config.model.vision.layers = 3: set it to 12"),
        ("beit", {"use_shared_relative_position_bias": True}, r"use_shared_relative_position_bias = True"),
        ("beit", {"layer_scale_init_value": 1e-5}, r"set --config.model.vision.layer_scale=1e-05"),
        ("vit", {"model_type": "swin"}, r"model_type 'swin'; a vision tower can start from vit_mae, vit, beit"),
    ],
)
def test_an_encoder_of_another_shape_stops_with_the_flags_that_mend_it(create, written, family, changes, words):
    folder, _ = written(family, **changes)
    config, params = create({**FORMS[family], "model.vision.init_from": str(folder)})
    with pytest.raises(UserError, match=words):
        importing.towers(config, params)


@pytest.mark.parametrize("family", ["vit_mae", "videomae"])
def test_a_decoder_that_is_not_asked_for_is_left_out_and_said(create, written, family):
    folder, _ = written(family)
    here = {**FORMS[family], "model.decoder.from_file": False, "model.decoder.layers": 2}
    config, params = create({**here, "model.vision.init_from": str(folder)}, seed=5)
    new, reports = importing.towers(config, params)
    before, after = (trees.by_path(x) for x in (params, new))
    assert "mask_token" in str(list(reports["vision"].left_out))
    for name, value in after.items():
        if name.startswith("decoder/"):
            np.testing.assert_array_equal(value, before[name])


def test_a_decoder_is_refused_of_a_family_without_and_of_another_size(create, written):
    folder, _ = written("vit")
    config, params = create({**FORMS["vit"], **DECODER, "model.vision.init_from": str(folder)})
    with pytest.raises(UserError, match=r"from_file = True, but a vit has no pixel decoder"):
        importing.towers(config, params)
    folder, _ = written("vit_mae", decoder_hidden_size=32)
    config, params = create({**FORMS["vit_mae"], "model.vision.init_from": str(folder)})
    with pytest.raises(UserError, match=r"set --config.model.decoder.width=32"):
        importing.towers(config, params)


@pytest.mark.parametrize("family", ["vit", "beit", "vit_mae", "timesformer", "clip"])
def test_positions_of_another_grid_are_interpolated_and_said(create, written, family):
    folder, ours = written(family)
    config, params = create({**FORMS[family], "model.vision.init_from": str(folder), "input.image_size": 32})
    new, reports = importing.towers(config, params)
    after = trees.by_path(new)
    name, way, rows = "vision/space", "bicubic", 1 + 4 * 4
    if family == "beit":
        name, way, rows = "vision/blocks/relative", "bilinear in their offsets", 7 * 7 + 3
    np.testing.assert_array_equal(after[name], tables.resize(name, ours[name], rows))
    np.testing.assert_array_equal(after["vision/cls"], ours["vision/cls"])
    assert f"{name}: 3 x 3 patches interpolated to 4 x 4, {way}" in str(reports["vision"])
    listed = reports["vision"].to_json()["parameters"][name]
    assert listed["how"] == f"interpolated from 3 x 3 to 4 x 4 patches, {way}"
    assert listed["origin_shape"] == list(ours[name].shape) and listed["shape"] == list(after[name].shape)


def test_a_table_that_is_no_square_grid_stops_with_both_shapes(create, written):
    folder, _ = written("vit")
    tensors = safetensors_numpy.load_file(folder / "model.safetensors")
    tensors["embeddings.position_embeddings"] = np.ones((1, 12, 16), np.float32)
    safetensors_numpy.save_file(tensors, folder / "model.safetensors")
    config, params = create({**FORMS["vit"], "model.vision.init_from": str(folder)})
    words = r"position_embeddings is \[1, 12, 16\], vision/space needs \[1, 10, 16\], or a table of other patches"
    with pytest.raises(UserError, match=words):
        importing.towers(config, params)


@pytest.mark.parametrize("family", ["vit", "clip"])  # CLIP's patches have no bias
def test_pixels_of_another_mean_are_folded_into_the_patches(create, written, family):
    folder, ours = written(family)
    mean, deviation = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    numbers = {"image_mean": mean.tolist(), "image_std": deviation.tolist()}
    (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
    config, params = create({**FORMS[family], "model.vision.init_from": str(folder)})
    new, reports = importing.towers(config, params)
    after = trees.by_path(new)
    said = "vision/embed/bias: is made from its pixels' mean and deviation" in str(reports["vision"])
    assert said is (family == "clip")
    bias = 0 if family == "clip" else ours["vision/embed/bias"]
    pixels = np.random.Generator(np.random.Philox(0)).random((5, 64, 3))
    expected = ((pixels - mean) / deviation).reshape(5, -1) @ ours["vision/embed/kernel"] + bias
    got = (2 * pixels - 1).reshape(5, -1) @ after["vision/embed/kernel"] + after["vision/embed/bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("file", "says", "mean", "deviation"),
    [
        ("processor_config.json", {"image_processor": {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}}, 0.1, 0.2),
        ("preprocessor_config.json", {"do_normalize": False, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}, 0, 1),
        ("preprocessor_config.json", {"do_normalize": False, "do_rescale": False}, 0, 1 / 255),
        (
            "preprocessor_config.json",
            {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
            *(0.5, 0.5),
        ),
    ],
)
def test_the_pixels_that_a_model_was_trained_on_are_read_as_its_processor_makes_them(
    create, written, file, says, mean, deviation
):
    folder, ours = written("vit")
    (folder / file).write_text(json.dumps(says))
    config, params = create({**FORMS["vit"], "model.vision.init_from": str(folder)})
    after = trees.by_path(importing.towers(config, params)[0])
    x = np.random.Generator(np.random.Philox(0)).random((5, 64, 3))
    expected = ((x - mean) / deviation).reshape(5, -1) @ ours["vision/embed/kernel"] + ours["vision/embed/bias"]
    got = (2 * x - 1).reshape(5, -1) @ after["vision/embed/kernel"] + after["vision/embed/bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3 * abs(expected).max())


def test_a_processor_that_does_not_say_its_mean_stops(create, written):
    folder, _ = written("vit")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_std": [0.5] * 3}))
    config, params = create({**FORMS["vit"], "model.vision.init_from": str(folder)})
    with pytest.raises(UserError, match=r"has no image_mean: expected three numbers of each; add them"):
        importing.towers(config, params)


@pytest.mark.parametrize(("family", "mean", "deviation"), [("vit_mae", 0.4, 0.2), ("videomae", 0.0, 1.0)])
def test_a_decoder_of_raw_pixels_gives_the_same_pixels_in_ours(create, written, family, mean, deviation):
    folder, ours = written(family, norm_pix_loss=False)
    numbers = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
    changes = {**FORMS[family], "model.vision.init_from": str(folder)}
    with pytest.raises(UserError, match=r"set --config.model.decoder.target=pixels"):
        importing.towers(*create(changes))
    config, params = create({**changes, "model.decoder.target": "pixels"})
    after = trees.by_path(importing.towers(config, params)[0])
    x = np.random.Generator(np.random.Philox(0)).normal(size=(5, 16))
    theirs = (x @ ours["decoder/out/kernel"] + ours["decoder/out/bias"]) * deviation + mean  # in [0, 1]
    got = x @ after["decoder/out/kernel"] + after["decoder/out/bias"]
    np.testing.assert_allclose(got, 2 * theirs - 1, rtol=1e-4, atol=1e-4)


def test_what_a_config_leaves_out_is_what_transformers_takes(create, written):
    folder, _ = written("clip")
    theirs = json.loads((folder / "config.json").read_text())
    short = {key: value for key, value in theirs.items() if key not in ("hidden_act", "layer_norm_eps")}
    (folder / "config.json").write_text(json.dumps(short))
    changes = {**FORMS["clip"], "model.vision.init_from": str(folder), "model.vision.activation": "gelu"}
    words = r"set --config.model.vision.norm_epsilon=1e-05 --config.model.vision.activation=quick_gelu"
    with pytest.raises(UserError, match=words):
        importing.towers(*create(changes))


def test_values_that_are_not_finite_stop(create, written):
    folder, _ = written("vit")
    tensors = safetensors_numpy.load_file(folder / "model.safetensors")
    tensors["layernorm.weight"][3] = np.nan
    safetensors_numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"layernorm.weight holds values that are nan or infinite"):
        importing.towers(*create({**FORMS["vit"], "model.vision.init_from": str(folder)}))


def test_a_trained_encoder_and_unknown_inflation_are_refused_before_anything_is_made(tiny_config):
    for changes, words in (
        ({"init_from": "run"}, r"vision.init_from = 'vit' with config.init_from = 'run'"),
        (
            {"model.vision.inflate": "center"},
            r"inflate = 'center': expected one of centre, mean; did you mean 'centre'",
        ),
    ):
        with pytest.raises(UserError, match=words):
            validation.validate(tiny_config({"model.vision.init_from": "vit", **changes}))


def started(create, folder, changes):
    """The video encoder of a new run that started from a folder, and the report."""
    config, params = create({"model.vision.init_from": str(folder), "model.pruning.layers": (), **changes})
    new, reports = importing.towers(config, params)
    with nnx.use_eager_sharding(False):
        encoder = VideoEncoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    nnx.update(encoder, new["vision"])
    return encoder, reports["vision"]


@pytest.mark.parametrize("how", ["centre", "mean"])
@pytest.mark.parametrize(("family", "tubelet"), [("vit", 3), ("beit", 2)])
def test_a_clip_of_equal_frames_has_the_tokens_of_the_image(create, written, family, tubelet, how):
    folder, _ = written(family)
    numbers = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}  # of other pixels, too
    (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
    still = {**FORMS[family], "model.vision.time_positions": "none", "model.selection.frames": 0}
    image, _ = started(create, folder, {**still, "input.frames": 1})
    changes = {"input.frames": 2 * tubelet, "model.vision.tubelet": tubelet, "model.vision.inflate": how}
    video, report = started(create, folder, {**still, **changes})
    frame = np.random.Generator(np.random.Philox(0)).integers(0, 256, (2, 1, 24, 24, 3), np.uint8)
    expected = np.broadcast_to(image(frame).tokens, (2, 2, 10, 16))
    np.testing.assert_allclose(video(frame.repeat(2 * tubelet, 1)).tokens, expected, rtol=1e-4, atol=1e-4)
    assert f"vision/embed/kernel: patches of one frame inflated to {tubelet}, " in str(report)
    assert report.taken["vision/embed/kernel"].how == "inflated"
    zero = [not np.any(x) for x in np.split(np.asarray(video.embed.kernel[...]), tubelet)]
    assert zero == ([i != tubelet // 2 for i in range(tubelet)] if how == "centre" else [False] * tubelet)


def test_a_table_over_time_is_interpolated_as_clips_of_another_length_are(tmp_path):
    rule = Rule("vision/time", ("time",), GRID)  # theirs `[1, T, D]`
    there = np.random.Generator(np.random.Philox(0)).normal(size=(1, 4, 8)).astype(np.float32)
    safetensors_numpy.save_file({"time": there}, tmp_path / "x.safetensors")
    tensors, _ = weights.open_weights(str(tmp_path / "x.safetensors"))
    rules.check([rule], {rule.ours: (6, 8)}, tensors, lambda name: name)
    got = rules.take(rule, (6, 8), tensors, {"time": "time"})
    np.testing.assert_array_equal(got, layers.interpolate_time(there[0], 6))
