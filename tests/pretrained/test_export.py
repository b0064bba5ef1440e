"""A text encoder written out and read again, and what cannot be written."""

import json

import numpy as np
import pytest

from tests.pretrained.test_importing_vision import FORMS, FRESH
from vlp_jax import export, trees
from vlp_jax.pretrained import importing
from vlp_jax.types import UserError

CLIP = {
    "model.text.norm_embedding": False, "model.text.causal": True, "model.text.pool": "last",
    "model.text.activation": "quick_gelu",
}  # fmt: skip
POST = {"model.text.norm": "post", "model.text.norm_epsilon": 1e-12}


@pytest.mark.parametrize("family", list(importing.TEXT))
@pytest.mark.parametrize("task", [{}, {"task.kind": "multiple_choice", "loss.mlm": 0.0, "loss.mvm": 0.0}])
def test_what_is_written_starts_the_same_text_encoder_again(create, tmp_path, family, task):
    form = CLIP if family == "clip" else POST
    config, params = create({**form, **task})
    export.text(config, params, family, tmp_path / "out")
    there = json.loads((tmp_path / "out" / "config.json").read_text())
    assert there["model_type"] == {"clip": "clip_text_model"}.get(family, family) and there["vocab_size"] == 64
    other, fresh = create({**form, "model.text.init_from": str(tmp_path / "out")}, seed=1)
    after, report = importing.tower("text", other, fresh)
    before = {name.removeprefix("recipe/"): x for name, x in trees.by_path(params).items()}
    for name, value in trees.by_path(after).items():
        if name.startswith("text/"):
            np.testing.assert_array_equal(value, before[name])
    assert not report.left_out


PLAIN = {"model.pruning.layers": ()}
VISION = {family: {**form, **PLAIN} for family, form in FORMS.items()}
for form in VISION.values():
    form["model.decoder.from_file"] = False


@pytest.mark.parametrize("family", list(VISION))
def test_what_is_written_starts_the_same_image_encoder_again(create, tmp_path, family):
    config, params = create(VISION[family])
    export.vision(config, params, family, tmp_path / "out")
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1  # as readable as each other
    there = json.loads((tmp_path / "out" / "config.json").read_text())
    assert there["model_type"] in (family, "clip_vision_model") and there["image_size"] == 24
    other, fresh = create({**VISION[family], "model.vision.init_from": str(tmp_path / "out")}, seed=1)
    after, report = importing.tower("vision", other, fresh)
    before = trees.by_path(params)
    for name, value in trees.by_path(after).items():
        if name.startswith("vision/") and name not in FRESH.get(family, ()):
            moved = family == "clip" and name == "vision/space"  # which carries the bias of the patches
            extra = np.pad(np.tile(before["vision/embed/bias"], (9, 1)), ((1, 0), (0, 0))) if moved else 0
            np.testing.assert_array_equal(value, before[name] + extra)
    assert "beside it" not in str(report)  # its pixels are said, too


def test_an_image_encoder_that_no_image_model_is_is_refused(create, tmp_path):
    for changes, family, words in (
        ({"model.vision.positions": "sincos"}, "vit", "positions = 'sincos' .*: in vit it is 'learned'"),
        ({"model.vision.norm_embedding": True}, "vit", "norm_embedding = True .*: in vit it is False"),
        ({"model.pruning.layers": (1,)}, "vit", r"pruning.layers = \(1,\) .*: in vit it is \(\)"),
        ({"model.vision.tubelet": 3, "model.selection.frames": 0}, "vit", "tubelet = 3 .*: in vit it is 1"),
        ({"model.vision.layer_scale": 0.0}, "beit", "layer_scale = 0 .*: in beit it is above 0"),
    ):
        with pytest.raises(UserError, match=words):
            export.vision(*create({**VISION[family], **changes}), family, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_norms_before_the_blocks_other_epsilons_adapters_and_models_without_text_are_refused(create, tmp_path):
    for changes, family, words in (
        ({}, "bert", "norm = 'pre' .*: in bert it is 'post'"),
        ({**POST, "model.text.norm_epsilon": 1e-5}, "distilbert", "norm_epsilon = 1e-05 .*: in distilbert it is 1e-12"),
        ({"loss.vtc": 0.0, "loss.vtm": 0.0, "loss.mlm": 0.0}, "bert", "has no text encoder"),
        ({**POST, "model.adapters.reduction": 4}, "bert", "adapters.reduction = 4 .*: bert has none"),
    ):
        with pytest.raises(UserError, match=words):
            export.text(*create(changes), family, tmp_path / "out")
    assert not (tmp_path / "out").exists()
