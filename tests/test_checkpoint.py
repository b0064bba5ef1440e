"""Checkpoints: bit-exact, independent of the mesh, intact after SIGKILL."""

import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.checkpoints import abstract, assert_same_bits, make_state, step_folder
from vlp_jax import checkpoint, manifest
from vlp_jax.checkpoint import Checkpointer
from vlp_jax.types import UserError

ROOT = pathlib.Path(checkpoint.__file__).parents[1]

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


def test_a_part_is_restored_alone_and_still_strictly(saver):
    one, state = saver(), make_state()
    one.save(1, state, {"n": 1})
    step, params, metadata = one.restore(abstract(state["params"]), part="params")
    assert (step, metadata) == (1, {"n": 1})
    assert_same_bits(params, state["params"])
    fewer = {"half": abstract(state["params"]["half"])}
    with pytest.raises(UserError, match=r"2 unexpected in the checkpoint: params/encoder/b\.i/as"):
        one.restore(fewer, part="params")
    with pytest.raises(UserError, match="missing from the checkpoint: ema/"):
        one.restore(abstract(state["params"]), part="ema")


def test_a_process_that_lists_too_little_restores_what_the_first_one_names(saver, monkeypatch):
    one, other, state = saver(keep=2), saver(keep=2), make_state()
    for step in (1, 2):
        one.save(step, state, {"step": step})
    all_of_them = other._listing()
    monkeypatch.setattr(other, "_listing", lambda: all_of_them[:1])
    # What the first process says, as it passes from one process to another.
    said = iter(json.loads(json.dumps([one.latest(), one._newest_intact(None), one._read_manifest(None)])))
    monkeypatch.setattr(checkpoint.distributed, "from_first", lambda make: next(said))
    assert other.latest() == 2
    step, restored, metadata = other.restore(abstract(state))
    assert (step, metadata) == (2, {"step": 2}) == (2, other.read_metadata())
    assert_same_bits(restored, state)


def test_what_is_stored_does_not_depend_on_python_classes(saver):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    saver().save(1, {"params": nnx.state(model)}, {})
    plain = {"params": nnx.to_pure_dict(nnx.state(model))}
    assert_same_bits(saver().restore(abstract(plain))[1], plain)


def test_restored_arrays_take_the_sharding_asked_for_on_another_mesh(tmp_path, eight_devices):
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
    done = run_script(script, tmp_path / "checkpoints", env=eight_devices)
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
            patch.setattr(manifest, "_sync_and_sum", fail)
        elif point == "manifest":
            patch.setattr(manifest, "_render", fail)
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
    monkeypatch.setattr(manifest, "_render", lambda body: 1 / 0)
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
