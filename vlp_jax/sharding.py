"""The mesh, and what lies where on it; the only file that knows the names of mesh axes.

Axes: `replica` (data parallel over slices), `data` (data parallel), `fsdp` (data parallel with sharded parameters),
`tensor` (heads and hidden units sharded). Parameters carry logical axis names (`embed`, `mlp`, `heads`,
`vocabulary`), which the config's rules map to mesh axes.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlp_jax.types import UserError

AXES = ("replica", "data", "fsdp", "tensor")
BATCH_AXES = ("replica", "data", "fsdp")
LOGICAL_AXES = ("embed", "mlp", "heads", "vocabulary", "layers")  # what modules name the dimensions of parameters


def mesh_sizes(config: ml_collections.ConfigDict, count: int) -> dict[str, int]:
    """Axis -> its size on `count` devices, an axis of -1 being the rest.

    Raises:
      UserError: the sizes do not multiply to that number.
    """
    sizes = [config.mesh[axis] for axis in AXES]
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"config.mesh ({text}): expected sizes of 1 or more, at most one of them -1")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        raise UserError(f"config.mesh ({text}) does not fill the {count} devices: expected sizes whose product is that")
    return dict(zip(AXES, sizes))


def make_mesh(config: ml_collections.ConfigDict, devices: list | None = None) -> Mesh:
    """Builds the mesh from `config.mesh`; one axis may be -1.

    Where the devices are in several slices of TPUs, or hosts of GPUs, the outermost axes run between them: `replica`,
    then `data`, then `fsdp`.

    Raises:
      UserError: the axis sizes do not multiply to the number of devices, or `tensor` would run between slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = list(mesh_sizes(config, len(devices)).values())
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes))
    slices = set(map(_slice, devices))
    auto = (AxisType.Auto,) * len(AXES)
    if len(slices) == 1:
        # An axis may take part of a dimension of the torus.
        order = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(order, AXES, axis_types=auto)
    between, left = [], len(slices)
    for size in sizes[:3]:
        between.append(math.gcd(size, left))
        left //= between[-1]
    if left > 1:
        raise UserError(
            f"config.mesh ({text}): the {len(devices)} devices are in {len(slices)} slices or hosts, with a slow "
            f"network between them; expected a product of replica, data and fsdp that is a multiple of {len(slices)}, "
            "so that no tensor axis spans it"
        )
    inside = [size // ways for size, ways in zip(sizes, between)]
    by_process = not hasattr(devices[0], "slice_index")
    order = mesh_utils.create_hybrid_device_mesh(
        [*inside, sizes[3]],
        [*between, 1],
        devices,
        process_is_granule=by_process,
        allow_split_physical_axes=True,
    )
    return Mesh(order, AXES, axis_types=auto)


def first_device(mesh: Mesh) -> Mesh:
    """The mesh of its first device alone."""
    return Mesh(mesh.devices.reshape(-1)[:1].reshape(1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice(device: Any) -> int:
    """The slice of TPUs or host of GPUs that a device is in; of GPUs that are not there, the process is the host."""
    return getattr(device, "slice_index", device.process_index if device.platform == "gpu" else 0)


def slices_along(mesh: Mesh) -> dict[str, int]:
    """Over how many slices of TPUs, or hosts of GPUs, each axis of the mesh runs; 1 where it stays inside one."""
    number = np.vectorize(_slice, otypes=[int])(mesh.devices)
    first = lambda i: number[tuple(slice(None) if j == i else 0 for j in range(number.ndim))]
    return {axis: len(np.unique(first(i))) for i, axis in enumerate(AXES)}


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises UserError where the batch does not divide over the mesh's data axes, or its similarities into rows."""
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    micro = config.batch_size // config.accumulate_steps
    if micro % ways:
        raise UserError(
            f"config.batch_size = {config.batch_size} in {config.accumulate_steps} micro-batches of {micro} is not "
            f"divisible by the {ways} devices of the mesh's data axes; expected a multiple of "
            f"{ways * config.accumulate_steps}"
        )
    rows = config.similarity_rows
    if rows and micro // ways % rows:
        raise UserError(
            f"config.similarity_rows = {rows} does not divide the {micro // ways} examples of a micro-batch that "
            "each device has; expected a divisor of that, or 0"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples on the leading axis, spread over all data-parallel axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keeps the leading axis spread over the data-parallel axes; does nothing outside a mesh, or inside a shard."""
    if ways() == 1:
        return x
    return jax.lax.with_sharding_constraint(
        x, PartitionSpec(BATCH_AXES, *([PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))
    )


def gathered(params: Any, rules: tuple[tuple[str, str], ...], dtype: Any = None, *, stacks: bool = False) -> Any:
    """Parameters whole on each of the devices that share them out, for the computation that needs them now.

    Each is needed by every example, so that it travels, in `dtype`, and its gradient comes back added up and in parts;
    left to itself the compiler may send the examples' activations round instead, many times the bytes. What the tensor
    axis shards stays so. Does nothing where no data-parallel axis shards parameters, outside a mesh or inside a shard.

    Args:
      params: a state of variables with logical axis names.
      rules: `config.mesh.rules`.
      dtype: kernels are cast to it, as their layers would do; None leaves all as they are.
      stacks: whether those with an axis of layers are gathered, or all others.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if ways() == 1:
        return params
    table = {logical: axis for logical, axis in rules if axis and mesh.shape[axis] > 1}
    if not any(axis in BATCH_AXES for axis in table.values()):
        return params

    def gather(path, variable):
        value = variable[...]
        names = variable.get_metadata().get("out_sharding") or ()
        if (names[:1] == ("layers",)) != stacks:
            return variable
        axes = [table.get(name) if name else None for name in names]
        whole = [None if axis in BATCH_AXES else axis for axis in axes]
        if whole == axes:
            return variable
        to = dtype if dtype is not None and path[-1] == "kernel" else value.dtype
        return variable.replace(_gather(value, PartitionSpec(*whole), PartitionSpec(*axes), jnp.dtype(to)))

    flat = nnx.to_flat_state(params)
    return nnx.from_flat_state([(path, gather(path, variable)) for path, variable in flat], cls=type(params))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x, whole, own, dtype):
    return jax.lax.with_sharding_constraint(x.astype(dtype), whole)


def _gather_forward(x, whole, own, dtype):
    return _gather(x, whole, own, dtype), jnp.zeros((0,), x.dtype)


def _gather_backward(whole, own, dtype, kept, g):
    return (jax.lax.with_sharding_constraint(g, own).astype(kept.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def by_device(fn: Callable, rows: Any, columns: Any, shared: Any) -> Any:
    """`fn(rows, columns, shared)` on each device by itself: its own rows, everybody's columns.

    Args:
      fn: returns arrays with a leading axis of its rows.
      rows, columns: arrays `[B, ...]`, spread over the data-parallel axes; a device gathers all columns, once.
      shared: arrays that every device has.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return fn(rows, columns, shared)

    def local(rows, columns, shared):
        columns = jax.tree.map(lambda x: jax.lax.all_gather(x, BATCH_AXES, tiled=True), columns)
        # Said once out here, so that gradients are added up over the devices once, and not in a loop of fn's.
        shared = jax.tree.map(lambda x: jax.lax.pcast(x, BATCH_AXES, to="varying"), shared)
        return fn(rows, columns, shared)

    spread = PartitionSpec(BATCH_AXES)
    return jax.shard_map(
        local, in_specs=(spread, spread, PartitionSpec()), out_specs=spread, axis_names=set(BATCH_AXES)
    )(rows, columns, shared)


def ways() -> int:
    """Devices over which examples are spread; 1 outside a mesh, or inside a shard."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or mesh.manual_axes else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def take_any(tree: Any, index_P: jax.Array, group: int = 0) -> Any:
    """Rows of arrays by their number in the whole batch: each device gathers all of them once, and takes its own.

    Args:
      group: each of the B `index_P` names a row of the same group of so many consecutive ones; nothing is gathered
        where every device has whole groups. 0: any row.
    """
    if _near(index_P.shape[0], group):
        return take_near(tree, index_P % (index_P.shape[0] // ways()))
    return by_device(lambda index, rows, _: _take(rows, index), index_P, tree, ())


def take_near(tree: Any, index_P: jax.Array) -> Any:
    """Rows of arrays `[N, ...]` by their number among the N / `ways()` of one's own device; no device sends any."""
    if ways() == 1:
        return _take(tree, index_P)
    taken = jax.vmap(_take)(jax.tree.map(_apart, tree), _apart(index_P))
    return jax.tree.map(_together, taken)


def own_rows(count: int) -> jax.Array:
    """The number, for `take_near`, of each of `count` rows."""
    return jnp.arange(count, dtype=jnp.int32) % (count // ways())


def bring(tree: Any, index_P: jax.Array) -> tuple[Any, jax.Array]:
    """Makes rows that are named by their number in the whole batch lie near: `(rows, numbers for take_near)`."""
    return (tree, index_P) if ways() == 1 else (take_any(tree, index_P), own_rows(index_P.shape[0]))


def bring_behind(tree: Any, index_B: jax.Array, group: int = 0) -> tuple[Any, jax.Array]:
    """As `bring`, one row more for each of the B, behind those that a device has: `own_rows(B)` still names them.

    Args:
      group: as in `take_any`; no row is brought that lies near.
    """
    count = index_B.shape[0]
    if ways() == 1 or _near(count, group):
        return tree, index_B % (count // ways())
    join = lambda x, y: _together(constrain_batch(jnp.concatenate([_apart(x), _apart(y)], axis=1)))
    return jax.tree.map(join, tree, take_any(tree, index_B)), own_rows(count) + count // ways()


def _near(count: int, group: int) -> bool:
    """Whether each device has whole groups of consecutive rows."""
    return bool(group) and count // ways() % group == 0


def _apart(x):
    """`[N, ...] -> [ways, N / ways, ...]`: each device's own rows."""
    return constrain_batch(x.reshape(ways(), x.shape[0] // ways(), *x.shape[1:]))


def _together(x):
    return constrain_batch(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))


def _take(tree, index_P):
    return jax.tree.map(lambda x: jnp.take(x, index_P, axis=0, mode="clip"), tree)


def abstract_model(create: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Any]:
    """Returns `(graphdef, params)` of the model that `create` builds, without building it."""
    graphs = []

    def build():
        graph, params = nnx.split(create())
        graphs.append(graph)
        return params

    # jax.eval_shape rather than nnx's: that one would resolve our logical axis names against the mesh.
    with nnx.use_eager_sharding(False):
        params = jax.eval_shape(build)
    return graphs[0], params


def parameter_shardings(params: Any, mesh: Mesh, rules: tuple[tuple[str, str], ...]) -> Any:
    """Returns a NamedSharding for every parameter of an abstract state.

    Raises:
      UserError: a rule names an unknown logical or mesh axis, two dimensions of one parameter fall on the same mesh
        axis, or a dimension is not divisible by its mesh axis.
    """
    table = {logical: axis or None for logical, axis in rules}
    unknown = {axis for axis in table.values() if axis and axis not in AXES}
    if unknown:
        raise UserError(f"config.mesh.rules name the mesh axes {sorted(unknown)}: expected some of {AXES}")

    unknown = set(table) - set(LOGICAL_AXES)
    if unknown:
        raise UserError(f"config.mesh.rules name the logical axes {sorted(unknown)}: expected some of {LOGICAL_AXES}")

    def place(path, variable):
        names = variable.get_metadata().get("out_sharding") or (None,) * variable.ndim
        axes = [table.get(name) if name else None for name in names]
        used = [axis for axis in axes if axis]
        if len(used) > len(set(used)):
            raise UserError(
                f"config.mesh.rules put two dimensions of parameter {'.'.join(map(str, path))}, named {names}, on one "
                f"mesh axis ({', '.join(used)}): expected different axes for them; map one of them to ''"
            )
        for name, axis, size in zip(names, axes, variable.shape):
            if axis and size % mesh.shape[axis]:
                raise UserError(
                    f"parameter {'.'.join(map(str, path))}: its {name!r} dimension of {size} is not divisible by the "
                    f"{mesh.shape[axis]} devices of mesh axis {axis!r}; use fewer of them, or map {name!r} to '' in "
                    "config.mesh.rules"
                )
        return NamedSharding(mesh, PartitionSpec(*axes))

    flat = nnx.to_flat_state(params)
    return jax.tree.unflatten(jax.tree.structure(params), [place(path, variable) for path, variable in flat])


def create_sharded(create: Callable[[], nnx.Module], shardings: Any) -> Any:
    """Builds the parameters directly in their places; no device ever holds what is not its own."""

    def build():
        with nnx.use_eager_sharding(False):
            return nnx.split(create())[1]

    return jax.jit(build, out_shardings=shardings)()


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of batches that lie on this process's devices, and that it has to read.

    Attributes:
      size: of a batch.
      own: int64, their numbers, ascending. Where the tensor axis spans hosts, several processes have the same.
    """

    size: int
    own: np.ndarray


def rows_of(mesh: Mesh, size: int) -> Rows:
    """This process's rows of batches of `size`, which the data-parallel devices divide."""
    mine = np.zeros(size, bool)
    for place in batch_sharding(mesh).addressable_devices_indices_map((size,)).values():
        assert place is not None  # only a device outside the mesh has none
        mine[place[0]] = True
    return Rows(size, np.flatnonzero(mine))


def to_global(tree: Any, mesh: Mesh, rows: Rows | None = None) -> Any:
    """Makes global arrays, spread over the batch axes, of NumPy arrays with examples on the leading axis.

    Args:
      rows: which of them this process has; None where it has all of them, as every other process.
    """
    sharding = batch_sharding(mesh)

    def place(x):
        x = np.asarray(x)
        size = len(x) if rows is None else rows.size

        def part(index):
            first, last, _ = index[0].indices(size)
            at = first if rows is None else int(np.searchsorted(rows.own, first))
            return x[at : at + last - first]  # rows of one device follow each other

        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, part)

    return jax.tree.map(place, tree)


def fetch(tree: Any) -> Any:
    """NumPy copies, on every process, of global arrays however they are spread."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.device_get(jax.tree.map(lambda x: _copier(x.sharding.mesh)(x), tree))


@functools.lru_cache
def _copier(mesh: Mesh) -> Callable:
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def use_mesh(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Makes `mesh` the one that `constrain_batch` refers to."""
    return jax.set_mesh(mesh)
