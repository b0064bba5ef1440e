"""Text encoders of BERT's form into a new run's parameters: what is taken, created and left out, and what stops."""

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests.pretrained import made
from vlp_jax import trees
from vlp_jax.pretrained import importing
from vlp_jax.types import UserError

POST = {"model.text.norm": "post", "model.text.norm_epsilon": 1e-12}


@pytest.fixture
def create(create):
    """As the fixture of all, of a run whose text encoder is of BERT's form."""
    return lambda changes: create({**POST, **changes})


def load(create, source, changes=None):
    config, params = create({"model.text.init_from": str(source), **(changes or {})})
    before = {name: np.asarray(x) for name, x in trees.by_path(params).items()}
    new, report = importing.tower("text", config, params)
    return before, {name: np.asarray(x) for name, x in trees.by_path(new).items()}, report


@pytest.mark.parametrize("family", made.OF_BERTS_FORM)
def test_first_layers_become_the_text_encoder_and_the_next_ones_the_fusion(create, tmp_path, family):
    ours, theirs = made.weights_of(family, 3)
    before, after, report = load(create, made.folder(tmp_path / "x", family, theirs))
    assert list(before) == list(after)
    for name, value in ours.items():
        if name.startswith("text/blocks/"):
            np.testing.assert_array_equal(after[name], value[:2])
            fused = name.replace("text/", "fusion/").replace("norm_attention/", "norm_self/")
            np.testing.assert_array_equal(after[fused.replace("/attention/", "/self_attention/")], value[2:])
        else:
            np.testing.assert_array_equal(after[name], value)
    for name, value in after.items():
        if report.taken.get(name) is None or report.taken[name].how == "created":
            np.testing.assert_array_equal(value, before[name])
    created = {name for name, t in report.taken.items() if t.how == "created"}
    assert created and all("cross" in name for name in created) and not report.left_out
    assert f"started from {tmp_path / 'x'} ({family}): " in str(report) and "created: fusion" in str(report)


def test_layers_beyond_those_of_the_model_are_left_out_and_said(create, tmp_path):
    _, theirs = made.weights_of("bert", 5)
    theirs["bert.pooler.dense.weight"] = np.ones((16, 16), np.float32)
    _, _, report = load(create, made.folder(tmp_path / "x", "bert", theirs))
    assert len(report.left_out) == 2 * 16 + 1 and "encoder.layer.4.intermediate.dense.bias" in report.left_out
    assert "left out (only there)" in str(report)


def test_without_layers_for_the_fusion_or_a_head_these_stay_as_they_were(create, tmp_path):
    ours, theirs = made.weights_of("bert", 2)
    theirs = {name: value for name, value in theirs.items() if not name.startswith("cls.")}
    before, after, report = load(create, made.folder(tmp_path / "x", "bert", theirs))
    created = [name for name, t in report.taken.items() if t.how == "created"]
    assert {name.split("/")[0] for name in created} == {"fusion", "word_head"}
    for name in created:
        np.testing.assert_array_equal(after[name], before[name])
    np.testing.assert_array_equal(after["text/embedding"], ours["text/embedding"])


def test_adapters_are_created_beside_what_is_taken(create, tmp_path):
    ours, theirs = made.weights_of("bert", 3)
    _, after, report = load(create, made.folder(tmp_path / "x", "bert", theirs), {"model.adapters.reduction": 4})
    adapters = {name for name in after if "/adapter_" in name}
    there = {name for name in adapters if not name.startswith("vision/")}  # the importer's are the text's towers
    created = {name for name, t in report.taken.items() if t.how == "created" and "cross_attention" not in name}
    assert {name for name in created if "/norm_cross/" not in name} == there != set()
    for name, value in ours.items():
        if name.startswith("text/blocks/"):
            np.testing.assert_array_equal(after[name], value[:2])
    for name in adapters:
        assert np.any(after[name]) == name.endswith("down/kernel"), name


def test_a_run_of_a_task_takes_its_recipes_text_encoder(create, tmp_path):
    ours, theirs = made.weights_of("bert", 3)
    task = {"task.kind": "multiple_choice", "loss.mlm": 0.0, "loss.mvm": 0.0}
    _, after, _ = load(create, made.folder(tmp_path / "x", "bert", theirs), task)
    np.testing.assert_array_equal(after["recipe/text/embedding"], ours["text/embedding"])


@pytest.mark.parametrize("family", made.OF_BERTS_FORM)
def test_of_more_positions_the_first_are_taken(create, tmp_path, family):
    ours, theirs = made.weights_of(family, 3)
    name = next(name for name in theirs if "position_embeddings" in name)
    theirs[name] = np.concatenate([theirs[name], np.full((9, 16), 7, np.float32)])
    _, after, report = load(create, made.folder(tmp_path / "x", family, theirs))
    np.testing.assert_array_equal(after["text/position"], ours["text/position"])
    assert report.taken["text/position"].how == "resized"


def test_names_of_other_times_and_classes_are_the_same(create, tmp_path):
    ours, theirs = made.weights_of("bert", 3)
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for name, x in theirs.items()
        if not name.startswith("cls.")
    }
    (tmp_path / "x").mkdir()
    safetensors_numpy.save_file(old, tmp_path / "x" / "model.safetensors")  # and no config.json
    _, after, _ = load(create, tmp_path / "x")
    np.testing.assert_array_equal(after["text/norm_embedding/scale"], ours["text/norm_embedding/scale"])


def test_half_precision_is_widened(create, tmp_path):
    ours, theirs = made.weights_of("bert", 3)
    theirs = {name: x.astype(np.float16) for name, x in theirs.items()}
    _, after, _ = load(create, made.folder(tmp_path / "x", "bert", theirs))
    np.testing.assert_array_equal(after["text/embedding"], ours["text/embedding"].astype(np.float16).astype(np.float32))


KEY = "encoder.layer.1.attention.self.key.weight"


def spoiled(theirs, name):
    x = dict(theirs)
    if name == "missing":
        del x[KEY]
    elif name == "misshapen":
        x[KEY] = x[KEY][:, :8].copy()
    elif name == "integers":
        x[KEY] = x[KEY].astype(np.int32)
    elif name == "extra":
        x["encoder.layer.1.adapter.weight"] = np.ones(3, np.float32)
    elif name == "vocabulary":
        x["embeddings.word_embeddings.weight"] = np.ones((70, 16), np.float32)
    return x


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", rf"{KEY}, which text/blocks/attention/qkv/kernel needs, is missing"),
        ("misshapen", rf"{KEY} is \[16, 8\], text/blocks/attention/qkv/kernel needs \[16, 16\]"),
        ("integers", rf"{KEY} is of type int32, expected floating-point numbers"),
        ("extra", r"holds 1 tensors that a bert model does not have, such as encoder.layer.1.adapter.weight"),
        (
            "vocabulary",
            r"word_embeddings.weight is \[70, 16\], text/embedding needs \[64, 16\].*config.input.tokenizer",
        ),
    ],
)
def test_a_spoiled_file_stops_with_the_name_both_shapes_and_what_to_do(create, tmp_path, what, words):
    _, theirs = made.weights_of("bert", 3)
    with pytest.raises(UserError, match=words):
        load(create, made.folder(tmp_path / "x", "bert", spoiled(theirs, what)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, r"model_type 'gpt2'; a text tower can start from bert, roberta, distilbert"),
        ({"hidden_act": "relu"}, r"the activation 'relu' in config.json; expected one of gelu, quick_gelu"),
        (
            {"hidden_size": 32, "num_attention_heads": 4},
            r"model.text.width = 16.*set --config.model.text.width=32 --config.model.text.heads=4 .*mlp_ratio=1.0",
        ),
        ({"num_hidden_layers": 1}, r"has 1 layers, config.model.text.layers = 2: set it to 1 or less"),
    ],
)
def test_a_model_of_another_shape_stops_with_the_flags_that_mend_it(create, tmp_path, changes, words):
    _, theirs = made.weights_of("bert", 3)
    with pytest.raises(UserError, match=words):
        load(create, made.folder(tmp_path / "x", "bert", theirs, **changes))


def test_pre_norm_and_other_epsilons_are_no_bert(create, tmp_path):
    _, theirs = made.weights_of("bert", 3)
    path = made.folder(tmp_path / "x", "bert", theirs)
    with pytest.raises(UserError, match=r"set --config.model.text.norm_epsilon=1e-12 --config.model.text.norm=post"):
        load(create, path, {"model.text.norm": "pre", "model.text.norm_epsilon": 1e-6})


def test_names_of_no_family_are_refused(create, tmp_path):
    np.savez(tmp_path / "x.npz", **{"a.b": np.ones(2, np.float32)})
    with pytest.raises(UserError, match=r"no config.json, and its names, such as a.b, are of no text encoder"):
        load(create, tmp_path / "x.npz")


def test_a_recipe_without_text_has_nothing_to_start(create, tmp_path):
    _, theirs = made.weights_of("bert", 3)
    alone = {"loss.vtc": 0.0, "loss.vtm": 0.0, "loss.mlm": 0.0}
    with pytest.raises(UserError, match="has no text encoder"):
        load(create, made.folder(tmp_path / "x", "bert", theirs), alone)
