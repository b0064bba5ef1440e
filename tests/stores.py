"""A run in a store, fsspec's memory: what its folders hold, and how they get there."""

import fsspec
import jax.numpy as jnp
import numpy as np

from vlp_jax import checkpoint, mirror

ADDRESS = "memory://bucket/run"


def save(folder, *steps, keep=2, committed=None):
    """Commits checkpoints of one leaf, the step's number."""
    checkpoints = checkpoint.Checkpointer(folder / "checkpoints", keep=keep, asynchronous=False, committed=committed)
    for step in steps:
        checkpoints.save(step, {"x": jnp.full(3, step)}, {"step": step})
    checkpoints.close()


def restored(folder):
    checkpoints = checkpoint.Checkpointer(folder / "checkpoints", keep=2, asynchronous=False)
    step, state, _ = checkpoints.restore({"x": jnp.zeros(3, int)})
    checkpoints.close()
    np.testing.assert_array_equal(state["x"], step)
    return step


def opened(folder):
    copy = mirror.Mirror(ADDRESS, folder)
    copy.fetch()
    return copy


def steps(names):
    return sorted({name.split("/")[1] for name in names if name.startswith("checkpoints/")})


def change(name):
    """Changes a byte of a file in the store."""
    fs = fsspec.filesystem("memory")
    path = f"/bucket/run/{name}"
    data = bytearray(fs.cat_file(path))
    data[len(data) // 2] ^= 1
    fs.pipe_file(path, bytes(data))


def largest(names, step):
    inside = {name: len(data) for name, data in names.items() if f"/{step}/arrays/" in name}
    return max(inside, key=lambda name: inside[name])
