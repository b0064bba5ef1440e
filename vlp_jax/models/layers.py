"""The small parts every tower is made of, and the scan over stacked layers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlp_jax import sharding

Shape = int | tuple[int, ...]

REMAT_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


def dense(
    inputs: Shape, outputs: Shape, axes: tuple[str | None, ...], *, zero: bool = False, dtype, rngs: nnx.Rngs
) -> nnx.LinearGeneral:
    """An affine map over the trailing axes, Xavier-uniform as in MAE, with one logical axis name per kernel dimension.

    A kernel of several outputs side by side (q, k and v) has the bounds that each would have alone. With `zero` it
    starts from zeros.
    """
    inputs, outputs = (x if isinstance(x, tuple) else (x,) for x in (inputs, outputs))
    # Stacked projections are marked by an unnamed leading output axis, e.g. (3, heads, head width).
    stacked = len(outputs) == 3
    fan_out = int(np.prod(outputs[1:] if stacked else outputs))
    limit = float(np.sqrt(6 / (int(np.prod(inputs)) + fan_out)))

    def kernel_init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return nnx.LinearGeneral(
        inputs,
        outputs,
        axis=tuple(range(-len(inputs), 0)),
        kernel_init=nnx.with_partitioning(nnx.initializers.zeros_init() if zero else kernel_init, axes),
        bias_init=nnx.with_partitioning(nnx.initializers.zeros_init(), axes[len(inputs) :]),
        dtype=dtype,
        rngs=rngs,
    )


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over the last axis with statistics in float32, of which a backward pass keeps the input alone.

    By itself autodiff keeps several float32 arrays of the input's shape for it, which in bfloat16 are most of what a
    block keeps, and of the time that it takes to write and read it.
    """

    def __call__(self, x, *, mask=None):
        assert mask is None and self.scale is not None and self.bias is not None
        return _normalise(x.astype(self.dtype), self.scale[...], self.bias[...], self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x, scale, bias, epsilon):
    return _normalise_forward(x, scale, bias, epsilon)[0]


def _standardise(x, epsilon):
    """`((x - mean) / deviation, 1 / deviation)`, float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + epsilon)
    return x * inverse, inverse


def _normalise_forward(x, scale, bias, epsilon):
    out = (_standardise(x, epsilon)[0] * scale + bias).astype(x.dtype)
    return out, (x, scale)


def _normalise_backward(epsilon, kept, g):
    x, scale = kept
    unit, inverse = _standardise(x, epsilon)
    g = g.astype(jnp.float32)
    rows = tuple(range(x.ndim - 1))
    g_scale, g_bias = (g * unit).sum(rows), g.sum(rows)
    g = g * scale
    g_x = inverse * (g - g.mean(-1, keepdims=True) - unit * (g * unit).mean(-1, keepdims=True))
    return g_x.astype(x.dtype), g_scale.astype(scale.dtype), g_bias.astype(scale.dtype)


_normalise.defvjp(_normalise_forward, _normalise_backward)


def norm(width: int, *, epsilon: float = 1e-6, dtype, rngs: nnx.Rngs) -> LayerNorm:
    """LayerNorm with statistics in float32."""
    return LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)


def residual(x, norm: Callable, body: Callable, place: str):
    """A sublayer with its residual: `x + body(norm(x))` (`pre`), or `norm(x + body(x))` (`post`, the Transformer's)."""
    return norm(x + body(x)) if place == "post" else x + body(norm(x))


@jax.custom_vjp
def gelu(x):
    """Exact (erf) GELU, of which a backward pass keeps the input alone."""
    return jax.nn.gelu(x, approximate=False)


def _gelu_backward(x, g):
    x32 = x.astype(jnp.float32)
    below = 0.5 * jax.lax.erfc(-x32 * 0.5**0.5)  # of the normal distribution, up to x
    density = jnp.exp(-0.5 * x32 * x32) * (2 * np.pi) ** -0.5
    return (((below + x32 * density) * g.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def quick_gelu(x):
    """`x sigmoid(1.702 x)`, which CLIP was trained with; a backward pass keeps the input alone."""
    return x * jax.nn.sigmoid(1.702 * x)


def _quick_gelu_backward(x, g):
    x32 = x.astype(jnp.float32)
    share = jax.nn.sigmoid(1.702 * x32)
    return ((share * (1 + 1.702 * x32 * (1 - share)) * g.astype(jnp.float32)).astype(x.dtype),)


quick_gelu.defvjp(lambda x: (quick_gelu(x), x), _quick_gelu_backward)

ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(logits, dtype):
    """Softmax over the last axis of float32 logits, cast to `dtype`; a backward pass keeps the cast weights alone."""
    return jax.nn.softmax(logits, axis=-1).astype(dtype)


def _softmax_forward(logits, dtype):
    weights = softmax(logits, dtype)
    return weights, weights


def _softmax_backward(dtype, weights, g):
    w, g = weights.astype(jnp.float32), g.astype(jnp.float32)
    return (w * (g - (w * g).sum(-1, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_to_float32(spec: str, a, b):
    """An einsum of two arrays of one type with a float32 result, whose gradient is rounded to that type first.

    By itself autodiff multiplies a float32 gradient with what it widens to float32, which has twice the bytes of
    16-bit factors and, by the data sheets of accelerators, half the peak or less.
    """
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _einsum_backward(spec, kept, g):
    a, b = kept
    return jax.vjp(lambda a, b: jnp.einsum(spec, a, b), a, b)[1](g.astype(a.dtype))


einsum_to_float32.defvjp(lambda spec, a, b: (einsum_to_float32(spec, a, b), (a, b)), _einsum_backward)


class Mlp(nnx.Module):
    """Two affine maps with one of `ACTIVATIONS` between, `[..., D] -> [..., D]`."""

    def __init__(self, width: int, ratio: float, *, activation: str = "gelu", dtype, rngs: nnx.Rngs):
        self.activation = activation
        hidden = round(width * ratio)
        self.up = dense(width, hidden, ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.down = dense(hidden, width, ("mlp", "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Adapter(nnx.Module):
    """A bottleneck adapter, `h + U ReLU(D h)`, `[..., D] -> [..., D]`: on what a sublayer gives, before its residual is
    added (Houlsby et al., arXiv 1902.00751, as in FrozenBiLM, arXiv 2206.08155, and its code).

    U starts from zeros, so that a network begins as it is without adapters; theirs start small. The dropout between the
    two maps is left out: this code base has none.

    Args:
      hidden: width of the bottleneck.
    """

    def __init__(self, width: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        self.down = dense(width, hidden, ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.up = dense(hidden, width, ("mlp", "embed"), zero=True, dtype=dtype, rngs=rngs)

    def __call__(self, h):
        return h + self.up(jax.nn.relu(self.down(h)))


def adapter_width(config, tower: str) -> int:
    """Width of the bottleneck of the adapters in the blocks of a tower; 0 where it has none.

    Args:
      config: the whole config; `model.adapters` and the tower's width are read.
      tower: `vision` | `text` | `fusion`, which has the text's width.
    """
    a, m = config.model.adapters, config.model
    if not a.reduction or tower not in a.towers:
        return 0
    return (m.vision if tower == "vision" else m.text).width // a.reduction


def adapted(adapter: Any, h):
    """What a sublayer gives, through its adapter where there is one."""
    return h if adapter is None else adapter(h)


def stack(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """Builds `count` layers as one module whose parameters have a leading `layers` axis."""
    return nnx.split_rngs(splits=count)(
        nnx.vmap(make, in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    )(rngs)


@dataclasses.dataclass(frozen=True)
class Loop:
    """How the layers of a stack run.

    Attributes:
      remat: `none` | `dots` | `full`: what the backward pass recomputes in each layer.
      unroll: write the layers out one after another, which compiles slower and can run faster.
      rules: `config.mesh.rules`; parameters are gathered by them before the first layer, in `dtype`.
    """

    remat: str = "none"
    unroll: bool = False
    rules: tuple[tuple[str, str], ...] = ()
    dtype: Any = None

    def gathered(self, params):
        """The parameters of a stack, or of a segment of it, for its computation: once for both passes, which sends them
        once, where layer by layer each pass would; in `dtype` they are small beside the optimiser's state.
        """
        return sharding.gathered(params, self.rules, self.dtype, stacks=True)


def loop(config, dtype) -> Loop:
    """`Loop` as the config has it."""
    return Loop(config.model.remat, config.model.unroll, tuple(map(tuple, config.mesh.rules)), dtype)


def scan(stacked: nnx.Module, body: Callable, x, how: Loop = Loop()):
    """Runs `x = body(layer, x)` over the layers of a module made by `stack`."""
    return scan_params(*nnx.split(stacked), body, x, how)


def scan_params(graph, params, body, x, how: Loop = Loop()):
    """As `scan`, over parameters that were split off before (a segment of a stack)."""

    def step(x, layer):
        return body(nnx.merge(graph, layer), x), None

    if how.remat != "none":
        step = jax.checkpoint(step, policy=REMAT_POLICIES[how.remat], prevent_cse=how.unroll)
    return jax.lax.scan(step, x, how.gathered(params), unroll=how.unroll or 1)[0]


def split_layers(params, sizes: list[int]) -> list:
    """Cuts stacked parameters into consecutive segments; the gradient of the cut is one concatenation."""
    leaves, tree = jax.tree.flatten(params)
    pieces = [jax.lax.split(leaf, sizes, axis=0) for leaf in leaves]
    return [jax.tree.unflatten(tree, [piece[i] for piece in pieces]) for i in range(len(sizes))]


def sincos(positions, width: int) -> np.ndarray:
    """Fixed sine-cosine table (Transformer, section 3.5): positions `[n]` -> float32 `[n, width]`."""
    frequencies = 1 / 10_000 ** (np.arange(width // 2) / (width / 2))
    angles = np.asarray(positions, np.float64)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def space_positions(side: int, width: int) -> np.ndarray:
    """Fixed positions of the patches of a frame, float32 `[N, D]`: MAE's 2-D table, rows before columns (MAE's code
    has the halves the other way round).

    Raises:
      ValueError: `width` is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"2-D sine-cosine positions need a width divisible by 4, got {width}")
    y, x = np.divmod(np.arange(side * side), side)
    return np.concatenate([sincos(y, width // 2), sincos(x, width // 2)], axis=1)


def space_time_positions(slots: int, side: int, width: int) -> np.ndarray:
    """Fixed positions of the patches of a clip, float32 `[T, N, D]`: MAE's 2-D table plus one over time."""
    return space_positions(side, width)[None] + time_positions(slots, width)[:, None]


def sequence_positions(slots: int, count: int, width: int) -> np.ndarray:
    """Fixed positions of the patches of a clip in one row, `t N + n`, float32 `[T, N, D]`: VideoMAE's table, whose
    sines and cosines alternate (its code)."""
    apart = sincos(np.arange(slots * count), width).reshape(slots * count, 2, width // 2)
    return apart.swapaxes(1, 2).reshape(slots, count, width)


def time_positions(slots: int, width: int) -> np.ndarray:
    """Fixed temporal positions, float32 `[T, D]`; zero for the first slot, so that images and frames agree."""
    table = sincos(np.arange(slots), width)
    return table - table[:1]


def interpolate_time(table_TxD, slots: int):
    """A temporal position table for clips of another length, `[T, D] -> [slots, D]`.

    Slot i covers the interval `[i, i + 1) / slots` of the clip, whatever their number: rows are interpolated linearly
    between the centres of the table's intervals. A clip of one slot, an image, takes the first row; a table of one row
    serves every slot.
    """
    length = table_TxD.shape[0]
    if slots in (1, length):
        return table_TxD[:slots]
    at = np.clip((np.arange(slots) + 0.5) * length / slots - 0.5, 0, length - 1)
    before = np.floor(at).astype(np.int32)
    after = np.minimum(before + 1, length - 1)
    share = (at - before).astype(np.float32)[:, None]
    return table_TxD[before] * (1 - share) + table_TxD[after] * share


def compute_dtype(name: str):
    """Maps the config's `compute_dtype` to the numpy scalar type."""
    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[name]
