import concurrent.futures
import csv
import json
import math
import multiprocessing
import operator
import os
import pathlib
import pickle
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlp_jax import config as config_lib
from vlp_jax import validation
from vlp_jax.input import annotations, sources, table_readers, tables
from vlp_jax.types import UserError

REAL = pathlib.Path(__file__).parents[2].parent / "shared/data/gmdcsa24"
ROWS = [("a.mp4", "one, two", "x"), ("deep/b.mp4", "drei ä", "y"), ("c.mp4", 'say "go"', "zz"), ("a.mp4", "again", "x")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_csv(path, rows, columns=("video", "caption", "part")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([columns, *rows])
    return str(path)


def write(path, content):
    path.write_bytes(content)
    return str(path)


def every(source):
    return [source[i] for i in range(len(source))]


def configure(**changes):
    config = config_lib.update(config_lib.defaults(), {"input.kind": "table", "input.split": "all"})
    return config_lib.update(config, {f"input.{k}": v for k, v in changes.items()}).input


# --- Records ----------------------------------------------------------------------------------------------------------


def test_rows_become_records_relative_to_the_table(tmp_path):
    path = write_csv(tmp_path / "clips.csv", ROWS)
    source = sources.open_source(configure(path=path))
    assert every(source) == [sources.Record(str(tmp_path / video), caption, video) for video, caption, _ in ROWS]
    assert pickle.loads(pickle.dumps(source))[1] == source[1]
    assert source.annotation(2) == sources.Record(b"", 'say "go"', "c.mp4")


def test_root_and_columns_come_from_the_config(tmp_path):
    path = write_csv(tmp_path / "clips.csv", [("f.mp4", "text")], ("file", "sentence"))
    source = sources.open_source(
        configure(path=path, video_root="/videos", video_column="file", caption_column="sentence")
    )
    assert every(source) == [sources.Record("/videos/f.mp4", "text", "f.mp4")]


def test_the_three_formats_give_the_same_records(tmp_path):
    rows = [("a.mp4", "one, two"), ("b c.mp4", "drei ä 🙂"), ("c.mp4", 'say "go"')]
    csv_file = write_csv(tmp_path / "t.csv", rows, ("video", "caption"))
    lines = ["video\tcaption"] + ["\t".join(row) for row in rows]
    tsv_file = write(tmp_path / "t.tsv", "\n".join(lines).encode())
    dicts = [json.dumps({"caption": c, "other": [1], "video": v}) for v, c in rows]
    jsonl_file = write(tmp_path / "t.jsonl", "\n".join(dicts).encode())
    expected = [sources.Record(str(tmp_path / v), c, v) for v, c in rows]
    for file in (csv_file, tsv_file, jsonl_file):
        assert every(tables.TableSource(file)) == expected, file


def test_a_glob_reads_its_tables_in_sorted_order(tmp_path):
    for name in ("b", "a", "c"):
        write_csv(tmp_path / f"{name}.csv", [(f"{name}{i}.mp4", name) for i in range(2)], ("video", "caption"))
    source = tables.TableSource(str(tmp_path / "*.csv"))
    assert [r.clip_id for r in every(source)] == ["a0.mp4", "a1.mp4", "b0.mp4", "b1.mp4", "c0.mp4", "c1.mp4"]


def test_tables_of_several_folders_keep_their_videos_and_clips_apart(tmp_path):
    for folder in ("one", "two"):
        write_csv(tmp_path / folder / "clips.csv", [("v/a.mp4", folder), ("/far.mp4", "")], ("video", "caption"))
    source = tables.TableSource(str(tmp_path / "*" / "clips.csv"), video_root="videos")
    assert [(r.video, r.clip_id) for r in every(source)] == [
        (str(tmp_path / "one/videos/v/a.mp4"), "one/videos/v/a.mp4"),
        ("/far.mp4", "/far.mp4"),
        (str(tmp_path / "two/videos/v/a.mp4"), "two/videos/v/a.mp4"),
        ("/far.mp4", "/far.mp4"),
    ]


def test_split_keeps_the_rows_with_one_of_the_values(tmp_path):
    path = write_csv(tmp_path / "clips.csv", ROWS)
    source = tables.TableSource(path, "part=x|zz")
    assert [r.caption for r in every(source)] == ["one, two", 'say "go"', "again"]
    for value in ("z", "xy"):
        with pytest.raises(UserError, match="matches no row"):
            tables.TableSource(path, f"part={value}")


def test_split_of_json_lines_compares_numbers_as_text(tmp_path):
    rows = [{"video": "a", "caption": "x", "fold": 1}, {"video": "b", "caption": "y", "fold": 2}, {"video": "c"}]
    path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert [r.clip_id for r in every(tables.TableSource(path, "fold=2"))] == ["b"]


def test_each_span_is_a_clip_and_open_where_its_cell_is_empty(tmp_path):
    rows = [("a", "1.5", "3"), ("a", "3", "4.25"), ("a", "", ""), ("b", "", "2"), ("b", "7", "")]
    path = write_csv(tmp_path / "t.csv", [(v, "text", s, e) for v, s, e in rows], ("video", "caption", "from", "to"))
    records = every(sources.open_source(configure(path=path, start_column="from", end_column="to")))
    assert [r.span for r in records] == [(1.5, 3.0), (3.0, 4.25), None, (0.0, 2.0), (7.0, math.inf)]
    assert [r.clip_id for r in records] == ["a#t=1.5,3", "a#t=3,4.25", "a", "b#t=0,2", "b#t=7,inf"]
    assert {r.video for r in records} == {str(tmp_path / "a"), str(tmp_path / "b")}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_csv_reads_what_the_standard_library_writes(tmp_path, data):
    # Arrow and the csv module both take \r and \n for the end of a line outside quotes; NUL ends neither.
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
    rows = data.draw(st.lists(st.tuples(text.filter(bool), text.filter(str.strip)), min_size=1, max_size=8))
    path = tmp_path / f"{data.draw(st.uuids())}.csv"
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f, quoting=csv.QUOTE_ALL).writerows([("video", "caption"), *rows])
    source = tables.TableSource(str(path), video_root="/r")
    assert [(r.video, r.caption) for r in every(source)] == [(os.path.join("/r", v), c) for v, c in rows]


def test_rows_keep_their_places_over_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(table_readers, "_PARSED_BYTES", 200)
    monkeypatch.setattr(tables.arrow_cache, "_BLOCK_ROWS", 7)
    rows = [(f"{i}.mp4", f"caption {i}", "xy"[i % 2]) for i in range(100)]
    path = write_csv(tmp_path / "t.csv", rows)
    assert [r.caption for r in every(tables.TableSource(path))] == [c for _, c, _ in rows]
    odd = tables.TableSource(path, "part=y")
    assert [r.caption for r in every(odd)] == [c for _, c, p in rows if p == "y"]
    with pytest.raises(IndexError):
        odd[50]


# --- Odd captions -----------------------------------------------------------------------------------------------------


def test_byte_order_mark_and_blank_rows_are_harmless_and_counted(tmp_path, caplog):
    path = write(tmp_path / "c.csv", "\ufeffvideo,caption\na.mp4,x\n\n,\n".encode())
    assert [r.clip_id for r in every(tables.TableSource(path))] == ["a.mp4"]
    assert "1 blank rows are left out" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"video,caption\na,\nb,  \nc,x\n", b'{"video":"a"}\n{"video":"b","caption":null}\n{"video":"c","caption":"x"}'],
)
def test_rows_without_a_caption_stay_and_are_counted(tmp_path, caplog, content):
    path = write(tmp_path / ("t.csv" if content.startswith(b"v") else "t.jsonl"), content)
    assert [(r.clip_id, r.caption) for r in every(tables.TableSource(path))] == [("a", ""), ("b", ""), ("c", "x")]
    assert "2 of 3 rows have no caption" in caplog.text


def test_rows_without_a_video_stay_and_cannot_be_decoded(tmp_path, caplog):
    path = write(tmp_path / "t.csv", b"video,caption\na,x\n,y\n")
    record = tables.TableSource(path)[1]
    assert (record.video, record.caption) == (b"", "y") and record.clip_id
    assert "1 of 2 rows have no video" in caplog.text


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_bytes_that_are_not_utf8_are_replaced_and_counted_at_each_opening(tmp_path, caplog, suffix):
    good, bad = b"gr\xc3\xb6\xc3\x9fe", b"gr\xf6\xdfe"
    captions = [good, bad, good, bad]
    if suffix == "jsonl":
        lines = [b'{"video":"%d","caption":"%s"}' % (i, c) for i, c in enumerate(captions)]
        first = 3
    else:
        separator = b"," if suffix == "csv" else b"\t"
        lines = [b"video" + separator + b"caption"] + [b"%d" % i + separator + c for i, c in enumerate(captions)]
        first = 4
    path = write(tmp_path / f"t.{suffix}", b"\n".join([lines[0], b"", *lines[1:]]))
    for _ in range(2):
        caplog.clear()
        source = tables.TableSource(path)
        assert [r.caption for r in every(source)] == ["größe", "gr\ufffd\ufffde"] * 2
        assert len(caplog.records) == 1
        assert f"2 cells or lines hold bytes that are not UTF-8, the first in {path}, line {first}" in caplog.text


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_caption_of_a_megabyte_survives(tmp_path, suffix):
    long = "wörd " * 2**18
    if suffix == "csv":
        path = write_csv(tmp_path / "t.csv", [("a", long), ("b", "x")], ("video", "caption"))
    else:
        rows = [{"video": "a", "caption": long}, {"video": "b", "caption": "x"}]
        path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)).encode())
    source = tables.TableSource(path)
    assert (source[0].caption, source[1].caption) == (long, "x")


def test_a_lone_surrogate_in_json_is_replaced(tmp_path, caplog):
    path = write(tmp_path / "t.jsonl", rb'{"video":"a","caption":"x \ud800 \ud83d\ude42"}')
    assert tables.TableSource(path)[0].caption == "x \ufffd 🙂"
    assert "1 cells or lines" in caplog.text


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_column": "vidoe"}, "no column 'vidoe', only video, caption, part; did you mean 'video'.*video_column"),
        ({"caption_column": "text"}, "no column 'text', only video, caption, part.*config.input.caption_column"),
        ({"start_column": "from", "end_column": "to"}, "no column 'from', only.*config.input.start_column"),
        ({"split": "part=q"}, "matches no row: column 'part' holds x, y, zz"),
        ({"split": "prat=x"}, "no column 'prat'.*did you mean 'part'"),
        ({"split": "train"}, "split 'train'.*expected 'all' or 'column=value|value'; columns: video, caption, part"),
        ({"path": "none.csv"}, "config.input.path = 'none.csv': no such file"),
        ({"path": "none*.csv"}, "config.input.path = 'none*.csv': matches no file"),
    ],
)
def test_wrong_settings_say_what_is_there(tmp_path, changes, message):
    path = write_csv(tmp_path / "clips.csv", ROWS)
    with pytest.raises(UserError) as caught:
        sources.open_source(configure(**{"path": path, **changes}))
    assert re.search(message.replace("|", r"\|").replace("*.csv", r"\*.csv"), str(caught.value)), caught.value


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"video,caption\n", "has a header and no rows"),
        ("t.csv", b"video,caption", "has a header and no rows"),
        ("t.csv", b"", "no column 'video', only none"),
        ("t.csv", b"video,caption\n,\n,\n", "has only blank rows"),
        ("t.csv", b"video,caption\n\na.mp4\n", "t.csv, line 3: fewer cells than the header, 1 and 2: 'a.mp4'"),
        ("t.csv", b'video,caption\n"a\nb",c\nd,e,f\n', "t.csv, line 4: more cells than the header, 3 and 2: 'd,e,f'"),
        (
            "t.csv",
            b'video,caption\na,b\nc,"d\ne,f\ng,h\n',
            "t.csv, line 3: a quotation mark is opened and never closed",
        ),
        ("t.csv", "video,caption\na,b\n".encode("utf-16"), "t.csv is in UTF-16: save it in UTF-8"),
        ("t.jsonl", '{"video":"a","caption":"b"}'.encode("utf-16"), "t.jsonl is in UTF-16: save it in UTF-8"),
        ("t.csv", "video,caption\na,b\n".encode("utf-16-le"), "t.csv is in UTF-16: save it in UTF-8"),
        ("t.jsonl", b"[" * 100_000, "t.jsonl, line 1: no JSON"),
        ("t.csv", b"video,caption,caption\na,b,c\n", "the header names the column 'caption' twice"),
        ("t.tsv", b"video\tcaption\na\tb\tc\n", "t.tsv, line 2: more cells than the header"),
        ("t.txt", b"video,caption\na,b\n", r"'t.txt' ends in none of the known suffixes; .*\.csv, \.tsv, \.jsonl"),
        ("t.jsonl", b"", "t.jsonl has no rows"),
        ("t.jsonl", b'{"video":"a","caption":"b"}\n{"video":\n', "t.jsonl, line 2: no JSON"),
        ("t.jsonl", b'\n["a","b"]\n', "t.jsonl, line 2: .* is no JSON object"),
        ("t.jsonl", b'{"video":"a","caption":["b","c"]}', "line 1: the value of 'caption' is .*a line for each"),
        ("t.jsonl", b'{"video":"a","captoin":"b"}', "no key 'caption', only video, captoin; did you mean 'captoin'"),
    ],
)
def test_broken_tables_are_refused_with_file_and_line(tmp_path, cache, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        tables.TableSource(path)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_row_too_long_for_a_block_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(table_readers, "_PARSED_BYTES", 2**12)
    path = write_csv(tmp_path / "t.csv", [("a", "x" * 2**13), ("b", "y")], ("video", "caption"))
    with pytest.raises(UserError, match=r"t.csv cannot be parsed: .*quotation mark"):
        tables.TableSource(path)


@pytest.mark.parametrize("cell", ["00:01", "nan", "soon", "inf", "-1e300"])
def test_a_span_that_is_no_number_is_refused_with_its_line(tmp_path, cell):
    rows = [("a", "x", "1", "2"), ("b", "y", cell, "2")]
    path = write_csv(tmp_path / "t.csv", rows, ("video", "caption", "s", "e"))
    with pytest.raises(UserError, match=f"t.csv, line 3: '{cell}' is no time in seconds"):
        tables.TableSource(path, start_column="s", end_column="e")
    path = write_csv(tmp_path / "u.csv", [(*r, p) for r, p in zip(rows, "xy")], ("video", "caption", "s", "e", "part"))
    assert len(tables.TableSource(path, "part=x", start_column="s", end_column="e")) == 1


def test_half_a_span_in_the_config_is_refused(tiny_config):
    validation.validate(tiny_config({"input.start_column": "s", "input.end_column": "e"}))
    with pytest.raises(UserError, match=r"start_column = 's' and config\.input\.end_column = ''"):
        validation.validate(tiny_config({"input.start_column": "s"}))


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_a_pickled_source_is_small_and_reads_the_same_in_another_process(tmp_path):
    path = write_csv(tmp_path / "t.csv", [(f"{i}.mp4", f"caption {i}") for i in range(3000)], ("video", "caption"))
    source = tables.TableSource(path)
    assert len(pickle.dumps(source)) < 1500 + 2 * len(path)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(operator.getitem, source, 2999).result() == source[2999]
    assert source[2999].caption == "caption 2999"


def test_the_table_is_parsed_once_until_it_changes(tmp_path, cache, monkeypatch, caplog):
    path = write_csv(tmp_path / "t.csv", ROWS)
    tables.TableSource(path)
    (first,) = cache.iterdir()
    with monkeypatch.context() as blocked:
        blocked.setattr(table_readers, "read", lambda *_: pytest.fail("parsed again"))
        assert len(tables.TableSource(path)) == 4
    tables.TableSource(path, "part=x")
    assert len(list(cache.iterdir())) == 2
    write_csv(tmp_path / "t.csv", ROWS[:2])
    assert len(tables.TableSource(path)) == 2 and first.exists()


@pytest.mark.skipif(not REAL.is_dir(), reason="the clips of GMDCSA-24 are not beside the checkout")
def test_real_captions_file_opens_by_subject():
    common = {"path": str(REAL / "captions.csv"), "video_root": str(REAL / "clips"), "video_column": "clip"}
    whole = sources.open_source(configure(**common))
    parts = [sources.open_source(configure(**common, split=f"subject={s}")) for s in "1234"]
    assert len(whole) == 23 == sum(len(p) for p in parts)
    assert all(pathlib.Path(record.video).is_file() for record in every(whole))


# --- Annotations of a dataset -----------------------------------------------------------------------------------------


def annotate(tmp_path, rows, clips=("c0", "c1", "c2")):
    (tmp_path / "clips.txt").write_text("".join(f"{c}\n" for c in clips))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return annotations.open_annotations(tmp_path / "test.jsonl", annotations.clip_lists(tmp_path), {"clips": 3})


def test_annotations_know_the_record_of_their_clip(tmp_path):
    rows = annotate(
        tmp_path, [{"clip_id": "c2", "caption": "x"}, {"clip_id": "c0", "caption": "y", "start": 1, "end": 2.5}]
    )
    assert [rows[i]["number"] for i in range(2)] == [2, 0]
    assert [tables.read_span(rows[i]) for i in range(2)] == [None, (1.0, 2.5)]


def test_annotations_of_unknown_clips_are_counted_and_named(tmp_path):
    with pytest.raises(UserError, match=r"3 rows are about clips that clips.txt does not list, the first 'd', 'e'"):
        annotate(tmp_path, [{"clip_id": c, "caption": "x"} for c in ("c0", "d", "e", "d")])


def test_a_list_of_clips_must_fit_the_records(tmp_path):
    with pytest.raises(UserError, match="lists 2 clips where the split `clips` holds 3 records"):
        annotate(tmp_path, [{"clip_id": "c0", "caption": "x"}], clips=("c0", "c1"))
    with pytest.raises(UserError, match="lists a clip twice"):
        annotate(tmp_path, [{"clip_id": "c0", "caption": "x"}], clips=("c0", "c1", "c0"))
