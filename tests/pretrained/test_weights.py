"""Reading published weights: every format gives the same numbers, and nothing in a file is ever run."""

import collections
import io
import json
import os
import pickle
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from vlp_jax.pretrained import torch_zip, weights
from vlp_jax.types import UserError


class View:
    """A tensor as torch has it: a view of a storage, in elements."""

    def __init__(self, storage, offset, shape, strides):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


def whole(array):
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return View(array, 0, array.shape, strides)


@pytest.fixture
def save(monkeypatch):
    """`save(path, tree)` writes views of arrays as torch.save writes tensors, without torch."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    names = {np.dtype(kind): name for name, kind in torch_zip._STORAGES.items()}
    for name in names.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        """Named in the pickle, never called."""

    _rebuild_tensor_v2.__module__ = "torch._utils"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Pickler(pickle.Pickler):
        def __init__(self, file):
            super().__init__(file, protocol=2)
            self.storages = []

        def persistent_id(self, value):
            if not isinstance(value, np.ndarray):
                return None
            if not any(value is known for known in self.storages):
                self.storages.append(value)
            (key,) = [str(i) for i, known in enumerate(self.storages) if known is value]
            return ("storage", getattr(torch, names[value.dtype]), key, "cpu", value.size)

        def reducer_override(self, value):
            if not isinstance(value, View):
                return NotImplemented
            return _rebuild_tensor_v2, (
                value.storage, value.offset, value.shape, value.strides, False, collections.OrderedDict(),
            )  # fmt: skip

    def write(path, tree, byteorder="little"):
        data = io.BytesIO()
        pickler = Pickler(data)
        pickler.dump(tree)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", data.getvalue())
            file.writestr("archive/byteorder", byteorder)
            for key, storage in enumerate(pickler.storages):
                file.writestr(f"archive/data/{key}", storage.tobytes())
        return path

    return write


def arrays():
    rng = np.random.Generator(np.random.Philox(0))
    return {
        "encoder.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "half": rng.normal(size=(5,)).astype(np.float16),
        "brain": rng.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(7, np.int64),
        "none": np.zeros((0, 3), np.float32),
    }


def assert_holds(tensors, expected):
    assert sorted(tensors.names()) == sorted(expected)
    for name, array in expected.items():
        assert tensors.describe(name) == (array.shape, array.dtype), name
        read = tensors.read(name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def folder_of(tmp_path, name, config=None):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "bert"}))
    return folder


def test_a_folder_gives_the_same_numbers_in_every_format(tmp_path, save):
    expected = arrays()
    views = {name: whole(array) for name, array in expected.items()}
    safe, torch, parts = (folder_of(tmp_path, name) for name in ("safe", "torch", "parts"))
    safetensors_numpy.save_file(expected, safe / "model.safetensors")
    save(torch / "pytorch_model.bin", collections.OrderedDict(views))
    names = list(expected)
    for number, own in enumerate((names[:2], names[2:])):
        safetensors_numpy.save_file({n: expected[n] for n in own}, parts / f"{number}.safetensors")
    index = {"weight_map": {name: f"{int(i >= 2)}.safetensors" for i, name in enumerate(names)}}
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder in (safe, torch, parts):
        tensors, config = weights.open_weights(str(folder))
        assert_holds(tensors, expected)
        assert config == {"model_type": "bert"}


def test_files_are_read_by_themselves_too(tmp_path, save):
    expected = {name: array for name, array in arrays().items() if array.dtype != ml_dtypes.bfloat16}
    np.savez(tmp_path / "a.npz", **expected)
    save(tmp_path / "a.pth", {"model": {name: whole(x) for name, x in expected.items()}, "epoch": 3})
    for name in ("a.npz", "a.pth"):
        tensors, config = weights.open_weights(str(tmp_path / name))
        assert_holds(tensors, expected)
        assert config == {}


def test_of_a_checkpoint_that_nests_its_model_the_first_known_key_is_taken_and_said(tmp_path, save):
    x, other = np.ones((2, 3), np.float32), np.zeros(2, np.float32)
    for inside, tree in (
        ((), {"x": whole(x)}),
        (("model",), {"step": whole(other), "model": {"x": whole(x)}, "optimizer": {"y": whole(other)}}),
        (("state_dict",), {"state_dict": {"x": whole(x)}, "model_ema": {"x": whole(other)}}),
        (("model", "module"), {"model": {"module": {"x": whole(x)}}}),
    ):
        tensors = torch_zip.TorchZip(save(tmp_path / "a.pth", tree))
        assert tensors.inside == inside
        assert_holds(tensors, {"x": x})


def test_views_of_one_storage_are_read_where_they_lie(tmp_path, save):
    base = np.arange(24, dtype=np.float32)
    tree = {
        "transposed": View(base, 0, (3, 4), (1, 3)),
        "later": View(base, 12, (2, 3), (3, 1)),
        "spread": View(base, 1, (3,), (5,)),
        "same": View(base, 4, (2, 2), (0, 1)),
    }
    tensors, _ = weights.open_weights(str(save(tmp_path / "a.pth", tree)))
    np.testing.assert_array_equal(tensors.read("transposed"), base[:12].reshape(4, 3).T)
    np.testing.assert_array_equal(tensors.read("later"), base[12:18].reshape(2, 3))
    np.testing.assert_array_equal(tensors.read("spread"), [1, 6, 11])
    np.testing.assert_array_equal(tensors.read("same"), [[4, 5], [4, 5]])


class Malicious:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize(
    ("call", "named"),
    [(os.mkdir, "mkdir"), (eval, "__builtin__.eval"), (types.SimpleNamespace, "types.SimpleNamespace")],
)
def test_a_pickle_that_calls_anything_is_refused_before_it_runs(tmp_path, save, call, named):
    mark = tmp_path / "run"
    arguments = {os.mkdir: (str(mark),), eval: (f"__import__('os').mkdir({str(mark)!r})",)}.get(call, ())
    path = save(
        tmp_path / "a.pth", {"model": {"x": whole(np.ones(2, np.float32))}, "args": Malicious(call, *arguments)}
    )
    with pytest.raises(UserError, match=f"names .*{named}, which is no tensor and could run any code"):
        weights.open_weights(str(path))
    assert not mark.exists()


def damaged(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_what_cannot_be_read_stops_with_its_name_and_what_to_do(tmp_path, save):
    x = {"x": np.ones((2, 3), np.float32)}
    good = {name: whole(array) for name, array in x.items()}
    safetensors_numpy.save_file(x, tmp_path / "cut.safetensors")
    damaged(tmp_path / "cut.safetensors")
    save(tmp_path / "cut.pth", good)
    damaged(tmp_path / "cut.pth")
    np.savez(tmp_path / "cut.npz", **x)
    damaged(tmp_path / "cut.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    (tmp_path / "old.pth").write_bytes(b"\x80\x02\x8a\nl\xfc")
    save(tmp_path / "big.pth", good, byteorder="big")
    save(tmp_path / "short.pth", {"x": View(x["x"], 4, (2, 3), (3, 1))})
    save(tmp_path / "counters.pth", {"epoch": 3, "lr": 0.1})
    (tmp_path / "notes.txt").write_text("weights")
    (tmp_path / "empty").mkdir()
    odd = folder_of(tmp_path, "odd")
    (odd / "config.json").write_text("[]")
    safetensors_numpy.save_file(x, odd / "model.safetensors")
    for name, words in (
        ("cut.safetensors", "is no .safetensors file, or a damaged one.*fetch it anew"),
        ("cut.pth", "is no zip, which torch.save writes: it is damaged"),
        ("cut.npz", "is no .npz file, or a damaged one"),
        ("old.pth", "was written by torch before 1.6; load it with torch and save it anew"),
        ("big.pth", "has big-endian numbers"),
        ("counters.pth", "holds no tensors by name, but epoch, lr; expected a state_dict"),
        ("notes.txt", "expected a .safetensors, .bin, .pth, .pt or .npz file"),
        ("empty", "holds nothing; expected one of model.safetensors, pytorch_model.bin"),
        ("nowhere", "no such file or folder"),
        ("odd", "config.json: expected an object, got list"),
    ):
        with pytest.raises(UserError, match=words):
            weights.open_weights(str(tmp_path / name))
    tensors, _ = weights.open_weights(str(tmp_path / "short.pth"))
    with pytest.raises(UserError, match=r"short.pth is damaged: tensor 'x' has 8 of 24 bytes"):
        tensors.read("x")
    tensors, _ = weights.open_weights(str(tmp_path / "objects.npz"))
    with pytest.raises(UserError, match="array 'a' cannot be read"):
        tensors.read("a")


def test_an_index_whose_parts_are_not_all_there_is_refused_by_their_names(tmp_path):
    folder = folder_of(tmp_path, "parts")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    safetensors_numpy.save_file({"a": np.ones(2)}, folder / "1.safetensors")
    with pytest.raises(UserError, match=r"names 2 files, of which these are not there: 2.safetensors; fetch them"):
        weights.open_weights(str(folder))
    safetensors_numpy.save_file({"c": np.ones(2)}, folder / "2.safetensors")
    with pytest.raises(UserError, match=r"tensor 'b' is in 2.safetensors, which lacks it"):
        weights.open_weights(str(folder))
    index.write_text("{}")
    with pytest.raises(UserError, match="expected a weight_map"):
        weights.open_weights(str(folder))
