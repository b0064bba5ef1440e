"""Scores of frames against texts: those that the model selects by."""

import dataclasses

import numpy as np
import pytest

from vlp_jax import analysis
from vlp_jax.types import UserError


@pytest.fixture(scope="module")
def loaded(workdir):
    return analysis.load(workdir)


def test_scores_are_the_selectors_own_and_the_best_frames_are_kept(loaded):
    clips = loaded.clips(3)
    queries = [clips.captions[1], clips.captions[0], "a small red circle moves up"]
    found = analysis.frame_selection(loaded, clips, queries, clip=1)
    model = loaded.model
    cls = np.asarray(model.encode_video(clips.batch.video).cls[1], np.float64)
    ids, mask, _ = loaded.run.tokenizer.encode(queries)
    text = np.asarray(model.encode_text(ids, mask)[:, 0], np.float64)
    affine = lambda x, layer: x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])
    width = model.selector.text.kernel.shape[-1]
    scores = affine(text, model.selector.text) @ affine(cls, model.selector.frame).T / width**0.5
    np.testing.assert_allclose(found.scores_PxT, scores, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.share_PxT, np.exp(scores) / np.exp(scores).sum(1, keepdims=True), rtol=1e-3)
    assert found.texts == queries and found.kept_PxT.sum(1).tolist() == [2, 2, 2]
    for row in range(3):
        assert set(np.flatnonzero(found.kept_PxT[row])) == set(np.argsort(-scores[row])[:2])


def test_the_figure_fills_the_bars_of_kept_frames_under_their_pictures(loaded):
    clips = loaded.clips(2)
    found = analysis.frame_selection(loaded, clips, clips.captions, clip=1)
    axes = analysis.draw_frame_selection(loaded, clips, found).axes
    assert len(axes) == 3 and len(axes[0].images) == 3
    np.testing.assert_allclose(axes[0].images[2].get_array(), clips.batch.video[1, 2] / 255, atol=1e-6)
    for row, axis in enumerate(axes[1:]):
        assert axis.get_title(loc="left") == clips.captions[row]
        np.testing.assert_allclose([bar.get_height() for bar in axis.patches], found.share_PxT[row], rtol=1e-6)
        assert [bar.get_facecolor()[3] > 0 for bar in axis.patches] == found.kept_PxT[row].tolist()


def test_texts_and_clips_that_are_not_there_are_refused(loaded):
    clips = loaded.clips(1)
    for queries, clip, message in [
        ([], 0, "expected a list of one text or more"),
        ("a small circle", 0, "expected a list of one text or more"),
        (["a circle", " "], 0, "one of them is empty"),
        (["a small red circle " * 9], 0, r"longer than the 18 pieces .* \(config.input.max_text_tokens\)"),
        (["a circle"], 1, "clip = 1: expected 0 to 0"),
    ]:
        with pytest.raises(UserError, match=message):
            analysis.frame_selection(loaded, clips, queries, clip=clip)


def test_runs_without_a_selector_are_refused_and_features_have_bars_alone(make_run, features, tmp_path):
    make_run(tmp_path / "all", {"model.selection.frames": 0})
    loaded = analysis.load(tmp_path / "all")
    with pytest.raises(UserError, match=r"no selector .*config.model.selection.frames = 0"):
        analysis.frame_selection(loaded, loaded.clips(1), ["a circle"])
    make_run(tmp_path / "features", FEATURES | {"input.features.path": str(features)})
    loaded = analysis.load(tmp_path / "features")
    clips = loaded.clips(1)
    found = analysis.frame_selection(loaded, clips, clips.captions)
    figure = analysis.draw_frame_selection(loaded, clips, found)
    assert len(figure.axes) == 1 and len(figure.axes[0].patches) == 3
    with pytest.raises(UserError, match="found is of clip 1, but clips holds 1"):
        analysis.draw_frame_selection(loaded, clips, dataclasses.replace(found, clip=1))
    seen = analysis.word_attention(loaded, clips)
    assert seen.raw_FxAxWxTxN.shape[3:] == (3, 1)
    np.testing.assert_allclose(np.nansum(seen.raw_FxAxWxTxN, (3, 4)), 1, rtol=1e-5)
    with pytest.raises(UserError, match=r"precomputed features .* no frames to draw on"):
        analysis.draw_word_attention(loaded, clips, seen)


FEATURES = {
    "input.features.width": 32,
    "model.vision.positions": "none",
    "model.vision.attention": "joint",
    "model.masking.kind": "none",
    "model.masking.ratio": 0.0,
    "model.masking.unmasked_share": 0.0,
    "model.pruning.layers": (),
    "loss.mvm": 0.0,
}
