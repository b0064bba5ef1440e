"""Tensors as a safetensors file."""

import pathlib
from collections.abc import Mapping

import numpy as np
from safetensors import numpy as safetensors_numpy


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes a file that is either whole or absent, of the mode that any new file gets here.

    Not as bytes through `files.write_atomically`: they would need the tensors' memory a second time.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    part.touch()
    mode = part.stat().st_mode & 0o777
    safetensors_numpy.save_file(dict(tensors), part, metadata=metadata)
    part.chmod(mode)  # save_file puts one for its owner alone in the place of what was there
    part.replace(path)
