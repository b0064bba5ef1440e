"""Opens the weights that others publish: a Hugging Face folder, or a .safetensors, .pth, .bin, .pt or .npz file.

No torch is needed, nothing in a file is run, and a tensor is read when it is asked for, so that memory holds one of
them beside those that were taken over.
"""

import json
import pathlib
import zipfile
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vlp_jax.pretrained.torch_zip import TorchZip
from vlp_jax.types import UserError

_FILES = ("model.safetensors", "pytorch_model.bin")  # of a folder, the first that is there
_INDEX = ".index.json"
_TYPES: dict[str, Any] = {  # of .safetensors
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "BF16": ml_dtypes.bfloat16,
}
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Tensors(Protocol):
    """Named tensors of a file; `TorchZip` says what each method does."""

    def names(self) -> list[str]: ...

    def describe(self, name: str) -> tuple[tuple[int, ...], np.dtype]: ...

    def read(self, name: str) -> np.ndarray: ...


class Safetensors:
    """The tensors of a .safetensors file.

    Raises:
      UserError: the file is none, or damaged.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        try:
            self._file = safe_open(path, "numpy")
        except SafetensorError as error:
            raise UserError(f"{path} is no .safetensors file, or a damaged one: {error}; fetch it anew") from error

    def names(self) -> list[str]:
        return list(self._file.keys())

    def describe(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        part = self._file.get_slice(name)
        kind = part.get_dtype()
        if kind not in _TYPES:
            raise UserError(f"{self._path}: tensor {name!r} is of type {kind}; expected one of {', '.join(_TYPES)}")
        return tuple(part.get_shape()), np.dtype(_TYPES[kind])

    def read(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)


class Npz:
    """The arrays of a .npz file, such as Google's of ViT.

    Raises:
      UserError: the file is none, or damaged, or holds pickled objects.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        try:
            file = zipfile.ZipFile(path)
            for member in file.namelist():
                with file.open(member) as f:
                    shape, _, dtype = _HEADERS[np.lib.format.read_magic(f)](f)
                self._shapes[member.removesuffix(".npy")] = (shape, dtype)
            self._file = np.load(path, allow_pickle=False)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is no .npz file, or a damaged one: {error}; fetch it anew") from error

    def names(self) -> list[str]:
        return list(self._shapes)

    def describe(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        return self._shapes[name]

    def read(self, name: str) -> np.ndarray:
        try:
            return self._file[name]
        except ValueError as error:
            raise UserError(f"{self._path}: array {name!r} cannot be read: {error}") from error


class Sharded:
    """The tensors of several files, as an index lists them.

    Raises:
      UserError: the index is damaged, a file that it names is not there, or lacks a tensor that should be in it.
    """

    def __init__(self, index: pathlib.Path):
        try:
            where = json.loads(index.read_bytes())["weight_map"]
            self._of = {str(name): str(file) for name, file in where.items()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index}: expected a weight_map, tensor -> file, but {error!r}; fetch it anew") from error
        files = sorted(set(self._of.values()))
        missing = [name for name in files if not (index.parent / name).is_file()]
        if missing:
            raise UserError(
                f"{index} names {len(files)} files, of which these are not there: {', '.join(missing)}; fetch them"
            )
        self._files = {name: open_file(index.parent / name) for name in files}
        held = {file: set(tensors.names()) for file, tensors in self._files.items()}
        for name, file in self._of.items():
            if name not in held[file]:
                raise UserError(f"{index} says that tensor {name!r} is in {file}, which lacks it; fetch both anew")

    def names(self) -> list[str]:
        return list(self._of)

    def describe(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        return self._files[self._of[name]].describe(name)

    def read(self, name: str) -> np.ndarray:
        return self._files[self._of[name]].read(name)


def open_file(path: pathlib.Path) -> Tensors:
    """Opens one file by what it begins with, whatever its name.

    Raises:
      UserError: it is of no known format, or damaged.
    """
    if path.name.endswith(_INDEX):
        return Sharded(path)
    if path.suffix == ".safetensors":
        return Safetensors(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if all(name.endswith(".npy") for name in file.namelist()):
                return Npz(path)
    if path.suffix in (".bin", ".pth", ".pt", ".ckpt", ".tar", ".npz"):
        return Npz(path) if path.suffix == ".npz" else TorchZip(path)
    raise UserError(f"{path}: expected a .safetensors, .bin, .pth, .pt or .npz file, or a folder with one")


def open_weights(path: str) -> tuple[Tensors, dict[str, Any]]:
    """Opens a folder or a file.

    Returns:
      The tensors; and config.json beside them as a dictionary, {} where there is none.

    Raises:
      UserError: nothing is there, or it cannot be read.
    """
    place = pathlib.Path(path)
    if place.is_file():
        return open_file(place), _config(place.parent)
    if not place.is_dir():
        raise UserError(f"{path!r}: no such file or folder; expected a Hugging Face folder, or a file of weights")
    for name in _FILES:
        for file in (place / name, place / f"{name}{_INDEX}"):
            if file.is_file():
                return open_file(file), _config(place)
    held = ", ".join(sorted(child.name for child in place.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{path!r} holds {held}; expected one of {', '.join(_FILES)}, either also in parts with its {_INDEX}"
    )


def _config(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error}); fetch it anew") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected an object, got {type(found).__name__}; fetch it anew")
    return found
