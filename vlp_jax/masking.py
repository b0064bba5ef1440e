"""Jitted mask samplers for patches and words, and the gather that throws hidden tokens away.

Masks are index lists of static length, never multiplications by zero: the encoder's matrices shrink with them. Every
sampler takes one key per example, so that the masks of an example do not depend on the batch it stands in nor on the
number of devices.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

BLOCKS = 16  # rectangles drawn for one block mask; together they cover more than any ratio below 1 hides in practice


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PatchMask:
    """Which patches the encoder sees and which ones the pixel decoder rebuilds.

    Patches are numbered `t * N + n` over the clip's T slots of N patches.

    Attributes:
      visible: int32 `[B, Tv, K]`, increasing within each row; each row lies in one temporal slot.
      hidden: int32 `[B, Th, M]`, the patches to rebuild; disjoint from `visible`.
    """

    visible: jax.Array
    hidden: jax.Array


def example_keys(key: jax.Array, index_B: jax.Array) -> jax.Array:
    """Folds each example's position in the stream into `key`: one key per example, `[B]`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index_B)


def sample_patches(
    kind: str, keys_B: jax.Array, *, slots: int, patches: int, visible: tuple[int, int], hidden: int
) -> PatchMask:
    """Draws one patch mask per example.

    Args:
      kind: `random`: each temporal slot has its own mask (MAE per frame); `tube`: one mask tiled over time (VideoMAE);
        `block`: rectangles as in BEiT, tiled over time; `frame`: whole slots hidden.
      keys_B: one key per example.
      slots: T, temporal slots of the clip.
      patches: N, patches of one slot; a square number for `block`.
      visible: `(Tv, K)`: visible slots and visible patches in each; `Tv = T` except for `frame`, where `K = N`.
      hidden: M, patches to rebuild in each slot that has hidden ones, at most `N - K` (`N` for `frame`). Where fewer
        than all are asked, they are a uniform sample of the hidden ones.

    Returns:
      The mask, with `Th = T` (`T - Tv` for `frame`).
    """
    slots_visible, keep = visible
    if kind == "frame":
        order_BxT = jnp.argsort(_uniform(keys_B, (slots,)), axis=-1)
        seen_BxTv = jnp.sort(order_BxT[:, :slots_visible], axis=-1)
        unseen_BxTh = jnp.sort(order_BxT[:, slots_visible:], axis=-1)
        noise = _uniform(_fold(keys_B, 1), (slots - slots_visible, patches))
        inner = jnp.sort(jnp.argsort(noise, axis=-1)[..., :hidden], axis=-1)
        return PatchMask(
            visible=(seen_BxTv[..., None] * patches + jnp.arange(patches)).astype(jnp.int32),
            hidden=(unseen_BxTh[..., None] * patches + inner).astype(jnp.int32),
        )
    if kind == "random":
        noise = _uniform(keys_B, (slots, patches))
    elif kind == "tube":
        noise = _uniform(keys_B, (1, patches))
    elif kind == "block":
        noise = _block_noise(keys_B, patches)[:, None]
    else:
        raise ValueError(f"mask kind {kind!r}: expected random, tube, block or frame")
    # The patches of least noise stay visible. Those just after them are hidden *and* rebuilt: under `block` that would
    # be a biased sample of the hidden ones, so a share below one is drawn with noise of its own.
    order = jnp.argsort(noise, axis=-1)
    seen, rest = jnp.sort(order[..., :keep], axis=-1), order[..., keep:]
    if hidden < patches - keep:
        share = jnp.argsort(_uniform(_fold(keys_B, 1), rest.shape[1:]), axis=-1)[..., :hidden]
        rest = jnp.take_along_axis(rest, share, axis=-1)
    rest = jnp.sort(rest, axis=-1)
    offset_Tx1 = (jnp.arange(slots) * patches)[:, None]
    return PatchMask(visible=(seen + offset_Tx1).astype(jnp.int32), hidden=(rest + offset_Tx1).astype(jnp.int32))


def all_visible(batch: int, slots: int, patches: int) -> jax.Array:
    """Returns the `visible` indices `[B, T, N]` of a clip of which nothing is hidden."""
    return jnp.broadcast_to(
        jnp.arange(slots * patches, dtype=jnp.int32).reshape(1, slots, patches), (batch, slots, patches)
    )


def _uniform(keys_B, shape):
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys_B)


def _fold(keys_B, number):
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


def _block_noise(keys_B, patches):
    """Noise `[B, N]` that is larger the earlier a rectangle covers the patch: the largest are hidden, as in BEiT.

    BEiT adds rectangles (area at least 16 of 196 patches, aspect ratio 0.3 to 1/0.3) until enough is hidden. Here a
    fixed number is drawn, and ranking patches by the first rectangle that covers them hides exactly the asked count.
    """
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"block masks need a square grid, got {patches} patches in a slot")

    def one(key):
        key_area, key_aspect, key_y, key_x, key_tie = jax.random.split(key, 5)
        area = jax.random.uniform(key_area, (BLOCKS,), minval=0.08, maxval=0.4) * patches
        log_limit = jnp.log(1 / 0.3)
        aspect = jnp.exp(jax.random.uniform(key_aspect, (BLOCKS,), minval=-log_limit, maxval=log_limit))
        height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, side)
        width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, side)
        top = jnp.floor(jax.random.uniform(key_y, (BLOCKS,)) * (side - height + 1))
        left = jnp.floor(jax.random.uniform(key_x, (BLOCKS,)) * (side - width + 1))
        y, x = jnp.arange(side)[None, :, None], jnp.arange(side)[None, None, :]
        box = lambda value: value[:, None, None]
        inside = (y >= box(top)) & (y < box(top + height)) & (x >= box(left)) & (x < box(left + width))
        first = jnp.where(inside.any(0), jnp.argmax(inside, axis=0), BLOCKS)
        tie = jax.random.uniform(key_tie, (side, side))
        return (BLOCKS - first + tie).reshape(patches)

    return jax.vmap(one)(keys_B)


# --- Gather -----------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def gather_tokens(x_BxNxD: jax.Array, index_BxK: jax.Array) -> jax.Array:
    """Picks tokens: `[..., N, D]` and distinct indices `[..., K]` in `[0, N)` -> `[..., K, D]`.

    The general gradient of a gather is a scatter-add, which runs element after element on CPUs. As the indices of a
    row are distinct, the gradient is itself a gather: position n takes the gradient of the output that reads it, or 0.
    """
    return jnp.take_along_axis(x_BxNxD, index_BxK[..., None], axis=-2, mode="promise_in_bounds")


def _gather_forward(x_BxNxD, index_BxK):
    # The empty slice carries only N (and no data) to the backward pass.
    return gather_tokens(x_BxNxD, index_BxK), (index_BxK, x_BxNxD[..., :0])


def _gather_backward(residuals, g_BxKxD):
    index_BxK, shape_of = residuals
    count = shape_of.shape[-2]
    match_BxNxK = index_BxK[..., None, :] == jnp.arange(count, dtype=index_BxK.dtype)[:, None]
    read = match_BxNxK.any(-1)
    source = jnp.argmax(match_BxNxK, axis=-1).astype(jnp.int32)  # 0 where nothing reads the position
    taken = jnp.take_along_axis(g_BxKxD, source[..., None], axis=-2, mode="promise_in_bounds")
    return jnp.where(read[..., None], taken, 0), None


gather_tokens.defvjp(_gather_forward, _gather_backward)


# --- Words ------------------------------------------------------------------------------------------------------------


def mask_words(
    keys_B: jax.Array,
    ids_BxL: jax.Array,
    mask_BxL: jax.Array,
    *,
    ratio: float,
    policy: str,
    mask_id: int,
    special_ids: tuple[int, ...],
    words: tuple[int, int],
    starts_word_V: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Chooses pieces of text, or whole words, for masked language modelling and hides them.

    Each piece (never padding nor a special token) is chosen with probability `ratio`, on its own. With `starts_word_V`
    each word is, and with it all of its pieces: the expected share of pieces is `ratio` as before, and texts whose
    words are single pieces are masked as before, draw for draw. (BERT's whole-word masking takes 15% of the pieces of
    each text by whole words; here the count varies between texts as it does for pieces.)

    Under `80/10/10` a chosen piece becomes [MASK] in 80% of the cases, a random piece in 10%, and stays in 10% (BERT,
    whose whole-word masking draws this for each piece too); under `always` it becomes [MASK].

    Args:
      keys_B: one key per example.
      ids_BxL: token ids.
      mask_BxL: True on tokens, False on padding.
      special_ids: ids never chosen.
      words: `(first, end)`: random pieces are drawn from `[first, end)`.
      starts_word_V: bool `[V]`, True where a piece begins a word; None to choose pieces.

    Returns:
      `(ids_BxL, chosen_BxL)`: the ids with the chosen pieces hidden, and which were chosen.
    """
    length = ids_BxL.shape[-1]
    choose_BxL, how_BxL = (_uniform(_fold(keys_B, n), (length,)) for n in (0, 1))
    random_BxL = jax.vmap(lambda k: jax.random.randint(k, (length,), *words))(_fold(keys_B, 2))
    if starts_word_V is not None:
        # The draw at a word's first piece holds for the whole word.
        place_L = jnp.arange(length)
        first_BxL = jax.lax.cummax(jnp.where(jnp.asarray(starts_word_V)[ids_BxL], place_L, 0), axis=1)
        choose_BxL = jnp.take_along_axis(choose_BxL, first_BxL, axis=1)
    chosen_BxL = (choose_BxL < ratio) & mask_BxL & ~jnp.isin(ids_BxL, jnp.array(special_ids))
    if policy == "always":
        hidden_BxL = jnp.full_like(ids_BxL, mask_id)
    elif policy == "80/10/10":
        hidden_BxL = jnp.where(how_BxL < 0.8, mask_id, jnp.where(how_BxL < 0.9, random_BxL, ids_BxL))
    else:
        raise ValueError(f"mask policy {policy!r}: expected 80/10/10 or always")
    return jnp.where(chosen_BxL, hidden_BxL, ids_BxL).astype(ids_BxL.dtype), chosen_BxL
