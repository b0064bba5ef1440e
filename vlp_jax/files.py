"""Writing files."""

import os
import pathlib


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file that is either whole or absent, whenever the process dies."""
    path = pathlib.Path(path)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
