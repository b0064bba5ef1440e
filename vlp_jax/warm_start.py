"""Starting from another run (`config.init_from`): a curriculum of frames, fine-tuning, a head on what was pre-trained.

Its parameters are taken over one by one, by name; what is not there, or does not fit, is refused unless the config
lists it (`config.init_may_differ`), and the report says of every parameter where it comes from.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vlp_jax import checkpoint, distributed, sharding, tables, trees, workdir
from vlp_jax.types import UserError

RECIPE = "recipe/"  # what the parameters of a task's recipe begin with, and those of its head
HEAD = "head/"
# Parts that a recipe has where a term of its loss has a weight.
_MADE_BY = {
    "word_head": "config.loss.mlm",
    "match_head": "config.loss.vtm",
    "decoder": "config.loss.mvm",
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """What `config.init_from` names.

    Attributes:
      workdir: of the run.
      directory: of its checkpoints, WORKDIR/checkpoints or WORKDIR/best.
      number: of the checkpoint in it; None for the newest.
    """

    workdir: pathlib.Path
    directory: pathlib.Path
    number: int | None

    def metadata(self) -> dict[str, Any]:
        """What was saved beside the arrays: the run's config and more."""
        checkpoints = checkpoint.Checkpointer(self.directory, keep=1, asynchronous=False)
        try:
            return checkpoints.read_metadata(self.number)
        finally:
            checkpoints.close()


def find(init_from: str) -> Origin:
    """Finds WORKDIR (its newest checkpoint), WORKDIR/best or WORKDIR/checkpoints/STEP.

    Raises:
      UserError: it is none of them.
    """
    path = pathlib.Path(init_from)
    holds, is_folder = distributed.from_first(lambda: [(path / workdir.CHECKPOINTS).is_dir(), path.is_dir()])
    if holds:
        return Origin(path, path / workdir.CHECKPOINTS, None)
    if path.name == workdir.BEST and is_folder:
        return Origin(path.parent, path, None)
    number = re.fullmatch(r"(\d+)(\.\d+)?", path.name)
    if path.parent.name == workdir.CHECKPOINTS and is_folder and number:
        return Origin(path.parent.parent, path.parent, int(number[1]))
    raise UserError(
        f"config.init_from = {init_from!r}: expected the workdir of a run that has saved a checkpoint, or one of its "
        f"checkpoints, WORKDIR/{workdir.CHECKPOINTS}/000000500 or WORKDIR/{workdir.BEST}"
    )


@dataclasses.dataclass(frozen=True)
class Taken:
    """Where one parameter of the new run comes from.

    Attributes:
      how: loaded | moved (from a parameter of another name) | interpolated (one of `tables`) | resized (rows of text
        positions) | inflated (patches of one frame into tubelets) | created.
      origin: its name there, or names; '' for what is created.
      shape: here.
      origin_shape: there, None for what is created.
      note: what else was done to it, in words.
    """

    how: str
    origin: str
    shape: tuple[int, ...]
    origin_shape: tuple[int, ...] | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """What `load` did.

    Attributes:
      source: the directory of the checkpoint, or the published weights.
      step: its number; None of published weights.
      taken: name here -> where it comes from.
      left_out: name there -> shape, of what has no counterpart here.
      why_created: name here -> why nothing there serves it.
    """

    source: str
    step: int | None
    taken: dict[str, Taken]
    left_out: dict[str, tuple[int, ...]]
    why_created: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Every parameter with its origin and both shapes."""
        described = {
            "loaded": lambda name, t: {"origin": t.origin},
            "moved": lambda name, t: {"origin": t.origin},
            "interpolated": lambda name, t: {
                "origin": t.origin,
                "how": "interpolated from {} to {} {}{}".format(*tables.described(name, t.origin_shape, t.shape)),
            },
            "resized": lambda name, t: {"origin": t.origin, "how": _rows(t)},
            "inflated": lambda name, t: {"origin": t.origin},
            "created": lambda name, t: {"origin": None, "how": "created"},
        }
        parameters = {
            name: {
                **described[t.how](name, t),
                "shape": list(t.shape),
                "origin_shape": None if t.origin_shape is None else list(t.origin_shape),
                **({"note": t.note} if t.note else {}),
            }
            for name, t in self.taken.items()
        }
        left_out = {name: list(shape) for name, shape in sorted(self.left_out.items())}
        return {"source": self.source, "step": self.step, "parameters": parameters, "left_out": left_out}

    def __str__(self) -> str:
        """A few lines, by module; `to_json` has every name."""
        by_how: dict[str, list[str]] = collections.defaultdict(list)
        for name, t in self.taken.items():
            by_how[t.how].append(name)
        step = "" if self.step is None else f", step {self.step}"
        lines = [f"started from {self.source}{step}: {len(by_how['loaded'])} parameters loaded"]
        lines[0] += f" ({_by_module(by_how['loaded'])})" if by_how["loaded"] else ""
        moved = collections.Counter((_module(n), _module(self.taken[n].origin)) for n in by_how["moved"])
        lines += [f"taken from another place: {here} from {there}, {n}" for (here, there), n in sorted(moved.items())]
        for name in by_how["interpolated"]:
            t = self.taken[name]
            assert t.origin_shape is not None
            there, here, unit, method = tables.described(name, t.origin_shape, t.shape)
            lines.append(f"{name}: {there} {unit} interpolated to {here}{method}")
        lines += [f"{name}: {_rows(self.taken[name])}" for name in by_how["resized"]]
        lines += [f"{name}: {t.note}" for name, t in self.taken.items() if t.note]
        if by_how["created"]:
            lines.append(f"created: {_by_module(by_how['created'])}")
        differing = [f"{name} {why}" for name, why in sorted(self.why_created.items()) if "there and" in why]
        lines += [f"  of them of another shape: {text}" for text in differing]
        if self.left_out:
            lines.append(f"left out (only there): {_by_module(self.left_out)}")
        return "\n  ".join(lines)


def load(
    init_from: str,
    may_differ: tuple[str, ...],
    params: Any,
    origins: Callable[[str], tuple[str, ...]] = lambda name: (name,),
    *,
    same_head: bool = False,
) -> tuple[Any, Report]:
    """Returns `params` with another run's values, and a report of what was done.

    The values are those that evaluation of that run uses (its moving average where it has one). Parameters of a task's
    recipe, `recipe/x`, are those named `x` of a pre-training run, in either direction. Tables follow the config's
    sizes: those of time and of the places of patches are interpolated (`tables`); of text positions (`.../position`)
    the first rows are taken, as prefixes of BERT's 512 are, and rows beyond those there begin anew.

    Args:
      init_from: as `find`.
      may_differ: regular expressions; a parameter whose whole path matches one may be absent on either side or of
        another shape, and keeps its own value.
      params: the new run's parameters, placed on the mesh.
      origins: name here -> names there, without `recipe/`, that it may be taken from, the first that fits.
      same_head: that run's head means the same (task, form and answers), so that `head/x` is taken from `head/x`.

    Raises:
      UserError: no such checkpoint, or any other difference; it lists the parameters.
    """
    found = find(init_from)
    checkpoints = checkpoint.Checkpointer(found.directory, keep=1, asynchronous=False)
    try:
        number, saved = checkpoints.leaves(found.number)
        part = "ema" if any(name.startswith("ema/") for name in saved) else "params"
        prefix = f"{part}/"
        stored = {name.removeprefix(prefix): leaf for name, leaf in saved.items() if name.startswith(prefix)}
        there = {name.removeprefix(RECIPE): name for name in stored}
        shapes = {short: stored[name].shape for short, name in there.items()}
        here = trees.by_path(params)
        taken, why_created, refused, compared = _plan(here, shapes, origins, may_differ, same_head)
        left_out = {name: shape for name, shape in shapes.items() if name not in compared}
        refused += [f"{name} is only there" for name in sorted(left_out) if not _matches(may_differ, name)]
        if refused:
            shown = "; ".join(sorted(refused)[:8]) + (f"; ... ({len(refused)} in all)" if len(refused) > 8 else "")
            raise UserError(
                f"config.init_from = {init_from!r} does not fit this model: {shown}. {_fix(refused, shapes)}Use that "
                "run's model config, or list what may differ in config.init_may_differ"
            )
        # What has the same shape is read directly into its place on the mesh.
        places = {there[t.origin]: here[name].sharding for name, t in taken.items() if t.shape == t.origin_shape}
        # Every process has a part of the mesh; without one there is only one process, and its first device will do.
        places_here = [x.sharding for x in here.values() if isinstance(x.sharding, jax.sharding.NamedSharding)]
        everywhere = (
            jax.sharding.NamedSharding(places_here[0].mesh, jax.sharding.PartitionSpec()) if places_here else None
        )
        wanted = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places.get(name, everywhere))
            for name, x in stored.items()
        }
        number, values, metadata = checkpoints.restore(_nested(wanted), number, part=part)
    finally:
        checkpoints.close()
    values = trees.by_path(values)
    new, given = dict(here), set()
    for name, t in taken.items():
        if t.how == "created":
            continue
        value, own = values[there[t.origin]], here[name]
        if t.how == "interpolated":
            value = tables.resize(name, sharding.fetch(value), t.shape[-2])
        elif t.how == "resized":
            value = jnp.concatenate([value[: t.shape[0]], sharding.fetch(own)[value.shape[0] :]])
        elif t.origin in given:
            value = jnp.copy(value)  # a buffer of its own: the step gives its buffers back
        given.add(t.origin)
        new[name] = jax.device_put(value.astype(own.dtype), own.sharding)
    report = Report(str(found.directory), metadata.get("step", number), taken, left_out, why_created)
    return jax.tree.unflatten(jax.tree.structure(params), list(new.values())), report


def _fix(refused, there) -> str:
    """What the first part comes of that was refused as it is missing there, where a weight of the loss decides or it
    is an adapter; '' otherwise."""
    holds = lambda names, part: any(name.removeprefix(RECIPE).startswith(f"{part}/") for name in names)
    for part, loss in _MADE_BY.items():
        if holds(refused, part) and not holds(there, part):
            return (
                f"A run has {part} where {loss} is above 0, which that one had not, as most fine-tuned ones: start "
                "from its pre-training. "
            )
    if any("/adapter_" in name for name in refused) and not any("/adapter_" in name for name in there):
        return (
            "That run has no adapters (config.model.adapters): config.init_may_differ=('.*/adapter_.*',) starts them "
            "as identities. "
        )
    return ""


def _plan(here, shapes, origins, may_differ, same_head):
    """For each parameter here, where it is taken from; why others are created, and which may not be; all names there
    that were looked at."""
    taken: dict[str, Taken] = {}
    why_created: dict[str, str] = {}
    refused: list[str] = []
    compared: set[str] = set()
    for name, leaf in here.items():
        own = name.removeprefix(RECIPE)
        candidates = [own] if same_head or not own.startswith(HEAD) else []
        candidates += [origin for origin in origins(name) if origin not in (own, name)]
        present = [origin for origin in candidates if origin in shapes]
        fitting = [(origin, how) for origin in present if (how := _fits(name, shapes[origin], leaf.shape))]
        if fitting:
            origin, how = fitting[0]
            compared.add(origin)
            how = "moved" if how == "loaded" and origin != own else how
            taken[name] = Taken(how, origin, leaf.shape, shapes[origin])
            continue
        taken[name] = Taken("created", "", leaf.shape)
        compared.update(present)
        if present:
            from_where = "" if present[0] == name else f"{present[0]}, "
            why = f"is {from_where}{list(shapes[present[0]])} there and {list(leaf.shape)} here"
        else:
            why = "is not there"
        if _matches(may_differ, name) or _matches(may_differ, own):
            why_created[name] = why
        else:
            refused.append(f"{name} {why}")
    return taken, why_created, refused, compared


def _fits(name: str, there: tuple[int, ...], here: tuple[int, ...]) -> str:
    """How a parameter is taken from one of shape `there`; '' where it cannot be."""
    if there == here:
        return "loaded"
    if tables.can_resize(name, there, here):
        return "interpolated"
    text = name.rsplit("/", 1)[-1] == "position" and len(there) == 2 and there[1:] == here[1:]
    return "resized" if text else ""


def _rows(t: Taken) -> str:
    assert t.origin_shape is not None
    there, here = t.origin_shape[0], t.shape[0]
    if here <= there:
        return f"the first {here} of {there} rows"
    return f"{there} rows taken, {here - there} beyond them created"


def _module(name: str) -> str:
    """`recipe/text/blocks/x` -> `recipe/text`, `head/blocks/x` -> `head/blocks`, `text/blocks/x` -> `text`; of a
    published file, `blocks.0.x` -> `blocks`."""
    parts = name.split("/" if "/" in name else ".")
    return "/".join(parts[: 2 if name.startswith((RECIPE, HEAD)) else 1])


def _by_module(names) -> str:
    counts = collections.Counter(_module(name) for name in names)
    return ", ".join(f"{module} {count}" for module, count in sorted(counts.items()))


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
