"""Zero-shot retrieval between clips and captions: dual-encoder scores, optionally reranked by the matching head."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from vlp_jax import sharding
from vlp_jax.input import pipeline
from vlp_jax.input.ledger import count_kinds
from vlp_jax.recipes import recipe
from vlp_jax.types import UserError

RECALLS = (1, 5, 10)


def ranks(scores_QxG: np.ndarray, relevant_QxG: np.ndarray) -> np.ndarray:
    """Rank of the best relevant item of each query, from 1.

    A tie counts against the model: a wrong item of equal score ranks before the right one, so that scores which do not
    tell items apart earn chance at most. NaN scores rank last.

    Args:
      scores_QxG: float32 scores, queries by gallery.
      relevant_QxG: bool; at least one True in each row.

    Returns:
      int64 `[Q]`, 1 .. G.
    """
    if not relevant_QxG.any(1).all():
        raise ValueError(f"queries {np.flatnonzero(~relevant_QxG.any(1))[:8].tolist()} have no relevant item")
    scores = np.where(np.isnan(scores_QxG), -np.inf, scores_QxG)
    best_Q = np.where(relevant_QxG, scores, -np.inf).max(1)
    return 1 + ((scores >= best_Q[:, None]) & ~relevant_QxG).sum(1)


def summarise(ranks_Q: np.ndarray) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, median and mean rank."""
    return {
        **{f"R@{k}": 100 * float((ranks_Q <= k).mean()) for k in RECALLS},
        "median_rank": float(np.median(ranks_Q)),
        "mean_rank": float(ranks_Q.mean()),
    }


class Retrieval:
    """Evaluates text-to-video and video-to-text retrieval of a recipe on one source.

    Records with the same clip_id are captions of one clip: the gallery holds each clip once, every caption is a query,
    and a clip finds its best caption. A clip that does not decode stays in: its queries count as missed, at a rank
    beyond every R@k and every item; the result lists such clips with their reasons.

    Args:
      graph: the recipe without parameters; it must be a DualEncoder, and a Matcher for `rerank > 0`.
      rerank: candidates of each query that the matching head orders anew; 0 for none.
    """

    def __init__(
        self, graph: Any, abstract_params: Any, config: Any, source: Any, tokenizer: Any, mesh: Any, *, rerank=0
    ):
        if jax.process_count() > 1:
            raise UserError(
                f"retrieval runs in one process, this job has {jax.process_count()}: set evaluation.every_steps=0 "
                "and evaluate the checkpoint on one host"
            )
        model = nnx.merge(graph, abstract_params)
        recipe.require(model, recipe.DualEncoder, "retrieval")
        if not config.loss.vtc:
            raise UserError(f"retrieval needs embeddings that were trained, but {config.name} has config.loss.vtc = 0")
        if rerank:
            recipe.require(model, recipe.Matcher, "reranking")
            if model.match_head is None:
                raise UserError(f"rerank = {rerank} needs a matching head, but the model was trained with loss.vtm = 0")
        self.config, self.source, self.tokenizer, self.mesh, self.rerank = config, source, tokenizer, mesh, rerank
        ways = mesh.size // mesh.shape["tensor"]
        self.batch_size = -(-config.evaluation.batch_size // ways) * ways
        merge = lambda params: nnx.merge(graph, params)
        everywhere = sharding.replicated(mesh)

        def embed(params, batch):
            model = merge(params)
            clips = model.encode_clip(batch.video) if rerank else None
            words = model.encode_text(batch.text_ids, batch.text_mask) if rerank else None
            return (
                model.embed_video(batch.video),
                model.embed_text(batch.text_ids, batch.text_mask),
                clips,
                words,
            )

        self._embed = jax.jit(embed, out_shardings=everywhere)
        self._match = jax.jit(lambda params, *args: merge(params).match(*args), out_shardings=everywhere)

    def run(self, params: Any) -> dict[str, Any]:
        """Returns `{text_to_video, video_to_text: metrics, queries, clips, undecodable, ..., per_query}`."""
        with sharding.use_mesh(self.mesh):
            video, text, clips, words, host = self._encode(params)
            ids = np.asarray(host["clip_ids"])
            # The first record of each clip stands for it; captions keep the source's order.
            first = np.sort(np.unique(ids, return_index=True)[1])
            valid, clips = host["valid"][first], jax.tree.map(lambda x: x[first], clips)
            scores = video[first] @ text.T  # float32 [clips, captions]
            scores[~valid] = -np.inf
            to_video, to_text = scores.T.copy(), scores.copy()
            if self.rerank:
                to_video = self._reorder(to_video, params, clips, words, host["text_mask"], texts_are_queries=True)
                to_text = self._reorder(to_text, params, clips, words, host["text_mask"], texts_are_queries=False)
        relevant = ids[first][:, None] == ids[None, :]
        rank_video, rank_text = ranks(to_video, relevant.T), ranks(to_text, relevant)
        # A clip that did not decode has found nothing and is found by nothing.
        missed = max(RECALLS) + 1  # beyond every R@k, however few there are
        rank_text[~valid] = max(len(ids) + 1, missed)
        rank_video[~valid[relevant.argmax(0)]] = max(len(first) + 1, missed)
        of_clip = dict(zip(ids[first].tolist(), rank_text.tolist()))
        return {
            "text_to_video": summarise(rank_video),
            "video_to_text": summarise(rank_text),
            "queries": len(ids),
            "clips": len(first),
            "undecodable": int((~valid).sum()),
            "bad_clips": list(host["bad"].values()),
            "cut_captions": host["cut"],
            "rerank": self.rerank,
            "per_query": [
                {"clip_id": i, "caption": c, "text_to_video_rank": int(v), "video_to_text_rank": of_clip[i]}
                for i, c, v in zip(host["clip_ids"], host["captions"], rank_video)
            ],
        }

    def _encode(self, params):
        """Embeddings of the whole source as float32 NumPy, without the padding of the last batch."""
        parts: list[Any] = []
        host: dict[str, Any] = {"clip_ids": [], "captions": [], "valid": [], "text_mask": [], "cut": 0, "bad": {}}
        for item in pipeline.evaluation_batches(self.config, self.source, self.tokenizer, batch_size=self.batch_size):
            real = ~item.is_padding
            out = jax.device_get(self._embed(params, sharding.to_global(item.batch, self.mesh)))
            parts.append(jax.tree.map(lambda x, real=real: np.asarray(x)[real], out))
            host["clip_ids"] += [x for x, r in zip(item.clip_ids, real) if r]
            host["captions"] += [x for x, r in zip(item.captions, real) if r]
            host["valid"].append(item.batch.valid[real])
            host["text_mask"].append(item.batch.text_mask[real])
            host["cut"] += item.cut
            for i in np.flatnonzero(real & ~item.batch.valid):
                bad = {"clip_id": item.clip_ids[i], "origin": item.origins[i], "error": item.errors[i]}
                host["bad"].setdefault(item.clip_ids[i], bad)
        host["valid"], host["text_mask"] = np.concatenate(host["valid"]), np.concatenate(host["text_mask"])
        return *jax.tree.map(lambda *x: np.concatenate(x), *parts), host

    def _reorder(self, scores_QxG, params, clips, words, text_mask, *, texts_are_queries):
        """Puts each query's best `rerank` candidates in the matching head's order, still ahead of all others."""
        k = min(self.rerank, scores_QxG.shape[1])
        per_call = max(1, 512 // k)
        top_QxK = np.argsort(-scores_QxG, axis=1, kind="stable")[:, :k]
        out = scores_QxG.copy()
        for start in range(0, len(scores_QxG), per_call):
            query = np.arange(start, start + per_call) % len(scores_QxG)  # the last call wraps: one compiled shape
            candidates, queries = top_QxK[query].reshape(-1), np.repeat(query, k)
            clip_rows, text_rows = (candidates, queries) if texts_are_queries else (queries, candidates)
            take = lambda rows: jax.tree.map(lambda x: x[rows], clips)
            # A clip is passed once where it is the query, and once for each pair where it is the candidate.
            own = np.arange(len(candidates)) if texts_are_queries else np.repeat(np.arange(per_call), k)
            shown = take(clip_rows) if texts_are_queries else take(query)
            match = self._match(params, shown, own.astype(np.int32), words[text_rows], text_mask[text_rows])
            # Cosines lie in [-1, 1] and the squashed logits above them.
            value = 3 + np.tanh(np.asarray(match).reshape(per_call, k) / 50)
            finite = np.isfinite(np.take_along_axis(scores_QxG[query], top_QxK[query], axis=1))
            rows = slice(0, min(per_call, len(scores_QxG) - start))
            np.put_along_axis(
                out[start : start + per_call], top_QxK[query][rows], np.where(finite, value, -np.inf)[rows], axis=1
            )
        return out


def table(result: dict[str, Any], title: str) -> str:
    """The result as text, both directions."""
    names = [f"R@{k}" for k in RECALLS] + ["median_rank", "mean_rank"]
    lines = [title, f"{'':16}" + "".join(f"{name:>13}" for name in names)]
    for direction in ("text_to_video", "video_to_text"):
        lines.append(f"{direction:16}" + "".join(f"{result[direction][name]:13.2f}" for name in names))
    note = (
        f"{result['queries']} captions, {result['clips']} clips; chance R@1 {100 / result['clips']:.2f} (text to video)"
    )
    if result["undecodable"]:
        why = count_kinds((clip["error"], 1) for clip in result["bad_clips"])
        note += f"; {result['undecodable']} clips did not decode and count as missed: {why}"
    if result["cut_captions"]:
        note += f"; {result['cut_captions']} captions were cut to the model's length"
    return "\n".join([*lines, note])


def log_scalars(result: dict[str, Any], prefix: str) -> dict[str, float]:
    """The result as flat scalars for the metrics file."""
    directions: Sequence[str] = ("text_to_video", "video_to_text")
    # TensorBoard refuses the @ of R@1.
    return {f"{prefix}/{d}/{name.replace('@', '')}": value for d in directions for name, value in result[d].items()}
