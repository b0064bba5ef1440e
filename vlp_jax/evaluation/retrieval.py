"""Retrieval between clips and captions: dual-encoder scores, optionally reranked by the matching head.

What a query is, is a property of the data: rows of one clip_id are captions of one clip, and a paragraph is one caption
where the annotations hold it as one. Where `config.input.positives` is "caption", clips share captions (the templates
of Something-Something): equal captions are one query, and every clip that has it is right for it. The result says how
many captions a clip has, how many clips a caption, and how long they are, so that nobody takes a number of one protocol
for that of another.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax import sharding
from vlp_jax.evaluation import ranking, reading, statistics
from vlp_jax.evaluation.captions import Captions
from vlp_jax.evaluation.pairs import PairScorer
from vlp_jax.input import sources
from vlp_jax.input.ledger import count_kinds
from vlp_jax.recipes import recipe
from vlp_jax.types import UserError

DIRECTIONS = ("text_to_video", "video_to_text")
_PAIRS = 4  # pairs matched at once for each clip of a batch: as many as a training step of that batch fuses


@dataclasses.dataclass
class Ranks:
    """What a model ranked, in both directions.

    Attributes:
      rank_Q, rank_C: ranks from 1 of what is right for each caption and each clip, after reranking; beyond every item
        where there is nothing to find.
      to_video, to_text: the ranking by the dual encoder alone, of the captions' clips and the clips' captions.
      texts_QxE, clips_CxE: float32 embeddings.
      valid_C: bool, False where a clip did not decode.
      bad_clips: those, with their reasons.
      clip_passes: 2 where reranking had to encode the clips anew.
    """

    rank_Q: np.ndarray
    rank_C: np.ndarray
    to_video: ranking.Ranked
    to_text: ranking.Ranked
    texts_QxE: np.ndarray
    clips_CxE: np.ndarray
    valid_C: np.ndarray
    bad_clips: list[dict[str, str]]
    clip_passes: int


class Retrieval:
    """Evaluates text-to-video and video-to-text retrieval of a recipe on one source.

    The gallery holds each clip once, every caption is a query, and a clip finds its best caption. Each clip is decoded
    and encoded once, each distinct text as well. A clip that does not decode stays in: its queries count as missed, at
    a rank beyond every R@k and every item; the result lists such clips with their reasons. An empty caption is missed,
    too, and a clip that has no other stays among what the others must be told from.

    Reranking, in both directions: the best `rerank` items of each query by the dual encoder are ordered by the matching
    head alone, still ahead of all others, as Singularity does; a weighting of both scores is no option. A pair that two
    queries list is matched once. Word features of all distinct texts lie in host memory, tokens of the clips as well
    where they fit `config.evaluation.token_gib`; else the clips are decoded and encoded a second time.

    Args:
      graph: the recipe without parameters; it must be a DualEncoder, and a Matcher for `rerank > 0`.
      rerank: candidates of each query that the matching head orders anew; 0 for none.

    Raises:
      UserError: the recipe cannot do it, or was trained without the loss that it takes.
    """

    def __init__(
        self, graph: Any, abstract_params: Any, config: Any, source: Any, tokenizer: Any, mesh: Any, *, rerank=0
    ):
        model = nnx.merge(graph, abstract_params)
        recipe.require_embeddings(model, config, "retrieval")
        if rerank:
            recipe.require(model, recipe.Matcher, "reranking")
            if model.match_head is None:
                raise UserError(
                    f"rerank = {rerank} needs a matching head, but the model was trained with config.loss.vtm = 0: set "
                    "--rerank=0, in training config.evaluation.rerank=0, or take a run with config.loss.vtm above 0"
                )
        self.config, self.source, self.tokenizer, self.mesh, self.rerank = config, source, tokenizer, mesh, rerank
        sources.check_task(source, "pretrain", config.input)
        ways = mesh.size // mesh.shape["tensor"]
        self.batch_size = -(-config.evaluation.batch_size // ways) * ways
        self.captions = Captions(source, tokenizer, config.input.positives == "caption")
        spread = sharding.batch_sharding(mesh)

        def encode_clips(params, video):
            model = nnx.merge(graph, params)
            clips = model.encode_clip(video)
            return model.embed_clip(clips), clips if rerank else None

        def encode_texts(params, ids, mask):
            model = nnx.merge(graph, params)
            return model.embed_text(ids, mask), model.encode_text(ids, mask) if rerank else None

        self._encode_clips = jax.jit(encode_clips, out_shardings=spread)
        self._encode_texts = jax.jit(encode_texts, out_shardings=spread)
        self._scorer = PairScorer(graph, mesh, _PAIRS * self.batch_size) if rerank else None

    def run(self, params: Any) -> dict[str, Any]:
        """Returns `{text_to_video, video_to_text: metrics, intervals, queries, clips, undecodable, ..., per_query}`.

        `intervals` are 95% bootstrap intervals over clips, `{"text_to_video/R@1": [low, high]}`; {} where
        `config.evaluation.bootstrap` is 0. `clip_passes` is 2 where reranking had to encode the clips anew.
        """
        c, captions = self.config.evaluation, self.captions
        found = self.ranks(params)
        rank_Q, rank_C = found.rank_Q, found.rank_C
        ranks = {name: pair for name, *pair in zip(DIRECTIONS, (rank_Q, rank_C), captions.drawn_together)}
        return {
            "task": "retrieval",
            "text_to_video": ranking.summarise(rank_Q),
            "video_to_text": ranking.summarise(rank_C),
            "intervals": self._intervals(ranks),
            "bootstrap": c.bootstrap,
            "queries": len(captions.texts),
            "clips": len(captions.clip_ids),
            "positives": self.config.input.positives,
            **captions.described(),
            "frames": config_lib.evaluated_input(self.config).frames,
            "undecodable": int((~found.valid_C).sum()),
            "bad_clips": found.bad_clips,
            "cut_captions": captions.cut,
            "empty_captions": int((~captions.valid_Q).sum()),
            "rerank": self.rerank,
            "clip_passes": found.clip_passes,
            "per_query": [
                {
                    "query_id": name,
                    "clip_id": captions.clip_ids[clip],
                    "caption": captions.texts[query],
                    "text_to_video_rank": int(rank_Q[query]),
                    "video_to_text_rank": int(rank_C[clip]),
                }
                for name, clip, query in captions.rows()
            ],
        }

    def ranks(self, params: Any, shortlist: int = 0) -> Ranks:
        """Encodes all clips and captions and ranks them in both directions.

        Args:
          shortlist: items listed for each query where nothing is reranked; `rerank` are where something is.
        """
        captions = self.captions
        group_Q, group_C = captions.group_Q, captions.group_C
        with sharding.use_mesh(self.mesh):
            texts_UxE, words = self.texts(params)
            clips_CxE, valid_C, bad, tokens = self._clips(params)
            texts_QxE = texts_UxE[captions.text_Q]
            text_side, clip_side = (texts_QxE, group_Q), (clips_CxE, group_C)
            rank = lambda queries, gallery, valid: ranking.rank(
                *(queries[0], gallery[0], queries[1], gallery[1], valid),
                mesh=self.mesh,
                shortlist=self.rerank or shortlist,
            )
            to_video, to_text = rank(text_side, clip_side, valid_C), rank(clip_side, text_side, captions.valid_Q)
            rank_Q, rank_C = to_video.rank_Q, to_text.rank_Q
            if self.rerank:
                match_video, match_text = self._match(params, to_video, to_text, valid_C, tokens, words)
                rank_Q = ranking.rerank(to_video, group_C[to_video.shortlist_QxK] == group_Q[:, None], match_video)
                rank_C = ranking.rerank(to_text, group_Q[to_text.shortlist_QxK] == group_C[:, None], match_text)
        rank_Q, rank_C = captions.with_missed(rank_Q, rank_C, valid_C)
        passes = 2 if self.rerank and tokens is None else 1
        return Ranks(rank_Q, rank_C, to_video, to_text, texts_QxE, clips_CxE, valid_C, bad, passes)

    def texts(self, params):
        """Embeddings float32 `[U, E]` and, for reranking, word features `[U, L, D]` of the distinct texts."""
        count, parts = len(self.captions.token_ids), []
        for start in range(0, count, self.batch_size):
            rows = np.minimum(np.arange(start, start + self.batch_size), count - 1)  # the last batch repeats the last
            own = (self.captions.token_ids[rows], self.captions.token_mask[rows])
            out = sharding.fetch(self._encode_texts(params, *sharding.to_global(own, self.mesh)))
            parts.append(jax.tree.map(lambda x, n=count - start: x[:n], out))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def _clips(self, params):
        """Embeddings float32 `[C, E]`, which clips are valid, the bad ones, and tokens for reranking: blocks, or None
        where they do not fit."""
        embedded, valid, bad, tokens = [], [], [], []
        keep = bool(self.rerank)
        batches = -(-len(self.captions.clip_ids) // self.batch_size)
        for read, (embedding, clips) in self._encoded(params):
            real = ~read.is_padding
            embedded.append(sharding.fetch(embedding)[real])
            valid.append(read.valid[real])
            bad += read.bad.values()
            if keep:
                size = sum(leaf.nbytes for leaf in jax.tree.leaves(clips)) * batches
                keep = size <= self.config.evaluation.token_gib * 2**30
            if keep:
                tokens.append(sharding.fetch(clips))
        return np.concatenate(embedded), np.concatenate(valid), bad, tokens if keep else None

    def _encoded(self, params) -> Iterator[tuple[Any, Any]]:
        """Decodes and encodes all clips, a batch at a time."""
        batches = reading.read(
            self.config,
            self.source,
            self.tokenizer,
            self.mesh,
            batch_size=self.batch_size,
            records=self.captions.records,
        )
        for clips in batches:
            yield clips, self._encode_clips(params, clips.video)

    def _match(self, params, to_video, to_text, valid_C, tokens, words):
        """The matching head's logits of both shortlists, `[Q, K]` and `[C, K]`; what is not listed has nan."""
        captions, count = self.captions, len(self.captions.token_ids)
        clips = (to_video.shortlist_QxK, np.arange(len(valid_C))[:, None] + np.zeros_like(to_text.shortlist_QxK))
        texts = (captions.text_Q[:, None] + np.zeros_like(clips[0]), captions.text_Q[to_text.shortlist_QxK])
        # Clips that did not decode, and empty captions, are missed whatever they would list.
        listed = (
            to_video.listed_QxK & captions.valid_Q[:, None],
            to_text.listed_QxK & valid_C[:, None],
        )
        code = np.concatenate([(c.astype(np.int64) * count + t)[own] for c, t, own in zip(clips, texts, listed)])
        pairs, place = np.unique(code, return_inverse=True)
        blocks = (
            ((number * self.batch_size, block) for number, block in enumerate(tokens))
            if tokens is not None
            else (
                (number * self.batch_size, sharding.fetch(clips))
                for number, (_, (_, clips)) in enumerate(self._encoded(params))
            )
        )
        assert self._scorer is not None
        logits = self._scorer.score(params, blocks, pairs // count, pairs % count, words, captions.token_mask)[place]
        out = [np.full(own.shape, np.nan, np.float32) for own in listed]
        out[0][listed[0]], out[1][listed[1]] = np.split(logits, [int(listed[0].sum())])
        return out

    def _intervals(self, ranks):
        """`{"direction/metric": [low, high]}` of `{direction: (ranks, groups)}`."""
        if not self.config.evaluation.bootstrap:
            return {}
        found = {}
        for direction, (ranks_Q, groups_Q) in ranks.items():
            low, high = statistics.interval(
                ranks_Q,
                lambda x: np.array(list(ranking.summarise(x).values())),
                groups_Q=groups_Q,
                samples=self.config.evaluation.bootstrap,
                seed=self.config.seed,
            )
            for name, *ends in zip(ranking.METRICS, low.tolist(), high.tolist()):
                found[f"{direction}/{name}"] = ends
        return found


def table(result: dict[str, Any], title: str) -> str:
    """The result as text, both directions, with the 95% intervals below the metrics."""
    lines = [title, f"{'':14}" + "".join(f"{name:>15}" for name in ranking.METRICS)]
    for direction in DIRECTIONS:
        lines.append(f"{direction:14}" + "".join(f"{result[direction][name]:15.2f}" for name in ranking.METRICS))
        if result["intervals"]:
            ends = [result["intervals"][f"{direction}/{name}"] for name in ranking.METRICS]
            lines.append(f"{'  95% interval':14}" + "".join(f"{f'{low:.2f}-{high:.2f}':>15}" for low, high in ends))
    a_clip = f"{_span(result['captions_per_clip'], 'caption')} a clip"
    shared = result["positives"] == "caption"
    if shared and result["clips_per_caption"]["max"] > 1:
        a_clip += f", {_span(result['clips_per_caption'], 'clip')} a caption, all right for it"
    # A random clip is right for a caption as often as clips have it.
    chance = 100 / (result["queries"] if shared else result["clips"])
    note = (
        f"{result['queries']} captions, {result['clips']} clips; chance R@1 {chance:.2f} (text to video)"
        f"; {a_clip}, {result['words_per_caption']:g} words a caption (median); {result['frames']} frames a clip"
    )
    if result["intervals"]:
        note += f"; intervals: {result['bootstrap']} resamples of the {'captions' if shared else 'clips'}"
    if result["undecodable"]:
        why = count_kinds((clip["error"], 1) for clip in result["bad_clips"])
        note += f"; {result['undecodable']} clips did not decode and count as missed: {why}"
    if result["empty_captions"]:
        note += f"; {result['empty_captions']} captions are empty and count as missed"
    if result["cut_captions"]:
        note += f"; {result['cut_captions']} captions were cut to the model's length"
    if result["clip_passes"] > 1:
        note += "; clips were encoded twice, as their tokens exceed config.evaluation.token_gib"
    return "\n".join([*lines, note])


def _span(ends: dict[str, int], unit: str) -> str:
    low, high = ends["min"], ends["max"]
    return f"{low} {unit}{'s' * (low > 1)}" if low == high else f"{low} to {high} {unit}s"


def log_scalars(result: dict[str, Any], prefix: str) -> dict[str, float]:
    """The result as flat scalars for the metrics file."""
    # TensorBoard refuses the @ of R@1.
    return {f"{prefix}/{d}/{name.replace('@', '')}": value for d in DIRECTIONS for name, value in result[d].items()}
