"""What commands that make a directory share: it is complete or absent, and made once."""

import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vlp_jax import processes
from vlp_jax.text import encodable
from vlp_jax.types import UserError


def found(out: pathlib.Path, settings_file: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what `out` was made with, where that agrees with `settings`; None where `out` is absent or empty.

    Args:
      out: directory that a command is to make.
      settings_file: JSON file in it, written last: its presence says that the directory is complete.
      settings: what the directory depends on.

    Raises:
      UserError: `out` holds something else, was made with other settings, or is a place that cannot be replaced.
    """
    if not (out / settings_file).is_file():
        _check_place(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    path = out / settings_file
    if not path.is_file():
        raise UserError(
            f"{out} exists and has no {settings_file}: expected a new or empty directory; choose another --out"
        )
    there = json.loads(path.read_text(encoding="utf-8"))
    differ = [f"{k}={there.get(k)!r} there, {v!r} asked" for k, v in settings.items() if there.get(k) != v]
    if differ:
        raise UserError(f"{out} was made with {'; '.join(differ)}: delete it or choose another --out")
    return there


def _target(out: pathlib.Path) -> pathlib.Path:
    """The directory itself, where `out` is a link to it: a link could not be replaced by a directory."""
    return pathlib.Path(os.path.realpath(out))


def _check_place(out: pathlib.Path) -> None:
    target = _target(out)
    if target.is_symlink():
        raise UserError(
            f"--out {out} is a link that leads to itself: expected a new or empty directory; delete the link"
        )
    if target == pathlib.Path(target.anchor):
        what = "the root of the file system"
    elif os.path.ismount(target):
        what = "a mount point"
    elif target.is_dir() and os.path.samefile(target, os.curdir):
        what = "the current directory"
    else:
        return
    raise UserError(
        f"--out {out} is {what}, which the finished directory cannot replace: expected a new or empty directory; "
        f"choose one below it, such as --out {shlex.quote(str(out / 'dataset'))}"
    )


class _Kept(UserError):
    """A directory is finished and could not be renamed: its partial directory stays."""


@contextlib.contextmanager
def partial_directory(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a sibling `<out>.<random>.tmp` to write in, which is removed at the end; see `finish`."""
    target = _target(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Named before it is made: an interrupt may come right after that, and must find what to remove.
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    keep = False
    try:
        partial.mkdir(mode=0o700)
        yield partial
    except _Kept:
        keep = True
        raise
    finally:
        if not keep and partial.is_dir():
            shutil.rmtree(partial)


def finish(directory: pathlib.Path, out: pathlib.Path, settings_file: str, content: Mapping[str, Any]) -> None:
    """Writes the settings file into `directory`, a folder below a partial one, and renames it to `out`.

    Raises:
      UserError: it cannot be renamed; it stays where it is, which the message says.
    """
    (directory / settings_file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    target = _target(out)
    try:
        directory.rename(target)  # replaces an empty directory, fails on any other
    except OSError as e:
        free = shlex.quote(str(target.with_name(f"{target.name}.new")))
        raise _Kept(
            f"everything is made, but renaming it to {out} failed ({e.strerror or e}): it lies complete in "
            f"{directory}; move it by `mv -T {shlex.quote(str(directory))} {free}`, or to any other new path"
        ) from e


def run_command(action: Callable[[], str]) -> int:
    """Prints the line that `action` returns; returns the exit status, 2 for a user's error and 130 after Ctrl-C."""
    processes.heed_interrupts()
    # SIGTERM as an exception, so that a partial directory is removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        print(encodable(action()))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what was not finished is removed", file=sys.stderr)
        return 130
    return 0
