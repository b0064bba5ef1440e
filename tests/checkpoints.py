"""States for the tests of checkpoints, and how to compare them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def make_state(seed: int = 0, rows: int = 5):
    """Parameters of several dtypes, an optimiser's NamedTuples, and a key."""
    rng = np.random.default_rng(seed)
    params = {
        "encoder": {"kernel": jnp.asarray(rng.normal(size=(rows, 3)), jnp.float32), "b.i/as": jnp.zeros((3,))},
        "half": jnp.asarray(rng.normal(size=(4, 3)), jnp.bfloat16),
    }
    return {
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "step": jnp.asarray(rng.integers(-(2**31), 2**31), jnp.int32),
        "key": jax.random.key_data(jax.random.key(seed)),
        "ready": jnp.asarray(True),
        "nothing": jnp.zeros((0, 7), jnp.bfloat16),
        "absent": None,
    }


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same_bits(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def step_folder(tmp_path, step):
    return tmp_path / "checkpoints" / f"{step:09d}"
