"""MVM: MAE's normalised targets and its loss, against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from vlp_jax.objectives import masked_vision

RNG = np.random.default_rng(0)


def test_targets_are_normalised_patch_by_patch_with_the_unbiased_variance():
    patches = RNG.uniform(-1, 1, (2, 3, 4, 12)).astype(np.float32)
    got = np.asarray(masked_vision.normalise_patches(jnp.asarray(patches)))
    for place in np.ndindex(2, 3, 4):
        t = patches[place].astype(np.float64)
        mean = sum(t) / 12
        variance = sum((t - mean) ** 2) / 11
        np.testing.assert_allclose(got[place], (t - mean) / np.sqrt(variance + 1e-6), rtol=1e-4, atol=1e-5)


def test_colours_are_normalised_each_by_itself_as_pixels_from_zero_to_one():
    patches = RNG.uniform(-1, 1, size=(2, 3, 4, 12)).astype(np.float32)
    got = np.asarray(masked_vision.normalise_colours(jnp.asarray(patches)))
    for place in np.ndindex(2, 3, 4):
        for colour in range(3):
            t = (patches[place].astype(np.float64)[colour::3] + 1) / 2
            expected = (t - t.mean()) / (t.std(ddof=1) + 1e-6)
            np.testing.assert_allclose(got[place][colour::3], expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(masked_vision.normalise_colours(jnp.full((1, 12), 0.3))).all()


def test_a_flat_patch_has_a_target_of_zeros():
    got = masked_vision.normalise_patches(jnp.full((1, 1, 12), 0.3))
    np.testing.assert_allclose(got, 0, atol=1e-3)


def test_mvm_is_the_mean_squared_error_of_each_hidden_patch_of_the_valid_clips():
    predicted, target = (RNG.normal(size=(3, 2, 4, 12)).astype(np.float32) for _ in range(2))
    valid = np.array([True, False, True])
    total = 0.0
    for b in (0, 2):
        for t, m in np.ndindex(2, 4):
            total += sum((predicted[b, t, m].astype(np.float64) - target[b, t, m]) ** 2) / 12
    got = masked_vision.mvm(jnp.asarray(predicted), jnp.asarray(target), jnp.asarray(valid))
    np.testing.assert_allclose([float(x) for x in got], (total, 2 * 2 * 4), rtol=1e-5)


def test_mvm_gives_an_invalid_clip_no_gradient_even_where_its_target_is_not_finite():
    predicted = RNG.normal(size=(2, 1, 4, 12)).astype(np.float32)
    valid = jnp.array([True, False])
    gradient = np.asarray(jax.grad(lambda p: masked_vision.mvm(p, jnp.zeros_like(p), valid)[0])(predicted))
    assert (gradient[1] == 0).all()
    np.testing.assert_allclose(gradient[0], 2 * predicted[0] / 12, rtol=1e-5)
