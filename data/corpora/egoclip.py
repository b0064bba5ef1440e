"""EgoClip and EgoMCQ (Lin et al., NeurIPS 2022): narrations of spans of Ego4D's long videos.

Annotations, each where its file is there:

    train                          EgoClip: clip_id, caption, start, end and, for EgoNCE, the verb and noun classes of
                                   the narration, `verbs` and `nouns`
    egomcq                         multiple choice the other way round: question_id, caption, options, answer, type.
                                   Each of the five options is a span, {clip_id, start, end}; `type` is inter-video
                                   or intra-video

A record is a file, once, and rows are spans of it in seconds. Files are whole videos, <video_uid>.mp4, or the pieces of
600 s into which EgoVLP's utils/video_chunk.py cuts them, <video_uid>/<n>.mp4. Pieces are to be preferred: a whole video
may last hours, and a record is read as one. A span that crosses the border of two pieces is cut to the one that holds
its middle.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable

from data.corpora import corpus, rows
from data.corpora.rows import Row
from vlp_jax.types import UserError

NAME = "egoclip"
WHERE_FROM = (
    "egoclip.csv and egomcq.json are linked from https://github.com/showlab/EgoVLP, the videos come from "
    "https://ego4d-data.org/docs/start-here/ (licence), whole or cut into pieces by EgoVLP's utils/video_chunk.py; "
    "they go into ROOT/videos as <video_uid>.mp4 or <video_uid>/<n>.mp4."
)

_FOLDERS = ("annotations",)
_PIECE_S = 600
_OPTION_COUNT = 5
_TYPES = {1: "inter-video", 2: "intra-video"}  # data_loader/EgoClip_EgoMCQ_dataset.py of EgoVLP
_OFFICIAL = {"train": (None, 3_847_723)}


def read(root: pathlib.Path, *, allow_share: float = 0.0) -> corpus.Corpus:
    """Reads the annotations below `root`, and finds their videos.

    All of EgoClip, 3.85 million rows, takes about 2.1 GiB of memory and a few minutes (scaled from 280 MiB for 500,000
    synthetic rows of 3,000 videos).

    Args:
      root: holds egoclip.csv, egomcq.json or both; the videos lie in videos/, or beside them.
      allow_share: share of the files that may be absent.

    Raises:
      UserError: neither file is there, videos are absent, or a file has another layout.
    """
    notes: list[str] = []
    csv_path = rows.find(root, _FOLDERS, "egoclip.csv")
    mcq_path = rows.find(root, _FOLDERS, "egomcq.json")
    if csv_path is None and mcq_path is None:
        corpus.require_file(root, ["egoclip.csv", "egomcq.json"], WHERE_FROM)
    narrations = _narrations(csv_path, notes) if csv_path else []
    questions = _questions(mcq_path) if mcq_path else []
    uids = [row["clip_id"] for row in narrations] + [o["clip_id"] for row in questions for o in row["options"]]
    files = _find(rows.video_folder(root), dict.fromkeys(uids))
    for row in narrations:
        files.place(row)
    for row in questions:
        for option in row["options"]:
            files.place(option)
    if files.cut:
        notes.append(f"{files.cut} spans cross the border of two pieces of {_PIECE_S} s and are cut to one of them.")
    annotations: dict[str, list[Row]] = {}
    for part, path, name, listed in (
        ("train", csv_path, "egoclip.csv", narrations),
        ("egomcq", mcq_path, "egomcq.json", questions),
    ):
        if path:
            annotations[part] = listed
        else:
            notes.append(rows.absent(part, [name], root))
    return rows.assemble(
        NAME,
        annotations,
        files.paths,
        expected="ROOT/videos/<video_uid>.mp4 or ROOT/videos/<video_uid>/<n>.mp4",
        where_from=WHERE_FROM,
        official=_OFFICIAL,
        notes=notes,
        allow_share=allow_share,
    )


def _narrations(path: pathlib.Path, notes: list[str]) -> list[Row]:
    columns = ["video_uid", "clip_start", "clip_end", "clip_text", "tag_verb", "tag_noun"]
    narrations: list[Row] = []
    malformed = []
    uids: dict[str, str] = {}  # one string for each video, not for each of its narrations
    for row in corpus.read_table(path, columns, delimiter="\t"):
        try:
            span = _span(row["clip_start"], row["clip_end"])
            verbs, nouns = (tuple(int(i) for i in json.loads(row[tag])) for tag in ("tag_verb", "tag_noun"))
        except (ValueError, TypeError) as e:
            malformed.append(f"{row['video_uid']} at {row['clip_start']}: {e}")
            continue
        uid = uids.setdefault(row["video_uid"], row["video_uid"])
        narrations.append({"clip_id": uid, "caption": row["clip_text"], **span, "verbs": verbs, "nouns": nouns})
    rows.report_malformed(malformed, len(narrations) + len(malformed), path, notes)
    return narrations


def _span(start: float | str, end: float | str) -> Row:
    """Seconds of a video; narrations near its beginning start below 0.

    Raises:
      ValueError: the span is empty, or not of numbers.
    """
    first, last = max(0.0, float(start)), float(end)
    if not first < last:
        raise ValueError(f"clip_start {start} and clip_end {end}, expected the end after the start and after 0")
    return {"start": first, "end": last}


def _questions(path: pathlib.Path) -> list[Row]:
    data = corpus.read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an object from question numbers to query, choices, answer and types")
    questions = []
    for number, question in data.items():
        where = f"{path}, question {number}"
        rows.check_fields([question], ["query", "choices", "answer", "types"], where)
        rows.check_fields([question["query"]], ["clip_text"], f"{where}, query")
        if question["types"] not in _TYPES:
            raise UserError(f"{where}: types {question['types']!r}, expected 1 (inter-video) or 2 (intra-video)")
        options = []
        # The official loader numbers the choices in their order, whatever their keys.
        for choice in rows.check_fields(
            list(question["choices"].values()), ["video_uid", "clip_start", "clip_end"], f"{where}, choices"
        ):
            try:
                options.append({"clip_id": choice["video_uid"], **_span(choice["clip_start"], choice["clip_end"])})
            except (ValueError, TypeError) as e:
                raise UserError(f"{where}, choices: {e}") from e
        questions.append(
            {
                "question_id": str(number),
                "caption": question["query"]["clip_text"],
                "options": options,
                "answer": question["answer"],
                "type": _TYPES[question["types"]],
            }
        )
    return rows.check_choices(questions, _OPTION_COUNT, path)


@dataclasses.dataclass
class _Files:
    """Where the videos lie: `paths` by clip id, `pieces` the videos that are there in pieces; `cut` spans so far."""

    paths: dict[str, pathlib.Path]
    pieces: set[str]
    cut: int = 0

    def place(self, span: Row) -> None:
        """Makes the span of a video, in place, one of a piece where the video is there in pieces."""
        uid = span["clip_id"]
        if uid not in self.pieces:
            return
        number = int((span["start"] + span["end"]) / 2 // _PIECE_S)
        start, end = (span[key] - number * _PIECE_S for key in ("start", "end"))
        self.cut += start < 0 or end > _PIECE_S
        span |= {"clip_id": f"{uid}/{number}", "start": max(0.0, start), "end": min(float(_PIECE_S), end)}


def _find(folder: pathlib.Path, uids: Iterable[str]) -> _Files:
    uids = list(uids)
    paths = corpus.find_videos(folder, uids)
    pieces = set()
    for uid in uids:
        if uid not in paths and (folder / uid).is_dir():
            pieces.add(uid)
            paths |= {f"{uid}/{path.stem}": path for path in (folder / uid).glob("*.mp4") if path.stem.isdecimal()}
    return _Files(paths, pieces)
