"""Devices that are not there: their names, and what is said where their compiler is missing."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from vlp_jax import meshes
from vlp_jax.planning import topology
from vlp_jax.telemetry import chips
from vlp_jax.types import UserError

CUDA = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


@pytest.mark.parametrize("name", ["h300:8", "v5e", "v5e:", ":8", "h200:8 x", "8", "cpu:0", "h200:0", "cpu:8 x2"])
def test_a_name_that_is_none_is_refused_with_the_form_of_one(name):
    with pytest.raises(UserError, match=r"expected KIND:SHAPE such as v5e:16x16, h200:8 or cpu:8"):
        topology.find(name)


def test_gpus_have_a_number_and_no_shape():
    with pytest.raises(UserError, match="'h200:8 x4' for 4"):
        topology.find("h200:8x4")


@pytest.mark.skipif(CUDA, reason="JAX's CUDA plugin is installed here")
def test_without_the_cuda_plugin_the_message_names_it():
    with pytest.raises(UserError, match="jax-cuda12-plugin"):
        topology.find("h200:8")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed here")
def test_without_libtpu_the_message_names_it():
    with pytest.raises(UserError, match="needs libtpu"):
        topology.find("v5e:4x4")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which compiles for TPUs")
def test_every_named_mesh_fills_its_slice_and_axes_may_split_a_dimension_of_the_torus():
    code = """
import ml_collections
from vlp_jax import meshes, sharding
from vlp_jax.planning import topology

found = {}
for mesh in meshes.MESHES.values():
    if mesh.topology.startswith("v"):
        devices = topology.find(mesh.topology).devices
        half = {**mesh.sizes, "fsdp": mesh.fsdp // 2, "data": 2 * mesh.data}
        for sizes in (mesh.sizes, half):
            config = ml_collections.ConfigDict({"mesh": sizes})
            assert dict(sharding.make_mesh(config, devices).shape) == sizes
        found[mesh.topology] = len(devices)
print(len(found))
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "6"


@pytest.mark.skipif(not CUDA, reason="needs JAX's CUDA plugin, which compiles for GPUs that are not there")
@pytest.mark.parametrize(("name", "count", "hosts"), [("h200:8", 8, 1), ("a100:4 x2", 8, 2), ("l4:1", 1, 1)])
def test_gpus_that_are_not_there_are_found(name, count, hosts):
    """In a process of its own: JAX looks for a driver where it may use the plugin itself."""
    code = f"from vlp_jax.planning import topology\nprint([d.process_index for d in topology.find({name!r}).devices])"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [i * hosts // count for i in range(count)]


def test_every_gpu_with_peaks_can_be_compiled_for():
    gpus = {name for name, chip in chips.CHIPS.items() if not chip.kind.startswith("TPU")}
    assert set(topology._GPUS) == gpus
    assert {capability for capability, *_ in topology._GPUS.values()} <= set(topology._MULTIPROCESSORS)


def test_every_named_mesh_is_of_a_kind_that_is_known():
    kinds = {mesh.topology.partition(":")[0] for mesh in meshes.MESHES.values()}
    assert kinds <= {"cpu", *chips.CHIPS}
