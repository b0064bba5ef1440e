"""The videos below a folder, and what tells a changed or a moved one."""

import dataclasses
import os
import pathlib

from vlp_jax.input.container import VIDEOS

UNREADABLE = -1  # time of a file that could not be looked at: no later look finds it unchanged


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What a file was when it was read.

    Attributes:
      size: bytes.
      changed_ns: time of its last change, nanoseconds.
      inode: number that a file keeps when it is renamed on its file system.
    """

    size: int
    changed_ns: int
    inode: int

    def same(self, other: "Stamp") -> bool:
        """Whether a file of this path is unchanged; a copy that was put back has another inode."""
        return (self.size, self.changed_ns) == (other.size, other.changed_ns) and self.changed_ns != UNREADABLE


@dataclasses.dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
      files: path relative to the folder -> its stamp, in the order of the paths.
      unreadable: folders that could not be listed -> why, as relative paths.
    """

    files: dict[str, Stamp]
    unreadable: dict[str, str]


def find(root: str | os.PathLike) -> Found:
    """Finds the videos below a folder, by the ends of their names; hidden files and folders are left out.

    Links to folders are followed, and a folder that is met a second time, as in a loop, is left out.
    """
    root = os.fspath(root)
    files: dict[str, Stamp] = {}
    unreadable: dict[str, str] = {}
    met: set[tuple[int, int]] = set()

    def failed(error: OSError) -> None:
        unreadable[os.path.relpath(error.filename, root)] = error.strerror or type(error).__name__

    for here, folders, names in os.walk(root, followlinks=True, onerror=failed):
        info = os.stat(here)
        if (info.st_dev, info.st_ino) in met:
            folders.clear()
            continue
        met.add((info.st_dev, info.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and pathlib.Path(name).suffix.lower() in VIDEOS:
                path = os.path.join(here, name)
                files[os.path.relpath(path, root)] = stamp_of(path)
    return Found(dict(sorted(files.items())), unreadable)


def stamp_of(path: str) -> Stamp:
    """The stamp of a file; of one that cannot be looked at, such as a link to nowhere, one that is never the same."""
    try:
        info = os.stat(path)
    except OSError:
        return Stamp(0, UNREADABLE, 0)
    return Stamp(info.st_size, info.st_mtime_ns, info.st_ino)
