"""MSR-VTT (Xu et al., CVPR 2016): retrieval, MSRVTT-QA (Xu et al., ACM MM 2017), MSRVTT-MC (Yu et al., ECCV 2018).

Annotations, each where its file is there:

    train, validation, test        the official split, 6,513 / 497 / 2,990 clips, 20 captions each
    train_9k, train_7k             the training lists of the 1k-A protocol, all 20 captions of each clip
    test_1ka                       the 1k-A test: 1,000 clips, one caption each (JSFusion's list)
    qa_train, qa_validation, qa_test, qa_answers
                                   questions; `type` is the question's word (what, who, how, when, where), which the
                                   paper's tables split by. `qa_answers` is the closed list of answers.
    mc_test                        2,990 clips, one of five captions each
"""

import pathlib

from data.corpora import corpus, rows
from data.corpora.rows import Row
from vlp_jax.types import UserError

NAME = "msrvtt"
WHERE_FROM = (
    "MSRVTT_data.json, MSRVTT_train.9k.csv, MSRVTT_train.7k.csv and MSRVTT_JSFUSION_test.csv are in data/MSRVTT of "
    "https://github.com/layer6ai-labs/xpool, train_qa.json, val_qa.json and test_qa.json at "
    "https://github.com/xudejing/video-question-answering, msrvtt_mc_test.jsonl with ClipBERT's annotations "
    "(https://github.com/jayleicn/ClipBERT, scripts/download_msrvtt.sh); the videos, video0.mp4 to video9999.mp4, come "
    "from http://ms-multimedia-challenge.com/2017/dataset and go below ROOT/videos."
)

_FOLDERS = ("msrvtt_data", "annotations", "annotation")
_QA_FOLDERS = ("msrvtt_qa", "MSRVTT-QA", "qa")
_MC_NAMES = ("msrvtt_mc_test.jsonl", "msrvtt_retrieval_mc_test.jsonl", "mc_test.jsonl")

# The official split calls validation "validate".
_SPLITS = {"train": "train", "validation": "validate", "test": "test"}

_OFFICIAL = {
    "train": (6513, 130_260),
    "validation": (497, 9940),
    "test": (2990, 59_800),
    "train_9k": (9000, 180_000),
    "train_7k": (7010, 140_200),
    "test_1ka": (1000, 1000),
    "qa_train": (None, 158_581),
    "qa_validation": (None, 12_278),
    "qa_test": (None, 72_821),
    "mc_test": (2990, 2990),
}


def read(root: pathlib.Path, *, allow_share: float = 0.0) -> corpus.Corpus:
    """Reads the annotations below `root`, and finds their videos.

    Args:
      root: holds MSRVTT_data.json (or the challenge's train_val_videodatainfo.json and test_videodatainfo.json), the
        lists and, in msrvtt_qa/, the questions; the videos lie in videos/, or anywhere below.
      allow_share: share of the videos that may be absent.

    Raises:
      UserError: MSRVTT_data.json or videos are absent, a file has another layout, or ids do not fit together.
    """
    notes: list[str] = []
    captions, splits, source = _captions(root)
    annotations = {
        part: _all_captions([v for v, split in splits.items() if split == theirs], captions)
        for part, theirs in _SPLITS.items()
        if theirs in splits.values()
    }
    for part in ("train_9k", "train_7k"):
        name = f"MSRVTT_{part.replace('_', '.')}.csv"
        path = rows.find(root, _FOLDERS, name)
        if path is None:
            notes.append(rows.absent(part, [name], root))
            continue
        listed = [row["video_id"] for row in corpus.read_table(path, ["video_id"])]
        rows.check_distinct(listed, path)
        rows.check_known(listed, captions, path, source)
        annotations[part] = _all_captions(listed, captions)
    path = rows.find(root, _FOLDERS, "MSRVTT_JSFUSION_test.csv")
    if path is None:
        notes.append(rows.absent("test_1ka", ["MSRVTT_JSFUSION_test.csv"], root))
    else:
        annotations["test_1ka"] = _test_1ka(path, splits, source)

    def name_clips(listed: list[Row], path: pathlib.Path) -> list[str]:
        clips = [f"video{row['video_id']}" for row in listed]
        rows.check_known(clips, splits, path, source)
        return clips

    annotations |= rows.generated_questions(root, _QA_FOLDERS, name_clips, notes)
    path = rows.find(root, (*_FOLDERS, "msrvtt_mc", "mc"), *_MC_NAMES)
    if path is None:
        notes.append(rows.absent("mc_test", _MC_NAMES, root))
    else:
        annotations["mc_test"] = _multiple_choice(path, splits, source)
    return rows.assemble(
        NAME,
        annotations,
        corpus.find_videos(rows.video_folder(root), rows.clip_ids(annotations)),
        expected="ROOT/videos/<video_id>.mp4",
        where_from=WHERE_FROM,
        official=_OFFICIAL,
        notes=notes,
        allow_share=allow_share,
    )


def _captions(root: pathlib.Path) -> tuple[dict[str, list[str]], dict[str, str], pathlib.Path]:
    """Returns captions by video, the official split by video, and the file that they come from."""
    merged = rows.find(root, _FOLDERS, "MSRVTT_data.json")
    challenge = [
        rows.find(root, _FOLDERS, name) for name in ("train_val_videodatainfo.json", "test_videodatainfo.json")
    ]
    paths = [merged] if merged else [path for path in challenge if path]
    if not paths:
        paths = [corpus.require_file(root, "MSRVTT_data.json", WHERE_FROM)]
    splits: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for path in paths:
        data = corpus.read_json(path)
        (data,) = rows.check_fields([data], ["videos", "sentences"], path)
        videos = rows.check_fields(data["videos"], ["video_id", "split"], f"{path}, videos")
        rows.check_distinct([*splits, *(v["video_id"] for v in videos)], path)
        splits |= {v["video_id"]: v["split"] for v in videos}
        unknown = sorted({str(v["split"]) for v in videos} - set(_SPLITS.values()))
        if unknown:
            raise UserError(f"{path}: split {unknown[0]!r}, expected one of {', '.join(_SPLITS.values())}")
        sentences = rows.check_fields(data["sentences"], ["caption", "video_id", "sen_id"], f"{path}, sentences")
        rows.check_known((s["video_id"] for s in sentences), splits, f"{path}, sentences", "its videos")
        # The file lists sentences in no particular order; their ids give the order in which they were collected.
        for sentence in sorted(sentences, key=lambda s: int(s["sen_id"])):
            captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
        rows.check_known((v["video_id"] for v in videos), captions, f"{path}, videos", "its sentences")
    return captions, splits, paths[0]


def _all_captions(clips: list[str], captions: dict[str, list[str]]) -> list[Row]:
    return [{"clip_id": clip, "caption": caption} for clip in clips for caption in captions[clip]]


def _test_1ka(path: pathlib.Path, splits: dict[str, str], source: pathlib.Path) -> list[Row]:
    listed = list(corpus.read_table(path, ["video_id", "sentence"]))
    rows.check_distinct((row["video_id"] for row in listed), path)
    rows.check_known((row["video_id"] for row in listed), splits, path, source)
    return [{"clip_id": row["video_id"], "caption": row["sentence"]} for row in listed]


def _multiple_choice(path: pathlib.Path, splits: dict[str, str], source: pathlib.Path) -> list[Row]:
    choices = [
        {
            "question_id": str(row["qid"]),
            "clip_id": row["clip_name"],
            "options": row["options"],
            "answer": row["answer"],
        }
        for row in rows.json_lines(path, ["qid", "clip_name", "answer", "options"])
    ]
    rows.check_known((row["clip_id"] for row in choices), splits, path, source)
    return rows.check_choices(choices, 5, path)
