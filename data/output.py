"""What commands that make a directory share: it is complete or absent, and made once."""

import contextlib
import json
import pathlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vlp_jax.types import UserError


def found(out: pathlib.Path, settings_file: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what `out` was made with, where that agrees with `settings`; None where `out` is absent or empty.

    Args:
      out: directory that a command is to make.
      settings_file: JSON file in it, written last: its presence says that the directory is complete.
      settings: what the directory depends on.

    Raises:
      UserError: `out` holds something else, or was made with other settings.
    """
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


@contextlib.contextmanager
def partial_directory(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a sibling `<out>.<random>.tmp` to write in, which is removed at the end; see `finish`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        yield partial
    finally:
        shutil.rmtree(partial)


def finish(directory: pathlib.Path, out: pathlib.Path, settings_file: str, content: Mapping[str, Any]) -> None:
    """Writes the settings file into `directory`, a folder below a partial one, and renames it to `out`."""
    (directory / settings_file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    directory.rename(out)  # replaces an empty directory, fails on any other


def run_command(action: Callable[[], str]) -> int:
    """Prints the line that `action` returns; returns the exit status, 2 for a user's error."""
    # SIGTERM as an exception, so that a partial directory is removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        print(action())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
