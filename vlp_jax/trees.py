"""A state as arrays by path, and in what two of them differ."""

import pathlib
from typing import Any

import jax
import numpy as np

from vlp_jax.types import UserError


def by_path(state: Any) -> dict[str, Any]:
    """Leaf path, e.g. "opt_state/0/mu/kernel" -> leaf, in the order of the leaves."""
    out: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        # nnx.Variable holds its array as an attribute: without it the names are those of a plain dict of arrays.
        if path[1:] and path[-1] == jax.tree_util.GetAttrKey("value"):
            path = path[:-1]
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
            raise TypeError(
                f"checkpoint leaf {name!r} is {leaf!r}: expected a jax or NumPy array; wrap it in jnp.asarray"
            )
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise TypeError(
                f"checkpoint leaf {name!r} is of dtype {leaf.dtype}: expected raw uint32; save jax.random.key_data(key)"
            )
        if name in out:
            raise ValueError(
                f"two checkpoint leaves have the path {name!r}: dict keys that hold '/' or differ in type only"
            )
        out[name] = leaf
    return out


def check_structure(folder: pathlib.Path, saved: dict[str, list], abstract: dict[str, Any]) -> None:
    """Raises UserError naming every kind of difference between the saved leaves and those asked for."""
    asked = {name: [str(x.dtype), list(x.shape)] for name, x in abstract.items()}
    differing = [
        "{} is {}{} there, {}{} expected".format(name, *saved[name], *asked[name])
        for name in sorted(saved.keys() & asked.keys())
        if saved[name] != asked[name]
    ]
    complaints = {
        "missing from the checkpoint": sorted(asked.keys() - saved.keys()),
        "unexpected in the checkpoint": sorted(saved.keys() - asked.keys()),
        "differing": differing,
    }
    if any(complaints.values()):
        limit = 8  # enough to see the pattern; a wrong model differs in hundreds of leaves
        parts = [
            f"{len(names)} {what}: {', '.join(names[:limit])}{', ...' if len(names) > limit else ''}"
            for what, names in complaints.items()
            if names
        ]
        raise UserError(
            f"checkpoint {folder} does not fit the state of this program: {'; '.join(parts)}. "
            "Use the config and the version of the code that wrote it"
        )
