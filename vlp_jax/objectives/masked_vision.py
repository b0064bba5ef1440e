"""Masked video modelling (MVM): the pixels of the hidden patches."""

import jax.numpy as jnp


def normalise_patches(patches_xP):
    """Each patch to mean 0 and variance 1 over its pixels: t' = (t - mean) / sqrt(var + 1e-6) (MAE, section 4.1).

    The variance is the unbiased one, as in MAE's code; float32 `[..., P]` in pixel values of [-1, 1].
    """
    mean = patches_xP.mean(-1, keepdims=True)
    variance = patches_xP.var(-1, keepdims=True, ddof=1)
    return (patches_xP - mean) / jnp.sqrt(variance + 1e-6)


def normalise_colours(patches_xP):
    """Each colour of each patch to mean 0 and deviation 1: t' = (t - mean) / (deviation + 1e-6) of pixels in [0, 1], as
    VideoMAE's code; float32 `[..., P]` in pixel values of [-1, 1], colours innermost."""
    x = patches_xP.reshape(*patches_xP.shape[:-1], -1, 3)
    mean, deviation = x.mean(-2, keepdims=True), x.std(-2, keepdims=True, ddof=1)
    return ((x - mean) / (deviation + 2e-6)).reshape(patches_xP.shape)


def unchanged(patches_xP):
    """Pixels as they are, in [-1, 1] (MAE and VideoMAE without `norm_pix_loss`)."""
    return patches_xP


TARGETS = {"patch": normalise_patches, "channel": normalise_colours, "pixels": unchanged}


def pixels_of(predicted_xP, true_xP, target: str):
    """Predictions of a target as pixels in [0, 1], with the mean and deviation of the true ones where these are taken
    out; NumPy, for pictures."""
    if target == "pixels":
        return predicted_xP / 2 + 0.5
    channels = 3 if target == "channel" else 1
    true, predicted = (x.reshape(*x.shape[:-1], -1, channels) for x in (true_xP, predicted_xP))
    mean, variance = true.mean(-2, keepdims=True), true.var(-2, keepdims=True, ddof=1)
    return (predicted * (variance + 1e-6) ** 0.5 + mean).reshape(true_xP.shape)


def patch_errors(predicted_xP, target_xP):
    """Mean squared error of each patch; of per-patch normalised ones 1 is what predicting their mean gives."""
    return jnp.square(predicted_xP - target_xP).mean(-1)


def mvm(predicted_BxTxMxP, target_BxTxMxP, valid_B):
    """Mean squared error over each hidden patch, summed over the hidden patches of the valid clips (MAE's loss).

    Returns:
      `(sum, count)`; the count is the number of patches.
    """
    error_B = patch_errors(predicted_BxTxMxP, target_BxTxMxP).sum((1, 2))
    patches = predicted_BxTxMxP.shape[1] * predicted_BxTxMxP.shape[2]
    return jnp.where(valid_B, error_B, 0.0).sum(), valid_B.sum().astype(jnp.float32) * patches
