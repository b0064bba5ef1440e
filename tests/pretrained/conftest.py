"""New runs that published weights go into."""

import jax
import pytest

from vlp_jax import sharding, state


@pytest.fixture
def create(tiny_config, fake_tokenizer):
    """`(config, params)` of a new run of the tiny config with changes."""

    def build(changes, seed=0):
        config = tiny_config({**changes, "seed": seed})
        mesh = sharding.make_mesh(config, jax.devices()[:1])
        with sharding.use_mesh(mesh):
            return config, state.setup(config, fake_tokenizer, mesh, 10).create().params

    return build
