"""FLOPs of a JAX function, counted on its jaxpr: nothing is compiled or run.

XLA's own count takes the body of a loop once, so that a model with scanned layers looks as if it had a single layer.
Here a scan counts length times, a recomputation (`jax.checkpoint`) counts where it happens, a `cond` counts its dearer
branch, and a `shard_map` counts on all its devices. A multiplication with addition is two FLOPs.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from vlp_jax.types import UserError

# Moves or makes values without arithmetic on them.
_FREE = frozenset(
    """
    bitcast_convert_type broadcast broadcast_in_dim concatenate convert_element_type copy copy_p create_token device_put
    dynamic_slice dynamic_update_slice empty empty2 expand_dims gather iota layout_constraint mesh_cast name
    optimization_barrier pad pbroadcast pvary random_wrap random_unwrap reduce_precision reshape reshard rev scatter
    sharding_constraint slice split squeeze stop_gradient transpose
    """.split()
)
# One FLOP for each element that goes in, rather than for each that comes out.
_REDUCTIONS = frozenset("argmax argmin cumsum cumprod cummax cummin cumlogsumexp psum pmax pmin psum_invariant".split())
# Kernels that hide their arithmetic from the jaxpr; counting them as one operation would be wrong by orders.
_OPAQUE = re.compile(r"pallas_call|dot_product_attention.*|.*custom_call.*|ffi_call|triton.*|mosaic.*|ragged_dot.*")
# What jax itself adds to name stacks; the pattern of an einsum ("bsd,dhk->bhsk") is another.
_NOT_A_SCOPE = frozenset(("checkpoint", "rematted_computation", ""))


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one call of a function.

    Attributes:
      matmul: of matrix products and convolutions.
      other: of everything else: 1 for each element that an elementwise operation writes, or a reduction reads.
      scopes: `jax.named_scope` path ("encoder/attention"; "" outside of all) -> `(matmul, other)`. Forward and backward
        pass of a scope count together.
    """

    matmul: int
    other: int
    scopes: dict[str, tuple[int, int]]

    @property
    def total(self) -> int:
        return self.matmul + self.other

    def by_scope(self, depth: int) -> dict[str, tuple[int, int]]:
        """Returns `scopes` summed over paths that share their first `depth` names."""
        return _add_up((("/".join(scope.split("/")[:depth]), pair) for scope, pair in self.scopes.items()))


def count(fn: Callable, *args: Any) -> Flops:
    """Counts the FLOPs of `fn(*args)`, over all devices; what the outputs do not need is left out, as XLA leaves it.

    Args:
      fn: traceable by jax; gradients, `jit`, `scan`, `checkpoint` and custom derivatives included.
      args: pytrees of arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      UserError: a `while_loop` whose number of trips is not known before it runs, or a kernel that hides its work.
    """
    closed = jax.make_jaxpr(fn)(*args)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    scopes = _count_jaxpr(jaxpr, "")
    return Flops(sum(m for m, _ in scopes.values()), sum(o for _, o in scopes.values()), scopes)


def xla_count(fn: Callable, *args: Any) -> float:
    """Returns XLA's FLOP count of `fn(*args)`, lowered but not compiled; right only for programs without loops.

    XLA counts an elementwise operation as 1 and transcendental functions as 0.

    Raises:
      UserError: the backend gives no cost analysis.
    """
    costs = jax.jit(fn).lower(*args).cost_analysis()
    if not costs or "flops" not in costs:
        raise UserError(f"XLA gives no FLOP count on the {jax.default_backend()} backend: run with JAX_PLATFORMS=cpu")
    return float(costs["flops"])


def _count_jaxpr(jaxpr: core.Jaxpr, outer: str) -> dict[str, tuple[int, int]]:
    """Scope -> `(matmul, other)`; `outer` is the scope of the equation that holds this jaxpr."""
    return _add_up(
        item
        for eqn in jaxpr.eqns
        for item in _count_equation(eqn, "/".join(filter(None, (outer, _scope(eqn))))).items()
    )


def _count_equation(eqn: core.JaxprEqn, scope: str) -> dict[str, tuple[int, int]]:
    name = eqn.primitive.name
    if _OPAQUE.fullmatch(name):
        raise UserError(
            f"cannot count the FLOPs of {name!r} (scope {scope!r}): the kernel hides its arithmetic; count the same "
            "function with config.model.attention_kernel=xla"
        )
    if name == "while":
        raise UserError(
            f"cannot count the FLOPs of a while loop (scope {scope!r}): its number of trips is known only at run time; "
            "use jax.lax.scan, or a fori_loop whose bounds are Python ints"
        )
    if name == "dot_general":
        return {scope: (_dot_general(eqn), 0)}
    if name == "conv_general_dilated":
        return {scope: (_convolution(eqn), 0)}
    if name == "cond":
        branches = (_count_jaxpr(branch.jaxpr, scope) for branch in eqn.params["branches"])
        return max(branches, key=lambda scopes: sum(map(sum, scopes.values())))
    inner = [getattr(x, "jaxpr", x) for x in core.jaxprs_in_params(eqn.params)]  # ClosedJaxpr or Jaxpr
    # A reduction's or a scatter's jaxpr says how two scalars combine, and is no program of its own.
    if inner and not name.startswith(("reduce", "scatter", "select_and", "sort")):
        times = _times(eqn)
        scopes = _add_up(item for jaxpr in inner for item in _count_jaxpr(jaxpr, scope).items())
        return {key: (matmul * times, other * times) for key, (matmul, other) in scopes.items()}
    return {scope: (0, _elementwise(eqn))}


def _times(eqn: core.JaxprEqn) -> int:
    """How often the jaxpr inside an equation runs."""
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name == "shard_map":
        mesh = eqn.params["mesh"]
        return math.prod(mesh.shape[axis] for axis in eqn.params["newly_manual_axes"])
    return 1


def _elementwise(eqn: core.JaxprEqn) -> int:
    name = eqn.primitive.name
    if name in _FREE:
        return 0
    if name.startswith("scatter"):  # scatter-add and its kin: one operation for each element of the updates
        return _size(eqn.invars[2])
    if name in _REDUCTIONS or name.startswith("reduce_"):
        return sum(_size(x) for x in eqn.invars)
    return sum(_size(x) for x in eqn.outvars)


def _dot_general(eqn: core.JaxprEqn) -> int:
    """2 * batch * M * N * K."""
    (contracting, _), _ = eqn.params["dimension_numbers"]
    return 2 * _size(eqn.outvars[0]) * math.prod(_shape(eqn.invars[0])[i] for i in contracting)


def _convolution(eqn: core.JaxprEqn) -> int:
    """2 * output elements * kernel elements that make one output channel. Padding counts; holes from dilating the input
    (the gradient of a strided convolution) do not, as they hold zeros that no implementation multiplies."""
    kernel = _shape(eqn.invars[1])
    out_channels = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    holes = math.prod(eqn.params["lhs_dilation"])
    return 2 * _size(eqn.outvars[0]) * math.prod(kernel) // out_channels // holes


def _shape(var: Any) -> tuple[int, ...]:
    return getattr(var.aval, "shape", ())  # tokens have none


def _size(var: Any) -> int:
    return math.prod(_shape(var))


def _scope(eqn: core.JaxprEqn) -> str:
    """The named scopes of an equation, without the transformations around them: transpose(jvp(encoder)) -> encoder."""
    text, before = str(eqn.source_info.name_stack), ""
    while text != before:
        text, before = re.sub(r"[\w.]+\(([^()]*)\)", r"\1", text), text
    return "/".join(part for part in text.split("/") if part not in _NOT_A_SCOPE and "->" not in part)


def _add_up(items: Any) -> dict[str, tuple[int, int]]:
    out: dict[str, tuple[int, int]] = {}
    for scope, (matmul, other) in items:
        old = out.get(scope, (0, 0))
        out[scope] = (old[0] + matmul, old[1] + other)
    return out
