"""Scores of (clip, text) pairs by the matching head, many pairs a clip, on the mesh.

Clips are taken a few at a time, and all texts that are paired with one of them go to the device that holds it: a clip's
tokens, by far the largest thing here, cross to one device and are gathered there, never between devices.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from vlp_jax import sharding

_TEXTS_A_CLIP = 32  # pairs of one call for each clip that it carries: a clip's keys and values are made once a call


class PairScorer:
    """Scores any set of pairs by `recipe.Matcher.match`, in calls of one compiled shape.

    Args:
      graph: a Matcher without parameters.
      pairs: of one call, over all devices; their keys and values, `[pairs, S]` tokens of each layer, bound the memory.
    """

    def __init__(self, graph: Any, mesh: Any, pairs: int):
        self.mesh, self.ways = mesh, mesh.size // mesh.shape["tensor"]
        self.pairs = -(-pairs // self.ways)  # of each device
        self.clips = -(-self.pairs // _TEXTS_A_CLIP)
        rows, everywhere = sharding.batch_sharding(mesh).spec, sharding.replicated(mesh).spec
        match = lambda params, *args: nnx.merge(graph, params).match(*args)
        self._match = jax.jit(
            jax.shard_map(
                match,
                mesh=mesh,
                in_specs=(everywhere, rows, rows, rows, rows),
                out_specs=rows,
                axis_names=set(sharding.BATCH_AXES),
                check_vma=False,
            )
        )

    def score(
        self,
        params: Any,
        blocks: Iterator[tuple[int, Any]],
        clip_P: np.ndarray,
        text_P: np.ndarray,
        words_UxLxD: np.ndarray,
        mask_UxL: np.ndarray,
    ) -> np.ndarray:
        """Logits of "belongs together", float32 `[P]`; call it inside `sharding.use_mesh(mesh)`.

        Args:
          blocks: `(number of the first clip, what encode_clip gave for it and those that follow)`, NumPy, in order;
            together all clips.
          clip_P, text_P: the pairs, sorted by clip.
          words_UxLxD, mask_UxL: `encode_text`'s features of the texts, and which of them are tokens.
        """
        logits_P = np.full(len(clip_P), np.nan, np.float32)
        for first, tokens in blocks:
            count = len(jax.tree.leaves(tokens)[0])
            for start in range(0, count, self.ways * self.clips):
                rows = start + np.arange(self.ways * self.clips)
                # Device g holds the clips edges[g] to edges[g + 1], and its pairs are bounds[g] to bounds[g + 1].
                edges = first + np.minimum(start + self.clips * np.arange(self.ways + 1), count)
                bounds = np.searchsorted(clip_P, edges)
                most = int(np.diff(bounds).max())
                if not most:
                    continue
                rows = np.minimum(rows, count - 1)  # the last block is filled with its last clip
                shown = sharding.to_global(jax.tree.map(lambda x, rows=rows: x[rows], tokens), self.mesh)
                for call in range(0, most, self.pairs):
                    number = bounds[:-1, None] + call + np.arange(self.pairs)
                    real = number < bounds[1:, None]
                    number = np.where(real, number, bounds[-1] - 1)
                    own = np.where(real, clip_P[number] - edges[:-1, None], 0).astype(np.int32).reshape(-1)
                    texts = text_P[number].reshape(-1)
                    pairs = sharding.to_global((own, words_UxLxD[texts], mask_UxL[texts]), self.mesh)
                    done = sharding.fetch(self._match(params, shown, *pairs)).reshape(number.shape)
                    logits_P[number[real]] = done[real]
        return logits_P
