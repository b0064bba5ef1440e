"""A forward pass over timm's layout, written out in torch, against ours from the same file of torch.save.

Needs torch, which the `parity` extra installs: `make test-parity`.
"""

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="parity is measured against torch: make test-parity")
pytest.importorskip("transformers")

from tests.pretrained.parity import error  # noqa: E402
from tests.pretrained.test_parity_vision import SIZES, as_theirs, clips, images, ours  # noqa: E402

WIDTH, HEADS, DEPTH, PIXELS, PATCH, _ = SIZES["small"]
SIDE = PIXELS // PATCH


def tensors(form):
    """Random weights by timm's names: vit | beit | beit-shared."""
    torch.manual_seed(0)
    random = lambda *shape: 0.1 * torch.randn(shape)
    w = {
        "cls_token": random(1, 1, WIDTH),
        "patch_embed.proj.weight": random(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": random(WIDTH),
    }
    table = ((2 * SIDE - 1) ** 2 + 3, HEADS)
    if form == "vit":
        w |= {"pos_embed": random(1, 1 + SIDE**2, WIDTH), "norm.weight": 1 + random(WIDTH), "norm.bias": random(WIDTH)}
    if form == "beit-shared":
        w["rel_pos_bias.relative_position_bias_table"] = 3 * random(*table)
    for i in range(DEPTH):
        block = {"attn.qkv.weight": random(3 * WIDTH, WIDTH)}
        for name, rows, columns in (
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            block |= {f"{name}.weight": random(rows, columns), f"{name}.bias": random(rows)}
        for name in ("norm1", "norm2"):
            block |= {f"{name}.weight": 1 + random(WIDTH), f"{name}.bias": random(WIDTH)}
        if form == "vit":
            block["attn.qkv.bias"] = random(3 * WIDTH)
        else:
            block |= {name: random(WIDTH) for name in ("attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2")}
        if form == "beit":
            block["attn.relative_position_bias_table"] = 3 * random(*table)
        w |= {f"blocks.{i}.{name}": x for name, x in block.items()}
    return w


def offsets():
    """Row of the bias table for every pair of tokens, the CLS first, pair by pair."""
    span = 2 * SIDE - 1
    index = np.zeros((1 + SIDE**2, 1 + SIDE**2), int)
    for q, k in np.ndindex(index.shape):
        if q and k:
            (y, x), (v, u) = divmod(q - 1, SIDE), divmod(k - 1, SIDE)
            index[q, k] = (y - v + SIDE - 1) * span + x - u + SIDE - 1
        else:  # CLS to patch, patch to CLS, CLS to CLS
            index[q, k] = span**2 + (0 if k else 1 if q else 2)
    return torch.tensor(index)


def forward(w, x):
    """The output of every layer, `[B, S, D]` each."""
    f = torch.nn.functional
    norm = lambda x, name: f.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)
    linear = lambda x, name: f.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])
    x = f.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w.get("pos_embed", 0)
    out = []
    for i in range(DEPTH):
        b = f"blocks.{i}"
        bias = w.get(f"{b}.attn.qkv.bias")
        if bias is None:
            bias = torch.cat([w[f"{b}.attn.q_bias"], torch.zeros(WIDTH), w[f"{b}.attn.v_bias"]])
        qkv = f.linear(norm(x, f"{b}.norm1"), w[f"{b}.attn.qkv.weight"], bias)
        q, k, v = qkv.reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        table = w.get(f"{b}.attn.relative_position_bias_table", w.get("rel_pos_bias.relative_position_bias_table"))
        if table is not None:
            scores = scores + table[offsets()].permute(2, 0, 1)
        mixed = linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{b}.attn.proj")
        x = x + w.get(f"{b}.gamma_1", 1) * mixed
        x = x + w.get(f"{b}.gamma_2", 1) * linear(f.gelu(linear(norm(x, f"{b}.norm2"), f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
        out.append(x)
    return out


@pytest.mark.parametrize("form", ["vit", "beit", "beit-shared"])
def test_parity_of_every_layer_from_an_original_checkpoint(form, tmp_path):
    family = form.split("-")[0]
    w, video = tensors(form), clips(family, "small")
    torch.save({"model": w, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}, tmp_path / "x.pth")
    graph, params, report = ours(family, "small", tmp_path / "x.pth", **{"model.vision.norm_epsilon": 1e-6})
    assert f"(timm-{form}), what lies under 'model'" in str(report)
    expected = forward(w, images(video))
    got = jax.jit(lambda p: nnx.merge(graph, p).hidden(video))(params)
    errors = [error(as_theirs(family, a), b.numpy()) for a, b in zip(got, expected)]
    assert len(errors) == DEPTH and max(errors) < 1e-5, errors
    if form == "vit":
        norm = torch.nn.functional.layer_norm(expected[-1], (WIDTH,), w["norm.weight"], w["norm.bias"], 1e-6)
        tokens = jax.jit(lambda p: nnx.merge(graph, p).vision(video).tokens)(params)
        assert error(np.asarray(tokens).reshape(norm.shape), norm.numpy()) < 1e-5
    print(f"{form}: forward {max(errors):.1e}")
