"""What a run finds: the ranking of a split by its dual encoder, the worst queries, and pictures of both."""

import dataclasses
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vlp_jax.analysis import arguments, drawing
from vlp_jax.analysis.loading import Loaded
from vlp_jax.analysis.principal import principal_components
from vlp_jax.evaluation import retrieval
from vlp_jax.evaluation.captions import Captions
from vlp_jax.types import UserError

TOP = 5  # items listed for each query
ORDERS = ("split", "component", "caption")
_FRAMES = 4  # of a thumbnail
_RIGHT, _WRONG = drawing.GREEN, drawing.ORANGE


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one query found first.

    Attributes:
      query: its number: of the caption, or of the clip where captions are looked for.
      clip: number of the clip that it is of.
      rank: of what is right, from 1.
      true: the query's caption; of a clip its best caption.
      found: the caption of what ranks first.
      margin: score of what ranks first less that of what is right.
    """

    query: int
    clip: int
    rank: int
    true: str
    found: str
    margin: float


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """A split, ranked in both directions by the dual encoder.

    Attributes:
      title: the run and the split.
      split: its name.
      captions: Q queries and C clips; which belong together, their texts and names.
      ranks: ranks, the TOP best items of each query, embeddings, and which clips decoded.
      scores_QxC: float32, the similarity of each caption and each clip; nan for clips that did not decode.
    """

    title: str
    split: str
    captions: Captions
    ranks: retrieval.Ranks
    scores_QxC: np.ndarray

    def answers(self, direction: str = "text_to_video") -> list[Answer]:
        """What each query found; without those whose clip did not decode or whose caption is empty.

        Raises:
          UserError: a direction other than text_to_video and video_to_text.
        """
        if direction not in retrieval.DIRECTIONS:
            raise UserError(f"direction = {direction!r}: expected {' or '.join(retrieval.DIRECTIONS)}")
        c, scores = self.captions, np.where(np.isnan(self.scores_QxC), -np.inf, self.scores_QxC)
        of_clip = self._caption_of_clip()
        right = c.group_Q[:, None] == c.group_C
        out = []
        if direction == "text_to_video":
            for q in np.flatnonzero(c.valid_Q & np.isin(c.group_Q, c.group_C[self.ranks.valid_C])).tolist():
                rank, first = int(self.ranks.rank_Q[q]), int(self.ranks.to_video.shortlist_QxK[q, 0])
                best = int(np.where(right[q], scores[q], -np.inf).argmax())
                found = c.texts[q] if rank == 1 else of_clip[first]
                out.append(Answer(q, best, rank, c.texts[q], found, float(scores[q, first] - scores[q, best])))
        else:
            for clip in np.flatnonzero(self.ranks.valid_C & np.isin(c.group_C, c.group_Q[c.valid_Q])).tolist():
                rank, first = int(self.ranks.rank_C[clip]), int(self.ranks.to_text.shortlist_QxK[clip, 0])
                best = int(np.where(right[:, clip] & c.valid_Q, scores[:, clip], -np.inf).argmax())
                margin = float(scores[first, clip] - scores[best, clip])
                out.append(Answer(clip, clip, rank, c.texts[best], c.texts[first], margin))
        return out

    def worst(self, count: int = 10, direction: str = "text_to_video") -> list[Answer]:
        """The queries that were missed by most, at most `count`: by rank, then by margin.

        Raises:
          UserError: a count below 1, or no such direction.
        """
        arguments.check_positive("count", count)
        missed = [answer for answer in self.answers(direction) if answer.rank > 1]
        return sorted(missed, key=lambda answer: (-answer.rank, -answer.margin))[:count]

    def order(self, by: str) -> tuple[np.ndarray, np.ndarray]:
        """Queries `[Q]` and clips `[C]` in an order in which what belongs together has about the same place.

        Args:
          by: split; component, the first principal one of the clips' embeddings; caption, by alphabet.

        Raises:
          UserError: another `by`.
        """
        c = self.captions
        count = len(c.clip_ids)
        if by == "split":
            clips = np.arange(count)
        elif by == "component":
            clips = np.argsort(principal_components(self.ranks.clips_CxE, 1)[0][:, 0], kind="stable")
        elif by == "caption":
            texts = self._caption_of_clip()
            clips = np.array(sorted(range(count), key=texts.__getitem__))
        else:
            raise UserError(f"order = {by!r}: expected one of {', '.join(ORDERS)}")
        place = np.empty(count, np.int64)
        place[clips] = np.arange(count)
        return np.argsort(place[c.clip_Q], kind="stable"), clips

    def _caption_of_clip(self) -> list[str]:
        """The first caption of each clip; '' where it has none."""
        first: dict[int, str] = {}
        for text, group in zip(self.captions.texts, self.captions.group_Q.tolist()):
            if text.strip():
                first.setdefault(group, text)
        return [first.get(group, "") for group in self.captions.group_C.tolist()]


def retrieve(loaded: Loaded, split: str | None = None) -> Retrieved:
    """Ranks a split as `vlp_jax.evaluate --task=retrieval` does, ties against the model, and keeps what it saw.

    All Q x C scores are held: 400 MB for 10,000 captions and clips.

    Args:
      split: by default `config.evaluation.split`.

    Raises:
      UserError: the run has no dual encoder, or no such split.
    """
    setup = loaded.run.setup
    evaluator = retrieval.Retrieval(
        *(setup.graph, setup.abstract.params, loaded.config, loaded.source(split), loaded.run.tokenizer, setup.mesh)
    )
    ranks = evaluator.ranks(loaded.run.params, shortlist=TOP)
    scores = np.where(ranks.valid_C, ranks.texts_QxE @ ranks.clips_CxE.T, np.float32(np.nan))
    split = split or loaded.config.evaluation.split
    return Retrieved(f"{loaded.title}, split {split}", split, evaluator.captions, ranks, scores)


def draw_queries(loaded: Loaded, retrieved: Retrieved, queries: Sequence[int] | int) -> Figure:
    """Draws, for each caption, the clip that is right and the TOP clips that were found, with scores and captions.

    A clip is a strip of at most 4 of its frames; a right one has a green frame, a wrong one an orange one.

    Args:
      queries: numbers of captions, such as `Answer.query` of `retrieved.worst()`; or one.

    Raises:
      UserError: no such query, one whose clip did not decode, or a run on features, which has no pictures.
    """
    c, ranks = retrieved.captions, retrieved.ranks
    if loaded.config.input.features.width:
        raise UserError("draw_queries: the run sees features that another network computed, there is no clip to draw")
    answers = {answer.query: answer for answer in retrieved.answers()}
    queries = arguments.numbers("queries", queries, len(c.texts), "of captions")
    if lost := [query for query in queries if query not in answers]:
        raise UserError(
            f"queries = {queries}: the clip of {lost[0]} did not decode, or it has no words; expected captions that "
            "retrieved.answers() lists"
        )
    if not queries:
        raise UserError("queries = []: expected numbers of captions; where nothing was missed there are no worst ones")
    listed = {q: ranks.to_video.shortlist_QxK[q][ranks.to_video.listed_QxK[q]].tolist()[:TOP] for q in queries}
    needed = sorted({clip for q, clips in listed.items() for clip in (answers[q].clip, *clips)})
    clips = loaded.clips(split=retrieved.split, records=c.records[needed].tolist())
    strip = dict(zip(needed, map(_strip, clips.batch.video)))
    of_clip = retrieved._caption_of_clip()

    figure = Figure(figsize=(2.35 * (TOP + 1), 1.35 * len(listed) + 0.2), layout="constrained")
    rows = figure.subfigures(len(listed), 1, squeeze=False)[:, 0]
    for row, (query, found) in zip(rows, listed.items()):
        answer = answers[query]
        row.suptitle(f"“{c.texts[query]}”: rank {answer.rank} of {len(c.clip_ids)}", fontsize=9, weight="bold")
        axes = row.subplots(1, TOP + 1)
        for place, axis in enumerate(axes):
            axis.set_xticks([])
            axis.set_yticks([])
            if place > len(found):
                axis.set_visible(False)
                continue
            clip = answer.clip if place == 0 else found[place - 1]
            right = c.group_C[clip] == c.group_Q[query]
            axis.imshow(strip[clip], interpolation="nearest")
            for spine in axis.spines.values():
                spine.set(color=_RIGHT if right else _WRONG, linewidth=2.5)
            what = "right clip" if place == 0 else f"{place}. {'right' if right else 'wrong'}"
            axis.set_title(
                f"{what}  {retrieved.scores_QxC[query, clip]:.3f}", fontsize=8, color=_RIGHT if right else _WRONG
            )
            axis.set_xlabel(textwrap.fill(textwrap.shorten(of_clip[clip], 110), 38), fontsize=6.5)
    return figure


def draw_similarity(retrieved: Retrieved, order: str = "component") -> Figure:
    """Draws the scores of all captions (rows) and clips (columns); what belongs together lies on the diagonal.

    Args:
      order: one of ORDERS, see `Retrieved.order`.
    """
    queries, clips = retrieved.order(order)
    figure = Figure(figsize=(6.2, 5.2), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(
        retrieved.scores_QxC[np.ix_(queries, clips)], cmap="viridis", aspect="auto", interpolation="nearest"
    )
    names = {"split": "split", "component": "first principal component", "caption": "alphabet of the captions"}
    axis.set_title(f"similarity of captions and clips\n{retrieved.title}", fontsize=10)
    axis.set_xlabel(f"clips, by {names[order]}", fontsize=9)
    axis.set_ylabel("captions, in the order of their clips", fontsize=9)
    axis.tick_params(labelsize=8)
    figure.colorbar(image, label="cosine similarity")
    return figure


def _strip(video: np.ndarray) -> np.ndarray:
    """Frames of a clip side by side, uint8 `[H, W, 3]`, white lines between them."""
    chosen = video[np.linspace(0, len(video) - 1, min(_FRAMES, len(video))).round().astype(int)]
    gap = np.full((video.shape[1], math.ceil(video.shape[2] / 32), 3), 255, np.uint8)
    return np.concatenate([part for frame in chosen for part in (frame, gap)][:-1], axis=1)
