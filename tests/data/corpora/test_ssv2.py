"""Something-Something V2 in miniature: labels, templates and the small retrieval sets."""

import pytest

from data import prepare
from data.corpora import ssv2
from vlp_jax.input import video
from vlp_jax.input.sources import TfdsSource
from vlp_jax.types import UserError

LABELS = {"Moving something up": "1", "Holding something next to something": "0"}
TRAIN = [
    {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {"id": "42326", "label": "moving pen up", "template": "Moving [something] up", "placeholders": ["pen"]},
]
VALIDATION = [{"id": "7", "label": "moving cup up", "template": "Moving [something] up", "placeholders": ["cup"]}]


@pytest.fixture(params=("", "something-something-v2-"))
def root(request, tmp_path, put, put_videos):
    root = tmp_path / "ssv2"
    for name, content in (("labels", LABELS), ("train", TRAIN), ("validation", VALIDATION)):
        put(root / f"labels/{request.param}{name}.json", content)
    put(root / "ssv2_ret_label_val_small.json", [{"video": "7.webm", "caption": "moving cup up"}])
    put(
        root / "ssv2_ret_template_val_small.json",
        [{"video": ["7.webm", "42326.webm"], "caption": "Moving [something] up"}],
    )
    put_videos(root / "videos/20bn-something-something-v2", ["78687.webm", "42326.webm", "7.webm"])
    return root


def test_labels_and_templates_caption_the_same_clips_and_carry_the_class(root):
    corpus = ssv2.read(root)
    rows = corpus.annotations
    next_to = {"label": "Holding something next to something", "label_id": 0}
    up = {"label": "Moving something up", "label_id": 1}
    assert rows["label_train"] == [
        {"clip_id": "78687", **next_to, "caption": "holding potato next to vicks vaporub bottle"},
        {"clip_id": "42326", **up, "caption": "moving pen up"},
    ]
    assert rows["template_train"] == [
        {"clip_id": "78687", **next_to, "caption": "Holding something next to something"},
        {"clip_id": "42326", **up, "caption": "Moving something up"},
    ]
    assert rows["template_validation"] == [{"clip_id": "7", **up, "caption": "Moving something up"}]
    assert rows["label_validation_small"] == [{"clip_id": "7", "caption": "moving cup up"}]
    assert rows["template_validation_small"] == [
        {"clip_id": "7", "caption": "Moving something up"},
        {"clip_id": "42326", "caption": "Moving something up"},
    ]
    assert [clip.clip_id for clip in corpus.splits["clips"]] == ["78687", "42326", "7"]
    assert "label_train lists 2 clips where the full set has 168,913" in corpus.notes


def test_a_split_alone_is_read_and_the_rest_named(root):
    for path in [*root.glob("labels/*train.json"), *root.glob("ssv2_ret_*")]:
        path.unlink()
    corpus = ssv2.read(root)
    assert sorted(corpus.annotations) == ["label_validation", "template_validation"]
    assert "label_train, template_train left out: no train.json" in corpus.notes
    assert "template_validation_small left out: no ssv2_ret_template_val_small.json" in corpus.notes


def test_a_wrong_folder_is_told_what_was_expected_and_where_it_comes_from(root, tmp_path):
    with pytest.raises(UserError, match=r"labels\.json or something-something-v2-labels\.json.*qualcomm"):
        ssv2.read(tmp_path)
    for path in [*root.glob("labels/*train.json"), *root.glob("labels/*validation.json")]:
        path.unlink()
    with pytest.raises(UserError, match=r"train\.json or .*validation\.json"):
        ssv2.read(root)


def test_missing_videos_are_named(root):
    (root / "videos/20bn-something-something-v2/7.webm").unlink()
    with pytest.raises(UserError, match=r"1 of 3 .*: 7; expected each as ROOT/videos/<id>\.webm"):
        ssv2.read(root)


def test_templates_without_a_class_ids_twice_and_classes_twice_are_refused(root, put):
    (labels,) = root.glob("labels/*labels.json")
    (train,) = root.glob("labels/*train.json")
    put(train, [*TRAIN, TRAIN[0] | {"template": "Throwing [something]", "id": "9"}])
    with pytest.raises(UserError, match=r"templates: 1 of 3 ids are not in .*labels\.json, 'Throwing something'"):
        ssv2.read(root)
    put(train, TRAIN + TRAIN)
    with pytest.raises(UserError, match="more than once"):
        ssv2.read(root)
    put(labels, {"a": "0", "b": "0"})
    with pytest.raises(UserError, match="each once"):
        ssv2.read(root)


def test_the_prepared_set_reads_one_clip_under_label_and_template(root, tmp_path):
    out = tmp_path / "out"
    prepare.prepare(prepare.Settings("ssv2", str(root)), out)
    label, template = TfdsSource(str(out), "label_train")[1], TfdsSource(str(out), "template_train")[1]
    assert (label.caption, template.caption) == ("moving pen up", "Moving something up")
    assert label.video == template.video
    assert video.decode(label.video, frames=2, size=16).shape == (2, 16, 16, 3)
