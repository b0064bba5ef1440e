"""The report binary, on a miniature run and on flags that are wrong."""

import shutil
import sys

import pytest

from tests.reporting.pages import Page


def report(workdir, *flags):
    return [sys.executable, "-m", "vlp_jax.report", f"--workdir={workdir}", *flags]


def test_a_trained_run_is_reported_alone_and_compared(finished, tmp_path, command, run):
    out = tmp_path / "page.html"
    done = run(report(finished, f"--out={out}"))
    assert done.returncode == 0 and f"{out}: smaug-tiny, step 12 of 12" in done.stdout, done.stderr
    page = Page(out.read_text())
    assert page.row("examples") == ["96"] and "\nmvm\n" in page.text and page.row("vision")[0] == "trained"
    other = tmp_path / "other"
    assert run(command(other, seed=1, steps=4)).returncode == 0
    third = shutil.copytree(other, tmp_path / "third")
    done = run(report(finished, "--compare", other, third, f"--out={out}", "--x=flops"))
    assert done.returncode == 0, done.stderr
    page = Page(out.read_text())
    assert (
        page.row("seed") == ["0", "1", "1"]
        and page.row("examples") == ["96", "32", "32"]
        and "model FLOPs" in page.text
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out=/no/such/folder/page.html"], "there is no folder /no/such/folder"),
        (["--out=/tmp"], "--out=/tmp is a folder"),
        (["surplus"], "unexpected argument 'surplus'"),
        (["--compare=/no/such/run"], "--compare=/no/such/run: there is no such folder"),
        (["--workdir=/no/such/run"], "--workdir=/no/such/run: there is no such folder"),
        (["--x=hours"], "hours"),
    ],
)
def test_wrong_flags_end_in_one_message(tmp_path, run, flags, words):
    (tmp_path / "config.json").write_text("{}")
    done = run(report(tmp_path, *flags))
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "report.html").exists()


def test_a_run_at_an_address_gets_its_report_sent_there(finished, tmp_path, run):
    store = shutil.copytree(finished, tmp_path / "store")
    (store / "run_id").write_text("ab" * 16)
    done = run(report(f"file://{store}"), VLP_JAX_STAGING=str(tmp_path / "staging"))
    assert done.returncode == 0, done.stderr
    assert "smaug-tiny, step 12 of 12" in Page((store / "report.html").read_text()).text
