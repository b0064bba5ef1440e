"""The video encoder against an encoder written out in NumPy, and what each token may and may not see."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp_jax import config as config_lib
from vlp_jax import masking
from vlp_jax.models import layers, vision

B, T, N, LAYERS = 2, 3, 9, 3


@pytest.fixture(scope="module")
def encoder(tiny_config, build_module):
    """`encoder(changes)` -> (params, jitted function of params, video and visible patches)."""

    @functools.cache
    def make(items):
        config = config_lib.freeze(tiny_config(dict(items)))
        dtype = layers.compute_dtype(config.compute_dtype)
        graph, params = nnx.split(build_module(vision.VideoEncoder, config, dtype=dtype))
        # Attention of fresh weights is nearly even; larger ones make the choice of tokens clear-cut.
        params = jax.tree.map(lambda x: x * 3 if x.ndim > 2 else x, params)
        return params, jax.jit(lambda params, video, visible: nnx.merge(graph, params)(video, visible))

    return lambda changes=None: make(tuple((changes or {}).items()))


@pytest.fixture(scope="module")
def video(tiny_config, random_batch):
    return random_batch(tiny_config(), B).video


@pytest.fixture(scope="module")
def visible():
    keys = jax.random.split(jax.random.key(0), B)
    return np.asarray(masking.sample_patches("random", keys, slots=T, patches=N, visible=(T, 5), hidden=4).visible)


# --- Patches ----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 2))
def test_unpatchify_undoes_patchify(batch, slots, side, patch, tubelet):
    shape = (batch, slots * tubelet, side * patch, side * patch, 3)
    clip = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    patches = vision.patchify(clip, patch, tubelet)
    assert patches.dtype == np.uint8
    assert patches.shape == (batch, slots, side * side, tubelet * patch * patch * 3)
    np.testing.assert_array_equal(vision.unpatchify(patches, patch, tubelet), clip)


def test_patchify_numbers_patches_row_by_row_and_slots_by_time():
    clip = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 9, 3), np.uint8)
    patches = np.asarray(vision.patchify(clip, 3, 2))
    for t, n in np.ndindex(2, 6):
        y, x = divmod(n, 3)
        cube = clip[0, 2 * t : 2 * t + 2, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3]
        np.testing.assert_array_equal(patches[0, t, n], cube.ravel())


def test_pixels_are_normalised_to_minus_one_to_one():
    got = vision.normalise_pixels(jnp.array([0, 255], jnp.uint8))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [-1, 1], atol=1e-6)


# --- Against NumPy ----------------------------------------------------------------------------------------------------


def reference(params, clips, visible, *, attention, prune_layers, keep_rate=0.7, fused=False, heads=2):
    """Encodes clips one by one in float64; returns tokens, kept patches and early tokens."""
    flat = {path: np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(params)}

    def norm(x, scale, bias):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale + bias

    def softmax(x):
        x = np.exp(x - x.max(-1, keepdims=True))
        return x / x.sum(-1, keepdims=True)

    gelu = lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    space_time = layers.space_time_positions(T, 3, 16).reshape(T * N, 16)
    time = layers.time_positions(T, 16)
    outputs = []
    for clip, seen in zip(clips, visible):
        patches = np.asarray(vision.patchify(clip[None], 8, 1))[0].reshape(T * N, -1) / 127.5 - 1.0
        kept = [list(row) for row in seen]
        frames = [
            np.stack(
                [
                    flat["cls",] + time[row[0] // N],
                    *(patches[i] @ flat["embed", "kernel"] + flat["embed", "bias"] + space_time[i] for i in row),
                ]
            )
            for row in kept
        ]
        early, has_fused = None, False
        final = lambda x: norm(x, flat["norm", "scale"], flat["norm", "bias"])
        for layer in range(LAYERS):
            p = functools.partial(lambda at, *path: flat[("blocks", *path)][at], layer)
            if layer in prune_layers and early is None:
                early = [final(x[1:]) for x in frames]
            lengths = [len(x) for x in frames]
            groups = frames if attention == "frame" else [np.concatenate(frames)]
            mixed, rows = [], []
            for x in groups:
                h = norm(x, p("norm_attention", "scale"), p("norm_attention", "bias"))
                qkv = np.einsum("sd,dcah->scah", h, p("attention", "qkv", "kernel")) + p("attention", "qkv", "bias")
                out, each = np.zeros((len(x), heads, 16 // heads)), []
                for a in range(heads):
                    q, k, v = (qkv[:, c, a] for c in range(3))
                    each.append(softmax(q @ k.T / np.sqrt(16 // heads)))
                    out[:, a] = each[-1] @ v
                out = np.einsum("sah,ahd->sd", out, p("attention", "out", "kernel")) + p("attention", "out", "bias")
                mixed.append(x + out)
                rows.append(np.mean(each, axis=0))
            if attention == "joint":
                starts = np.cumsum([0, *lengths])
                frames = [mixed[0][a:b] for a, b in itertools.pairwise(starts)]
                scores = [rows[0][a, a:b] for a, b in itertools.pairwise(starts)]
            else:
                frames, scores = mixed, [weights[0] for weights in rows]
            if layer in prune_layers:
                for t, (x, score) in enumerate(zip(frames, scores)):
                    places = range(1, len(x) - has_fused)
                    count = math.ceil(round(keep_rate * len(places), 6))
                    best = sorted((np.argsort(-score[list(places)])[:count] + 1).tolist())
                    rest = [s for s in range(1, len(x)) if s not in best]
                    new = [x[0], *x[best]]
                    if fused:
                        new.append((score[rest] / score[rest].sum()) @ x[rest])
                    frames[t], kept[t] = np.stack(new), [kept[t][s - 1] for s in best]
                has_fused = fused
            for t, x in enumerate(frames):
                h = norm(x, p("norm_mlp", "scale"), p("norm_mlp", "bias"))
                h = gelu(h @ p("mlp", "up", "kernel") + p("mlp", "up", "bias"))
                frames[t] = x + h @ p("mlp", "down", "kernel") + p("mlp", "down", "bias")
        outputs.append(([final(x) for x in frames], kept, early or [final(x[1:]) for x in frames]))
    return [np.array(x) for x in zip(*outputs)]


@pytest.mark.parametrize("attention", ["frame", "joint"])
@pytest.mark.parametrize(("prune_layers", "fused"), [((), False), ((0, 2), False), ((0, 1), True)])
def test_the_encoder_is_the_one_written_out_in_numpy(encoder, video, visible, attention, prune_layers, fused):
    params, run = encoder(
        {
            "model.vision.attention": attention,
            "model.pruning.layers": prune_layers,
            "model.pruning.fused_token": fused,
        }
    )
    got = run(params, video, visible)
    tokens, kept, early = reference(params, video, visible, attention=attention, prune_layers=prune_layers, fused=fused)
    np.testing.assert_array_equal(got.kept, kept)
    np.testing.assert_allclose(got.tokens, tokens, rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(got.early[:, :, 1:], early, rtol=1e-3, atol=2e-4)
    np.testing.assert_array_equal(got.cls, got.tokens[:, :, 0])


# --- What a token may see ---------------------------------------------------------------------------------------------


def test_seeing_all_patches_is_the_default(encoder, video):
    params, run = encoder()
    everything = np.asarray(masking.all_visible(B, T, N))
    jax.tree.map(np.testing.assert_array_equal, run(params, video, everything), run(params, video, None))


def test_hidden_patches_do_not_influence_the_output_at_all(encoder, video, visible):
    params, run = encoder({"model.vision.attention": "joint"})
    patches = np.array(vision.patchify(video, 8, 1)).reshape(B, T * N, -1)
    other = np.random.default_rng(9).integers(0, 256, patches.shape, np.uint8)
    seen = visible.reshape(B, -1, 1)
    np.put_along_axis(other, seen, np.take_along_axis(patches, seen, 1), 1)
    changed = np.asarray(vision.unpatchify(other.reshape(B, T, N, -1), 8, 1))
    assert (changed != video).mean() > 0.3
    jax.tree.map(np.testing.assert_array_equal, run(params, video, visible), run(params, changed, visible))


@pytest.mark.parametrize("attention", ["frame", "joint"])
def test_only_joint_attention_sees_other_frames(encoder, video, attention):
    params, run = encoder({"model.vision.attention": attention})
    changed = video.copy()
    changed[:, 1] = 255 - changed[:, 1]
    before, after = run(params, video, None), run(params, changed, None)
    frames = [0, 2]
    if attention == "frame":
        for name in ("tokens", "kept", "early"):
            a, b = (np.asarray(getattr(x, name)) for x in (before, after))
            np.testing.assert_array_equal(a[:, frames], b[:, frames])
    else:
        assert abs(np.asarray(before.cls - after.cls))[:, frames].min(axis=(0, 2)).max() > 0
        assert abs(np.asarray(before.cls - after.cls))[:, frames].mean() > 1e-3
    assert abs(np.asarray(before.cls - after.cls))[:, 1].mean() > 1e-3


def test_a_clip_is_encoded_the_same_whatever_stands_beside_it(encoder, video, visible):
    params, run = encoder()
    changed = video.copy()
    changed[1] = 7
    a, b = run(params, video, visible), run(params, changed, visible)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), a, b)


def test_an_image_is_encoded_as_the_first_frame_of_a_clip(encoder, video):
    params, run = encoder()
    alone, clip = run(params, video[:, :1], None), run(params, video, None)
    np.testing.assert_allclose(alone.tokens[:, 0], clip.tokens[:, 0], rtol=1e-4, atol=1e-5)


def test_equal_frames_are_told_apart_by_their_time(encoder, video):
    params, run = encoder()
    still = np.repeat(video[:, :1], T, axis=1)
    cls = np.asarray(run(params, still, None).cls)
    assert abs(cls[:, 0] - cls[:, 2]).mean() > 1e-3


# --- Pruning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prune_layers", "rate", "fused", "survivors"),
    [
        ((), 0.7, False, 9),
        ((0,), 0.7, False, 7),  # ceil(6.3)
        ((0, 1), 0.7, False, 5),  # ceil(4.9)
        ((0, 1, 2), 0.7, True, 4),  # ceil(3.5)
        ((1,), 1.0, False, 9),
        ((0, 1, 2), 0.01, True, 1),
    ],
)
def test_token_counts_after_pruning(tiny_config, build_module, video, prune_layers, rate, fused, survivors):
    config = tiny_config(
        {
            "model.pruning.layers": prune_layers,
            "model.pruning.keep_rate": rate,
            "model.pruning.fused_token": fused,
        }
    )
    module = build_module(vision.VideoEncoder, config_lib.freeze(config), dtype=jnp.float32)
    shapes = jax.eval_shape(module, video)
    assert shapes.tokens.shape == (B, T, 1 + survivors + fused, 16)
    assert shapes.kept.shape == (B, T, survivors)
    assert shapes.early.shape == (B, T, 10, 16)


def test_kept_patches_are_visible_ones_of_their_frame_in_order(encoder, video, visible):
    params, run = encoder({"model.pruning.layers": (0, 2)})
    kept = np.asarray(run(params, video, visible).kept)
    assert (np.diff(kept, axis=-1) > 0).all()
    for b, t in np.ndindex(B, T):
        assert set(kept[b, t].tolist()) < set(visible[b, t].tolist())


# --- Ways to run ------------------------------------------------------------------------------------------------------


def loss_and_gradient(encoder, changes, video, visible):
    params, run = encoder(changes)

    def loss(params):
        out = run(params, video, visible)
        return sum((x.astype(jnp.float32) ** 3).mean() for x in (out.tokens, out.early))

    return jax.value_and_grad(loss)(params)


@pytest.fixture(scope="module")
def plain(encoder, video, visible):
    return loss_and_gradient(encoder, {"model.pruning.layers": (0,)}, video, visible)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.unroll": True},
        {"model.remat": "dots"},
        {"model.remat": "full"},
    ],
    ids=str,
)
def test_unrolling_and_rematerialisation_change_neither_loss_nor_gradient(encoder, plain, changes, video, visible):
    got = loss_and_gradient(encoder, {"model.pruning.layers": (0,), **changes}, video, visible)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got, plain)


def test_bfloat16_is_close_and_keeps_parameters_in_float32(encoder, video, visible):
    # Without pruning, as a near tie may drop another token at another precision.
    changes = {"model.pruning.layers": ()}
    params, run = encoder({**changes, "compute_dtype": "bfloat16"})
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    got = run(params, video, visible)
    exact = encoder(changes)[1](params, video, visible)
    assert got.tokens.dtype == jnp.bfloat16
    difference = np.asarray(got.tokens, np.float32) - np.asarray(exact.tokens)
    assert np.sqrt((difference**2).mean()) < 0.05
