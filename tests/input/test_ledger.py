import json

import numpy as np
import pytest

from vlp_jax.input.ledger import Ledger
from vlp_jax.input.pipeline import HostBatch
from vlp_jax.types import Batch, UserError


def batch(errors, start=0, padding=0, names=None, source=""):
    """One row for each of `errors` ('' is a good clip), then `padding` rows."""
    size = len(errors) + padding
    is_padding = np.arange(size) >= len(errors)
    errors = list(errors) + [""] * padding
    names = names or [f"clip{start + i}" if not is_padding[i] else "" for i in range(size)]
    empty = np.zeros((size, 0))
    valid = np.array([not e for e in errors]) & ~is_padding
    data = Batch(empty, empty, empty, valid, np.arange(start, start + size, dtype=np.int32), empty)
    return HostBatch(
        batch=data,
        clip_ids=names,
        captions=[""] * size,
        origins=[f"videos/{n}" for n in names],
        errors=errors,
        is_padding=is_padding,
        records=np.arange(size),
        source=source,
        cut=0,
        cut_answers=0,
    )


@pytest.mark.parametrize(("labels", "outside"), [([3, -1, -1, 0], 1), ([0, 1, 2, 3], 0)])
def test_answers_outside_the_list_are_counted_apart_from_bad_examples(labels, outside):
    item = batch(["", "", "truncated", ""])
    assert item.outside == 0
    item.batch.targets["label"] = np.array(labels)
    assert item.outside == outside


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_bad_clips_are_written_with_path_source_reason_first_example_and_count(tmp_path):
    path = tmp_path / "run" / "ledger.jsonl"
    ledger = Ledger(path, 1.0)
    ledger.add(batch(["", "empty: 0 bytes", ""], start=10, names=["a", "b", "c"]))
    ledger.add(batch(["truncated", "empty: 0 bytes"], start=13, names=["d", "b"]))
    ledger.add(batch([""] * 1, start=15))
    ledger.add(batch(["truncated"], start=16, names=["d"], source="webvid"))
    keys = ("clip_id", "origin", "source", "error", "index", "count")
    written = [tuple(e[k] for k in keys) for e in lines(path) if "clip_id" in e]
    assert written == [
        ("b", "videos/b", "input", "empty: 0 bytes", 11, 1),
        ("d", "videos/d", "input", "truncated", 13, 1),
        ("b", "videos/b", "input", "empty: 0 bytes", 11, 2),
        ("d", "videos/d", "webvid", "truncated", 16, 1),
    ]
    assert (ledger.seen, ledger.bad) == (7, 4)


def test_the_last_line_of_a_clip_tells_how_many_examples_met_it(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for _ in range(2):
        ledger = Ledger(path, 1.0)
        for _ in range(50):
            ledger.add(batch(["bad", "", "worse"], names=["a", "b", "c"]))
        ledger.finish()
    rows = [e for e in lines(path) if "clip_id" in e]
    assert {e["clip_id"]: e["count"] for e in rows} == {"a": 100, "c": 100}
    assert len(rows) < 20


def test_at_the_end_the_limit_is_that_of_the_job_for_all_of_its_processes_alike():
    def one(bad):
        ledger = Ledger(None, 0.1)
        ledger.add(batch(["bad"] * bad + [""] * (10 - bad)))
        return ledger

    add_up = lambda own: (own[0] + 30, own[1])  # three others, without a bad clip
    one(4).finish(add_up)
    with pytest.raises(UserError, match="5 of 40"):
        one(5).finish(add_up)
    with pytest.raises(UserError, match="4 of 10"):
        one(4).finish()


def test_the_summary_counts_the_five_most_frequent_reasons():
    ledger = Ledger(None, 1.0)
    errors = [f"truncated: {n} of 90 frames are there" for n in range(1, 8)] + ["empty caption"] * 3
    ledger.add(batch([*errors, "a", "b", "b", "c", "d", "e", ""]))
    assert ledger.summary() == (
        "bad clips: 16, 16 of 17 examples (94.12%): 7 x truncated: 1 of 90 frames are there (or other numbers); "
        "3 x empty caption; 2 x b; 1 x a; 1 x c; and 2 other reasons"
    )


def test_padding_is_neither_seen_nor_bad(tmp_path):
    ledger = Ledger(tmp_path / "l", 0.0)
    ledger.add(batch(["", ""], padding=6))
    ledger.finish()
    assert (ledger.seen, ledger.bad) == (2, 0) and not (tmp_path / "l").exists()
    assert ledger.summary() == "bad clips: none in 2 examples"


def test_the_run_stops_past_the_limit_but_not_before_enough_was_seen():
    ledger = Ledger(None, 0.1, min_examples=50)
    ledger.add(batch(["bad"] * 9 + [""] * 40))
    with pytest.raises(UserError):
        ledger.add(batch([""], start=49))
    at_the_limit = Ledger(None, 0.1, min_examples=50)
    at_the_limit.add(batch(["bad"] * 5 + [""] * 45))
    with pytest.raises(UserError):
        at_the_limit.add(batch(["bad"], start=50))


@pytest.mark.parametrize(("share", "quiet"), [(0.05, 99), (0.01, 399), (0.0, 0)])
def test_default_patience_allows_a_few_bad_clips_whatever_the_limit(share, quiet):
    ledger = Ledger(None, share)
    if quiet:
        ledger.add(batch(["bad"] * quiet))
    with pytest.raises(UserError):
        ledger.add(batch(["bad"], start=quiet))


def test_a_run_whose_clips_were_repaired_goes_on_and_keeps_the_counts(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 0.25, min_examples=8)
    with pytest.raises(UserError, match="run the same command again"):
        ledger.add(batch(["bad"] * 6 + [""] * 2))
    resumed = Ledger(tmp_path / "ledger.jsonl", 0.25, min_examples=8)
    for start in range(8, 24, 8):
        resumed.add(batch([""] * 8, start=start))
    resumed.finish()
    assert (resumed.seen, resumed.bad) == (24, 6)
    with pytest.raises(UserError, match="8 of 24 examples"):
        resumed.add(batch(["bad"] * 8, start=24))


def test_finish_applies_the_limit_to_tiny_sets():
    ledger = Ledger(None, 0.05)
    ledger.add(batch(["", "bad"]))
    with pytest.raises(UserError, match="1 of 2 examples"):
        ledger.finish()


def test_the_message_names_share_limit_three_clips_and_the_file(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, 0.25, min_examples=8)
    with pytest.raises(UserError) as caught:
        ledger.add(batch(["r0", "r1", "r2", "r3"] + [""] * 4))
    message = str(caught.value)
    for part in ("4 of 8 examples (50.0%)", "config.input.max_bad_share = 0.25", str(path), "'clip3'"):
        assert (part in message) == (part != "'clip3'"), message
    for i in range(3):
        assert f"'clip{i}' (videos/clip{i}): r{i}" in message


def test_a_resumed_ledger_repeats_no_clip_and_keeps_the_counts(tmp_path):
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path, 1.0)
    first.add(batch(["bad", "", "worse"], names=["a", "b", "c"]))
    first.add(batch([""] * 20))
    first.finish()
    second = Ledger(path, 1.0)
    assert (second.seen, second.bad) == (23, 2)
    second.add(batch(["bad", "new"], names=["a", "z"]))
    assert [e["clip_id"] for e in lines(path) if "clip_id" in e] == ["a", "c", "a", "z"]
    assert (second.seen, second.bad) == (25, 4)


def test_a_killed_run_forgets_at_most_half_of_what_it_saw(tmp_path):
    ledger = Ledger(tmp_path / "l", 1.0)
    for i in range(300):
        ledger.add(batch(["bad" if i == 3 else "", ""], start=2 * i))
        if i >= 3:
            assert Ledger(tmp_path / "l", 1.0).seen > ledger.seen / 2
    assert len(lines(tmp_path / "l")) < 12


@pytest.mark.parametrize("torn", range(1, 60, 7))
def test_a_line_torn_by_a_crash_does_not_break_the_resume(tmp_path, torn):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, 1.0)
    ledger.add(batch(["bad"], names=["a"]))
    ledger.add(batch(["bad"], names=["ü"]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])
    resumed = Ledger(path, 1.0)
    resumed.add(batch(["bad", "bad"], names=["a", "ü"]))
    # What the torn line told is lost, so that the clip counts from 1 again; the other has been met twice.
    assert {e["clip_id"]: e["count"] for e in lines(path)} == {"a": 2, "ü": 1}


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "l").write_text("hello\n")
    with pytest.raises(UserError, match=r"line 1: .*hello.* is not a line of a ledger"):
        Ledger(tmp_path / "l", 0.1)
