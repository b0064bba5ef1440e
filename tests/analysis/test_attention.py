"""Where words look: the model's own weights, laid on the right patches, and their rollout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import smaug
from vlp_jax import analysis
from vlp_jax.analysis import attention, texts
from vlp_jax.types import UserError

TWO = {"model.fusion.layers": 2, "input.image_size": 24, "model.pruning.keep_rate": 0.5}
DENSE = {**smaug.DENSE, "model.vision.pool": "mean"}
OTHERS = {
    "singularity": {**DENSE, "recipe": "singularity", "model.temporal.layers": 1},
    "vindlu": {**DENSE, "recipe": "vindlu", "model.vision.temporal_attention": "zero_init"},
    "fused token": {**TWO, "model.pruning.fused_token": True},
}


@pytest.fixture(scope="module")
def loaded(make_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("attention") / "run"
    make_run(out, TWO)
    return analysis.load(out)


def first_layer(model, video, ids, mask):
    """Weights of the first fusion layer's cross-attention `[A, L, Kt, S]`, step by step."""
    words, clips = model.encode_text(ids, mask), model.encode_video(video)
    frames, gate, _ = model.select(clips, words[:, 0], jnp.zeros(1, jnp.int32), None)
    graph, params = nnx.split(model.fusion.blocks)
    block = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], params))
    bias = jnp.where(mask[:, None, None, :], 0.0, -1e9)
    x = words + block.self_attention(block.norm_self(words), bias)
    tokens = np.asarray(clips.tokens)[0, np.asarray(frames)[0]]
    k = np.asarray(block.cross_attention.keys_values(tokens))[:, :, 0]
    q = np.asarray(block.cross_attention.query(block.norm_cross(x)))[0]
    logits = np.einsum("lad,tsad->alts", q, k) / k.shape[-1] ** 0.5 + np.asarray(gate)[0][:, None]
    weights = np.exp(logits - logits.max((2, 3), keepdims=True))
    return weights / weights.sum((2, 3), keepdims=True), np.asarray(frames)[0], np.asarray(clips.kept)[0]


def test_raw_weights_are_those_of_the_model_on_the_patches_that_are_left(loaded):
    clips = loaded.clips(2)
    found = analysis.word_attention(loaded, clips, clip=1)
    batch = clips.batch
    ids, mask = batch.text_ids[1:], batch.text_mask[1:]
    weights, frames, kept = first_layer(loaded.model, batch.video[1:], ids, mask)
    names, places = texts.words(loaded.run.tokenizer, ids[0], mask[0])
    assert found.words == names and found.words[0] == "[CLS]" and found.words[-1] == "[SEP]"
    assert found.raw_FxAxWxTxN.shape == (2, 2, len(names), 3, 9)
    assert found.frames.tolist() == frames.tolist() and len(frames) == 2
    seen = np.isfinite(found.raw_FxAxWxTxN).all((0, 1, 2))
    assert np.flatnonzero(seen).tolist() == sorted(kept[frames].ravel().tolist())
    for word, where in enumerate(places):
        own = weights[:, where].mean(1)
        for slot, frame in enumerate(frames):
            at = found.raw_FxAxWxTxN[0, :, word, frame, kept[frame] % 9]
            np.testing.assert_allclose(at.T, own[:, slot, 1:], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found.raw_other_FxAxW[0, :, word], own[:, :, 0].sum(1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_rows_sum_to_one_whatever_the_recipe(make_run, tmp_path, name):
    make_run(tmp_path / "run", OTHERS[name])
    loaded = analysis.load(tmp_path / "run")
    clips = loaded.clips(1)
    found = analysis.word_attention(loaded, clips, "a large blue star spins")
    assert found.words == ["[CLS]", "a", "large", "blue", "star", "spins", "[SEP]"]
    total = np.nansum(found.raw_FxAxWxTxN, (3, 4)) + found.raw_other_FxAxW
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    rolled = np.nansum(found.rollout_WxTxN, (1, 2)) + found.rollout_other_W + found.rollout_words_W
    np.testing.assert_allclose(rolled, 1, rtol=1e-5)
    dense = name != "fused token"
    assert (found.frames.tolist() == [0, 1, 2] and np.isfinite(found.raw_FxAxWxTxN).all()) == dense


def test_rollout_is_the_product_of_the_layers_over_words_and_patches_together():
    """As one matrix over words and patches, where patches stay what they are: Abnar and Zuidema's equation 1."""
    rng = np.random.default_rng(0)
    layers, heads, length, patches = 3, 2, 4, 5
    own = rng.dirichlet(np.ones(length), (layers, heads, length))
    cross = rng.dirichlet(np.ones(patches), (layers, heads, length))
    whole = np.eye(length + patches)
    for layer in range(layers):
        for block, columns in ((own, slice(0, length)), (cross, slice(length, None))):
            step = np.eye(length + patches)
            step[:length] *= 0.5
            step[:length, columns] += 0.5 * block[layer].mean(0)
            whole = step @ whole
    words, video = attention.rollout(own, cross)
    np.testing.assert_allclose(words, whole[:length, :length], rtol=1e-5)
    np.testing.assert_allclose(video, whole[:length, length:], rtol=1e-5)


def test_the_figure_has_a_row_for_each_word_and_greys_what_cannot_be_seen(loaded):
    clips = loaded.clips(1)
    found = analysis.word_attention(loaded, clips, "a large blue star spins, then a small red star fades")
    draw = lambda *args, **more: analysis.draw_word_attention(loaded, clips, found, *args, **more).axes
    label = lambda axis: axis.get_ylabel().split("\n")[0]
    assert [label(axis) for axis in draw(["star", "large"])[0:9:3]] == ["clip", "large", "star"]
    assert [label(axis) for axis in draw("large")[:-1:3]] == ["clip", "large"]
    axes = draw(layer=1, head=0)
    assert [label(axis) for axis in axes[:-1:3]] == ["clip", *found.words[1:-1]]
    dropped = next(slot for slot in range(3) if slot not in found.frames)
    picture = np.asarray(axes[3 + dropped].images[0].get_array())
    assert np.ptp(picture, axis=-1).max() == 0 and np.ptp(picture) < 0.3
    lit = np.asarray(axes[3 + found.frames[0]].images[0].get_array())
    assert np.ptp(lit, axis=-1).max() > 0.1


def test_what_is_not_there_is_refused_by_name(loaded, make_run, tmp_path):
    clips = loaded.clips(1)
    found = analysis.word_attention(loaded, clips)
    later = analysis.word_attention(loaded, loaded.clips(2), clip=1)
    draw = lambda *args, **more: analysis.draw_word_attention(loaded, clips, found, *args, **more)
    for call, message in [
        (lambda: analysis.word_attention(loaded, clips, clip=-1), "clip = -1: expected 0 to 0"),
        (lambda: analysis.word_attention(loaded, clips, "a circle " * 30), "longer than the 18 pieces"),
        (lambda: analysis.word_attention(loaded, clips, ["a star"]), r"text = \['a star'\]: expected one text"),
        (lambda: analysis.draw_word_attention(loaded, clips, later), "found is of clip 1, but clips holds 1"),
        (lambda: draw(["zebra"]), r"words = \['zebra'\]: expected some of \['\[CLS\]', 'a'"),
        (lambda: draw(layer=2), "layer = 2: expected 0 to 1"),
        (lambda: draw(layer=0, head=2), "head = 2: expected 0 to 1"),
        (lambda: draw(head=0), "head = 0 without a layer"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
    make_run(tmp_path / "run", {"loss.vtm": 0.0, "loss.mlm": 0.0})
    alone = analysis.load(tmp_path / "run")
    with pytest.raises(UserError, match=r"needs fusion layers, .* config.loss.vtm = 0 and config.loss.mlm = 0"):
        analysis.word_attention(alone, clips)


def test_words_are_joined_of_their_pieces():
    pieces = ["[CLS]", "▁red", "dish", "▁star", ",", "[SEP]", "[PAD]"]

    class Tokenizer:
        cls_id, sep_id = 0, 5
        starts_word = np.array([True, True, False, True, False, True, True])

        def decode(self, ids):
            return "".join(pieces[i] for i in ids).replace("▁", " ")

    ids, mask = np.arange(7), np.arange(7) < 6
    names, places = texts.words(Tokenizer(), ids, mask)
    assert names == ["[CLS]", "reddish", "star,", "[SEP]"]
    assert [where.tolist() for where in places] == [[0], [1, 2], [3, 4], [5]]
    Tokenizer.starts_word = None
    assert texts.words(Tokenizer(), ids, mask)[0] == ["[CLS]", "red", "dish", "star", ",", "[SEP]"]
    # A text that begins inside a word, as one of a byte-level BPE without a leading space does.
    Tokenizer.starts_word = np.array([True, False, False, True, False, True, True])
    assert texts.words(Tokenizer(), ids, mask)[0] == ["[CLS]", "reddish", "star,", "[SEP]"]
