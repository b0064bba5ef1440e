"""Reports of hand-made workdirs: what must stand in them, alone, compared, unfinished and damaged."""

import datetime
import json
import re
import struct
import types
import zlib

import numpy as np
import pytest

from configs import smaug
from tests.reporting.pages import Page
from vlp_jax import checkpoint
from vlp_jax import config as config_lib
from vlp_jax.analysis import curves
from vlp_jax.reporting import contents, html, sections
from vlp_jax.types import UserError

NASTY = "<script>alert('\"&')</script>"


def png():
    """One white pixel."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0\xff")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def result(step=40, value=50.0, **more):
    return {
        "task": "retrieval", "step": step, "selected": None, "split": "test", "dataset": "clips.csv",
        "training": "zero-shot", "frames": 4, "rerank": 0, "ablate": "", "queries": 1234,
        "text_to_video": {"R@1": value, "mean_rank": 3.25}, "captions_per_clip": {"min": 1, "max": 5},
        "intervals": {"text_to_video/R@1": [value - 10, value + 10], "text_to_video/mean_rank": [2.5, 4.0]},
        "bad_clips": [], "per_query": [{"query_id": "q", "caption": "of one query"}], **more,
    }  # fmt: skip


COSTS = {
    "flops": 4e12, "examples": 1280, "seconds": 100.0, "device_seconds": {"v5e": 7200.0}, "waited_seconds": 25.0,
    "timed_flops": 3.0, "possible_flops": 10.0,
}  # fmt: skip


def metrics(workdir, steps, loss=lambda step: 10 / step, end="\n"):
    lines = [
        json.dumps({"step": s, "loss": loss(s), "vtc": 1.0, "examples": 32 * s, "flops": 1e11 * s, "device_hours": s})
        for s in steps
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + end)


def save(workdir, config, step=40, total=40, folder="checkpoints", **more):
    params = {"vision": {"kernel": np.zeros((10, 30), np.float32)}, "text": {"bias": np.zeros(100, np.float32)}}
    state = {"params": params, "opt_state": {"mu": {"text": {"bias": np.zeros(100, np.float32)}}}}
    config = config if isinstance(config, dict) else json.loads(config_lib.to_json(config))
    metadata = {"config": config, "total_steps": total, "step": step, "costs": COSTS}
    writer = checkpoint.Checkpointer(workdir / folder, keep=1, asynchronous=False)
    writer.save(step, state, {**metadata, **more})
    writer.close()


@pytest.fixture
def make(tmp_path):
    """Builds a finished run with one of everything; returns its workdir."""

    def build(folder="run", **changes):
        workdir = tmp_path / folder
        (workdir / "evaluation").mkdir(parents=True)
        config = config_lib.update(smaug.get_config("tiny"), {"optimizer.trainable": ("text/.*",), **changes})
        save(workdir, config)
        metrics(workdir, range(4, 44, 4))
        (workdir / "evaluation" / "retrieval_test_40.json").write_text(json.dumps(result()))
        (workdir / "evaluation" / "reconstruction_test_40.png").write_bytes(png())
        clip = {"clip_id": "clip_7", "origin": "/videos/7.mp4", "source": "input", "error": "truncated: 3 of 8 frames"}
        lines = [{**clip, "index": 3, "count": n, "seen": 100 * n, "bad": n} for n in (1, 4)]
        lines.append(
            {**clip, "clip_id": "clip_9", "error": "truncated: 5 of 8 frames", "count": 1, "seen": 500, "bad": 5}
        )
        (workdir / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        taken = {"origin": "text/bias", "shape": [100], "origin_shape": [100]}
        new = {"origin": None, "how": "created", "shape": [10, 30], "origin_shape": None}
        account = {"source": "runs/stage1", "step": 12, "parameters": {"text/bias": taken, "vision/kernel": new}}
        (workdir / "init.json").write_text(json.dumps({**account, "left_out": {"decoder/kernel": [3]}}))
        return workdir

    return build


def render(*workdirs, x="step"):
    runs = contents.read([str(w) for w in workdirs], workdirs)
    now = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    return html.page(sections.title(runs[0]), sections.header(runs, now), sections.every(runs, x))


def test_noisy_curves_of_many_points_have_their_average_too_and_costs_do_not():
    steps = np.arange(60)
    series = {"loss": (steps, np.sin(steps)), "flops": (steps, 1.0 * steps)}
    run = types.SimpleNamespace(curves=curves.Curves(None, "a", series, 1), label="a")
    assert str(sections.curves([run], "step")).count("<polyline") == 2 + 1


def test_a_report_holds_all_that_the_workdir_does(make):
    text = render(make())
    page = Page(text)
    assert "smaug-tiny, step 40 of 40\n" in page.text and "2026-01-02 03:04" in page.text
    assert "smaug-tiny: 4e+12 FLOPs, 2 v5e-hours, 30% MFU, 1,280 examples, data wait 25%" in page.text
    assert "Not there" not in page.text
    # Evaluation, with its intervals and what the model had seen.
    assert page.row("text to video, R@1") == ["50.0 [40.0, 60.0]"]
    assert page.row("text to video, mean rank") == ["3.2 [2.5, 4.0]"]
    assert page.row("training") == ["zero-shot"] and page.row("frames") == ["4"] and page.row("queries") == ["1,234"]
    assert (
        page.row("file") == ["retrieval_test_40.json"]
        and page.row("captions per clip") == ["1 to 5"]
        and "of one query" not in text
    )
    # Costs.
    assert page.row("v5e-hours") == ["2"] and page.row("MFU") == ["30.0%"] and page.row("waiting for data") == ["25.0%"]
    assert page.row("model FLOPs an example") == ["3.12e+09"] and page.row("wall time") == ["1:40"]
    # Parameters: 300 frozen ones, 100 that train, in float32.
    assert page.row("vision") == ["frozen", "1", "300", "75.0%", "1.2 kB"]
    assert page.row("text") == ["trained", "1", "100", "25.0%", "400 B"]
    assert page.row("all") == ["100 trained, the others frozen", "2", "400", "100.0%", "1.6 kB"]
    # Curves of everything logged, one picture, and where the run started.
    for name in ("loss", "vtc", "examples", "flops", "device_hours"):
        assert f"\n{name}\n" in page.text
    assert text.count("<polyline") == 2 + 3  # losses, of too few points for an average; costs
    assert page.tags["img"] == 1 and page.loads[0].startswith("data:image/png;base64,iVBOR")
    assert "from runs/stage1, step 12" in page.text
    assert (
        page.row("as it was") == ["1"] and page.row("created") == ["1"] and page.row("left out (only there)") == ["1"]
    )
    # The ledger: the last line of each clip counts, reasons that differ in numbers are one.
    assert "2 bad clips, 5 of 500 examples (1.00%)." in page.text
    assert page.row("truncated: 3 of 8 frames") == ["2", "5"]
    assert page.row("clip_7") == ["/videos/7.mp4", "input", "truncated: 3 of 8 frames", "4"]
    # The config: what is set beside the default, and every knob.
    assert page.row("input.image_size") == ["48", "224"] and page.row("optimizer.trainable") == ["('text/.*',)", "()"]


def test_a_page_needs_nothing_else_and_runs_no_script(make):
    text = render(make())
    page = Page(text)
    assert "http" not in text and "script" not in page.tags and "link" not in page.tags
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert all(link.startswith("#") for link in page.links)
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_texts_of_users_stay_texts(make, tmp_path):
    workdir = make(NASTY.replace("/", "|"), **{"name": NASTY, "input.path": NASTY})
    (workdir / "evaluation" / "retrieval_x_40.json").write_text(json.dumps(result(dataset=NASTY, note=NASTY)))
    (workdir / "evaluation" / f"{NASTY.replace('/', '|')}.png").write_bytes(png())
    line = {"clip_id": f"of {NASTY}", "origin": NASTY, "source": NASTY, "error": NASTY, "count": 1, "seen": 9, "bad": 1}
    (workdir / "ledger.jsonl").write_text(json.dumps(line) + "\n")
    text = render(workdir)
    assert "<script" not in text and "script" not in Page(text).tags
    assert NASTY in Page(text).text and Page(text).row(f"of {NASTY}")[:3] == [NASTY, NASTY, NASTY]


def test_compared_runs_stand_side_by_side(make):
    first, second = make("first"), make("second", seed=5)
    metrics(second, range(4, 24, 4))
    (second / "evaluation" / "retrieval_test_40.json").write_text(json.dumps(result(value=70.0)))
    text = render(first, second)
    page = Page(text)
    assert page.row("text to video, R@1") == ["50.0 [40.0, 60.0]", "70.0 [60.0, 80.0]"]
    assert (
        page.row("seed") == ["0", "5"] and page.row("v5e-hours") == ["2", "2"] and page.row("vision") == ["300", "300"]
    )
    assert "compared with second" in page.text and "smaug-tiny (second): 4e+12 FLOPs" in page.text
    assert 'class="run0 drawn"' in text and 'class="run1 drawn"' in text
    differing = next(table for table in page.tables if table[0] == ["config.", "first", "second"])
    assert [row[0] for row in differing[1:]] == ["seed"]
    assert page.tags["img"] == 2


def test_results_without_intervals_and_of_questions_are_tabled_too(make):
    workdir = make()
    plain = result(intervals={}, frames=1, split="plain")
    (workdir / "evaluation" / "retrieval_plain_40.json").write_text(json.dumps(plain))
    kinds = {"color": {"accuracy": 80.0, "count": 25, "interval": [70.0, 90.0]}, "size": {"accuracy": 5.0, "count": 3}}
    answers = {"task": "question_answering", "split": "qa", "dataset": "d", "accuracy": 40.0, "by_type": kinds}
    chosen = {"selected": {"select_by": "accuracy", "value": 39.0}, "step": 36, "intervals": {"accuracy": [30.0, 50.0]}}
    (workdir / "evaluation" / "question_answering_qa_40.json").write_text(json.dumps({**answers, **chosen}))
    page = Page(render(workdir))
    table = next(t for t in page.tables if ["text to video, R@1", "50.0"] in t)
    assert ["frames", "1"] in table and ["text to video, mean rank", "3.2"] in table
    assert page.row("accuracy") == ["40.0 [30.0, 50.0]"]
    assert page.row("of type color (25)") == ["80.0 [70.0, 90.0]"] and page.row("of type size (3)") == ["5.0"]
    assert ["step 36, best accuracy"] in [row[1:] for t in page.tables for row in t]


def test_runs_whose_folders_have_one_name_are_told_apart_by_their_paths(make):
    page = Page(render(make("a/run"), make("b/run")))
    assert any(row[0] == "" and row[1].endswith("a/run") and row[2].endswith("b/run") for t in page.tables for row in t)


def test_a_run_in_progress_gets_a_report_of_what_is_there(tmp_path):
    workdir = tmp_path / "young"
    workdir.mkdir()
    (workdir / "config.json").write_text(config_lib.to_json(smaug.get_config("tiny")))
    page = Page(render(workdir))
    assert "smaug-tiny, no step yet" in page.text
    for words in ("no checkpoint yet", "no curves: there is no metrics.jsonl", "no evaluation"):
        assert words in page.text
    metrics(workdir, [4, 8], end='\n{"step": 12, "lo')  # the line is being written
    page = Page(render(workdir))
    assert "smaug-tiny, step 8, nothing saved yet" in page.text
    assert page.row("model FLOPs") == ["8e+11"] and page.row("examples") == ["256"]
    save(workdir, smaug.get_config("tiny"), step=10, total=40)
    assert "smaug-tiny, step 10 of 40, in progress or interrupted" in Page(render(workdir)).text


def test_only_the_best_checkpoint_is_enough_and_is_named(make):
    workdir = make()
    selected = {"select_by": "accuracy", "validation_split": "validation", "value": 61.5}
    save(workdir, smaug.get_config("tiny"), step=1, folder="best", selected=selected)
    assert "Best checkpoint: step 1, best accuracy = 61.5 of validation" in Page(render(workdir)).text
    for path in sorted((workdir / "checkpoints").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    page = Page(render(workdir))
    assert "no intact checkpoint in checkpoints/" in page.text and page.row("vision")[2] == "300"


def test_what_is_damaged_is_said_and_the_rest_is_shown(make):
    workdir = make()
    (workdir / "evaluation" / "retrieval_torn_40.json").write_text('{"task": "retr')
    (workdir / "evaluation" / "list.json").write_text("[1]")
    (workdir / "ledger.jsonl").write_text("no ledger\n")
    (workdir / "metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 3}\n')
    (workdir / "evaluation" / "retrieval_listed_40.json").write_text(json.dumps(result(intervals=[1, 2])))
    (workdir / "init.json").write_text('{"source": "runs/sta')
    page = Page(render(workdir))
    for words in (
        "evaluation/retrieval_listed_40.json is damaged (its intervals is [1, 2]); evaluate again",
        "what it started from: init.json is damaged (Unterminated string", "Its account is damaged.",
        "evaluation/retrieval_torn_40.json is damaged", "evaluation/list.json is no result", "no bad clips: ",
        "metrics.jsonl:2: b'broken' is not a line of metrics",
    ):  # fmt: skip
        assert words in page.text
    assert page.row("text to video, R@1") == ["50.0 [40.0, 60.0]"]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("intervals", {"text_to_video/R@1": 3.0}), ("intervals", {"text_to_video/R@1": ["a", "b"]}),
        ("selected", "best"), ("by_type", [1]), ("by_type", {"color": {"accuracy": 1.0}}),
        ("by_type", {"color": {"accuracy": 1.0, "count": 3, "interval": [1]}}),
    ],
)  # fmt: skip
def test_a_result_of_another_form_is_left_out_and_said(make, part, value):
    workdir = make()
    (workdir / "evaluation" / "retrieval_odd_40.json").write_text(json.dumps(result(**{part: value})))
    page = Page(render(workdir))
    assert f"evaluation/retrieval_odd_40.json is damaged (its {part} is " in page.text
    assert page.row("file") == ["retrieval_test_40.json"]


@pytest.mark.parametrize("text", ["[]", "3", '{"parameters": {}}', '{"source": "a", "parameters": {"x": {}}}', "\xff"])
def test_an_account_of_another_form_is_said_and_nothing_claimed_of_the_start(make, text):
    workdir = make()
    (workdir / "init.json").write_bytes(text.encode("latin-1"))
    page = Page(render(workdir))
    assert "what it started from: init.json is damaged" in page.text and "random parameters" not in page.text


def test_a_config_of_another_version_costs_the_config_alone(make):
    workdir = make()
    config = json.loads(config_lib.to_json(smaug.get_config("tiny")))
    del config["model"]["pruning"]
    save(workdir, config, step=44)
    page = Page(render(workdir))
    assert "no config, nor what is frozen: the saved config lacks model.pruning" in page.text
    assert page.row("vision") == ["–", "1", "300", "75.0%", "1.2 kB"]


def test_nans_leave_gaps_and_a_diverged_end_is_said(make):
    workdir = make()
    metrics(workdir, range(1, 9), loss=lambda step: "nan" if step in (4, 8) else 1.0)
    page = Page(render(workdir))
    assert "loss\n \nnan\n" in page.text


def test_curves_can_be_drawn_over_what_was_spent(make):
    assert "model FLOPs" in Page(render(make(), x="flops")).text


def test_a_run_without_the_x_axis_leaves_the_others_drawn_and_is_named(make, tmp_path):
    first, young = make("first"), tmp_path / "young"
    young.mkdir()
    (young / "config.json").write_text(config_lib.to_json(smaug.get_config("tiny")))
    metrics(young, [4, 8], loss=lambda step: 0.625)
    for runs, number in (((first, young), 0), ((young, first), 1)):
        text = render(*runs, x="seconds")
        assert f'class="run{number} drawn"' in text and f'class="run{1 - number} drawn"' not in text
        text = Page(text).text
        assert "young is not drawn: x = 'seconds': " in text and "holds no checkpoint that says how many" in text
        assert "first is not drawn" not in text and "0.625" in text  # its last loss can be told all the same
    alone = render(young, x="seconds")
    assert "young is not drawn" in alone and "<polyline" not in alone


def test_reading_a_report_changes_nothing_in_the_workdir(make):
    workdir = make()
    with (workdir / "ledger.jsonl").open("a") as file:
        file.write('{"clip_id": "torn')
    state = lambda: {path: path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file()}
    before = state()
    render(workdir)
    assert state() == before


def test_what_is_no_run_and_a_run_given_twice_are_refused(make, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds none of config.json, metrics.jsonl, checkpoints"):
        render(tmp_path / "empty")
    workdir = make()
    with pytest.raises(UserError, match="run is given twice"):
        contents.read([str(workdir), f"{workdir}/"], [workdir, workdir])
    (tmp_path / "link").symlink_to(workdir)
    for again in (tmp_path / "empty" / ".." / "run", tmp_path / "link"):
        words = f"--compare={re.escape(str(again))} beside --workdir={workdir}: {workdir} is given twice"
        with pytest.raises(UserError, match=words):
            render(workdir, again)


def test_the_flag_that_names_no_run_is_the_one_blamed(make, tmp_path):
    workdir, nope = make(), tmp_path / "nope"
    for given, flag in (((nope,), "--workdir"), ((workdir, nope), "--compare")):
        with pytest.raises(UserError, match=f"^{flag}={nope}: there is no such folder; expected the workdir of a"):
            render(*given)
