"""Ranks of queries in a gallery, computed on the mesh, and what is reported of them.

The scores of all queries against all items never exist at once: each device scores a block of query rows against the
gallery, and keeps of it the rank of each query and its shortlist. The host holds O(Q k).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlp_jax import sharding

RECALLS = (1, 5, 10)
METRICS = (*(f"R@{k}" for k in RECALLS), "mean_recall", "median_rank", "mean_rank")
MISSED = max(RECALLS) + 1  # the least rank of a query that has found nothing: beyond every R@k, however small the set

# Rows that a device scores at once, and the multiple that the gallery is padded to. One shape, whatever the number of
# devices, so that a score does not depend on it.
_ROWS = 128


def summarise(ranks_Q: np.ndarray) -> dict[str, float]:
    """`METRICS` of ranks from 1: R@k in percent, mean_recall (the mean of the three), median and mean rank."""
    recalls = {f"R@{k}": 100 * float((ranks_Q <= k).mean()) for k in RECALLS}
    found = {
        **recalls,
        "mean_recall": float(np.mean(list(recalls.values()))),
        "median_rank": float(np.median(ranks_Q)),
        "mean_rank": float(ranks_Q.mean()),
    }
    return {name: found[name] for name in METRICS}


@dataclasses.dataclass
class Ranked:
    """Ranks by the dual encoder, and the items that are ranked first.

    Attributes:
      rank_Q: int32, from 1, of the best relevant item.
      shortlist_QxK: int32, numbers of the best items, best first; at equal scores wrong ones stand before right ones.
      listed_QxK: bool, False where there were fewer than K valid items with a score.
    """

    rank_Q: np.ndarray
    shortlist_QxK: np.ndarray
    listed_QxK: np.ndarray


def rank(
    queries_QxE: np.ndarray,
    gallery_GxE: np.ndarray,
    query_group_Q: np.ndarray,
    gallery_group_G: np.ndarray,
    valid_G: np.ndarray,
    *,
    mesh: Any,
    shortlist: int = 0,
) -> Ranked:
    """Ranks the gallery for each query by dot products; call it inside `sharding.use_mesh(mesh)`.

    A tie counts against the model: a wrong item of equal score ranks before the right one, so that scores which do not
    tell items apart earn chance at most. NaN scores and items that are not valid rank last.

    Args:
      queries_QxE, gallery_GxE: float32 embeddings.
      query_group_Q, gallery_group_G: int32 from 0; an item is relevant to the queries of its own group.
      valid_G: bool.
      shortlist: items listed for each query, at most G of them.

    Raises:
      ValueError: the group of a query has no item.
    """
    count, size = len(queries_QxE), len(gallery_GxE)
    lonely = np.flatnonzero(~np.isin(query_group_Q, gallery_group_G))
    if len(lonely):
        raise ValueError(f"queries {lonely[:8].tolist()} have no relevant item")
    k = min(shortlist, size)
    relevant = min(k, int(np.bincount(gallery_group_G).max()))
    block = _block_ranker(mesh, k, relevant)
    more = -size % _ROWS
    gallery = (
        np.pad(gallery_GxE.astype(np.float32), ((0, more), (0, 0))),
        np.pad(gallery_group_G.astype(np.int32), (0, more), constant_values=_PADDING),
        np.pad(valid_G, (0, more)),
    )
    gallery = jax.device_put(gallery, sharding.replicated(mesh))
    parts = []
    rows = _ROWS * (mesh.size // mesh.shape["tensor"])
    for start in range(0, count, rows):
        own = slice(start, start + rows)
        missing = max(0, start + rows - count)
        queries = np.pad(queries_QxE[own].astype(np.float32), ((0, missing), (0, 0)))
        groups = np.pad(query_group_Q[own].astype(np.int32), (0, missing), constant_values=_PADDING)
        # Fetched before the next is started: forced host devices deadlock with many computations in flight.
        done = sharding.fetch(block(*sharding.to_global((queries, groups), mesh), *gallery))
        parts.append([x[: rows - missing] for x in done])
    return Ranked(*(np.concatenate(x) for x in zip(*parts)))


def rerank(ranked: Ranked, relevant_QxK: np.ndarray, match_QxK: np.ndarray) -> np.ndarray:
    """Ranks after the shortlists are put in the order of other scores, ahead of all other items; int32 `[Q]`.

    Only the other scores order a shortlist, as in Singularity and ALBEF; the dual encoder's count beyond it. Whatever
    is relevant and not listed keeps its rank, for all that is listed stood before it. Ties count against the model, NaN
    is the lowest score.

    Args:
      relevant_QxK: bool, which items of the shortlists are relevant.
      match_QxK: their other scores; read where they are listed.
    """
    listed = ranked.listed_QxK
    match = np.where(listed & ~np.isnan(match_QxK), match_QxK, -np.inf)
    right = relevant_QxK & listed
    best_Q = np.where(right, match, -np.inf).max(1, initial=-np.inf)
    ahead_Q = ((match >= best_Q[:, None]) & listed & ~relevant_QxK).sum(1)
    return np.where(right.any(1), 1 + ahead_Q, ranked.rank_Q).astype(np.int32)


_PADDING = -1  # group of the rows that fill a block


@functools.lru_cache
def _block_ranker(mesh: Any, k: int, relevant: int) -> Any:
    """The compiled ranking of a block of queries; `relevant` bounds the relevant items that a shortlist can hold."""

    def local(queries_RxE, group_R, gallery_GxE, group_G, valid_G):
        scores = jnp.einsum("re,ge->rg", queries_RxE, gallery_GxE, precision=jax.lax.Precision.HIGHEST)
        scores = jnp.where(jnp.isnan(scores) | ~valid_G, -jnp.inf, scores)
        scores = jnp.where(scores == 0, 0.0, scores)  # top_k puts -0 behind 0
        right = group_R[:, None] == group_G
        wrong = ~right & (group_G != _PADDING)
        right_scores = jnp.where(right, scores, -jnp.inf)
        best_R = right_scores.max(1)
        rank_R = 1 + ((scores >= best_R[:, None]) & wrong).sum(1, dtype=jnp.int32)
        # top_k prefers the lower place at equal scores: wrong items are laid before right ones.
        tops = [jax.lax.top_k(jnp.where(wrong, scores, -jnp.inf), k), jax.lax.top_k(right_scores, relevant)]
        scores, items = (jnp.concatenate(x, axis=1) for x in zip(*tops))
        best, at = jax.lax.top_k(scores, k)
        return rank_R, jnp.take_along_axis(items, at, axis=1), best > -jnp.inf

    rows, everywhere = sharding.batch_sharding(mesh).spec, sharding.replicated(mesh).spec
    return jax.jit(
        jax.shard_map(
            local, mesh=mesh, in_specs=(rows, rows, everywhere, everywhere, everywhere), out_specs=(rows, rows, rows)
        )
    )
