import dataclasses
import json
import pathlib
import pickle
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from vlp_jax import config as config_lib
from vlp_jax.input import sources
from vlp_jax.types import UserError


class TinyClips(tfds.core.GeneratorBasedBuilder):
    """Records that are no videos; `drop` names features to leave out, `splits` says how many there are."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded; TFDS would look for checksums through a package that need not be there
    drop: tuple[str, ...] = ()
    splits: dict[str, int] = {"train": 7, "test": 3}  # noqa: RUF012

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
        return {split: self._generate_examples(count) for split, count in self.splits.items()}

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


def configure(**changes):
    config = config_lib.defaults()
    return config_lib.update(config, {f"input.{k}": v for k, v in changes.items()}).input


# --- tfds -------------------------------------------------------------------------------------------------------------


def test_tfds_records_hold_bytes_and_text(dataset):
    source = sources.open_source(configure(path=dataset))
    assert len(source) == 7
    records = [source[i] for i in range(7)]
    assert {r.clip_id for r in records} == {f"c{i}" for i in range(7)}
    for r in records:
        i = int(r.clip_id[1:])
        assert r == sources.Record(bytes([0, i, 255]) * 50, f"größe {i}", f"c{i}")


def test_annotations_are_the_records_without_their_video(dataset):
    source = sources.open_source(configure(path=dataset))
    assert [source.annotation(i) for i in range(7)] == [dataclasses.replace(source[i], video=b"") for i in range(7)]


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


# --- Annotation tables ------------------------------------------------------------------------------------------------


def annotate(dataset, name, rows):
    (pathlib.Path(dataset) / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def evaluation_set(tmp_path, monkeypatch):
    """Five clips in the split `clips`, two tables of captions, and lists of other things."""
    monkeypatch.setenv("VLP_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(TinyClips, "splits", {"clips": 5, "train": 2})
    path = prepare(tmp_path)
    stored = sources.TfdsSource(path, "clips")
    ids = [stored[i].clip_id for i in range(5)]
    (pathlib.Path(path) / "clips.txt").write_text("".join(f"{clip_id}\n" for clip_id in ids))
    rows = [("c3", "x"), ("c0", "y"), ("c3", "zä"), ("c1", "")]
    annotate(path, "test_1k", [{"clip_id": c, "caption": text} for c, text in rows])
    annotate(path, "moments", [{"clip_id": "c2", "caption": "x", "start": 1, "end": 2.5}])
    annotate(path, "qa_test", [{"question_id": 1, "clip_id": "c0", "question": "?", "answer": "!"}])
    (pathlib.Path(path) / "failed.jsonl").write_text("no JSON\n")
    return path


def test_an_annotation_table_is_a_split_of_one_record_a_row(evaluation_set):
    source = sources.open_source(configure(path=evaluation_set), "test_1k")
    expected = [("c3", "x"), ("c0", "y"), ("c3", "zä"), ("c1", "")]
    for one in (source, pickle.loads(pickle.dumps(source))):
        assert [one[i] for i in range(len(one))] == [
            sources.Record(bytes([0, int(c[1:]), 255]) * 50, text, c) for c, text in expected
        ]


def test_an_annotated_span_is_a_clip_of_its_own(evaluation_set):
    record = sources.TfdsSource(evaluation_set, "moments")[0]
    assert record == sources.Record(bytes([0, 2, 255]) * 50, "x", "c2#t=1,2.5", (1.0, 2.5))


def test_annotations_of_a_table_are_its_records_without_their_video(evaluation_set):
    for table in ("test_1k", "moments"):
        source = sources.TfdsSource(evaluation_set, table)
        whole = [source[i] for i in range(len(source))]
        assert [source.annotation(i) for i in range(len(source))] == [
            dataclasses.replace(record, video=b"") for record in whole
        ]


def test_annotations_of_a_table_read_no_clip(evaluation_set, monkeypatch):
    source = sources.TfdsSource(evaluation_set, "test_1k")
    monkeypatch.setattr(source, "_builder", lambda: pytest.fail("the records were opened"))
    assert [source.annotation(i).caption for i in range(len(source))] == ["x", "y", "zä", ""]


def test_a_split_of_the_dataset_goes_before_a_table_of_that_name(evaluation_set):
    annotate(evaluation_set, "train", [{"clip_id": "c0", "caption": "x"}] * 3)
    assert len(sources.TfdsSource(evaluation_set, "train")) == 2


def test_unknown_split_lists_splits_and_tables(evaluation_set):
    with pytest.raises(UserError) as caught:
        sources.TfdsSource(evaluation_set, "test_1ka")
    assert re.search(
        "expected one of clips, train, or of the annotation tables moments, qa_test, test_1k; did you mean 'test_1k'",
        str(caught.value),
    )


def test_annotations_of_unknown_clips_are_refused(evaluation_set):
    annotate(evaluation_set, "test_1k", [{"clip_id": c, "caption": "x"} for c in ("c0", "nowhere")])
    with pytest.raises(UserError, match=r"1 rows are about clips that clips.txt does not list, the first 'nowhere'"):
        sources.TfdsSource(evaluation_set, "test_1k")


def test_a_list_of_clips_in_another_order_than_the_records_is_noticed(evaluation_set):
    listed = pathlib.Path(evaluation_set) / "clips.txt"
    listed.write_text("\n".join(reversed(listed.read_text().split())) + "\n")
    source = sources.TfdsSource(evaluation_set, "test_1k")
    with pytest.raises(UserError, match=r"the list of clips of .* names 'c\d' where the records hold 'c\d'"):
        [source[i] for i in range(4)]


# --- Other kinds ------------------------------------------------------------------------------------------------------


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"kind = 'csv': expected one of tfds, table, shards"):
        sources.open_source(configure(kind="csv", path="clips.csv"))


def test_spans_are_named_to_the_millisecond():
    assert sources.span_id("a", None) == "a"
    assert sources.span_id("a", (0.0, 3725.125)) == "a#t=0,3725.125"
