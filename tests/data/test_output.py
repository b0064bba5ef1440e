"""Making a directory: nothing half made, nothing made lost, and places where it cannot be made refused beforehand."""

import os
import pathlib
import shlex
import subprocess

import pytest

from data import output
from vlp_jax.types import UserError

SETTINGS = {"a": 1}


def make(out, before_finish=lambda: None):
    out = pathlib.Path(out)
    if output.found(out, "made.json", SETTINGS) is not None:
        return "nothing done"
    with output.partial_directory(out) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "data").write_text("hours of work")
        before_finish()
        output.finish(partial / "inner", out, "made.json", SETTINGS)
    return f"wrote {out}"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("is_there", (True, False))
def test_a_link_is_followed_to_the_directory_it_names(tmp_path, is_there):
    target = tmp_path / "store" / "target"
    if is_there:
        target.mkdir(parents=True)
    (tmp_path / "link").symlink_to(target)
    assert make(tmp_path / "link") == f"wrote {tmp_path / 'link'}"
    assert (tmp_path / "link").is_symlink() and names(tmp_path) == ["link", "store"]
    assert names(target) == ["data", "made.json"] and names(tmp_path / "store") == ["target"]
    assert make(tmp_path / "link") == "nothing done"


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(UserError, match="link that leads to itself"):
        make(tmp_path / "link")


@pytest.mark.parametrize("place", ("current", "linked", "root", "mount"))
def test_places_that_cannot_be_replaced_are_refused_before_the_work(tmp_path, monkeypatch, place):
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "to_here").symlink_to(here)
    out, what = {
        "current": (".", "the current directory"),
        "linked": (tmp_path / "to_here", "the current directory"),
        "root": ("/", "the root of the file system"),
        "mount": (tmp_path / "mounted", "a mount point"),
    }[place]
    monkeypatch.chdir(here)
    ismount = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda p: str(p) == str(tmp_path / "mounted") or ismount(p))
    match = f"--out {out} is {what}.*expected a new or empty directory; choose one below it, such as --out .*dataset"
    with pytest.raises(UserError, match=match):
        make(out, lambda: pytest.fail("started"))
    assert names(tmp_path) == ["here", "to_here"] and not names(here)


def test_a_directory_made_before_is_found_wherever_it_is(tmp_path, monkeypatch):
    make(tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    assert make(".") == "nothing done"


def test_what_cannot_be_renamed_is_kept_and_can_be_moved_as_said(tmp_path):
    out = tmp_path / "my out"

    def another_run():
        out.mkdir()
        (out / "other").write_text("of another run")

    with pytest.raises(UserError, match=r"everything is made, .*my out failed \(Directory not empty\)") as caught:
        make(out, another_run)
    command = str(caught.value).split("`")[1]
    subprocess.run(shlex.split(command), check=True, timeout=60)
    assert names(tmp_path / "my out.new") == ["data", "made.json"] and names(out) == ["other"]
    assert make(tmp_path / "my out.new") == "nothing done"


@pytest.mark.parametrize(
    "error, status, said",
    (
        (KeyboardInterrupt(), 130, "interrupted: what was not finished is removed\n"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (UserError("expected x"), 2, "error: expected x\n"),
    ),
)
def test_an_end_before_the_end_is_one_line_and_leaves_nothing(tmp_path, capsys, error, status, said):
    def fail():
        raise error

    assert output.run_command(lambda: make(tmp_path / "out", fail)) == status
    assert capsys.readouterr() == ("", said)
    assert not names(tmp_path)


def test_other_errors_are_not_hidden(tmp_path):
    def fail():
        raise UnicodeError("a fault of ours")

    with pytest.raises(UnicodeError, match="a fault of ours"):
        output.run_command(lambda: make(tmp_path / "out", fail))
    assert not names(tmp_path)


def test_the_line_at_the_end_is_printed_whatever_the_path_holds(tmp_path, capsys):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    assert output.run_command(lambda: make(out)) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'caf'}\ufffd\n"
