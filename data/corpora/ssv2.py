"""Something-Something V2 (Goyal et al., ICCV 2017) as retrieval (Lei et al., ACL 2023, Section 4).

Annotations, each where its file is there:

    label_train, label_validation          the caption is the label, "Moving cup away from camera"
    template_train, template_validation    the caption is the template, "Moving something away from the camera", which
                                           many clips share: set input.positives = 'caption'
    label_validation_small, template_validation_small
                                           the test sets of the retrieval tasks, from Singularity's annotations;
                                           several clips answer a caption: input.positives = 'caption' counts them all

Rows of the first four carry their class, the template: `label`, in words, and `label_id`, its number in labels.json, 0
to 173. They serve classification as well as retrieval.
"""

import pathlib

from data.corpora import corpus, rows
from data.corpora.rows import Row
from vlp_jax.types import UserError

NAME = "ssv2"
WHERE_FROM = (
    "train.json, validation.json and labels.json (or something-something-v2-train.json ...) and the videos, "
    "<id>.webm, come from https://www.qualcomm.com/developer/software/something-something-v-2-dataset; "
    "ssv2_ret_label_val_small.json and ssv2_ret_template_val_small.json are among the downstream annotations of "
    "https://github.com/jayleicn/singularity. Annotations go into ROOT or ROOT/labels, videos below ROOT/videos."
)

_FOLDERS = ("labels", "annotations")
_SMALL = {
    "label_validation_small": "ssv2_ret_label_val_small.json",
    "template_validation_small": "ssv2_ret_template_val_small.json",
}

_OFFICIAL = {
    "label_train": (168_913, 168_913),
    "label_validation": (24_777, 24_777),
    "template_train": (168_913, 168_913),
    "template_validation": (24_777, 24_777),
}


def read(root: pathlib.Path, *, allow_share: float = 0.0) -> corpus.Corpus:
    """Reads the annotations below `root`, and finds their videos.

    Args:
      root: holds labels.json and train.json or validation.json, in labels/ or by themselves; the videos lie in
        videos/, or anywhere below.
      allow_share: share of the videos that may be absent.

    Raises:
      UserError: annotations or videos are absent, a file has another layout, or a template has no label.
    """
    notes: list[str] = []
    annotations: dict[str, list[Row]] = {}
    labels_path = rows.require(root, _FOLDERS, *_names("labels"), where_from=WHERE_FROM)
    labels = _labels(labels_path)
    found = {split: rows.find(root, _FOLDERS, *_names(split)) for split in ("train", "validation")}
    if not any(found.values()):
        corpus.require_file(root, _names("train") + _names("validation"), WHERE_FROM)
    for split, path in found.items():
        if path is None:
            notes.append(rows.absent(f"label_{split}, template_{split}", _names(split), root))
        else:
            annotations[f"label_{split}"], annotations[f"template_{split}"] = _split(path, labels, labels_path)
    for part, name in _SMALL.items():
        path = rows.find(root, _FOLDERS, name)
        if path is None:
            notes.append(rows.absent(part, [name], root))
        else:
            annotations[part] = _small(path)
    return rows.assemble(
        NAME,
        annotations,
        corpus.find_videos(rows.video_folder(root), rows.clip_ids(annotations)),
        expected="ROOT/videos/<id>.webm",
        where_from=WHERE_FROM,
        official=_OFFICIAL,
        notes=notes,
        allow_share=allow_share,
    )


def _names(what: str) -> list[str]:
    return [f"{what}.json", f"something-something-v2-{what}.json"]


def _labels(path: pathlib.Path) -> dict[str, int]:
    """Template without brackets -> class; the file holds the classes as strings."""
    data = corpus.read_json(path)
    if not isinstance(data, dict) or sorted(map(str, data.values())) != sorted(map(str, range(len(data)))):
        raise UserError(f"{path}: expected an object from templates to the classes '0', '1', ..., each once")
    return {template: int(label) for template, label in data.items()}


def _plain(template: str) -> str:
    """'Moving [something] up' names what the label fills in; labels.json and captions are without the brackets."""
    return template.replace("[", "").replace("]", "")


def _split(path: pathlib.Path, labels: dict[str, int], labels_path: pathlib.Path) -> tuple[list[Row], list[Row]]:
    listed = rows.json_rows(path, ["id", "label", "template", "placeholders"])
    rows.check_distinct((str(row["id"]) for row in listed), path)
    rows.check_known((_plain(row["template"]) for row in listed), labels, f"{path}, templates", labels_path)
    by_label, by_template = [], []
    for row in listed:
        template = _plain(row["template"])
        common = {"clip_id": str(row["id"]), "label": template, "label_id": labels[template]}
        by_label.append(common | {"caption": row["label"]})
        by_template.append(common | {"caption": template})
    return by_label, by_template


def _small(path: pathlib.Path) -> list[Row]:
    """`[{caption, video}]`, where video is a file name or the list of those that the caption describes."""
    listed = []
    for row in rows.json_rows(path, ["caption", "video"]):
        videos = [row["video"]] if isinstance(row["video"], str) else row["video"]
        listed += [{"clip_id": rows.stem(video), "caption": _plain(row["caption"])} for video in videos]
    return listed
