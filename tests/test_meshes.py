"""Named meshes: each fills its topology, and a name on the command line stands for the sizes of its axes."""

import math
import re

import pytest

from vlp_jax import config as config_lib
from vlp_jax import meshes, sharding
from vlp_jax.types import UserError

ASKED = "cpu1 cpu8 gpu1 gpu8 h200x8 v4_8 v5e_16 v5e_256 v5p_128 v6e_256 v5e_256x2".split()


def test_the_names_are_these():
    assert sorted(meshes.MESHES) == sorted(ASKED)


@pytest.mark.parametrize("name", ASKED)
def test_a_mesh_has_as_many_devices_as_its_topology(name):
    mesh = meshes.find(name)
    shape, _, slices = mesh.topology.partition(":")[2].partition(" x")
    devices = math.prod(map(int, shape.split("x"))) * int(slices or 1)
    assert math.prod(mesh.sizes.values()) == devices
    # A TPU's name counts chips, or the two cores of each.
    chips = [int(part) for part in re.findall(r"\d+", name.partition("_")[2])]
    if chips:
        assert math.prod(chips) == devices * (2 if name.startswith(("v4", "v5p")) else 1)


@pytest.mark.parametrize("words", [["--config.mesh=v5e_16"], ["-config.mesh=v5e_16"], ["--config.mesh", "v5e_16"]])
def test_a_name_becomes_the_sizes_of_all_axes_where_it_stood(words):
    sizes = [f"--config.mesh.{axis}={size}" for axis, size in zip(sharding.AXES, (1, 1, 16, 1))]
    before, after = ["train", "--config=configs/smaug.py:tiny"], ["--config.mesh.tensor=2", "--workdir=x"]
    assert meshes.expand([*before, *words, *after]) == [*before, *sizes, *after]


@pytest.mark.parametrize("name", ASKED)
def test_on_gpus_layers_are_written_out_unless_a_flag_says_otherwise(name):
    unroll = [flag for flag in meshes.expand([f"--config.mesh={name}"]) if "unroll" in flag]
    assert unroll == (["--config.model.unroll=True"] if name.startswith(("gpu", "h200")) else [])
    for words in (["--config.model.unroll=False"], ["--config.model.unroll", "False"]):
        for argv in ([*words, f"--config.mesh={name}"], [f"--config.mesh={name}", *words]):
            flags = meshes.expand(argv)
            assert [flag for flag in flags if "unroll" in flag] == words[:1]


def test_other_words_stay_as_they_are():
    words = [
        "config.mesh=v5e_16",
        "--config.mesh.data=2",
        "--config.meshes=v5e_16",
        "--workdir",
        "mesh",
        "--config",
        "mesh",
    ]
    assert meshes.expand(words) == words


@pytest.mark.parametrize("words", [["--config.mesh=v5e16"], ["--config.mesh", "v5e16"]])
def test_an_unknown_name_is_refused_with_the_near_one(words):
    with pytest.raises(UserError, match=r"v5e16.*v6e_256.*did you mean 'v5e_16'"):
        meshes.expand(words)


def test_a_flag_without_a_name_is_refused():
    with pytest.raises(UserError, match=r"--config.mesh=: expected one of cpu1"):
        meshes.expand(["--config.mesh"])


def test_every_axis_of_a_mesh_is_one_of_the_config():
    for mesh in meshes.MESHES.values():
        config = config_lib.update(config_lib.defaults(), {f"mesh.{axis}": n for axis, n in mesh.sizes.items()})
        assert [config.mesh[axis] for axis in sharding.AXES] == list(mesh.sizes.values())
