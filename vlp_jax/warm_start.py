"""Starting from another run's parameters (`config.init_from`), e.g. four frames after one: a curriculum of frames."""

import pathlib
import re
from typing import Any

import jax

from vlp_jax import checkpoint, workdir
from vlp_jax.models import layers
from vlp_jax.types import UserError


def load(init_from: str, may_differ: tuple[str, ...], params: Any) -> tuple[Any, str]:
    """Returns `params` with another run's values, and a report of what was done.

    The values are those that evaluation of that run uses (its moving average where it has one). A table of temporal
    positions of another length is interpolated (`layers.interpolate_time`).

    Args:
      init_from: a workdir, for its newest checkpoint, or WORKDIR/checkpoints/STEP.
      may_differ: regular expressions; a parameter whose whole path matches one may be absent on either side or of
        another shape, and keeps its own value.
      params: the new run's parameters, placed on the mesh.

    Raises:
      UserError: no such checkpoint, or any other difference; it lists the parameters.
    """
    directory, step = _find(init_from)
    checkpoints = checkpoint.Checkpointer(directory, keep=1, asynchronous=False)
    try:
        step, saved = checkpoints.leaves(step)
        part = "ema" if any(name.startswith("ema/") for name in saved) else "params"
        prefix = f"{part}/"
        there = {name.removeprefix(prefix): leaf for name, leaf in saved.items() if name.startswith(prefix)}
        here = checkpoint.by_path(params)
        loaded: list[str] = []
        interpolated: list[str] = []
        created: list[str] = []
        left_out: list[str] = []
        refused: list[str] = []
        for name, leaf in here.items():
            if name not in there:
                (created if _matches(may_differ, name) else refused).append(f"{name} is not there")
            elif there[name].shape == leaf.shape:
                loaded.append(name)
            elif name.split("/")[-1] == "time" and there[name].shape[1:] == leaf.shape[1:]:
                interpolated.append(name)
            else:
                text = f"{name} is {list(there[name].shape)} there and {list(leaf.shape)} here"
                (created if _matches(may_differ, name) else refused).append(text)
        for name in there.keys() - here.keys():
            (left_out if _matches(may_differ, name) else refused).append(f"{name} is only there")
        if refused:
            shown = "; ".join(sorted(refused)[:8]) + (f"; ... ({len(refused)} in all)" if len(refused) > 8 else "")
            raise UserError(
                f"config.init_from = {init_from!r} does not fit this model: {shown}. Use that run's model config, or "
                "list what may differ in config.init_may_differ"
            )
        # What has the same shape is read directly into its place on the mesh.
        places = {name: here[name].sharding for name in loaded}
        wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places.get(name)) for name, x in there.items()}
        _, values, _ = checkpoints.restore(_nested(wanted), step, part=part)
    finally:
        checkpoints.close()
    values = checkpoint.by_path(values)
    new = dict(here)
    for name in loaded:
        new[name] = values[name].astype(here[name].dtype)
    for name in interpolated:
        slots = here[name].shape[0]
        new[name] = jax.device_put(layers.interpolate_time(values[name], slots), here[name].sharding)
    report = [f"started from {directory}, step {step}: {len(loaded)} parameters loaded"]
    report += [f"{name}: {there[name].shape[0]} slots interpolated to {here[name].shape[0]}" for name in interpolated]
    report += [f"created: {text}" for text in sorted(created)] + [f"left out: {text}" for text in sorted(left_out)]
    return jax.tree.unflatten(jax.tree.structure(params), list(new.values())), "\n  ".join(report)


def _find(init_from: str) -> tuple[pathlib.Path, int | None]:
    path = pathlib.Path(init_from)
    if (path / workdir.CHECKPOINTS).is_dir():
        return path / workdir.CHECKPOINTS, None
    step = re.fullmatch(r"(\d+)(\.\d+)?", path.name)
    if path.parent.name == workdir.CHECKPOINTS and path.is_dir() and step:
        return path.parent, int(step[1])
    raise UserError(
        f"config.init_from = {init_from!r}: expected the workdir of a run that has saved a checkpoint, or one of its "
        f"checkpoints, WORKDIR/{workdir.CHECKPOINTS}/000000500"
    )


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree
