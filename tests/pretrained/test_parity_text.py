"""Text encoders of transformers against ours, from the same weights: every layer, the masked-language head, gradients.

Needs torch, which the `parity` extra installs: `make test-parity`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax import export, trees
from vlp_jax.models import attention, layers
from vlp_jax.models.text import TextEncoder, WordHead
from vlp_jax.pretrained import importing
from vlp_jax.pretrained.rules import give

torch = pytest.importorskip("torch", reason="parity is measured against torch: make test-parity")
transformers = pytest.importorskip("transformers")

SIZES = {"small": (96, 4, 3, 8, 23), "base": (768, 12, 12, 4, 64)}  # width, heads, layers, texts, tokens
VOCABULARY = 500
FAMILIES = [name for name in importing.TEXT if name != "clip"]  # which has no masked-language head: test_parity_clip


def theirs(family, size):
    """A randomly initialised model with a masked-language head, in evaluation mode."""
    width, heads, depth, _, length = SIZES[size]
    torch.manual_seed(0)
    if family == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=VOCABULARY, dim=width, n_heads=heads, n_layers=depth, hidden_dim=4 * width,
            max_position_embeddings=length,
        )  # fmt: skip
        model = transformers.DistilBertForMaskedLM(config)
    else:
        kind = {"bert": "Bert", "roberta": "Roberta"}[family]
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=VOCABULARY, hidden_size=width, num_attention_heads=heads, num_hidden_layers=depth,
            intermediate_size=4 * width, max_position_embeddings=length + 2 * (family == "roberta"),
            type_vocab_size=1 if family == "roberta" else 2, layer_norm_eps=1e-12, pad_token_id=1,
        )  # fmt: skip
        model = getattr(transformers, f"{kind}ForMaskedLM")(config)
    # Norms and biases begin as ones and zeros, which would hide a swap.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


class Towers(nnx.Module):
    """Our text encoder and word head, named as in a recipe."""

    def __init__(self, config, *, dtype, rngs):
        self.config = config_lib.freeze(config)
        self.text = TextEncoder(config, VOCABULARY, dtype=dtype, rngs=rngs)
        self.word_head = WordHead(config.model.text, VOCABULARY, dtype=dtype, rngs=rngs)

    def hidden(self, ids, mask):
        """The embeddings and the output of every layer."""
        text = self.text
        x = text.embedding[...][ids] + text.position[...][: ids.shape[1]]
        out = [text.norm_embedding(x.astype(text.dtype))]
        graph, params = nnx.split(text.blocks)
        bias = attention.padding_bias(mask)
        for layer in layers.split_layers(params, [1] * len(jax.tree.leaves(params)[0])):
            block = nnx.merge(graph, jax.tree.map(lambda x: x[0], layer))
            out.append(block(out[-1], bias))
        return out

    def loss(self, ids, mask, labels):
        """Mean cross-entropy of all real tokens, as transformers takes it."""
        logits = self.word_head(self.text(ids, mask), self.text.embedding[...])
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
        return -(taken * mask).sum() / mask.sum()


def settings(size, folder=""):
    width, heads, depth, _, length = SIZES[size]
    return config_lib.update(
        config_lib.defaults(),
        {
            "model.text.init_from": str(folder),
            "model.text.width": width,
            "model.text.heads": heads,
            "model.text.layers": depth,
            "model.text.norm": "post",
            "model.text.norm_epsilon": 1e-12,
            "input.max_text_tokens": length,
        },
    )


def ours(family, size, folder, dtype=jnp.float32):
    config = settings(size, folder)
    with nnx.use_eager_sharding(False):
        graph, params = nnx.split(Towers(config, dtype=dtype, rngs=nnx.Rngs(0)))
    params, report = importing.tower("text", config, params)
    return nnx.merge(graph, params), report


def batch(size):
    _, _, _, texts, length = SIZES[size]
    rng = np.random.Generator(np.random.Philox(1))
    ids = rng.integers(5, VOCABULARY, (texts, length))
    mask = np.arange(length) < rng.integers(2, length + 1, texts)[:, None]
    mask[0] = True
    return ids, mask, rng.integers(5, VOCABULARY, ids.shape)


def error(got, expected, least=0.0):
    """Largest difference over the largest value, or over `least` where that is larger."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return np.abs(got - expected).max() / max(np.abs(expected).max(), least)


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("family", FAMILIES)
def test_text_parity_of_every_layer_of_the_loss_and_of_its_gradients(family, size, tmp_path, record_property):
    model = theirs(family, size)
    model.save_pretrained(tmp_path)
    ids, mask, labels = batch(size)
    # RoBERTa numbers positions from the ids; ours stand in order, as those of texts without padding inside do.
    more = {"output_hidden_states": True, "attention_mask": torch.tensor(mask.astype(np.int64))}
    expected = getattr(model, family)(torch.tensor(ids), **more).hidden_states
    module, report = ours(family, size, tmp_path)
    assert {t.how for t in report.taken.values()} == {"loaded"}
    got = jax.jit(lambda m: m.hidden(ids, mask))(module)
    assert len(got) == len(expected)
    errors = [error(np.asarray(a)[mask], b.detach().numpy()[mask]) for a, b in zip(got, expected)]
    assert max(errors) < 1e-5, errors

    target = torch.tensor(np.where(mask, labels, -100))
    out = model(torch.tensor(ids), attention_mask=more["attention_mask"], labels=target)
    out.loss.backward()
    loss, grads = nnx.jit(nnx.value_and_grad(lambda m: m.loss(ids, mask, labels)))(module)
    assert abs(float(loss) - out.loss.item()) / out.loss.item() < 1e-5
    found = {name: np.asarray(g) for name, g in trees.by_path(nnx.to_pure_dict(grads)).items()}
    kind = importing.TEXT[family]
    named = {kind.rename(name): parameter.grad for name, parameter in model.named_parameters()}
    rules = kind.rules(module.config, list(found), set(map(kind.rename, model.state_dict())))
    assert {rule.ours for rule in rules} == set(found)
    # The table of token types is part of our positions.
    # That of a key's bias is nothing but rounding, as softmax does not see it.
    least = 1e-3 * max(g.abs().max().item() for g in named.values() if g is not None)
    gradients = {
        name: error(g, named[name].numpy(), least) for name, g in give(rules, found).items() if "token_type" not in name
    }
    assert max(gradients.values()) < 1e-4, gradients
    worst = max(gradients.values())
    record_property("forward", max(errors))
    record_property("gradient", worst)
    print(f"{family} {size}: forward {max(errors):.1e}, {len(gradients)} gradients {worst:.1e}")


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("family", FAMILIES)
def test_text_parity_of_every_layer_in_bfloat16(family, size, tmp_path):
    model = theirs(family, size)
    model.save_pretrained(tmp_path)
    ids, mask, _ = batch(size)
    with torch.no_grad():
        given = {"output_hidden_states": True, "attention_mask": torch.tensor(mask.astype(np.int64))}
        expected = getattr(model, family)(torch.tensor(ids), **given).hidden_states
    module, _ = ours(family, size, tmp_path, dtype=jnp.bfloat16)
    got = jax.jit(lambda m: m.hidden(ids, mask))(module)
    pairs = [(np.asarray(a, np.float32)[mask], b.numpy()[mask]) for a, b in zip(got, expected)]
    errors = [float(np.sqrt(np.square(a - b).mean() / np.square(b).mean())) for a, b in pairs]
    assert max(errors) < 1e-2, errors
    print(f"{family} {size}: bfloat16, root mean square {max(errors):.1e}")


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_of_what_is_exported(family, tmp_path):
    ids, mask, _ = batch("small")
    config = settings("small")
    with nnx.use_eager_sharding(False):
        graph, params = nnx.split(Towers(config, dtype=jnp.float32, rngs=nnx.Rngs(3)))
    rng = np.random.Generator(np.random.Philox(3))
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    export.text(config, params, family, tmp_path / "out")
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask.astype(np.int64))}
        expected = model(**given).last_hidden_state.numpy()
    got = np.asarray(jax.jit(lambda p: nnx.merge(graph, p).text(ids, mask))(params))
    assert error(got[mask], expected[mask]) < 1e-5
    # And comes back as it went.
    again, _ = importing.tower(
        "text", config_lib.update(config, {"model.text.init_from": str(tmp_path / "out")}), params
    )
    for name, value in trees.by_path(again).items():
        np.testing.assert_array_equal(value, trees.by_path(params)[name])
