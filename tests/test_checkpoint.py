"""Checkpoints: bit-exact, independent of the mesh, intact after SIGKILL, and every damaged byte noticed."""

import collections
import json
import logging
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vlp_jax import checkpoint
from vlp_jax.checkpoint import Checkpointer
from vlp_jax.types import UserError

ROOT = pathlib.Path(checkpoint.__file__).parents[1]


def make_state(seed: int = 0, rows: int = 5):
    """Parameters of several dtypes, an optimiser's NamedTuples, and a key."""
    rng = np.random.default_rng(seed)
    params = {
        "encoder": {"kernel": jnp.asarray(rng.normal(size=(rows, 3)), jnp.float32), "b.i/as": jnp.zeros((3,))},
        "half": jnp.asarray(rng.normal(size=(4, 3)), jnp.bfloat16),
    }
    return {
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "step": jnp.asarray(rng.integers(-(2**31), 2**31), jnp.int32),
        "key": jax.random.key_data(jax.random.key(seed)),
        "ready": jnp.asarray(True),
        "nothing": jnp.zeros((0, 7), jnp.bfloat16),
        "absent": None,
    }


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same_bits(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def saver(tmp_path):
    """Builds Checkpointers on one directory and closes them."""
    made = []

    def make(keep=3, asynchronous=False):
        made.append(Checkpointer(tmp_path / "checkpoints", keep=keep, asynchronous=asynchronous))
        return made[-1]

    yield make
    for one in made:
        one.close()


def step_folder(tmp_path, step):
    return tmp_path / "checkpoints" / f"{step:09d}"


# --- Round trip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_round_trip_is_bit_exact_and_keeps_classes_and_metadata(saver, asynchronous):
    state = make_state()
    odd = jnp.asarray([jnp.nan, -0.0, jnp.inf])
    state["params"]["encoder"]["kernel"] = state["params"]["encoder"]["kernel"].at[0].set(odd)
    one = saver(asynchronous=asynchronous)
    one.save(7, state, {"examples": 896, "config": {"layers": (3, 6)}, "nan": float("nan")})
    one.wait()
    step, restored, metadata = saver().restore(abstract(state))
    assert step == 7
    assert_same_bits(restored, state)
    assert metadata["examples"] == 896 and metadata["config"] == {"layers": [3, 6]} and np.isnan(metadata["nan"])


def test_background_save_is_not_disturbed_by_donating_the_state_to_the_next_step(saver):
    bump = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
    state = {"a": jnp.arange(200_000.0), "b": jnp.zeros((300, 300), jnp.int32)}
    one = saver(keep=9, asynchronous=True)
    for step in range(5):
        one.save(step, state, {})
        state = bump(state)
    for step in range(5):
        restored = one.restore(abstract(state), step)[1]
        np.testing.assert_array_equal(restored["a"], np.arange(200_000.0, dtype=np.float32) + step)
        np.testing.assert_array_equal(restored["b"], np.full((300, 300), step))


def test_what_is_stored_does_not_depend_on_python_classes(saver):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    saver().save(1, {"params": nnx.state(model)}, {})
    plain = {"params": nnx.to_pure_dict(nnx.state(model))}
    assert_same_bits(saver().restore(abstract(plain))[1], plain)


def test_restored_arrays_take_the_sharding_asked_for_on_another_mesh(tmp_path):
    script = """
        import sys, jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from vlp_jax.checkpoint import Checkpointer
        from absl import logging
        logging.set_verbosity(logging.INFO)
        assert jax.device_count() == 8
        mesh = lambda shape: jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
        value = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
        saved = {"w": jax.device_put(value, NamedSharding(mesh((4, 2)), P("a", "b"))), "n": jnp.asarray(3)}
        one = Checkpointer(sys.argv[1], keep=1, asynchronous=True)
        one.save(4, saved, {})
        for shape, spec in (((2, 4), P("b", "a")), ((8, 1), P(None, "a")), ((4, 2), P())):
            place = NamedSharding(mesh(shape), spec)
            asked = {"w": jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=place),
                     "n": jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh(shape), P()))}
            _, state, _ = one.restore(asked)
            assert state["w"].sharding == place, state["w"].sharding
            assert state["n"].sharding == asked["n"].sharding
            for shard in state["w"].addressable_shards:
                np.testing.assert_array_equal(shard.data, value[shard.index])
        one.close()
    """
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = run_script(script, tmp_path / "checkpoints", env={"XLA_FLAGS": flags})
    assert done.stderr == ""  # orbax stays quiet, even at absl's INFO
    one = Checkpointer(tmp_path / "checkpoints", keep=1, asynchronous=False)
    asked = {"w": jax.ShapeDtypeStruct((16, 8), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.int32)}
    step, state, _ = one.restore(asked)  # one device, no sharding given
    assert step == 4
    np.testing.assert_array_equal(state["w"], np.arange(128, dtype=np.float32).reshape(16, 8))
    one.close()


def run_script(script, *args, env=None, timeout=120):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done


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
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "checkpoints"), str(port)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    pair = [subprocess.Popen([*command, str(i)], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) for i in (0, 1)]
    try:
        errors = [process.communicate(timeout=120)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], "\n".join(errors)


# --- Corruption -------------------------------------------------------------------------------------------------------


def flip(position):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[int(position * (len(data) - 1))] ^= 1
        path.write_bytes(data)

    return damage


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGE = {
    "flip first": flip(0),
    "flip middle": flip(0.5),
    "flip last": flip(1),
    "truncate": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "lengthen": lengthen,
    "delete": lambda path: path.unlink(),
}


def test_damage_to_any_file_is_detected_said_in_one_line_and_the_step_before_is_restored(saver, tmp_path, caplog):
    one = saver()
    old, new = make_state(1), make_state(2)
    one.save(10, old, {"which": "old"})
    one.save(20, new, {"which": "new"})
    folder = step_folder(tmp_path, 20)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    assert len(files) > 5 and folder / "manifest.json" in files
    for path in files:
        for kind, damage in DAMAGE.items():
            intact = path.read_bytes()
            assert intact, path
            damage(path)
            caplog.clear()
            step, restored, metadata = one.restore(abstract(new))
            assert (step, metadata) == (10, {"which": "old"}), (path, kind)
            assert_same_bits(restored, old)
            [record] = [r for r in caplog.records if r.levelno >= logging.WARNING]
            for part in ("step 20", str(path.relative_to(folder)), "falling back to step 10"):
                assert part in record.getMessage(), (path, kind)
            with pytest.raises(UserError, match=r"step 20 .* corrupt .*there is also step 10"):
                one.restore(abstract(new), 20)
            path.write_bytes(intact)
    caplog.clear()
    assert one.restore(abstract(new))[0] == 20
    assert not caplog.records


def test_every_byte_of_the_manifest_is_covered(saver, tmp_path):
    one = saver()
    one.save(1, {"w": jnp.zeros(2)}, {"text": "a  b", "number": 1.50, "list": [1, 2]})
    path = step_folder(tmp_path, 1) / "manifest.json"
    intact = path.read_bytes()
    for position in range(len(intact)):
        for bit in (1, 32):  # 32 turns letters into the other case and keeps much JSON valid
            data = bytearray(intact)
            data[position] ^= bit
            path.write_bytes(data)
            with pytest.raises(UserError, match="manifest"):
                one.read_metadata(1)
    path.write_bytes(intact.replace(b"\n ", b"\n\t"))  # the same content for any JSON parser
    with pytest.raises(UserError, match="manifest"):
        one.read_metadata()
    path.write_bytes(intact)
    assert one.read_metadata() == {"text": "a  b", "number": 1.5, "list": [1, 2]}


def test_all_corrupt_is_an_error_that_lists_each(saver, tmp_path):
    one, state = saver(), make_state()
    for step in (1, 2):
        one.save(step, state, {})
    truncate(step_folder(tmp_path, 1) / "arrays" / "manifest.ocdbt")
    (step_folder(tmp_path, 2) / "manifest.json").unlink()
    with pytest.raises(UserError) as error:
        one.restore(abstract(state))
    for part in ("step 1: arrays/manifest.ocdbt has", "step 2: manifest.json is missing"):
        assert part in str(error.value)


def test_a_renamed_step_is_not_taken_for_another(saver, tmp_path):
    one, state = saver(), make_state()
    for step in (1, 2):
        one.save(step, state, {"step": step})
    step_folder(tmp_path, 1).rename(step_folder(tmp_path, 3))
    assert one.restore(abstract(state))[::2] == (2, {"step": 2})
    with pytest.raises(UserError, match="is that of step 1"):
        one.restore(abstract(state), 3)


def test_a_step_discarded_while_it_is_read_is_not_called_corrupt(saver, monkeypatch, caplog):
    reader, writer, state = saver(), saver(keep=1), make_state()
    writer.save(1, state, {})
    problem = checkpoint._problem

    def slow(folder):
        if writer.latest() == 1:
            writer.save(2, state, {})  # and drops step 1, which the reader has just begun to read
        return problem(folder)

    monkeypatch.setattr(checkpoint, "_problem", slow)
    assert reader.restore(abstract(state))[0] == 2
    assert not caplog.records


def test_a_corrupt_newer_step_is_replaced_or_removed_by_the_run_that_fell_back(saver, tmp_path, caplog):
    one, state = saver(keep=2), make_state()
    for step in (10, 20, 30):
        one.save(step, state, {})
    truncate(step_folder(tmp_path, 30) / "arrays" / "manifest.ocdbt")
    one.save(25, state, {})
    assert one.steps() == [20, 25]
    assert any("step 30" in r.getMessage() and "removed" in r.getMessage() for r in caplog.records)
    truncate(step_folder(tmp_path, 25) / "arrays" / "manifest.ocdbt")
    one.save(25, state, {"again": True})
    caplog.clear()
    assert one.restore(abstract(state))[::2] == (25, {"again": True})
    assert not caplog.records


def test_an_intact_later_step_is_neither_removed_nor_left_to_mislead_a_resume(saver):
    one, state = saver(), make_state()
    one.save(20, state, {})
    with pytest.raises(UserError, match=r"cannot save step 10: .* holds step 20"):
        one.save(10, state, {})
    assert one.steps() == [20]


# --- Dying while saving -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_sigkill_at_any_moment_leaves_the_newest_committed_step_intact(tmp_path):
    # One process imports everything and forks a victim for each kill: a fresh interpreter takes seconds.
    delays = random.Random(0)
    script = """
        import os, signal, sys, time
        import jax, jax.numpy as jnp
        from vlp_jax.checkpoint import Checkpointer
        for name, asynchronous, delay in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
            read, write = os.pipe()
            victim = os.fork()
            if not victim:
                one = Checkpointer(name, keep=2, asynchronous=asynchronous == "True")
                step = (one.latest() or 0)
                while True:
                    step += 1
                    one.save(step, {"w": jnp.full((300_000,), step, jnp.int32), "b": jnp.full(3, step)}, {"step": step})
                    if asynchronous != "True":
                        os.write(write, f"{step} ".encode())
                    elif step > 1:
                        os.write(write, f"{step - 1} ".encode())  # the save before is committed by now
            os.close(write)
            said = os.read(read, 100)  # it has begun
            time.sleep(float(delay))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            while more := os.read(read, 10_000):
                said += more
            print(name, said.decode().split()[-1])
            sys.stdout.flush()
    """
    trials = [(str(tmp_path / str(i % 2)), i % 2 == 1, delays.uniform(0, 0.25)) for i in range(8)]
    done = run_script(script, *[x for trial in trials for x in trial], env={"PYTHONWARNINGS": "ignore"})
    promised = collections.defaultdict(int)
    for line in done.stdout.splitlines():
        name, step = line.split()
        promised[name] = max(promised[name], int(step))
    assert len(promised) == 2
    asked = {"w": jax.ShapeDtypeStruct((300_000,), jnp.int32), "b": jax.ShapeDtypeStruct((3,), jnp.int32)}
    for name, step in promised.items():
        one = Checkpointer(name, keep=2, asynchronous=False)
        latest = one.latest()
        assert latest in (step, step + 1)  # one more may have been committed before it could be said
        for s in one.steps():
            _, state, metadata = one.restore(asked, s)
            assert metadata == {"step": s}
            np.testing.assert_array_equal(state["w"], np.full(300_000, s))
        one.save(latest + 1, state, {})
        assert one.steps() == [latest, latest + 1]
        assert sorted(os.listdir(name)) == [f"{s:09d}" for s in one.steps()]  # leftovers are gone
        one.close()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("point", ["hash", "manifest", "commit", "discard"])
def test_an_error_at_any_point_surfaces_and_leaves_only_whole_steps(saver, tmp_path, monkeypatch, point, asynchronous):
    state = make_state()
    one = saver(keep=1, asynchronous=asynchronous)
    one.save(1, state, {"n": 1})
    one.wait()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    rename = pathlib.Path.rename
    with monkeypatch.context() as patch:
        if point == "hash":
            patch.setattr(checkpoint, "_sync_and_sum", fail)
        elif point == "manifest":
            patch.setattr(checkpoint, "_render", fail)
        elif point == "commit":
            committing = lambda path, to: fail() if path.name.startswith("unfinished") else rename(path, to)
            patch.setattr(pathlib.Path, "rename", committing)
        else:
            patch.setattr(shutil, "rmtree", fail)
        if asynchronous:
            one.save(2, state, {"n": 2})
            with pytest.raises(OSError, match="No space left"):
                one.wait()
        else:
            with pytest.raises(OSError, match="No space left"):
                one.save(2, state, {"n": 2})
    survivor = 2 if point == "discard" else 1
    assert saver().steps() == [survivor]
    assert saver().restore(abstract(state))[::2] == (survivor, {"n": survivor})
    one.save(3, state, {"n": 3})
    one.wait()
    assert os.listdir(tmp_path / "checkpoints") == ["000000003"]


def test_error_of_a_background_save_surfaces_at_the_next_save(saver, monkeypatch):
    one = saver(asynchronous=True)
    monkeypatch.setattr(checkpoint, "_render", lambda body: 1 / 0)
    one.save(1, {"w": jnp.zeros(3)}, {})
    with pytest.raises(ZeroDivisionError):
        one.save(2, {"w": jnp.zeros(3)}, {})
    monkeypatch.undo()
    one.save(3, {"w": jnp.zeros(3)}, {})
    assert one.steps() == [3]


# --- Which steps there are --------------------------------------------------------------------------------------------


def test_the_newest_are_kept_and_the_directory_is_made_by_the_first_save(saver, tmp_path):
    one = saver(keep=2)
    assert (one.steps(), one.latest()) == ([], None)
    assert not (tmp_path / "checkpoints").exists()
    for step in (0, 5, 10, 1_000_000_000):
        one.save(step, {"w": jnp.full(3, step)}, {})
    assert (one.steps(), one.latest()) == ([10, 1_000_000_000], 1_000_000_000)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["000000010", "1000000000"]


def test_saving_a_step_again_replaces_it(saver):
    one = saver(keep=2)
    for value in (1, 2, 3):
        one.save(4, {"w": jnp.full(3, value)}, {"value": value})
        step, state, metadata = one.restore({"w": jax.ShapeDtypeStruct((3,), jnp.int32)})
        assert (step, state["w"].tolist(), metadata) == (4, [value] * 3, {"value": value})
        assert one.steps() == [4]


def test_foreign_files_in_the_directory_are_left_alone(saver, tmp_path):
    for name in ("notes", "000000003.txt", "unfinished-notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    one = saver(keep=1)
    for step in (1, 2):
        one.save(step, {"w": jnp.zeros(3)}, {})
    assert one.steps() == [2]
    assert {"notes", "000000003.txt", "unfinished-notes"} < set(os.listdir(tmp_path / "checkpoints"))


def test_an_absent_step_is_refused_with_those_there_are(saver, tmp_path):
    one, state = saver(), {"w": jnp.zeros(3)}
    with pytest.raises(UserError, match="holds no checkpoint"):
        one.restore(abstract(state))
    with pytest.raises(UserError, match="holds no checkpoint"):
        one.read_metadata()
    for step in (3, 6):
        one.save(step, state, {})
    for call in (lambda: one.restore(abstract(state), 5), lambda: one.read_metadata(5)):
        with pytest.raises(UserError, match="no checkpoint of step 5: there is step 3, 6"):
            call()


# --- Structure --------------------------------------------------------------------------------------------------------


def test_differences_in_structure_are_named(saver):
    one = saver()
    one.save(1, {"a": {"w": jnp.zeros((2, 3)), "old": jnp.zeros(1)}, "n": jnp.zeros((), jnp.int32)}, {})
    asked = {
        "a": {"w": jax.ShapeDtypeStruct((2, 4), jnp.float32), "new": jax.ShapeDtypeStruct((1,), jnp.float32)},
        "n": jax.ShapeDtypeStruct((), jnp.float32),
    }
    with pytest.raises(UserError) as error:
        one.restore(asked)
    for part in (
        "1 missing from the checkpoint: a/new",
        "1 unexpected in the checkpoint: a/old",
        "a/w is float32[2, 3] there, float32[2, 4] expected",
        "n is int32[] there, float32[] expected",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("leaf", "error", "text"),
    [
        (3, TypeError, "expected a jax or NumPy array"),
        (jax.random.key(0), TypeError, "key_data"),
        ({"b/c": np.zeros(1), "b": {"c": np.zeros(1)}}, ValueError, "x/b/c"),
    ],
)
def test_leaves_that_would_not_come_back_are_refused(saver, leaf, error, text):
    one = saver()
    with pytest.raises(error, match=text):
        one.save(1, {"x": leaf}, {})
    assert one.steps() == []


def test_metadata_outside_json_is_refused_before_anything_is_written(saver):
    one = saver(asynchronous=True)
    with pytest.raises(TypeError):
        one.save(1, {"w": jnp.zeros(1)}, {"x": object()})
    assert one.steps() == []


def test_manifest_is_plain_json_with_the_leaves(saver, tmp_path):
    saver().save(1, {"a": {"w": jnp.zeros((2, 3), jnp.bfloat16)}}, {"k": 1})
    body = json.loads((step_folder(tmp_path, 1) / "manifest.json").read_text())["body"]
    assert body["leaves"] == {"a/w": ["bfloat16", [2, 3]]}
    assert body["metadata"] == {"k": 1}


@pytest.mark.parametrize(("directory", "keep"), [("gs://bucket/run", 1), ("here", 0)])
def test_what_cannot_work_is_refused_at_once(directory, keep):
    with pytest.raises(UserError):
        Checkpointer(directory, keep=keep, asynchronous=False)


def test_a_closed_checkpointer_may_be_closed_again(saver):
    one = saver(asynchronous=True)
    one.save(1, {"w": jnp.zeros(3)}, {})
    one.close()
    one.close()
    assert saver().steps() == [1]
