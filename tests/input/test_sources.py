import csv
import pathlib
import pickle
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from vlp_jax import config as config_lib
from vlp_jax.input import sources
from vlp_jax.types import UserError

REAL = pathlib.Path(__file__).parents[2].parent / "shared/data/gmdcsa24"


class TinyClips(tfds.core.GeneratorBasedBuilder):
    """Ten records that are no videos; `drop` names features to leave out."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded; TFDS would look for checksums through a package that need not be there
    drop: tuple[str, ...] = ()

    def _info(self):
        features = {
            "video": tfds.features.Scalar(np.object_),
            "caption": tfds.features.Text(),
            "clip_id": tfds.features.Text(),
            "attributes": tfds.features.Text(),
        }
        kept = {k: v for k, v in features.items() if k not in self.drop}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kept))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(7), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            row = {"video": bytes([0, i, 255]) * 50, "caption": f"größe {i}", "clip_id": f"c{i}", "attributes": "{}"}
            yield i, {k: v for k, v in row.items() if k not in self.drop}


def prepare(directory):
    builder = TinyClips(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"))


def write_csv(path, rows, columns=("video", "caption", "part")):
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([columns, *rows])
    return str(path)


def configure(**changes):
    config = config_lib.defaults()
    return config_lib.update(config, {f"input.{k}": v for k, v in changes.items()}).input


ROWS = [("a.mp4", "one, two", "x"), ("deep/b.mp4", "drei ä", "y"), ("c.mp4", 'say "go"', "zz"), ("a.mp4", "again", "x")]


# --- tfds -------------------------------------------------------------------------------------------------------------


def test_tfds_records_hold_bytes_and_text(dataset):
    source = sources.open_source(configure(path=dataset))
    assert len(source) == 7
    records = [source[i] for i in range(7)]
    assert {r.clip_id for r in records} == {f"c{i}" for i in range(7)}
    for r in records:
        i = int(r.clip_id[1:])
        assert r == sources.Record(bytes([0, i, 255]) * 50, f"größe {i}", f"c{i}")


def test_the_split_argument_goes_before_the_config(dataset):
    assert len(sources.open_source(configure(path=dataset), "test")) == 3
    assert len(sources.open_source(configure(path=dataset), "train[:2]")) == 2


def test_tfds_source_survives_pickling_before_and_after_it_is_read(dataset):
    source = sources.open_source(configure(path=dataset))
    fresh = pickle.loads(pickle.dumps(source))
    first = source[0]
    used = pickle.loads(pickle.dumps(source))
    assert fresh[0] == used[0] == first and len(pickle.dumps(source)) < 2000


def test_attributes_are_not_required(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyClips, "drop", ("attributes",))
    assert sources.open_source(configure(path=prepare(tmp_path)))[0].caption.startswith("größe")


def test_unknown_tfds_split_lists_those_present(dataset):
    with pytest.raises(UserError, match=r"split 'tset'.*expected one of test, train.*did you mean 'test'"):
        sources.open_source(configure(path=dataset, split="tset"))


def test_empty_tfds_split_is_refused(dataset):
    with pytest.raises(UserError, match=r"split 'train\[:0\]' of .* is empty"):
        sources.open_source(configure(path=dataset, split="train[:0]"))


def test_missing_feature_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyClips, "drop", ("clip_id",))
    path = prepare(tmp_path)
    with pytest.raises(UserError, match="no feature 'clip_id', only attributes, caption, video"):
        sources.open_source(configure(path=path))


def test_tfds_directory_must_exist_and_hold_a_dataset(dataset, tmp_path):
    with pytest.raises(UserError, match=r"config.input.path = '.*nowhere': no such directory"):
        sources.open_source(configure(path=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"holds no dataset_info.json; expected"):
        sources.open_source(configure(path=str(tmp_path)))
    above = pathlib.Path(dataset).parents[1]
    with pytest.raises(UserError, match=rf"holds no dataset_info.json; did you mean '{dataset}'"):
        sources.open_source(configure(path=str(above)))


# --- csv --------------------------------------------------------------------------------------------------------------


def test_csv_rows_become_records_relative_to_the_csv_file(tmp_path):
    path = write_csv(tmp_path / "clips.csv", ROWS)
    source = sources.open_source(configure(kind="csv", path=path, split="all"))
    assert [source[i] for i in range(len(source))] == [
        sources.Record(str(tmp_path / video), caption, video) for video, caption, _ in ROWS
    ]
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_csv_root_and_columns_come_from_the_config(tmp_path):
    path = write_csv(tmp_path / "clips.csv", [("f.mp4", "text")], ("file", "sentence"))
    source = sources.open_source(
        configure(
            kind="csv", path=path, split="all", video_root="/videos", video_column="file", caption_column="sentence"
        )
    )
    assert source[0] == sources.Record("/videos/f.mp4", "text", "f.mp4")


def test_csv_split_keeps_the_rows_with_one_of_the_values(tmp_path):
    path = write_csv(tmp_path / "clips.csv", ROWS)
    source = sources.open_source(configure(kind="csv", path=path), "part=x|zz")
    assert [source[i].caption for i in range(len(source))] == ["one, two", 'say "go"', "again"]
    with pytest.raises(UserError, match="matches no row"):
        sources.open_source(configure(kind="csv", path=path), "part=z")
    with pytest.raises(UserError, match="matches no row"):
        sources.open_source(configure(kind="csv", path=path), "part=xy")


def test_byte_order_mark_and_blank_lines_are_harmless(tmp_path):
    (tmp_path / "c.csv").write_text("\ufeffvideo,caption\na.mp4,x\n\n,\n", encoding="utf-8")
    assert len(sources.open_source(configure(kind="csv", path=str(tmp_path / "c.csv"), split="all"))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_column": "vidoe"}, "no column 'vidoe', only video, caption, part; did you mean 'video'.*video_column"),
        ({"caption_column": "text"}, "no column 'text', only video, caption, part.*config.input.caption_column"),
        ({"split": "part=q"}, "matches no row: column 'part' holds x, y, zz"),
        ({"split": "prat=x"}, "no column 'prat'.*did you mean 'part'"),
        ({"split": "train"}, "split 'train'.*expected 'all' or 'column=value|value'; columns: video, caption, part"),
        ({"path": "none.csv"}, "config.input.path = 'none.csv': no such file"),
    ],
)
def test_wrong_csv_settings_say_what_is_there(tmp_path, changes, message):
    path = write_csv(tmp_path / "clips.csv", ROWS)
    with pytest.raises(UserError) as caught:
        sources.open_source(configure(**{"kind": "csv", "path": path, "split": "all", **changes}))
    assert re.search(message.replace("|", r"\|"), str(caught.value)), caught.value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"video,caption\n", "has a header and no rows"),
        (b"", "no column 'video', only none"),
        (b"video,caption\na.mp4\n", "fewer cells than the header"),
        (b"video,caption\na.mp4,\xff\xfe\n", "not a CSV file in UTF-8"),
    ],
    ids=["no rows", "no bytes", "short row", "not UTF-8"],
)
def test_broken_csv_files_are_refused(tmp_path, content, message):
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        sources.open_source(configure(kind="csv", path=str(tmp_path / "c.csv"), split="all"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the clips of GMDCSA-24 are not beside the checkout")
def test_real_captions_file_opens_by_subject():
    common = {"kind": "csv", "path": str(REAL / "captions.csv"), "video_root": str(REAL / "clips")}
    every = sources.open_source(configure(**common, video_column="clip", split="all"))
    parts = [sources.open_source(configure(**common, video_column="clip", split=f"subject={s}")) for s in "1234"]
    assert len(every) == 23 == sum(len(p) for p in parts)
    assert all(pathlib.Path(every[i].video).is_file() for i in range(23))
