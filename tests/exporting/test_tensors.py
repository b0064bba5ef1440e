"""Safetensors files as other programs find them."""

import os

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from vlp_jax.exporting import tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_file_has_the_mode_of_any_new_file_and_replaces_an_older_one(tmp_path, umask, mode):
    path, values = tmp_path / "model.safetensors", {"a": np.arange(6.0).reshape(2, 3), "b": np.int32([7])}
    path.write_bytes(b"older")
    (tmp_path / "model.safetensors.part").write_bytes(b"left by one that was killed")
    before = os.umask(umask)
    try:
        tensors.write(path, values, {"format": "pt"})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert list(tmp_path.iterdir()) == [path]
    there = safetensors_numpy.load_file(path)
    assert there.keys() == values.keys() and all((there[name] == values[name]).all() for name in values)
    assert b'"__metadata__":{"format":"pt"}' in path.read_bytes()
