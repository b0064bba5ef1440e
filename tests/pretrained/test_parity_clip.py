"""CLIP of transformers against ours, both towers from one folder: layers of the text, and similarities of pairs.

Needs torch, which the `parity` extra installs: `make test-parity`.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.pretrained.parity import error, root_mean_square, saved_gradients, shake
from vlp_jax import config as config_lib
from vlp_jax import export, trees
from vlp_jax.models import attention, layers
from vlp_jax.models.text import pooled
from vlp_jax.pretrained import importing
from vlp_jax.pretrained.rules import give
from vlp_jax.recipes.align_and_fuse import AlignAndFuse

torch = pytest.importorskip("torch", reason="parity is measured against torch: make test-parity")
transformers = pytest.importorskip("transformers")

# (image, text) width, heads, layers; pixels, patch; shared width, pieces, tokens; pairs
SIZES = {
    "small": ((96, 4, 3), (64, 4, 2), (48, 8), (40, 100, 12), 3),
    "base": ((768, 12, 12), (512, 8, 12), (224, 16), (512, 49408, 32), 2),
}


def theirs(size):
    image, text, (pixels, patch), (shared, pieces, length), _ = SIZES[size]
    torch.manual_seed(0)
    sizes = lambda x: {
        "hidden_size": x[0], "num_attention_heads": x[1], "num_hidden_layers": x[2], "intermediate_size": 4 * x[0],
        "projection_dim": shared,
    }  # fmt: skip
    vision = {**sizes(image), "image_size": pixels, "patch_size": patch}
    ends = {"eos_token_id": pieces - 1, "bos_token_id": pieces - 2, "pad_token_id": 1}
    words = {**sizes(text), "vocab_size": pieces, "max_position_embeddings": length, **ends}
    config = transformers.CLIPConfig(text_config=words, vision_config=vision, projection_dim=shared)
    return shake(transformers.CLIPModel(config))


def ours(size, folder, dtype="float32"):
    image, text, (pixels, patch), (shared, pieces, length), _ = SIZES[size]
    towers = {"vision": image, "text": text}
    changes = {
        f"model.{tower}.{knob}": value
        for tower, sizes in towers.items()
        for knob, value in zip(("width", "heads", "layers"), sizes)
    }
    for tower, kind in (("vision", importing.VISION["clip"]), ("text", importing.TEXT["clip"])):
        changes |= {
            **kind.knobs,
            f"model.{tower}.init_from": str(folder),
            f"model.{tower}.activation": "quick_gelu",
            f"model.{tower}.norm_epsilon": 1e-5,
        }
    changes |= {
        "compute_dtype": dtype,
        "input.frames": 1,
        "input.image_size": pixels,
        "input.max_text_tokens": length,
        "loss.vtm": 0.0,
        "loss.mlm": 0.0,
        "loss.mvm": 0.0,
        "model.vision.patch_size": patch,
        "model.vision.time_positions": "none",
        "model.pruning.layers": (),
        "model.projection": shared,
    }
    config = config_lib.update(config_lib.defaults(), changes)
    special = {"pad_id": 1, "unk_id": 2, "cls_id": pieces - 2, "sep_id": pieces - 1, "mask_id": 3}
    tokenizer = types.SimpleNamespace(vocab_size=pieces, first_word_id=4, end_word_id=pieces - 2, **special)
    with nnx.use_eager_sharding(False):
        graph, params = nnx.split(AlignAndFuse(config, tokenizer, rngs=nnx.Rngs(0)))
    params, reports = importing.towers(config, params)
    return graph, params, reports


def pairs(size):
    _, _, (pixels, _), (_, pieces, length), count = SIZES[size]
    rng = np.random.Generator(np.random.Philox(1))
    words = rng.integers(2, length - 1, count)[:, None]
    words[0] = length - 2
    place = np.arange(length)[None]
    ids = np.where(place <= words, rng.integers(4, pieces - 2, (count, length)), 1)
    ids = np.where(place == 0, pieces - 2, np.where(place == words + 1, pieces - 1, ids)).astype(np.int32)
    return rng.integers(0, 256, (count, 1, pixels, pixels, 3), np.uint8), ids, place <= words + 1


def see(model, video, ids, mask):
    x = (video[:, 0] / 127.5 - 1).transpose(0, 3, 1, 2).astype(np.float32)
    ids, mask = torch.tensor(ids.astype(np.int64)), torch.tensor(mask.astype(np.int64))
    return model(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=torch.tensor(x),
        return_loss=True,
        output_hidden_states=True,
    )


def layers_of(text, ids, mask):
    """The embeddings and the output of every layer of our text encoder."""
    x = text.embedding[...][ids] + text.position[...][: ids.shape[1]]
    out, (graph, params) = [x.astype(text.dtype)], nnx.split(text.blocks)
    bias = attention.padding_bias(mask) + attention.causal_bias(ids.shape[1])
    for layer in layers.split_layers(params, [1] * len(jax.tree.leaves(params)[0])):
        out.append(nnx.merge(graph, jax.tree.map(lambda x: x[0], layer))(out[-1], bias))
    return out


@pytest.mark.parametrize("size", list(SIZES))
def test_clip_parity_of_words_similarities_loss_and_gradients(size, tmp_path):
    model, (video, ids, mask) = theirs(size), pairs(size)
    model.save_pretrained(tmp_path)
    graph, params, reports = ours(size, tmp_path)
    biases = {"vision": {"vision/embed/bias", "video_projection/bias"}, "text": {"text_projection/bias"}}
    for name, created in biases.items():
        assert {x for x, t in reports[name].taken.items() if t.how == "created"} == created
    out = see(model, video, ids, mask)

    def run(params):
        recipe = nnx.merge(graph, params)
        v, t = recipe.embed_video(video), recipe.embed_text(ids, mask)
        return {"words": recipe.text(ids, mask), "v": v, "t": t, "logits": v @ t.T / recipe._temperature()}

    def contrast(params):
        logits = run(params)["logits"]
        own = jnp.arange(len(video))
        both = [-jax.nn.log_softmax(x)[own, own].mean() for x in (logits, logits.T)]
        return sum(both) / 2

    got = jax.jit(run)(params)
    words = out.text_model_output.last_hidden_state.detach().numpy()
    here = jax.jit(lambda params: layers_of(nnx.merge(graph, params).text, ids, mask))(params)
    there = [x.detach().numpy() for x in out.text_model_output.hidden_states]
    assert len(here) == len(there)
    errors = {
        "layers": max(error(np.asarray(a)[mask], b[mask]) for a, b in zip(here, there)),
        "words": error(np.asarray(got["words"])[mask], words[mask]),
        "video": error(got["v"], out.image_embeds.detach().numpy()),
        "text": error(got["t"], out.text_embeds.detach().numpy()),
        "logits": error(got["logits"], out.logits_per_image.detach().numpy()),
    }
    assert max(errors.values()) < 1e-5, errors
    loss, grads = jax.jit(jax.value_and_grad(contrast))(params)
    assert abs(float(loss) - out.loss.item()) < 1e-5 * out.loss.item()
    out.loss.backward()
    named = saved_gradients(model, tmp_path / "gradients")
    found = {name: np.asarray(g) for name, g in trees.by_path(nnx.to_pure_dict(grads)).items()}
    config = nnx.merge(graph, params).config
    worst = {}
    for kind in (importing.VISION["clip"], importing.TEXT["clip"]):
        there = {kind.rename(name): g for name, g in named.items()}
        # Of the temperature ours is by itself, theirs that of its logarithm.
        rules = [rule for rule in kind.rules(config, list(found), set(there)) if rule.ours != "temperature"]
        least = 1e-3 * max(np.abs(there[name]).max() for rule in rules for name in rule.theirs if "{i}" not in name)
        worst |= {name: error(g, there[name], least) for name, g in give(rules, found).items()}
    assert len(worst) > 20 and max(worst.values()) < 1e-4, worst
    print(f"clip {size}: forward {max(errors.values()):.1e}, {len(worst)} gradients {max(worst.values()):.1e}")


def test_clip_parity_of_exported_words_and_of_the_pooled_one(tmp_path):
    theirs("small").save_pretrained(tmp_path / "in")
    graph, params, _ = ours("small", tmp_path / "in")
    _, ids, mask = pairs("small")
    pieces = SIZES["small"][3][1]
    special = {"pad_token_id": 1, "bos_token_id": pieces - 2, "eos_token_id": pieces - 1}
    export.text(nnx.merge(graph, params).config, params, "clip", tmp_path / "out", special)
    model, loading = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()), loading
    given = {"input_ids": torch.tensor(ids.astype(np.int64)), "attention_mask": torch.tensor(mask.astype(np.int64))}
    with torch.no_grad():
        expected = model.eval()(**given)
    words = jax.jit(lambda params: nnx.merge(graph, params).text(ids, mask))(params)
    assert error(np.asarray(words)[mask], expected.last_hidden_state.numpy()[mask]) < 1e-5
    assert error(pooled(words, mask, "last"), expected.pooler_output.numpy()) < 1e-5


@pytest.mark.parametrize("size", list(SIZES))
def test_clip_parity_of_both_embeddings_in_bfloat16(size, tmp_path):
    model, (video, ids, mask) = theirs(size), pairs(size)
    model.save_pretrained(tmp_path)
    graph, params, _ = ours(size, tmp_path, "bfloat16")
    with torch.no_grad():
        out = see(model, video, ids, mask)
    recipe = nnx.merge(graph, params)
    errors = (
        root_mean_square(recipe.embed_video(video), out.image_embeds.numpy()),
        root_mean_square(recipe.embed_text(ids, mask), out.text_embeds.numpy()),
    )
    assert max(errors) < 1.2e-2, errors
    print(f"clip {size}: bfloat16, root mean square {max(errors):.1e}")
