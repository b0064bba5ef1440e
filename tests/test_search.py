"""The search binary: what it prints and refuses, with a miniature model that no training made."""

import json
import os
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

from tests.analysis.conftest import make_run, shapes, workdir  # noqa: F401  (fixtures)
from tests.indexing.conftest import coloured, moving
from vlp_jax import search
from vlp_jax.analysis.loading import load
from vlp_jax.indexing import searcher, windows
from vlp_jax.types import UserError

DEFAULTS = {
    **{"query": None, "like": None, "top": 10, "windows": "best", "html": None, "json": False, "index_only": False},
    **{"index": None, "update": True, "reindex": False, "window": None, "stride": None, "checkpoint": None},
    "batch_size": None,
}


@pytest.fixture(scope="module")
def loaded(workdir):  # noqa: F811
    return load(workdir)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder of clips that look different, one of them long, and a bad one."""
    root = tmp_path_factory.mktemp("filled") / "videos"
    for name, value in {"dark.mp4": 20, "sub/light.mp4": 230, "a b & <c>.mp4": 120}.items():
        coloured(root / name, value)
    (root / "long.mp4").write_bytes(moving(5))
    (root / "bad.mp4").write_bytes(b"no video at all")
    return root


@pytest.fixture
def videos(filled, tmp_path):
    return shutil.copytree(filled, tmp_path / "videos")


@pytest.fixture
def make_read_only(monkeypatch):
    """Lets nothing be written to an index from then on, as on a file system that is mounted so."""
    real = open

    def read_only(path, mode="r", *args, **kwargs):
        if search.INDEX in str(path) and mode not in ("r", "rb"):
            raise OSError(30, "Read-only file system")
        return real(path, mode, *args, **kwargs)

    return lambda: monkeypatch.setattr("builtins.open", read_only)


@pytest.fixture
def call(loaded, videos, workdir, monkeypatch, capsys):  # noqa: F811
    """Runs `main` with these flags; returns what it wrote to stdout and to stderr."""

    def run(**given):
        model = given.pop("loaded", loaded)
        values = {"workdir": str(workdir), "videos": str(videos), **DEFAULTS, **given}
        monkeypatch.setattr(search, "FLAGS", types.SimpleNamespace(**values))
        monkeypatch.setattr(search.analysis, "load", lambda *_, **__: model)
        capsys.readouterr()
        search.main(["search"])
        return capsys.readouterr()

    return run


def test_a_query_ranks_all_videos_by_the_product_of_embeddings(call, loaded, videos):
    shown = call(query="a red circle", json=True)
    out = json.loads(shown.out)
    assert out["query"] == {"text": "a red circle", "notes": []}
    index = out["index"]
    assert [index[name] for name in ("new", "changed", "moved", "removed", "unchanged")] == [5, 0, 0, 0, 0]
    assert [one["path"] for one in index["bad"]] == ["bad.mp4"] and "not a readable video" in index["bad"][0]["error"]
    ids, mask, _ = loaded.run.tokenizer.encode(["a red circle"])
    text = loaded.apply(searcher.embed_texts, ids, mask)[0]
    expected = {}
    for name in ("dark.mp4", "sub/light.mp4", "a b & <c>.mp4", "long.mp4"):
        tube = windows.tube(str(videos / name), (0, 5), 5, frames=3, size=16, timeout_s=20, max_pixels=2**20)
        expected[str(videos / name)] = float(loaded.apply(searcher.embed_videos, tube[None])[0] @ text)
    ranked = sorted(expected, key=lambda path: -expected[path])
    assert [row["path"] for row in out["results"]] == ranked
    assert [row["rank"] for row in out["results"]] == [1, 2, 3, 4]
    np.testing.assert_allclose([row["score"] for row in out["results"]], [expected[p] for p in ranked], atol=1e-4)
    assert "bad.mp4: not a readable video" in shown.err and "5 new" in shown.err


def test_the_table_shows_score_time_and_path(call, videos):
    out = call(query="a red circle", top=2).out.splitlines()
    assert len(out) == 3 and out[0].split() == ["score", "time", "a", "red", "circle"]
    rank, score, time, path = out[1].split(maxsplit=3)
    assert rank == "1" and -1 <= float(score) <= 1 and time in ("0:00-0:01", "0:00-0:05") and os.path.isfile(path)


def test_a_second_call_embeds_nothing_and_a_third_only_what_is_new(call, videos, monkeypatch):
    first = json.loads(call(index_only=True, json=True).out)
    assert first["index"]["windows"] == 4 and "results" not in first
    monkeypatch.setattr(search.Searcher, "embed", lambda *_: pytest.fail("embedded again"))
    again = json.loads(call(index_only=True, json=True).out)["index"]
    assert (again["new"], again["unchanged"], again["windows"]) == (0, 5, 4)
    monkeypatch.undo()
    (videos / "dark.mp4").unlink()
    coloured(videos / "new.mp4", 99)
    third = json.loads(call(index_only=True, json=True).out)["index"]
    assert (third["new"], third["removed"], third["unchanged"]) == (1, 1, 4)


def test_windows_of_long_videos_are_found_with_their_times_and_kept_by_later_calls(call):
    call(index_only=True, window=2.0)
    every = json.loads(call(query="a square", windows="all", json=True).out)
    times = [(r["start"], r["end"]) for r in every["results"] if r["path"].endswith("long.mp4")]
    assert sorted(times) == [(0.0, 2.0), (2.0, 4.0), (3.0, 5.0)] and every["index"]["windows"] == 6
    best = json.loads(call(query="a square", json=True).out)["results"]
    top = max((r for r in every["results"] if r["path"].endswith("long.mp4")), key=lambda r: r["score"])
    (own,) = [r for r in best if r["path"].endswith("long.mp4")]
    assert (own["score"], own["start"]) == (top["score"], top["start"])


def test_more_like_a_clip_finds_its_twin_and_not_itself(call, videos, tmp_path):
    shutil.copy(videos / "long.mp4", videos / "sub" / "twin.mp4")
    for named in (str(videos / "long.mp4"), "long.mp4", "long.mp4@0:02", "long.mp4@2.5"):
        rows = json.loads(call(like=named, json=True).out)["results"]
        assert rows[0]["path"] == str(videos / "sub" / "twin.mp4")
        np.testing.assert_allclose(rows[0]["score"], 1, atol=1e-4)
        assert str(videos / "long.mp4") not in [row["path"] for row in rows]
    outside = shutil.copy(videos / "long.mp4", tmp_path / "out@5.mp4")
    assert json.loads(call(like=str(outside), json=True).out)["results"][0]["score"] > 0.999


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"videos": "/nowhere"}, "--videos=/nowhere: no such folder"),
        ({"query": "  "}, "--query='  ': the query is empty"),
        ({"query": "a", "like": "b"}, "--query and --like: expected one of them"),
        ({"query": "a", "index_only": True}, "--query and --index_only"),
        ({"json": True}, "--json: expected --query"),
        ({"html": "a.html"}, "--html=a.html: expected --query"),
        ({"query": "a", "top": 0}, "--top=0: expected 1 or more"),
        ({"query": "a", "batch_size": 0}, "--batch_size=0"),
        ({"query": "a", "window": -1.0}, "--window=-1: expected seconds"),
        ({"query": "a", "stride": 0.0}, "--stride=0 with --window=10"),
        ({"query": "a", "window": 1e-7}, "--window=1e-07: expected seconds, 0.1 or more; 0 takes whole videos"),
        ({"query": "a", "stride": 1e-7}, "--stride=1e-07 with --window=10: expected seconds, 0.1 or more"),
        ({"query": "a", "window": 2.0, "stride": 3.0}, "--stride=3 with --window=2"),
        ({"query": "a", "update": False}, "--noupdate: .* holds no index yet"),
        ({"reindex": True, "update": False}, "--reindex --noupdate"),
        ({"like": "nothing.mp4"}, "--like=nothing.mp4: no such file"),
        ({"like": "long.mp4@soon"}, "--like=long.mp4@soon: no such file"),
        ({"like": "long.mp4@1:00"}, "--like=long.mp4@1:00: the video ends at 0:05"),
        ({"like": "bad.mp4"}, "--like=bad.mp4: not a readable video"),
        ({"query": "a", "index": "/proc/nowhere"}, "the index /proc/nowhere cannot be written .*give --index=DIR"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_way_out(call, flags, message):
    with pytest.raises(UserError, match=message):
        call(**flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"query": "a", "html": "/nonexist/a.html"}, "--html=/nonexist/a.html: no folder /nonexist"),
        ({"query": "a", "html": "{videos}"}, "--html={videos}: a folder; expected a file's name"),
        ({"query": "a", "html": ""}, "--html=: expected a file's name"),
        ({"query": ""}, "--query='': the query is empty"),
        ({"like": "nofile"}, "--like=nofile: no such file"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_anything_is_loaded_or_indexed(call, videos, flags, message):
    flags = {name: value.format(videos=videos) for name, value in flags.items()}
    with pytest.raises(UserError, match=re.escape(message.format(videos=videos))):
        call(loaded=None, **flags)
    assert not (videos / search.INDEX).exists() and not list(videos.parent.glob("*.part"))


def test_a_broken_link_is_no_reason_to_refuse_a_query(call, videos, make_read_only):
    (videos / "link.mp4").symlink_to(videos / "nowhere")
    call(index_only=True)
    shown = call(query="a", json=True)
    assert json.loads(shown.out)["index"]["again"] == 1 and "warning" not in shown.err
    code = (
        "import fcntl, sys, time\nfile = open(sys.argv[1])\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\ntime.sleep(60)"
    )
    held = [sys.executable, "-c", code, str(videos / search.INDEX / "lock")]
    with subprocess.Popen(held, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        shown = call(query="a", json=True)
        other.kill()
    assert len(json.loads(shown.out)["results"]) == 4
    assert "warning: 1 files that could not be read are not tried again now" in shown.err
    assert "being written by another process" in shown.err
    make_read_only()
    shown = call(query="a", json=True)
    assert len(json.loads(shown.out)["results"]) == 4 and "Read-only file system" in shown.err


def test_an_index_made_anew_while_the_model_loads_costs_a_query_nothing(call, videos, loaded, monkeypatch):
    call(index_only=True)
    real = search.bring_up_to_date

    def late(searcher, before, folder):
        store = search.Store.open(folder)
        search.Store.create(folder, store.settings, store.width)  # another process, with --reindex
        return real(searcher, before, folder)

    monkeypatch.setattr(search, "bring_up_to_date", late)
    assert len(json.loads(call(query="a", json=True).out)["results"]) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(width=7), "embeddings of 7 numbers"),
        (lambda header: header["settings"].pop("weights"), "its setting weights is None"),
        (lambda header: header["settings"].update(window="ten"), "its setting window is 'ten'"),
    ],
)
def test_damage_that_still_parses_is_told_with_the_way_out(call, videos, change, message):
    call(index_only=True)
    manifest = videos / search.INDEX / "manifest.jsonl"
    first, rest = manifest.read_text().split("\n", 1)
    header = json.loads(first)
    change(header)
    manifest.write_text(json.dumps(header) + "\n" + rest)
    with pytest.raises(UserError, match=f"is damaged .*{message}") as error:
        call(query="a")
    assert "--reindex makes it anew" in str(error.value)
    assert json.loads(call(query="a", reindex=True, json=True).out)["index"]["new"] == 5


def test_a_folder_without_videos_is_refused_and_costs_an_index_nothing(call, videos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no video below it; names are expected to end in .mp4"):
        call(videos=str(tmp_path / "empty"), query="a")
    assert not (tmp_path / "empty" / search.INDEX).exists()
    place = str(tmp_path / "index")
    call(index_only=True, index=place)
    videos.rename(tmp_path / "unmounted")
    videos.mkdir()
    with pytest.raises(UserError, match="no video below it"):
        call(query="a", index=place)
    videos.rmdir()
    (tmp_path / "unmounted").rename(videos)
    assert json.loads(call(query="a", index=place, json=True).out)["index"]["unchanged"] == 5


def test_a_folder_of_bad_files_alone_is_told(call, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="none of its 1 videos decodes"):
        call(videos=str(tmp_path / "bad"), query="a")


def test_another_model_is_refused_by_name_until_the_index_is_made_anew(call, make_run, tmp_path):  # noqa: F811
    call(index_only=True)
    make_run(tmp_path / "other", {"seed": 5, "name": "other"})
    other = load(tmp_path / "other")
    with pytest.raises(UserError, match=r"is by smaug-tiny, step 7 .* holds other, step 7 .*--reindex makes it anew"):
        call(loaded=other, query="a")
    out = json.loads(call(loaded=other, query="a", reindex=True, json=True).out)["index"]
    assert out["new"] == 5 and out["model"] == "other, step 7"
    with pytest.raises(UserError, match="--index=DIR makes another one"):
        call(query="a")
    assert json.loads(call(query="a", index=str(tmp_path / "second"), json=True).out)["index"]["new"] == 5


def test_other_windows_and_another_folder_are_refused(call, videos, tmp_path):
    place = str(tmp_path / "index")
    call(index_only=True, index=place, window=2.0)
    with pytest.raises(UserError, match=r"--window=3, but the index .* has a window of 2 seconds.*--reindex"):
        call(query="a", index=place, window=3.0)
    with pytest.raises(UserError, match=r"--stride=1, but the index .* has a stride of 2 seconds"):
        call(query="a", index=place, stride=1.0)
    shutil.copytree(videos, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is of another folder"):
        call(videos=str(tmp_path / "elsewhere"), query="a", index=place)
    assert json.loads(call(query="a", index=place, json=True).out)["index"]["unchanged"] == 5


def test_an_index_inside_its_folder_moves_with_it(call, videos, tmp_path):
    call(index_only=True)
    videos.rename(tmp_path / "moved")
    out = json.loads(call(videos=str(tmp_path / "moved"), query="a", json=True).out)
    assert out["index"]["unchanged"] == 5


def test_a_read_only_folder_is_searched_where_nothing_is_new_and_refused_where_something_is(
    call, videos, make_read_only
):
    call(index_only=True)
    make_read_only()
    assert json.loads(call(query="a", json=True).out)["index"]["unchanged"] == 5
    shutil.copy(videos / "dark.mp4", videos / "new.mp4")
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\): give --index=DIR"):
        call(query="a")
    assert len(json.loads(call(query="a", update=False, json=True).out)["results"]) == 4


def test_runs_without_trained_embeddings_or_videos_are_refused(call, loaded, make_run, tmp_path):  # noqa: F811
    make_run(tmp_path / "plain", {"loss.vtc": 0.0})
    with pytest.raises(UserError, match=r"search needs embeddings that were trained, .*config.loss.vtc = 0"):
        call(loaded=load(tmp_path / "plain"), query="a")
    features = {"input.features.width": 32, "input.features.path": str(tmp_path), "loss.mvm": 0.0}
    make_run(tmp_path / "features", features)
    with pytest.raises(UserError, match=r"was trained on precomputed features \(config.input.features.width = 32\)"):
        call(loaded=load(tmp_path / "features"), query="a")


def test_what_a_query_loses_is_said(call, loaded):
    shown = call(query="a red 红 circle")
    assert "note: unknown to the run's tokenizer: '红'" in shown.err
    shown = call(query="red " * 60)
    assert f"note: cut to the model's {loaded.run.tokenizer.max_tokens} tokens" in shown.err


def test_a_contact_sheet_is_written(call, tmp_path):
    call(query="a <b>", html=str(tmp_path / "sheet.html"))
    text = (tmp_path / "sheet.html").read_text()
    assert text.count("data:image/jpeg") == 4 and "a &lt;b&gt;" in text and "a b &amp; &lt;c&gt;.mp4" in text
    assert "best 4 of 4 videos" in text


def test_the_prompt_answers_until_an_empty_line_and_goes_on_after_mistakes(call, videos, tmp_path, monkeypatch):
    lines = [
        *("a red circle", ":top 1", "a square", ":html", f":html {tmp_path}/s.html", ":like long.mp4", ":like no.mp4"),
        *(":top x", ":nonsense", f":html {tmp_path}/none/s.html", ":help", "", "never asked"),
    ]
    rest = iter(lines)
    monkeypatch.setattr("builtins.input", lambda prompt: next(rest))
    shown = call()
    tables = shown.out.split("score  time")[1:]
    assert [len([x for x in table.splitlines() if str(videos) in x]) for table in tables] == [4, 1, 1]
    for message in (
        ":html : expected",
        "--like=no.mp4: no such file",
        ":top x: expected",
        ":nonsense: expected",
        "none",
    ):
        assert f"error: {message}" in shown.err or message == "none"
    assert shown.err.count("error: ") == 5 and (tmp_path / "s.html").exists()
    assert ":like PATH" in shown.out and list(rest) == ["never asked"]


def test_the_prompt_ends_with_its_input(call, monkeypatch):
    def end(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert call().out == ""


def test_odd_names_are_printed_on_one_line_and_come_back_in_json(call, videos):
    odd = videos / "line\nbreak \udce9.mp4"
    shutil.copy(videos / "dark.mp4", odd)
    out = call(query="a", json=True).out
    assert out.count("\n") == 1 and str(odd) in [row["path"] for row in json.loads(out)["results"]]
    assert "line\\nbreak \\udce9.mp4" in call(query="a").out


def test_ctrl_c_keeps_what_is_indexed(call, monkeypatch, videos, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(search.Searcher, "embed", stopped)
    with pytest.raises(SystemExit) as ended:
        call(index_only=True)
    assert ended.value.code == 130 and "the same command goes on from there" in capsys.readouterr().err
