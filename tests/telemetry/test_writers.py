"""Metric files: valid JSON whatever the values, and after a kill and a resume the same as without."""

import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from vlp_jax.telemetry import writers as writers_lib
from vlp_jax.telemetry.writers import Writers, read_metrics
from vlp_jax.types import UserError

ROOT = pathlib.Path(writers_lib.__file__).parents[2]


def write_all(workdir, steps, tensorboard=False):
    writers = Writers(workdir, tensorboard=tensorboard)
    for step in steps:
        writers.write(step, {"loss": 1 / (step + 1), "examples": step * 8})
    writers.close()


def events(workdir):
    """Every event of the event files, in the order of the files; a record is length, crc, data, crc."""
    out = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            out.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return out


def test_lines_come_back_in_order_with_ints_and_floats(tmp_path):
    writers = Writers(tmp_path)
    writers.write(1, {"loss": np.float32(0.5), "examples": 8})
    writers.write(1, {"validation/recall": 0.25})
    writers.write(2, {"loss": 0.1})
    writers.close()
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 0.5, "examples": 8},
        {"step": 1, "validation/recall": 0.25},
        {"step": 2, "loss": 0.1},
    ]


@given(st.lists(st.floats(), max_size=5))
def test_any_float_survives_and_every_line_is_strict_json(tmp_path_factory, values):
    workdir = tmp_path_factory.mktemp("run")
    writers = Writers(workdir, tensorboard=False)
    for step, value in enumerate(values):
        writers.write(step, {"x": value})
    writers.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    if values:
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=refuse)
        for record, value in zip(read_metrics(workdir), values, strict=True):
            assert isinstance(record["x"], float)
            assert record["x"] == value or (math.isnan(record["x"]) and math.isnan(value))


@given(st.integers(1, 20), st.data())
def test_an_interrupted_and_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path_factory, total, data):
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    write_all(whole, range(1, total + 1))
    checkpoint = data.draw(st.integers(0, total))
    killed_at = data.draw(st.integers(checkpoint, total))
    write_all(parts, range(1, killed_at + 1))
    path = parts / "metrics.jsonl"
    if killed_at:
        content = path.read_bytes()
        # The kill may also have cut the line of a step after the checkpoint.
        cut = data.draw(st.integers(0, len(content.splitlines()[-1]))) if killed_at > checkpoint else 0
        path.write_bytes(content[: len(content) - cut])
    writers = Writers(parts, tensorboard=False)
    writers.truncate_after(checkpoint)
    for step in range(checkpoint + 1, total + 1):
        writers.write(step, {"loss": 1 / (step + 1), "examples": step * 8})
    writers.close()
    assert path.read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_torn_last_line_is_neither_read_nor_glued_to_the_next(tmp_path):
    write_all(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-3])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]
    write_all(tmp_path, [3])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 3]


def test_a_damaged_line_elsewhere_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "loss"\n{"step": 3}\n')
    for call in (lambda: read_metrics(tmp_path), lambda: Writers(tmp_path)):
        with pytest.raises(UserError, match=r"metrics.jsonl:2: .*delete this line"):
            call()
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path / "nowhere")


def test_flushed_lines_survive_sigkill(tmp_path):
    script = """
        import os, signal, sys
        from vlp_jax.telemetry.writers import Writers
        writers = Writers(sys.argv[1])
        for step in range(50):
            writers.write(step, {"loss": 1.0})
        writers.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == -9
    assert [r["step"] for r in read_metrics(tmp_path)] == list(range(50))
    assert [e.step for e in events(tmp_path) if e.summary.value] == list(range(50))


def test_tensorboard_gets_each_scalar_and_forgets_what_a_resume_writes_again(tmp_path):
    write_all(tmp_path, [1, 2, 3], tensorboard=True)
    writers = Writers(tmp_path)
    writers.truncate_after(2)
    writers.write(3, {"loss": 0.75})
    writers.close()
    seen = events(tmp_path)
    scalars = [(e.step, v.tag, v.simple_value) for e in seen for v in e.summary.value]
    assert (2, "examples", 16.0) in scalars
    assert scalars[-1] == (3, "loss", 0.75)
    # TensorBoard drops events from the step of a START on.
    assert [e.step for e in seen if e.HasField("session_log") and e.session_log.status == 1] == [3]


@pytest.mark.parametrize("enabled", [False, True])
def test_disabled_and_unused_writers_make_no_file(tmp_path, enabled):
    writers = Writers(tmp_path, enabled=enabled)
    writers.truncate_after(0)
    if not enabled:
        writers.write(1, {"loss": 1.0})
    writers.flush()
    writers.close()
    writers.close()
    assert os.listdir(tmp_path) == []


def test_errors_of_the_thread_surface_at_a_next_call_and_block_nobody(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers_lib, "_QUEUE_SIZE", 2)
    writers = Writers(tmp_path, tensorboard=False)
    with monkeypatch.context() as patch:
        patch.setattr(writers_lib, "_to_json", full_disk)
        for step in range(20):
            with contextlib.suppress(OSError):
                writers.write(step, {"loss": 1.0})
        with contextlib.suppress(OSError):
            writers.flush()
        writers.flush()  # said once
        with pytest.raises(OSError, match="No space left"):
            writers.write(20, {"loss": 1.0})
            writers.flush()
    writers.write(21, {"loss": 1.0})
    writers.close()
    assert [r["step"] for r in read_metrics(tmp_path)] == [21]


def test_misuse_is_refused(tmp_path):
    writers = Writers(tmp_path, tensorboard=False)
    with pytest.raises(ValueError, match="step"):
        writers.write(1, {"step": 2.0})
    writers.write(1, {"loss": 1.0})
    with pytest.raises(RuntimeError, match="before the first write"):
        writers.truncate_after(0)
    writers.close()
