"""Reads what `torch.save` wrote, without torch: a zip of a pickle and the tensors' bytes.

A pickle is a program. This one may name nothing but the functions that put tensors together and an ordered dictionary;
whatever else it names is refused before it is called, so that a file from anywhere can be opened.
"""

import collections
import dataclasses
import math
import pathlib
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from vlp_jax.types import UserError

_STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Where a checkpoint of a training run keeps its model, beside an optimiser and counters.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The bytes that a tensor is a view of."""

    key: str
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage, all numbers counting its elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, *rest):
    del rest  # requires_grad, hooks, metadata
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError(f"a tensor of {storage!r}")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(tensor, *rest):
    del rest
    return tensor


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("torch", "Size"): tuple,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor and could run any code")

    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], np.dtype)):
            raise pickle.UnpicklingError(f"it refers to {str(pid)[:80]}, which is no storage")
        return _Storage(str(pid[2]), pid[1])


class TorchZip:
    """The tensors of a file, by name; each is read when it is asked for.

    Args:
      path: written by torch 1.6 or newer.

    Attributes:
      inside: keys of the dictionaries that the tensors lie in, such as `model`; () for a state_dict by itself.

    Raises:
      UserError: no such file, an older format, a damaged one, a pickle of other things than tensors, or no tensors.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        if not zipfile.is_zipfile(path):
            with path.open("rb") as f:
                old = f.read(2) == b"\x80\x02"
            why = "was written by torch before 1.6" if old else "is no zip, which torch.save writes: it is damaged"
            raise self._refuse(f"{why}; load it with torch and save it anew, or take a .safetensors file")
        self._zip = zipfile.ZipFile(path)
        pickles = [name for name in self._zip.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise self._refuse("holds no data.pkl: expected what torch.save wrote")
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in self._zip.namelist() and self._zip.read(f"{self._root}byteorder") != b"little":
            raise self._refuse(
                "has big-endian numbers, which are not supported; save it anew on a little-endian machine"
            )
        try:
            with self._zip.open(pickles[0]) as f:
                tree = _Unpickler(f).load()
        # A damaged pickle fails in whatever way its broken instructions do.
        except Exception as error:
            raise self._refuse(
                f"cannot be read as tensors alone: {error}. Save the model's state_dict() alone, or take a "
                ".safetensors file"
            ) from error
        self.inside: tuple[str, ...] = ()
        self._tensors = self._state(tree)

    def _refuse(self, why: str) -> UserError:
        return UserError(f"{self._path} {why}")

    def _state(self, tree: Any) -> dict[str, _Tensor]:
        """The dictionary of tensors, which may lie inside a checkpoint: under the first of `_WRAPPERS` that it has."""
        if isinstance(tree, dict):
            for name in _WRAPPERS:
                if isinstance(tree.get(name), dict):
                    self.inside += (name,)
                    return self._state(tree[name])
            found = {name: x for name, x in tree.items() if isinstance(x, _Tensor)}
            if found:
                return found
        held = ", ".join(map(str, list(tree)[:5])) if isinstance(tree, dict) else type(tree).__name__
        raise self._refuse(f"holds no tensors by name, but {held}; expected a state_dict, or one as {_WRAPPERS}")

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._tensors)

    def describe(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of a tensor, which is not read for it."""
        tensor = self._tensors[name]
        return tensor.shape, tensor.storage.dtype

    def read(self, name: str) -> np.ndarray:
        """A tensor.

        Raises:
          UserError: its storage is not there or shorter than the tensor says.
        """
        tensor = self._tensors[name]
        dtype = tensor.storage.dtype
        if math.prod(tensor.shape) == 0:
            return np.zeros(tensor.shape, dtype)
        # From the first to the last element of the view.
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides))
        count = last + 1
        where = f"{self._root}data/{tensor.storage.key}"
        if min(tensor.offset, *tensor.strides, *tensor.shape, 0) < 0 or where not in self._zip.namelist():
            raise self._refuse(f"is damaged: tensor {name!r} refers to no storage of it")
        with self._zip.open(where) as f:
            f.seek(tensor.offset * dtype.itemsize)
            data = f.read(count * dtype.itemsize)
        if len(data) < count * dtype.itemsize:
            raise self._refuse(f"is damaged: tensor {name!r} has {len(data)} of {count * dtype.itemsize} bytes")
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
        view = np.lib.stride_tricks.as_strided(np.frombuffer(data, dtype), tensor.shape, strides)
        return np.ascontiguousarray(view).reshape(tensor.shape)
