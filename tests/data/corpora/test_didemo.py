"""DiDeMo in miniature: Flickr names with their own extensions, moments counted in segments of five seconds."""

import shutil

import pytest

from data import prepare
from data.corpora import didemo
from vlp_jax.input.sources import TfdsSource
from vlp_jax.types import UserError


def moment(number, name, text, *times, segments=6):
    return {
        "annotation_id": number,
        "description": text,
        "dl_link": f"https://www.flickr.com/video_download.gne?id={number}",
        "num_segments": segments,
        "times": [list(pair) for pair in times],
        "video": name,
    }


TRAIN = [
    moment(1, "12@N02_34_ab.mov", "a dog runs. ", (0, 0), (0, 0), (0, 1), (2, 2)),
    moment(2, "56@N00_78_cd.avi", "a child sings", (5, 5), (4, 5), (4, 5), (5, 5)),
    moment(3, "12@N02_34_ab.mov", "it barks", (1, 3), (1, 3), (1, 3), (0, 3)),
    # The official files list some videos under a second name.
    moment(4, "12@N02_34_ab.mp4", "it sleeps", (4, 4), (4, 4), (4, 4), (4, 4), segments=5),
]
TEST = [moment(5, "90@N01_12_ef.", "waves break", (0, 5), (0, 5), (1, 5), (2, 5))]


@pytest.fixture
def root(tmp_path, put, put_videos):
    root = tmp_path / "didemo"
    put(root / "data/train_data.json", TRAIN)
    put(root / "data/test_data.json", TEST)
    put_videos(root / "videos", ["12@N02_34_ab.mp4", "56@N00_78_cd.AVI", "90@N01_12_ef."])
    return root


def test_a_paragraph_joins_a_videos_descriptions_in_order_and_under_both_its_names(root):
    corpus = didemo.read(root)
    assert corpus.annotations["train"] == [
        {"clip_id": "12@N02_34_ab", "caption": "a dog runs. it barks it sleeps"},
        {"clip_id": "56@N00_78_cd", "caption": "a child sings"},
    ]
    assert corpus.annotations["test"] == [{"clip_id": "90@N01_12_ef", "caption": "waves break"}]
    assert [clip.path.name for clip in corpus.splits["clips"]] == [
        "12@N02_34_ab.mp4",
        "56@N00_78_cd.AVI",
        "90@N01_12_ef.",
    ]
    assert "validation left out: no val_data.json or DiDeMo_val.tsv" in corpus.notes
    assert "test lists 1 clips where the full set has 1,004" in corpus.notes


@pytest.mark.parametrize(
    "names",
    (
        ["12@N02_34_ab.mov.mp4", "56@N00_78_cd.avi.mp4", "90@N01_12_ef..mp4"],  # the official download script
        ["12@N02_34_ab.mov", "56@N00_78_cd.avi", "90@N01_12_ef."],
        ["12@N02_34_ab.mp4", "56@N00_78_cd.mp4", "90@N01_12_ef.mp4"],
        ["12@N02_34_ab.mkv", "56@N00_78_cd.m2ts", "90@N01_12_ef.3G2"],
        ["a/12@N02_34_ab.mp4.mp4", "b/56@N00_78_cd.MTS", "90@N01_12_ef..webm"],
    ),
)
def test_every_layout_on_disk_is_found(root, put_videos, names):
    shutil.rmtree(root / "videos")
    put_videos(root / "videos", names)
    corpus = didemo.read(root)
    assert {clip.clip_id: str(clip.path.relative_to(root / "videos")) for clip in corpus.splits["clips"]} == dict(
        zip(("12@N02_34_ab", "56@N00_78_cd", "90@N01_12_ef"), names)
    )


@pytest.mark.parametrize(
    "names, taken",
    (
        (["x.mp4", "x.mov"], "x.mov"),
        (["x.mp4.mp4", "x.mov.mp4"], "x.mov.mp4"),
        (["a/x.mp4", "b/x.MOV", "c/x.mov"], "b/x.MOV"),
        (["x.avi", "x.mp4.mkv"], "x.mp4.mkv"),
        (["x.webm", "x.avi"], "x.avi"),
    ),
)
def test_of_the_files_of_a_video_with_two_names_the_one_listed_first_is_taken(tmp_path, put, put_videos, names, taken):
    put(tmp_path / "val_data.json", [moment(1, "x.mov", "a", (0, 0)), moment(2, "x.mp4", "b", (0, 0))])
    put_videos(tmp_path / "videos", names)
    (clip,) = didemo.read(tmp_path).splits["clips"]
    assert clip.path == tmp_path / "videos" / taken


def test_two_files_of_a_video_with_one_name_are_refused(root, put_videos):
    put_videos(root / "videos", ["56@N00_78_cd.avi.mp4"])
    with pytest.raises(UserError, match=r"two files for the video '56@N00_78_cd': .*cd\.AVI and .*cd\.avi\.mp4"):
        didemo.read(root)


def test_a_moment_is_the_interval_that_most_annotators_chose_in_seconds(root):
    moments = didemo.read(root).annotations["moments_train"]
    assert [(m["clip_id"], m["start"], m["end"]) for m in moments] == [
        ("12@N02_34_ab", 0.0, 5.0),
        ("56@N00_78_cd", 25.0, 30.0),  # a tie: the first of the most frequent
        ("12@N02_34_ab", 5.0, 20.0),
        ("12@N02_34_ab", 20.0, 25.0),
    ]
    assert moments[0]["times"] == [[0.0, 5.0], [0.0, 5.0], [0.0, 10.0], [10.0, 15.0]]


def test_the_tsv_form_gives_paragraphs_and_no_moments(root, put_table):
    (root / "data/test_data.json").unlink()
    put_table(
        root / "DiDeMo_test.tsv", [("sentences", "file"), ("waves break. a boat comes", "videos/90@N01_12_ef.mp4")]
    )
    corpus = didemo.read(root)
    assert corpus.annotations["test"] == [{"clip_id": "90@N01_12_ef", "caption": "waves break. a boat comes"}]
    assert "moments_test" not in corpus.annotations
    assert "moments_test left out: DiDeMo_test.tsv holds paragraphs only" in corpus.notes


def test_a_wrong_folder_is_told_what_was_expected_and_where_it_comes_from(tmp_path):
    with pytest.raises(UserError, match=r"train_data\.json or DiDeMo_train\.tsv .*nothing.*LocalizingMoments"):
        didemo.read(tmp_path)


def test_missing_videos_are_named(root):
    (root / "videos/56@N00_78_cd.AVI").unlink()
    with pytest.raises(UserError, match=r"1 of 3 .*56@N00_78_cd; expected each as ROOT/videos/"):
        didemo.read(root)


@pytest.mark.parametrize(
    "change, message",
    (
        ({"times": [[3, 2]]}, r"annotation 5: times \[3, 2\], expected \[first, last\] segment of 0 to 5"),
        ({"times": [[0, 6]]}, r"times \[0, 6\]"),
        ({"times": [[0, 5]], "num_segments": 5}, "of 0 to 4"),
        ({"times": []}, "no times"),
    ),
)
def test_times_outside_the_video_are_refused(root, put, change, message):
    put(root / "data/test_data.json", [TEST[0] | change])
    with pytest.raises(UserError, match=message):
        didemo.read(root)


def test_an_annotation_twice_is_refused(root, put):
    put(root / "data/test_data.json", TEST + TEST)
    with pytest.raises(UserError, match="annotation_id: 1 ids occur more than once, '5'"):
        didemo.read(root)


def test_the_prepared_set_reads_moments_as_spans_of_their_video(root, tmp_path):
    out = tmp_path / "out"
    prepare.prepare(prepare.Settings("didemo", str(root)), out)
    source = TfdsSource(str(out), "moments_train")
    assert [source[i].span for i in range(4)] == [(0, 5), (25, 30), (5, 20), (20, 25)]
    assert source[2].caption == "it barks"
    assert source[2].video == (root / "videos/12@N02_34_ab.mp4").read_bytes()
    assert TfdsSource(str(out), "train")[0].span is None
