"""Which patches pruning leaves: those that the encoder itself keeps, layer by layer, whole or masked."""

import dataclasses
import types

import numpy as np
import pytest
from matplotlib.figure import Figure

from vlp_jax import analysis, config
from vlp_jax.types import UserError

TWICE = {"model.vision.layers": 3, "model.pruning.layers": (0, 2), "model.pruning.keep_rate": 0.5}


@pytest.fixture(scope="module")
def loaded(make_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruned") / "run"
    make_run(out, {**TWICE, "input.image_size": 32, "model.vision.patch_size": 8})
    return analysis.load(out)


@pytest.fixture(scope="module")
def clips(loaded):
    return loaded.clips(3)


def numbers(chosen_TxN):
    return np.flatnonzero(chosen_TxN.reshape(-1)).tolist()


def test_each_layer_leaves_its_share_of_what_the_one_before_it_left(loaded, clips):
    kept = analysis.kept_patches(loaded, clips)
    assert kept.layers == (0, 2) and kept.kept_RxBxTxN.shape == (2, 3, 3, 16) and kept.visible_BxTxN.all()
    np.testing.assert_array_equal(kept.kept_RxBxTxN.sum(-1), np.broadcast_to([[[8]], [[4]]], (2, 3, 3)))
    assert not (kept.kept_RxBxTxN[1] & ~kept.kept_RxBxTxN[0]).any()
    model = loaded.model.encode_video(clips.batch.video)
    for row in range(3):
        assert numbers(kept.kept_RxBxTxN[1][row]) == sorted(np.asarray(model.kept)[row].ravel().tolist())


def test_masked_clips_are_those_of_the_reconstruction(loaded, clips):
    for seed in (None, 5):
        kept = analysis.kept_patches(loaded, clips, masked=True, seed=seed)
        result = analysis.reconstruct(loaded, clips, seed).result
        for row in range(3):
            assert numbers(kept.visible_BxTxN[row]) == sorted(result.mask.visible[row].ravel().tolist())
            assert numbers(kept.kept_RxBxTxN[-1][row]) == sorted(result.kept[row].ravel().tolist())
    other = analysis.kept_patches(loaded, clips, masked=True, seed=6)
    assert (other.visible_BxTxN != kept.visible_BxTxN).any()


def test_whole_frames_that_are_hidden_stand_as_such(make_run, tmp_path):
    changes = {"model.masking.kind": "frame", "model.masking.ratio": 0.34, "model.decoder.attention": "joint"}
    make_run(tmp_path / "run", changes)
    loaded = analysis.load(tmp_path / "run")
    kept = analysis.kept_patches(loaded, loaded.clips(2), masked=True)
    assert kept.visible_BxTxN.all(-1).sum(1).tolist() == [2, 2] == kept.visible_BxTxN.any(-1).sum(1).tolist()
    assert not (kept.kept_RxBxTxN & ~kept.visible_BxTxN).any()


def test_the_figure_has_a_row_for_each_pruning_and_one_for_the_mask(loaded, clips):
    for masked, rows in ((False, ["clip", "after layer 0\n(50%)", "after layer 2\n(25%)"]), (True, None)):
        kept = analysis.kept_patches(loaded, clips, masked=masked)
        figure = analysis.draw_kept_patches(loaded, clips, kept)
        assert isinstance(figure, Figure)
        axes = figure.subfigs[0].axes
        assert [axis.get_ylabel() for axis in axes[::3]] == rows or (masked and len(axes) == 4 * 3)
    shown = np.asarray(axes[2 * 3].images[0].get_array())
    frame = clips.batch.video[0, 0].astype(np.float32) / 255
    side = kept.kept_RxBxTxN[0][0, 0].reshape(4, 4)
    whole = np.kron(side, np.ones((8, 8)))[..., None] > 0
    np.testing.assert_allclose(shown, np.where(whole, frame, 0.2 * frame + 0.8), atol=1e-6)


def test_foreground_is_where_a_pixel_stands_out_from_its_frame(loaded, clips):
    video = np.full((1, 3, 32, 32, 3), 150, np.uint8)
    video[0, 1, 9, 17] = (150, 150, 191)
    video[0, 2, 0, 0] = (150, 150, 190)
    made = analysis.Clips(dataclasses.replace(clips.batch, video=video), ["one"], ["one"], np.array([0]), {})
    assert np.argwhere(analysis.foreground(loaded, made)).tolist() == [[0, 1, 6]]
    assert np.argwhere(analysis.foreground(loaded, made, 39)).tolist() == [[0, 1, 6], [0, 2, 0]]


def test_the_share_kept_of_a_kind_counts_patches_of_that_kind_alone():
    visible = np.ones((2, 1, 4), bool)
    visible[1, 0, 3] = False
    left = np.array([[[1, 1, 0, 0]], [[0, 1, 0, 0]]], bool)
    kind = np.array([[[1, 0, 1, 0]], [[1, 1, 0, 1]]], bool)  # the last one is hidden
    kept = analysis.Kept((1,), visible, left[None], True)
    found = analysis.share_kept(kept, kind)
    assert (found.patches, found.kept, found.chance) == (4, 0.5, 3 / 7)
    assert found.low <= found.kept <= found.high
    one = analysis.share_kept(kept, kind, [1])
    assert (one.patches, one.kept, one.chance) == (2, 0.5, 1 / 3) and one.low == one.high == 0.5
    figure = analysis.draw_share_kept(types.SimpleNamespace(config=config.defaults(), title="a run"), {"all": found})
    assert figure.axes[0].get_yticklabels()[0].get_text() == "all (4 patches)"
    for call, message in [
        (lambda: analysis.share_kept(kept, kind[:1]), r"shape \(1, 1, 4\), bool: expected \(2, 1, 4\)"),
        (lambda: analysis.share_kept(kept, ~visible), "none of the 7 patches"),
        (lambda: analysis.share_kept(kept, kind, []), "none of the 0 patches"),
        (lambda: analysis.share_kept(kept, kind, [99]), r"rows = \[99\]: expected 0 to 1"),
        (lambda: analysis.share_kept(kept, kind, [True, False]), r"rows = \[True, False\]: expected 0 to 1, integers"),
        (lambda: analysis.share_kept(kept, kind.astype(float)), "float64: expected .* a bool for each patch"),
        (lambda: analysis.share_kept(kept, kind, samples=0), "samples = 0: expected an integer above 0"),
        (lambda: analysis.draw_share_kept(None, {}), "expected a kind or more"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_runs_without_it_are_refused_by_the_knob(make_run, tmp_path):
    dense = {
        "model.masking.kind": "none",
        "model.masking.ratio": 0.0,
        "model.masking.unmasked_share": 0.0,
        "loss.mvm": 0.0,
    }
    make_run(tmp_path / "run", {**dense, "model.pruning.layers": ()})
    loaded = analysis.load(tmp_path / "run")
    with pytest.raises(UserError, match=r"kept_patches needs a run that prunes.*config.model.pruning.layers = \(\)"):
        analysis.kept_patches(loaded, loaded.clips(1))
    make_run(tmp_path / "unmasked", dense)
    loaded = analysis.load(tmp_path / "unmasked")
    with pytest.raises(UserError, match=r"masks, but .* config.model.masking.kind = 'none'"):
        analysis.kept_patches(loaded, loaded.clips(1), masked=True)
