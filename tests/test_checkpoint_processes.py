"""Checkpoints of two processes, in one directory that both see and in one of each."""

import os
import pathlib
import socket
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).parents[1]


def test_two_processes_save_and_restore_one_checkpoint_and_fall_back_together(tmp_path):
    script = """
        import pathlib, sys, jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from vlp_jax.checkpoint import Checkpointer
        from vlp_jax.types import UserError
        directory, port, index = sys.argv[1:]
        jax.distributed.initialize(f"localhost:{port}", 2, int(index))
        place = NamedSharding(jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,)), P("a"))
        make = lambda k: jax.make_array_from_callback((6, 4), place, lambda i: np.full((6, 4), k, np.float32)[i])
        asked = {"w": jax.ShapeDtypeStruct((6, 4), jnp.float32, sharding=place)}
        one = Checkpointer(directory, keep=2, asynchronous=True)
        for step in (1, 2, 3):
            one.save(step, {"w": make(step)}, {"step": step})
        assert one.steps() == [2, 3], one.steps()
        assert one.restore(asked)[0] == 3
        jax.experimental.multihost_utils.sync_global_devices("read")
        if index == "0":
            (pathlib.Path(directory) / "000000003" / "arrays" / "manifest.ocdbt").unlink()
        jax.experimental.multihost_utils.sync_global_devices("damaged")
        step, state, metadata = one.restore(asked)
        assert (step, metadata) == (2, {"step": 2})
        np.testing.assert_array_equal(state["w"].addressable_shards[0].data, np.full((3, 4), 2, np.float32))
        try:
            one.restore(asked, 3)
            raise AssertionError("a corrupt step was restored")
        except UserError as error:
            assert "step 3" in str(error) and "2" in str(error)
        one.save(3, {"w": make(33)}, {})
        assert float(one.restore(asked)[1]["w"].addressable_shards[0].data[0, 0]) == 33
        one.close()
    """
    run_pair(script, tmp_path / "checkpoints")


def test_processes_without_a_common_directory_save_what_the_first_gathers_and_restore_their_copies(tmp_path):
    script = """
        import pathlib, shutil, sys, jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from vlp_jax import distributed, manifest
        from vlp_jax.checkpoint import Checkpointer
        from vlp_jax.types import UserError
        root, port, index = sys.argv[1:]
        jax.distributed.initialize(f"localhost:{port}", 2, int(index))
        mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
        values = {
            "w": (np.arange(24, dtype=np.float32).reshape(6, 4), P("a")),
            "b": (np.arange(4).astype(jnp.bfloat16), P()),
            "n": (np.int32(7), P()),
            "none": (np.zeros((0, 3), np.float32), P()),
        }
        place = lambda x, spec: jax.make_array_from_callback(np.shape(x), NamedSharding(mesh, spec), lambda i: x[i])
        state = {name: place(x, spec) for name, (x, spec) in values.items()}
        asked = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        directory, commits = pathlib.Path(root) / index, []
        new = lambda: Checkpointer(
            directory, keep=2, asynchronous=True, shared=False, committed=lambda: commits.append(1)
        )
        one = new()
        for step in (1, 2, 3):
            one.save(step, state, {"step": step})
        assert one.latest() == 3
        one.close()
        assert len(commits) == 3 and directory.exists() == (index == "0")
        if index == "1":
            shutil.copytree(pathlib.Path(root) / "0", directory)
        distributed.barrier("copied")
        one = new()
        step, restored, metadata = one.restore(asked)
        assert (step, metadata) == (3, {"step": 3})
        for name, (x, _) in values.items():
            assert restored[name].sharding == state[name].sharding and restored[name].dtype == x.dtype
            for shard in restored[name].addressable_shards:
                np.testing.assert_array_equal(shard.data, x[shard.index])

        def full(*_):
            raise OSError(28, "No space left on device")

        if index == "0":
            manifest.write = full
        one.save(4, state, {})
        try:
            one.wait()
            raise AssertionError("the first process's error is not the other's")
        except UserError as error:
            assert "process 0: [Errno 28] No space left" in str(error)
        assert one.latest() == 3
        one.close()
    """
    run_pair(script, tmp_path)


def run_pair(script, *args):
    """Runs a script in two processes, with these arguments, a port and the process's number."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, args), str(port)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    pair = [subprocess.Popen([*command, str(i)], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) for i in (0, 1)]
    try:
        errors = [process.communicate(timeout=120)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], "\n".join(errors)
