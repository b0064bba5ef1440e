"""Parts of a split: `[held_out]` and `[kept]` divide its clips, whatever kind of source they come from."""

import collections
import hashlib
import json
import pickle
import time

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from data import array_record
from vlp_jax import config as config_lib
from vlp_jax import validation
from vlp_jax.input import annotations, held_out, mixture, sources
from vlp_jax.input.splits import PARTS, parse
from vlp_jax.types import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_JAX_CACHE", str(tmp_path / "cache"))


def configure(**changes):
    return config_lib.update(config_lib.defaults(), {f"input.{k}": v for k, v in changes.items()}).input


def expected(ids):
    """The clips held out, by the rule as it is written down."""
    number = {i: int(hashlib.blake2b(i.encode(), digest_size=6).hexdigest(), 16) for i in ids}
    below = {i for i, n in number.items() if n < 0.05 * 2**48}
    return below or {min(number, key=lambda i: (number[i], i))}


def table(folder, ids):
    rows = "".join(f"{clip},caption {n}\n" for n, clip in enumerate(ids))
    (folder / "t.csv").write_text("video,caption\n" + rows)
    return configure(kind="table", path=str(folder / "t.csv"))


def texts(source):
    return [source[i].caption for i in range(len(source))]


# --- The rule ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.text(max_size=4), max_size=6), max_size=6))
def test_the_clips_held_out_follow_from_their_ids_alone(blocks):
    texts = [[x.encode("utf-8", "replace").decode() for x in block] for block in blocks]
    ids = [x for block in texts for x in block]
    chosen = held_out.chosen(pa.array(block, pa.string()) for block in texts)
    assert chosen == (expected(ids) if ids else set())
    assert chosen == held_out.chosen([pa.array(sorted(ids), pa.string())])


def test_about_a_twentieth_of_the_clips_is_held_out():
    ids = pa.array([f"video{i}" for i in range(9000)])
    assert 380 < len(held_out.chosen([ids])) < 520


@pytest.mark.parametrize("split", ["train", "train[:10%]", "a=b|c", "all"])
def test_a_part_is_named_behind_any_split(split):
    assert parse(split) == (split, "")
    assert parse(f"{split}[kept]") == (split, "kept")
    assert parse(f"{split}[held_out]") == (split, "held_out")


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_both_parts_together_are_the_split_and_no_clip_is_on_both_sides(tmp_path):
    ids = [f"c{i % 70}.mp4" for i in range(200)]
    c = table(tmp_path, ids)
    out, kept = (sources.open_source(c, f"all[{part}]") for part in ("held_out", "kept"))
    mine = expected(ids)
    assert 1 <= len(mine) < 15
    assert texts(out) == [f"caption {n}" for n, clip in enumerate(ids) if clip in mine]
    assert texts(kept) == [f"caption {n}" for n, clip in enumerate(ids) if clip not in mine]
    assert out.name.endswith("t.csv:all[held_out]") and kept.columns == sources.open_source(c, "all").columns
    again = pickle.loads(pickle.dumps(kept))
    assert again[3] == kept[3] and again.annotation(3).caption == kept[3].caption
    column = [x for block in kept.column("video") for x in block.to_pylist()]
    assert column == [kept[i].clip_id for i in range(len(kept))]


def test_of_few_clips_one_is_held_out_and_of_one_clip_nothing_can_be_kept(tmp_path):
    c = table(tmp_path, ["a", "b", "a"])
    (mine,) = expected(["a", "b"])
    assert {r.clip_id for r in map(sources.open_source(c, "all[held_out]").__getitem__, range(1))} == {mine}
    c = table(tmp_path, ["a", "a"])
    assert len(sources.open_source(c, "all[held_out]")) == 2
    with pytest.raises(UserError, match=r"all\[kept\] is empty: all 2 rows of .* are about one clip"):
        sources.open_source(c, "all[kept]")


def test_spans_of_one_clip_fall_on_one_side(tmp_path):
    lines = "".join(f"v{i // 4},text,{i},{i + 1}\n" for i in range(160))
    (tmp_path / "t.csv").write_text("video,caption,s,e\n" + lines)
    c = configure(kind="table", path=str(tmp_path / "t.csv"), start_column="s", end_column="e")
    out = sources.open_source(c, "all[held_out]")
    counts = collections.Counter(out[i].clip_id.split("#")[0] for i in range(len(out)))
    assert set(counts) == expected(f"v{i}" for i in range(40)) and set(counts.values()) == {4}


def test_a_part_of_tar_shards_is_refused():
    with pytest.raises(UserError, match=r"split 'all\[kept\]': tar shards have no part \[kept\]"):
        sources.open_source(configure(kind="shards", path="x.tar", split="all[kept]"))


# --- Datasets ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """300 clips in `clips` and 60 in `train`, none of which is a video; captions of the former in a table."""
    counts = {"clips": 300, "train": 60}

    def rows(split):
        for i in range(counts[split]):
            yield {"video": b"%d" % i, "caption": f"{split} {i}", "clip_id": f"{split}{i}"}

    splits = {split: lambda split=split: rows(split) for split in counts}
    path = array_record.write(tmp_path_factory.mktemp("tfds"), "tiny", "1.0.0", splits)
    (path / "clips.txt").write_text("".join(f"clips{i}\n" for i in range(300)))
    lines = [{"clip_id": f"clips{i % 300}", "caption": f"caption {i}"} for i in range(900)]
    (path / "train_9k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert tfds.builder_from_directory(path).info.splits["clips"].num_examples == 300
    return path


def test_an_annotation_table_is_divided_by_clips(dataset):
    c = configure(path=str(dataset))
    mine = expected(f"clips{i}" for i in range(300))
    out, kept = (sources.open_source(c, f"train_9k[{part}]") for part in ("held_out", "kept"))
    assert texts(out) == [f"caption {i}" for i in range(900) if f"clips{i % 300}" in mine]
    assert texts(kept) == [f"caption {i}" for i in range(900) if f"clips{i % 300}" not in mine]
    assert all(out[i].video == out[i].clip_id.removeprefix("clips").encode() for i in range(len(out)))


@pytest.mark.parametrize("split", ["clips", "train"])
def test_a_split_of_records_is_divided_with_a_list_of_its_clips_and_without(dataset, split):
    whole = sources.open_source(configure(path=str(dataset)), split)
    ids = [whole[i].clip_id for i in range(len(whole))]
    out, kept = (sources.open_source(configure(path=str(dataset)), f"{split}[{part}]") for part in PARTS)
    assert {out[i].clip_id for i in range(len(out))} == expected(ids)
    assert [kept[i].clip_id for i in range(len(kept))] == [i for i in ids if i not in expected(ids)]


def test_a_split_that_does_not_exist_has_no_part(dataset):
    with pytest.raises(UserError, match=r"split 'train_7k' is not in .*did you mean 'train_9k'"):
        sources.open_source(configure(path=str(dataset)), "train_7k[kept]")


def test_a_record_of_a_part_costs_no_pass_over_the_others(tmp_path):
    """Captions of 9,000 clips, 180,000 rows: reading one takes as long as in the whole table, give or take."""
    (tmp_path / "clips.txt").write_text("".join(f"video{i}\n" for i in range(9000)))
    lines = (json.dumps({"clip_id": f"video{i // 20}", "caption": "a man"}) + "\n" for i in range(180_000))
    (tmp_path / "t.jsonl").write_text("".join(lines))
    rows = annotations.open_annotations(tmp_path / "t.jsonl", annotations.clip_lists(tmp_path), {"clips": 9000})

    class Source:
        name, columns, identity = "rows", frozenset({"caption"}), ["rows"]
        column = staticmethod(rows.column)

        def __getitem__(self, index):
            return rows[index]

    part = held_out.Part(Source(), "kept")
    assert len(pickle.dumps(part._numbers)) < 1000
    order = np.random.default_rng(0).integers(len(part), size=2000).tolist()
    start = time.perf_counter()
    for i in order:
        part[i]
    assert (time.perf_counter() - start) / len(order) < 0.002


# --- What two splits share --------------------------------------------------------------------------------------------


def test_clips_that_two_annotation_tables_share_are_found_whatever_the_tables_names(dataset):
    rows = [{"clip_id": f"clips{i}", "caption": "x"} for i in (290, 295, 299, 290)]
    (dataset / "validation_7k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = configure(path=str(dataset))
    one, other, clips, train = (
        sources.open_source(c, name) for name in ("train_9k", "validation_7k", "clips", "train")
    )
    assert sources.shared_clips(one, other) == ["clips290", "clips295", "clips299"]
    assert len(sources.shared_clips(one, clips)) == 300
    assert sources.shared_clips(one, train) == []  # whose ids are known from its records alone
    parts = [sources.open_source(c, f"train_9k[{part}]") for part in PARTS]
    assert sources.shared_clips(*parts) == []


def test_a_checkpoint_is_not_chosen_on_clips_that_another_table_trains_on(dataset, tiny_config):
    (dataset / "rows_val.jsonl").write_text('{"clip_id": "clips7", "caption": "x"}\n')
    config = tiny_config(
        {
            "input.path": str(dataset),
            "input.split": "train_9k",
            "evaluation.validation_split": "rows_val",
            "evaluation.select_by": "text_to_video/R@1",
            "evaluation.every_steps": 1,
        }
    )
    validation.validate(config)  # the names say nothing
    with pytest.raises(UserError, match=r"'rows_val' and config.input.split = 'train_9k' have 1 clips .* clips7: "):
        mixture.check_validation(config, mixture.open_mixture(config))
    config.evaluation.select_by = ""
    mixture.check_validation(config, mixture.open_mixture(config))


def test_rows_of_other_values_of_a_column_may_be_about_one_clip(tmp_path):
    (tmp_path / "t.csv").write_text("video,caption,set\na,x,train\nb,x,train\nb,y,val\n")
    c = configure(kind="table", path=str(tmp_path / "t.csv"))
    one, other = (sources.open_source(c, f"set={name}") for name in ("train", "val"))
    assert sources.shared_clips(one, other) == ["b"]
