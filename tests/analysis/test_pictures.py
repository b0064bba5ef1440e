"""Reconstructions: the loss's own error, patch by patch, and pictures of it."""

import numpy as np
import pytest

from vlp_jax import analysis
from vlp_jax.models.vision import patchify
from vlp_jax.types import UserError


@pytest.fixture(scope="module")
def loaded(workdir):
    return analysis.load(workdir)


def test_the_error_of_a_patch_is_that_of_its_normalised_pixels(loaded):
    clips = loaded.clips(3)
    rebuilt = analysis.reconstruct(loaded, clips)
    patches = np.asarray(patchify(clips.batch.video, 8, 1), np.float64).reshape(3, 12, -1) / 127.5 - 1
    for row in range(3):
        hidden = rebuilt.result.mask.hidden[row].reshape(-1)
        error = rebuilt.error_BxTxN[row].reshape(-1)
        assert np.flatnonzero(np.isfinite(error)).tolist() == sorted(hidden.tolist())
        true = patches[row, hidden]
        true = (true - true.mean(1, keepdims=True)) / np.sqrt(true.var(1, ddof=1, keepdims=True) + 1e-6)
        off = rebuilt.result.predicted[row].reshape(true.shape) - true
        np.testing.assert_allclose(error[hidden], (off**2).mean(1), rtol=1e-3, atol=1e-4)
    hidden = np.isfinite(rebuilt.error_BxTxN)
    np.testing.assert_allclose(rebuilt.mean_error(), rebuilt.error_BxTxN[hidden].mean(), rtol=1e-6)
    first = np.zeros_like(hidden)
    first[0] = True
    np.testing.assert_allclose(rebuilt.mean_error(first), np.nanmean(rebuilt.error_BxTxN[0]), rtol=1e-6)
    with pytest.raises(UserError, match=r"none of the .* hidden patches is of the kind"):
        rebuilt.mean_error(~hidden)


def test_other_masks_come_of_another_seed_alone(loaded):
    clips = loaded.clips(2)
    mask = lambda seed: analysis.reconstruct(loaded, clips, seed).result.mask.visible
    np.testing.assert_array_equal(mask(4), mask(4))
    assert (mask(4) != mask(5)).any()
    np.testing.assert_array_equal(mask(None), mask(loaded.config.seed))


def test_the_figure_shows_each_clip_in_four_rows(loaded):
    clips = loaded.clips(3)
    figure = analysis.draw_reconstruction(loaded, clips, analysis.reconstruct(loaded, clips))
    assert [len(block.axes) for block in figure.subfigs[:3]] == [12, 12, 12]
    first = figure.subfigs[0].axes[0].images[0].get_array()
    np.testing.assert_allclose(first, clips.batch.video[0, 0] / 255, atol=1e-6)


def test_a_run_without_a_pixel_decoder_is_refused(make_run, tmp_path):
    make_run(tmp_path / "run", {"loss.mvm": 0.0})
    loaded = analysis.load(tmp_path / "run")
    with pytest.raises(UserError, match=r"reconstruct needs a pixel decoder, but smaug-tiny .* config.loss.mvm = 0"):
        analysis.reconstruct(loaded, loaded.clips(1))
