"""A config small enough to compile in seconds, its tokenizer, random batches and modules: shared by all rooms."""

import os
import subprocess
import sys
import tempfile
import types

import fsspec
import hypothesis
import jax
import numpy as np
import pytest
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax.checkpoint import Checkpointer
from vlp_jax.types import Batch

TINY = {
    "steps": 10,
    "batch_size": 8,
    "input.path": "somewhere",
    "input.frames": 3,
    "input.image_size": 24,
    "input.max_text_tokens": 6,
    "model.vision.patch_size": 8,
    "model.vision.width": 16,
    "model.vision.layers": 3,
    "model.vision.heads": 2,
    "model.vision.mlp_ratio": 2.0,
    "model.masking.ratio": 0.5,
    "model.pruning.layers": (1,),
    "model.decoder.width": 16,
    "model.decoder.layers": 1,
    "model.decoder.heads": 2,
    "model.text.width": 16,
    "model.text.layers": 2,
    "model.text.heads": 2,
    "model.text.mlp_ratio": 2.0,
    "model.fusion.layers": 1,
    "model.projection": 16,
}


# A busy machine makes any example slow.
hypothesis.settings.register_profile("vlp_jax", deadline=None)
hypothesis.settings.load_profile("vlp_jax")


# Halves the time of compiling for CPUs; newer versions of XLA end a process that names it.
QUICK_EMITTERS = "--xla_cpu_use_fusion_emitters=false"


def temporary_directory(config):
    made = tempfile.TemporaryDirectory(prefix="vlp_jax_cache_")
    config.add_cleanup(made.cleanup)
    return made.name


def pytest_configure(config):
    # Compiling is nearly all of a tiny model's time, and three times shorter without XLA's optimisations.
    jax.config.update("jax_disable_most_optimizations", True)
    if not hasattr(config, "workerinput"):  # workers of pytest-xdist inherit the environment
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_EMITTERS}
        script = [sys.executable, "-c", "import jax; jax.devices()"]
        if not subprocess.run(script, env=environment, capture_output=True).returncode:
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_EMITTERS}".strip()
        # One cache of compiled programs for pytest-xdist's workers and every binary that tests start.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = temporary_directory(config)
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    # Indices of tables and shards that tests open must not stay in the user's cache; worker processes inherit this.
    os.environ["VLP_JAX_CACHE"] = temporary_directory(config)


@pytest.fixture(scope="session")
def eight_devices():
    """Environment variables that make JAX, in a process that starts with them, see eight devices of a CPU."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}


@pytest.fixture(scope="session")
def tiny_config():
    """Builds the tiny config, with changes given as `{"dotted.key": value}`; it is valid until changed."""
    return lambda changes=None: config_lib.update(config_lib.defaults(), {**TINY, **(changes or {})})


@pytest.fixture(scope="session")
def fake_tokenizer():
    """What a recipe reads of a tokenizer: 0 pads, 1 is unknown, 2 CLS, 3 SEP, 4 MASK, words from 5.

    Every third piece continues a word.
    """
    return types.SimpleNamespace(
        **{"pad_id": 0, "unk_id": 1, "cls_id": 2, "sep_id": 3, "mask_id": 4},
        **{"first_word_id": 5, "end_word_id": 64, "vocab_size": 64},
        starts_word=[i < 5 or i % 3 > 0 for i in range(64)],
    )


@pytest.fixture(scope="session")
def random_batch():
    """Builds a NumPy Batch of `size` examples for a config: noise for clips, texts of 1 to L - 2 words."""

    def build(config, size=None, seed=0):
        rng = np.random.default_rng(seed)
        size = size or config.batch_size
        length, (form, dtype) = config.input.max_text_tokens, config_lib.clip_form(config.input)
        words = rng.integers(1, length - 1, size)[:, None]
        place = np.arange(length)[None]
        ids = rng.integers(5, 64, (size, length))
        ids = np.where(place == 0, 2, np.where(place == words + 1, 3, np.where(place <= words, ids, 0)))
        return Batch(
            video=rng.integers(0, 256, (size, *form), np.uint8).astype(dtype),
            text_ids=ids.astype(np.int32),
            text_mask=place <= words + 1,
            valid=np.ones(size, bool),
            index=np.arange(size, dtype=np.int32),
            positive_id=np.arange(size, dtype=np.int32),
        )

    return build


@pytest.fixture(scope="session")
def build_module():
    """Builds a module outside any mesh: `build_module(Block, 16, 2, ..., rngs=...)` without its `rngs`."""

    def build(make, *args, seed=0, **kwargs):
        with nnx.use_eager_sharding(False):
            return make(*args, rngs=nnx.Rngs(seed), **kwargs)

    return build


@pytest.fixture
def saver(tmp_path):
    """Builds Checkpointers on one directory and closes them."""
    made = []

    def make(keep=3, asynchronous=False):
        made.append(Checkpointer(tmp_path / "checkpoints", keep=keep, asynchronous=asynchronous))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def store():
    """Name -> content of every file at the address."""
    fs = fsspec.filesystem("memory")
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)

    def read():
        found = fs.find("/bucket/run") if fs.exists("/bucket/run") else []
        return {path.removeprefix("/bucket/run/"): fs.cat_file(path) for path in found}

    return read
