"""ActivityNet Captions (Krishna et al., ICCV 2017) and ActivityNet-QA (Yu et al., AAAI 2019).

Annotations, each where its file is there:

    train, val_1, val_2            one paragraph a video: its sentences, joined; retrieval is reported on val_1
    moments_train, moments_val_1, moments_val_2
                                   one row a sentence, with start and end
    qa_train, qa_validation, qa_test, qa_answers
                                   questions; `type` is one of the nine of the official evaluation. `qa_answers` is the
                                   closed list of answers.
"""

import pathlib

from data.corpora import corpus, rows
from data.corpora.rows import Row
from vlp_jax.types import UserError

NAME = "activitynet"
WHERE_FROM = (
    "train.json, val_1.json and val_2.json are in captions.zip of "
    "https://cs.stanford.edu/people/ranjaykrishna/densevid/, train_q.json, train_a.json, val_q.json ... in the folder "
    "dataset of https://github.com/MILVLG/activitynet-qa; the videos, v_<id>.mp4, come from "
    "http://activity-net.org/download.html (request form) and go below ROOT/videos."
)

_FOLDERS = ("captions", "annotations")
_QA_FOLDERS = ("activitynet_qa", "activitynet-qa/dataset", "dataset", "qa")
_QA_SPLITS = {"qa_train": "train", "qa_validation": "val", "qa_test": "test"}

# dataset/README.md and evaluation/eval.py of MILVLG/activitynet-qa: three question types, then the free questions by
# the type of their answer.
QUESTION_TYPES = ("motion", "spatial", "temporal", "yes_no", "color", "object", "location", "number", "other")

_OFFICIAL = {
    "train": (10_009, 10_009),
    "val_1": (4917, 4917),
    "val_2": (4885, 4885),
    "qa_train": (3200, 32_000),
    "qa_validation": (1800, 18_000),
    "qa_test": (800, 8000),
}


def read(root: pathlib.Path, *, allow_share: float = 0.0) -> corpus.Corpus:
    """Reads the annotations below `root`, and finds their videos.

    Args:
      root: holds captions, in captions/ or by themselves, or questions in activitynet_qa/, or both; the videos lie in
        videos/, or anywhere below.
      allow_share: share of the videos that may be absent; many have gone from YouTube.

    Raises:
      UserError: neither captions nor questions are there, videos are absent, a file has another layout, or ids do not
        fit together.
    """
    notes: list[str] = []
    annotations: dict[str, list[Row]] = {}
    for part in ("train", "val_1", "val_2"):
        path = rows.find(root, _FOLDERS, f"{part}.json")
        if path is None:
            notes.append(rows.absent(part, [f"{part}.json"], root))
        else:
            annotations[part], annotations[f"moments_{part}"] = _captions(path, notes)
    annotations |= _questions(root, notes)
    if not annotations:
        corpus.require_file(
            root, ["train.json", "val_1.json", "val_2.json", "train_q.json and train_a.json"], WHERE_FROM
        )
    return rows.assemble(
        NAME,
        annotations,
        corpus.find_videos(rows.video_folder(root), rows.clip_ids(annotations)),
        expected="ROOT/videos/v_<id>.mp4",
        where_from=WHERE_FROM,
        official=_OFFICIAL,
        notes=notes,
        allow_share=allow_share,
    )


def _captions(path: pathlib.Path, notes: list[str]) -> tuple[list[Row], list[Row]]:
    """Returns one row a video, and one row a sentence."""
    data = corpus.read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an object from v_<id> to duration, timestamps and sentences")
    paragraphs, moments, backward = [], [], 0
    for clip, video in data.items():
        rows.check_fields([video], ["duration", "timestamps", "sentences"], f"{path}, {clip}")
        sentences, times = [s.strip() for s in video["sentences"]], video["timestamps"]
        if len(sentences) != len(times) or not sentences:
            raise UserError(
                f"{path}, {clip}: {len(sentences)} sentences and {len(times)} timestamps, expected as many, one or more"
            )
        paragraphs.append({"clip_id": clip, "caption": " ".join(sentences)})
        for (start, end), sentence in zip(times, sentences):
            # Annotators set a few ends beyond the video's.
            start, end = max(0.0, float(start)), min(float(end), float(video["duration"]))
            if start < end:
                moments.append({"clip_id": clip, "caption": sentence, "start": start, "end": end})
            else:
                backward += 1
    if backward:
        notes.append(
            f"moments_{path.stem}: {backward} of {len(moments) + backward} sentences left out, whose timestamps end "
            "before they start or lie outside the video; the paragraphs keep them."
        )
    return paragraphs, moments


def _questions(root: pathlib.Path, notes: list[str]) -> dict[str, list[Row]]:
    annotations: dict[str, list[Row]] = {}
    for part, split in _QA_SPLITS.items():
        questions, answers = (rows.find(root, _QA_FOLDERS, f"{split}_{kind}.json") for kind in ("q", "a"))
        if questions and answers:
            annotations[part] = _question_rows(questions, answers)
        else:
            gone = [f"{split}_{kind}.json" for kind, path in (("q", questions), ("a", answers)) if path is None]
            notes.append(rows.absent(part, gone, root))
    if "qa_train" in annotations:
        path = rows.find(root, _QA_FOLDERS, *rows.ANSWER_LISTS)
        annotations["qa_answers"] = rows.answer_rows(path, annotations["qa_train"], notes)
    return annotations


def _question_rows(questions_path: pathlib.Path, answers_path: pathlib.Path) -> list[Row]:
    questions = rows.json_rows(questions_path, ["video_name", "question", "question_id"])
    answers = rows.json_rows(answers_path, ["answer", "type", "question_id"])
    rows.check_distinct((row["question_id"] for row in answers), answers_path)
    by_id = {row["question_id"]: row for row in answers}
    rows.check_known((row["question_id"] for row in questions), by_id, questions_path, answers_path)
    rows.check_known(by_id, {row["question_id"] for row in questions}, answers_path, questions_path)
    for row in answers:
        if row["type"] not in range(len(QUESTION_TYPES)):
            raise UserError(
                f"{answers_path}: question {row['question_id']!r} has the type {row['type']!r}, expected 0 to "
                f"{len(QUESTION_TYPES) - 1}"
            )
    joined = [
        {
            "question_id": row["question_id"],
            "clip_id": f"v_{row['video_name']}",
            "question": row["question"],
            "answer": by_id[row["question_id"]]["answer"],
            "type": QUESTION_TYPES[by_id[row["question_id"]]["type"]],
        }
        for row in questions
    ]
    return rows.check_questions(joined, questions_path)
