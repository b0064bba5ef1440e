"""MSVD (Chen and Dolan, ACL 2011): retrieval with many captions a clip, and MSVD-QA (Xu et al., ACM MM 2017).

Annotations, each where its file is there:

    train, validation, test        1,200 / 100 / 670 clips, every caption of each (Venugopalan et al., ICCV 2015)
    qa_train, qa_validation, qa_test, qa_answers
                                   questions about 1,200 / 250 / 520 clips, another split than retrieval's; `type` is
                                   the question's word. `qa_answers` is the closed list of answers.
"""

import pathlib

from data.corpora import corpus, rows
from data.corpora.rows import Row
from vlp_jax.types import UserError

NAME = "msvd"
WHERE_FROM = (
    "captions_msvd.json, train_list.txt, val_list.txt and test_list.txt are in data/MSVD of "
    "https://github.com/layer6ai-labs/xpool; AllVideoDescriptions.txt, which may take the place of the captions, and "
    "YouTubeClips.tar, whose clips, <video>_<start>_<end>.avi, go below ROOT/videos, come from "
    "https://www.cs.utexas.edu/users/ml/clamp/videoDescription/; train_qa.json, val_qa.json, test_qa.json and "
    "youtube_mapping.txt from https://github.com/xudejing/video-question-answering. A raw-captions.pkl is turned into "
    "captions.json by python -c \"import json, pickle; json.dump(pickle.load(open('raw-captions.pkl', 'rb')), "
    "open('captions.json', 'w'))\"."
)

_FOLDERS = ("msvd_data", "annotations")
_QA_FOLDERS = ("msvd_qa", "MSVD-QA", "qa")
_CAPTIONS = ("captions_msvd.json", "captions.json", "AllVideoDescriptions.txt")
_LISTS = {"train": "train_list.txt", "validation": "val_list.txt", "test": "test_list.txt"}

# The number of captions depends on the file: AllVideoDescriptions.txt holds more than the cleaned captions.
_OFFICIAL = {
    "train": (1200, None),
    "validation": (100, None),
    "test": (670, None),
    "qa_train": (1200, 30_933),
    "qa_validation": (250, 6415),
    "qa_test": (520, 13_157),
}


def read(root: pathlib.Path, *, allow_share: float = 0.0) -> corpus.Corpus:
    """Reads the annotations below `root`, and finds their videos.

    Args:
      root: holds captions and lists, or questions in msvd_qa/, or both; the videos lie in videos/, or anywhere below.
      allow_share: share of the videos that may be absent.

    Raises:
      UserError: neither captions nor questions are there, videos are absent, a file has another layout, or ids do not
        fit together.
    """
    notes: list[str] = []
    annotations = _retrieval(root, notes) | _questions(root, notes)
    if not annotations:
        rows.require(root, _FOLDERS, *_CAPTIONS, where_from=WHERE_FROM)
        rows.require(root, _FOLDERS, *_LISTS.values(), where_from=WHERE_FROM)
    return rows.assemble(
        NAME,
        annotations,
        corpus.find_videos(rows.video_folder(root), rows.clip_ids(annotations)),
        expected="ROOT/videos/<clip>.avi",
        where_from=WHERE_FROM,
        official=_OFFICIAL,
        notes=notes,
        allow_share=allow_share,
    )


def _retrieval(root: pathlib.Path, notes: list[str]) -> dict[str, list[Row]]:
    path = rows.find(root, _FOLDERS, *_CAPTIONS)
    if path is None:
        notes.append(rows.absent("Retrieval", _CAPTIONS, root))
        return {}
    captions = _caption_json(path) if path.suffix == ".json" else _descriptions(path)
    annotations = {}
    for part, name in _LISTS.items():
        listing = rows.find(root, _FOLDERS, name)
        if listing is None:
            notes.append(rows.absent(part, [name], root))
            continue
        clips = rows.lines(listing)
        rows.check_distinct(clips, listing)
        rows.check_known(clips, captions, listing, path)
        annotations[part] = [{"clip_id": clip, "caption": text} for clip in clips for text in captions[clip]]
    return annotations


def _caption_json(path: pathlib.Path) -> dict[str, list[str]]:
    data = corpus.read_json(path)
    if not isinstance(data, dict) or not all(isinstance(texts, list) and texts for texts in data.values()):
        raise UserError(f"{path}: expected an object from each clip to the list of its captions")
    # raw-captions.pkl holds each caption as a list of words.
    return {clip: [t if isinstance(t, str) else " ".join(t) for t in texts] for clip, texts in data.items()}


def _descriptions(path: pathlib.Path) -> dict[str, list[str]]:
    """AllVideoDescriptions.txt: comments begin with #, then `<clip> <caption>` a line."""
    captions: dict[str, list[str]] = {}
    for line in rows.lines(path):
        clip, _, caption = line.partition(" ")
        if clip.startswith("#"):
            continue
        if not caption.strip():
            raise UserError(f"{path}: expected `<clip> <caption>` on each line, got {line[:80]!r}")
        captions.setdefault(clip, []).append(caption.strip())
    return captions


def _questions(root: pathlib.Path, notes: list[str]) -> dict[str, list[Row]]:
    mapping: dict[str, str] = {}
    mapping_path = pathlib.Path()

    def name_clips(listed: list[Row], path: pathlib.Path) -> list[str]:
        nonlocal mapping, mapping_path
        if not mapping:  # needed with the first file of questions, and not without one
            mapping_path = rows.require(root, _QA_FOLDERS, "youtube_mapping.txt", where_from=WHERE_FROM)
            mapping = _mapping(mapping_path)
        numbers = [f"vid{row['video_id']}" for row in listed]
        rows.check_known(numbers, mapping, path, mapping_path)
        return [mapping[number] for number in numbers]

    return rows.generated_questions(root, _QA_FOLDERS, name_clips, notes)


def _mapping(path: pathlib.Path) -> dict[str, str]:
    """youtube_mapping.txt, `<clip> vid<number>` a line: the number by which questions name a clip -> the clip."""
    mapping: dict[str, str] = {}
    for line in rows.lines(path):
        cells = line.split()
        if len(cells) != 2 or cells[1] in mapping:
            raise UserError(f"{path}: expected `<clip> vid<number>`, each number once, got {line[:80]!r}")
        mapping[cells[1]] = cells[0]
    return mapping
