"""A workdir with a checkpoint that no training made: as good as any to look into, and there within seconds."""

import json

import jax
import pytest

from configs import smaug
from tests.end_to_end.conftest import MICRO, features, shapes  # noqa: F401  (fixtures)
from vlp_jax import config as config_lib
from vlp_jax import inherit, sharding
from vlp_jax import state as state_lib
from vlp_jax import workdir as workdir_lib
from vlp_jax.checkpoint import Checkpointer
from vlp_jax.input import tokenizer as tokenizer_lib


@pytest.fixture(scope="session")
def make_run(shapes):  # noqa: F811
    """Saves a fresh state of a miniature config as step 7 of a run; returns the state's parameters."""

    def make(workdir, changes=None, ways=1):
        config = smaug.get_config("tiny")
        paths = {"input.path": str(shapes), "input.tokenizer": str(shapes / "tokenizer.model")}
        config_lib.update(config, {**MICRO, **paths, "mesh.data": ways, **(changes or {})})
        tokenizer = tokenizer_lib.open_tokenizer(
            config.input.tokenizer, config.input.max_text_tokens, config.input.lowercase
        )
        mesh = sharding.make_mesh(config, jax.devices()[:ways])
        with sharding.use_mesh(mesh):
            state = state_lib.setup(config, tokenizer, mesh, config.steps).create()
        workdir.mkdir()
        workdir_lib.prepare(config, workdir, tokenizer)
        writer = Checkpointer(workdir / workdir_lib.CHECKPOINTS, keep=1, asynchronous=False)
        metadata = {
            "config": json.loads(config_lib.to_json(config)),
            "total_steps": config.steps,
            "trained_on": inherit.trained_on(config),
            "step": 7,
        }
        writer.save(7, state, metadata)
        writer.close()
        return state.params

    return make


@pytest.fixture(scope="session")
def workdir(make_run, tmp_path_factory):
    """Workdir of a miniature SMAUG."""
    out = tmp_path_factory.mktemp("runs") / "run"
    make_run(out)
    return out
