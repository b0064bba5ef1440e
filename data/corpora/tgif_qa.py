"""TGIF-QA (Jang et al., CVPR 2017): questions about GIFs, four tasks with a train and a test split each.

Annotations, each where its file is there:

    frameqa_train, frameqa_test, frameqa_answers
                                   open-ended questions about one frame; `type` is object, number, color or location.
                                   `frameqa_answers` is the closed list of answers.
    count_train, count_test        how often an action is repeated; the answer is a number, the type 'count'
    action_train, action_test      which of five actions is repeated
    transition_train, transition_test
                                   which of five things happens before or after another

The last two are multiple choice, whose rows have a question, too. A question is known by the file's `vid_id`.
"""

import pathlib

from data.corpora import corpus, rows
from data.corpora.rows import Row
from vlp_jax.types import UserError

NAME = "tgif_qa"
WHERE_FROM = (
    "Train_frameqa_question.csv, Test_frameqa_question.csv and likewise for action, transition and count are in the "
    "folder dataset of https://github.com/YunseokJANG/tgif-qa, whose README there links to the GIFs; these, "
    "<gif_name>.gif, or videos made of them, <gif_name>.mp4, go below ROOT/videos."
)

_FOLDERS = ("dataset", "annotations")
_TASKS = ("frameqa", "count", "action", "transition")
_FRAME_TYPES = ("object", "number", "color", "location")  # dataset/README.md of the official repository
_OPTIONS = ("a1", "a2", "a3", "a4", "a5")

# Of the released files, which have a few questions fewer than the paper's Table 1; those left out were not seen.
_OFFICIAL = {
    "frameqa_test": (None, 13_691),
    "count_train": (None, 26_839),
    "count_test": (None, 3554),
    "action_train": (None, 20_471),
    "action_test": (None, 2274),
    "transition_test": (None, 6232),
}


def read(root: pathlib.Path, *, allow_share: float = 0.0) -> corpus.Corpus:
    """Reads the annotations below `root`, and finds their GIFs.

    Args:
      root: holds the files, in dataset/ or by themselves; the GIFs lie in videos/, or anywhere below.
      allow_share: share of the GIFs that may be absent.

    Raises:
      UserError: no annotation file is there, GIFs are absent, or a file has another layout.
    """
    notes: list[str] = []
    annotations: dict[str, list[Row]] = {}
    names = []
    for task in _TASKS:
        for split in ("Train", "Test"):
            names.append(f"{split}_{task}_question.csv")
            path = rows.find(root, _FOLDERS, names[-1])
            part = f"{task}_{split.lower()}"
            if path is None:
                notes.append(rows.absent(part, names[-1:], root))
            elif task in ("frameqa", "count"):
                annotations[part] = _open_ended(path, task)
            else:
                annotations[part] = _multiple_choice(path)
    if "frameqa_train" in annotations:
        path = rows.find(root, _FOLDERS, *rows.ANSWER_LISTS)
        annotations["frameqa_answers"] = rows.answer_rows(path, annotations["frameqa_train"], notes)
    if not annotations:
        corpus.require_file(root, names, WHERE_FROM)
    return rows.assemble(
        NAME,
        annotations,
        corpus.find_videos(rows.video_folder(root), rows.clip_ids(annotations), ("gif", *corpus.VIDEO_EXTENSIONS)),
        expected="ROOT/videos/<gif_name>.gif",
        where_from=WHERE_FROM,
        official=_OFFICIAL,
        notes=notes,
        allow_share=allow_share,
    )


def _open_ended(path: pathlib.Path, task: str) -> list[Row]:
    columns = ["gif_name", "question", "answer", "vid_id", *(["type"] if task == "frameqa" else [])]
    questions = []
    for row in corpus.read_table(path, columns, delimiter="\t"):
        kind = row.get("type", "")
        if task == "frameqa" and kind not in ("0", "1", "2", "3"):
            raise UserError(f"{path}: question {row['vid_id']!r} has the type {kind!r}, expected 0 to 3")
        if task == "count" and not row["answer"].isdecimal():
            raise UserError(f"{path}: question {row['vid_id']!r} has the answer {row['answer']!r}, expected a number")
        questions.append(
            {
                "question_id": row["vid_id"],
                "clip_id": row["gif_name"],
                "question": row["question"],
                "answer": row["answer"],
                "type": _FRAME_TYPES[int(kind)] if task == "frameqa" else "count",
            }
        )
    return rows.check_questions(questions, path)


def _multiple_choice(path: pathlib.Path) -> list[Row]:
    choices = [
        {
            "question_id": row["vid_id"],
            "clip_id": row["gif_name"],
            "question": row["question"],
            "options": [row[option] for option in _OPTIONS],
            "answer": int(row["answer"]) if row["answer"].isdecimal() else row["answer"],
        }
        for row in corpus.read_table(path, ["gif_name", "question", *_OPTIONS, "answer", "vid_id"], delimiter="\t")
    ]
    return rows.check_choices(choices, len(_OPTIONS), path)
