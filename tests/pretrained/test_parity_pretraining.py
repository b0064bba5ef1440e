"""The pre-training losses of ViT-MAE and VideoMAE of transformers against ours, from the same weights and masks.

Needs torch, which the `parity` extra installs: `make test-parity`.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.pretrained.parity import error, saved_gradients, shake
from vlp_jax import config as config_lib
from vlp_jax import masking, trees
from vlp_jax.models.decoder import PixelDecoder
from vlp_jax.models.vision import VideoEncoder, normalise_pixels, patchify
from vlp_jax.objectives import masked_vision
from vlp_jax.pretrained import importing
from vlp_jax.pretrained.rules import give

torch = pytest.importorskip("torch", reason="parity is measured against torch: make test-parity")
transformers = pytest.importorskip("transformers")

# width, heads, layers; the decoder's; pixels, patch, clips, temporal slots of VideoMAE
SIZES = {"small": ((96, 4, 3), (48, 2, 2), 48, 8, 3, 2), "base": ((768, 12, 12), (384, 6, 4), 224, 16, 1, 2)}
FAMILIES = ("vit_mae", "videomae")
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # transformers' of ImageNet


def theirs(family, size):
    (width, heads, depth), (d_width, d_heads, d_depth), pixels, patch, _, slots = SIZES[size]
    torch.manual_seed(0)
    sizes = {
        "hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": depth, "intermediate_size": 4 * width,
        "decoder_hidden_size": d_width, "decoder_num_attention_heads": d_heads, "decoder_num_hidden_layers": d_depth,
        "decoder_intermediate_size": 4 * d_width, "image_size": pixels, "patch_size": patch, "norm_pix_loss": True,
    }  # fmt: skip
    if family == "vit_mae":
        return shake(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes, mask_ratio=0.75)))
    config = transformers.VideoMAEConfig(**sizes, num_frames=2 * slots, use_mean_pooling=False)
    model = shake(transformers.VideoMAEForPreTraining(config))
    model.decoder.norm.eps = config.layer_norm_eps  # the one norm that it gives another, see vlp_jax/pretrained
    return model


class MaskedAutoencoder(nnx.Module):
    """Our encoder and decoder, named as in a recipe."""

    def __init__(self, config, *, rngs):
        self.config = config_lib.freeze(config)
        self.vision = VideoEncoder(config, dtype=jnp.float32, rngs=rngs)
        self.decoder = PixelDecoder(config, dtype=jnp.float32, rngs=rngs)

    def __call__(self, video, mask):
        """Predictions `[B, Th, M, P]` and the loss, as SMAUG's."""
        slots, count = config_lib.grid(self.config, video.shape[1])
        early = self.vision(video, mask.visible).early
        predicted = self.decoder(early, mask.visible, mask.hidden, slots, count)
        v = self.config.model.vision
        patches = patchify(video, v.patch_size, v.tubelet).reshape(len(video), slots * count, -1)
        hidden = jnp.take_along_axis(patches, mask.hidden.reshape(len(video), -1, 1), axis=1)
        normalise = masked_vision.TARGETS[self.config.model.decoder.target]
        target = normalise(normalise_pixels(hidden)).reshape(predicted.shape)
        total, number = masked_vision.mvm(predicted, target, jnp.ones(len(video), bool))
        return total / number, predicted


def ours(family, size, folder):
    (width, heads, depth), (d_width, d_heads, d_depth), pixels, patch, _, slots = SIZES[size]
    kind, there = importing.VISION[family], json.loads((folder / "config.json").read_text())
    changes = {
        "model.vision.init_from": str(folder),
        "model.vision.width": width,
        "model.vision.heads": heads,
        "model.vision.layers": depth,
        "model.vision.patch_size": patch,
        "model.vision.norm_epsilon": there["layer_norm_eps"],
        "model.vision.time_positions": "none",
        "model.decoder.width": d_width,
        "model.decoder.heads": d_heads,
        "model.decoder.layers": d_depth,
        "model.decoder.norm_epsilon": there["layer_norm_eps"],
        "model.decoder.from_file": True,
        "model.pruning.layers": (),
        "input.image_size": pixels,
        **kind.knobs,
        **kind.decoder.knobs,
    }
    config = config_lib.update(config_lib.defaults(), changes)
    config.input.frames = 2 * slots if family == "videomae" else 1
    with nnx.use_eager_sharding(False):
        graph, params = nnx.split(MaskedAutoencoder(config, rngs=nnx.Rngs(0)))
    params, report = importing.tower("vision", config, params)
    return config, graph, params, report


def clips(family, size):
    _, _, pixels, _, count, slots = SIZES[size]
    rng = np.random.Generator(np.random.Philox(2))
    return rng.integers(0, 256, (count, 2 * slots if family == "videomae" else 1, pixels, pixels, 3), np.uint8)


def see(model, family, video, mask, count):
    """Their output: of pixels of mean and deviation 0.5, as ours; VideoMAE's of ImageNet's, which it takes back before
    it computes the target."""
    mean, deviation = (MEAN, DEVIATION) if family == "videomae" else (0.5, 0.5)
    x = ((video / 255 - mean) / deviation).transpose(0, 1, 4, 2, 3).astype(np.float32)
    hidden = np.asarray(mask.hidden).reshape(len(video), -1)
    if family == "vit_mae":
        noise = np.zeros((len(video), count), np.float32)
        for row, patches in enumerate(hidden):
            noise[row, patches] = 1 + patches
        return model(torch.tensor(x[:, 0]), noise=torch.tensor(noise))
    chosen = np.zeros((len(video), count), bool)
    np.put_along_axis(chosen, hidden, True, axis=1)
    return model(torch.tensor(x), bool_masked_pos=torch.tensor(chosen))


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("family", FAMILIES)
def test_parity_of_the_pre_training_loss_the_pixels_and_the_gradients(family, size, tmp_path):
    model, video = theirs(family, size), clips(family, size)
    model.save_pretrained(tmp_path)
    if family == "videomae":  # its pixels are folded into the patches
        preprocessing = {"image_mean": MEAN.tolist(), "image_std": DEVIATION.tolist()}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    config, graph, params, report = ours(family, size, tmp_path)
    created = {name for name, t in report.taken.items() if t.how == "created"}
    assert created == ({"decoder/embed/bias"} if family == "videomae" else set()) and not report.left_out
    slots, count = config_lib.grid(config)
    keys = masking.example_keys(jax.random.key(0), jnp.arange(len(video)))
    kept = round(0.25 * count)
    mask = masking.sample_patches(
        "random", keys, slots=slots, patches=count, visible=(slots, kept), hidden=count - kept
    )
    # Their hidden patches are in the order of their numbers.
    mask = type(mask)(visible=mask.visible, hidden=jnp.sort(mask.hidden, axis=-1))
    out = see(model, family, video, mask, slots * count)
    run = lambda params: nnx.merge(graph, params)(video, mask)
    (loss, predicted), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    logits = out.logits.detach().numpy()
    predicted = np.asarray(predicted).reshape(len(video), -1, logits.shape[-1])
    if family == "vit_mae":  # it predicts the visible ones as well
        logits = np.take_along_axis(logits, np.asarray(mask.hidden).reshape(len(video), -1, 1), axis=1)
    errors = error(predicted, logits), abs(float(loss) - out.loss.item()) / out.loss.item()
    assert max(errors) < 1e-5, errors

    out.loss.backward()
    kind = importing.VISION[family]
    named = {kind.rename(name): g for name, g in saved_gradients(model, tmp_path / "gradients").items()}
    found = {name: np.asarray(g) for name, g in trees.by_path(nnx.to_pure_dict(grads)).items()}
    rules = kind.rules(config_lib.freeze(config), list(found), set(named))
    fixed = ("vision/space", "decoder/space")  # in their code
    least = 1e-3 * max(np.abs(g).max() for g in named.values())
    # That of the patches is of other pixels where these were folded in.
    fixed += ("vision/embed/kernel",) if family == "videomae" else ()
    own = give([rule for rule in rules if rule.ours not in fixed], found)
    gradients = {name: error(g, named[name], least) for name, g in own.items()}
    assert len(gradients) > 30 and max(gradients.values()) < 1e-4, gradients
    print(
        f"{family} {size}: pixels {errors[0]:.1e}, loss {errors[1]:.1e}, {len(gradients)} gradients "
        f"{max(gradients.values()):.1e}"
    )
