"""Meshes over several slices of TPUs or hosts of GPUs, of devices that are not there: which axes cross between them."""

import dataclasses

import pytest

from vlp_jax import sharding
from vlp_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of a GPU on a host."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H200"


@dataclasses.dataclass(frozen=True)
class Absent:
    """A GPU that is compiled for: it does not say its slice."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H200"


# One process a GPU, two hosts of four.
HOSTS = [Device(i, i // 4, i) for i in range(8)]


def mesh_of(tiny_config, devices, **sizes):
    every = {"replica": 1, "data": 1, "fsdp": 1, "tensor": 1} | sizes
    return sharding.make_mesh(tiny_config({f"mesh.{axis}": size for axis, size in every.items()}), devices)


@pytest.mark.parametrize(
    ("sizes", "crossing"),
    [
        ({"replica": 2, "fsdp": 4}, "replica"),
        ({"data": 8}, "data"),
        ({"data": -1, "tensor": 4}, "data"),
        ({"data": 2, "fsdp": 4}, "data"),
        ({"fsdp": 8}, "fsdp"),
        ({"replica": 2, "data": 2, "fsdp": 2}, "replica"),
    ],
)
def test_the_outermost_axis_runs_between_hosts_and_the_others_inside(tiny_config, sizes, crossing):
    mesh = mesh_of(tiny_config, HOSTS, **sizes)
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))
    assert sharding.slices_along(mesh) == {axis: 2 if axis == crossing else 1 for axis in sharding.AXES}
    assert {device.slice_index for device in list(mesh.devices.flat)[:4]} == {0}


def test_an_axis_over_two_of_four_hosts_leaves_the_rest_to_the_next(tiny_config):
    devices = [Device(i, i // 2, i) for i in range(8)]
    mesh = mesh_of(tiny_config, devices, replica=2, data=4)
    assert sharding.slices_along(mesh) == {"replica": 2, "data": 2, "fsdp": 1, "tensor": 1}


def test_tensor_parallelism_between_hosts_is_refused(tiny_config):
    with pytest.raises(UserError, match=r"in 2 slices or hosts.*multiple of 2"):
        mesh_of(tiny_config, HOSTS, tensor=8)


def test_gpus_that_are_not_there_are_on_the_host_of_their_process(tiny_config):
    mesh = mesh_of(tiny_config, [Absent(i, i // 4) for i in range(8)], data=2, fsdp=4)
    assert sharding.slices_along(mesh) == {"replica": 1, "data": 2, "fsdp": 1, "tensor": 1}
