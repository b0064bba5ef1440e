"""A miniature dataset and a model that compiles in seconds, for running the binaries as a user does."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from data import pack_features, train_tokenizer
from data.moving_shapes import builder
from vlp_jax.input import sources

ROOT = pathlib.Path(__file__).parents[2]

MICRO = {
    "steps": 12,
    "epochs": 0.0,
    "batch_size": 8,
    "log_every": 1,
    "input.image_size": 16,
    "input.frames": 3,
    "input.cache_gib": 0.0,
    "model.vision.width": 16,
    "model.vision.layers": 2,
    "model.vision.heads": 2,
    "model.pruning.layers": (1,),
    "model.selection.frames": 2,
    "model.decoder.width": 8,
    "model.decoder.heads": 2,
    "model.decoder.layers": 1,
    "model.fusion.layers": 1,
    "model.text.width": 16,
    "model.text.layers": 1,
    "model.text.heads": 2,
    "model.projection": 16,
    "checkpoint.every_steps": 4,
    "evaluation.batch_size": 8,
}


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Directory of a miniature moving_shapes with its tokenizer."""
    out = tmp_path_factory.mktemp("shapes") / "moving_shapes"
    builder.prepare(out, builder.Settings(train=24, validation=6, test=10, compositional=4), 1)
    captions = train_tokenizer.read_captions(out, "caption", None)
    (out / "tokenizer.model").write_bytes(train_tokenizer.train(captions))
    return out


def words_of(caption):
    """The features of a clip whose caption it is: which words each of its events has, four moments an event."""
    events = caption.split(", then ")
    out = np.zeros((8, 32), np.float16)
    for moment in range(8):
        for word in events[moment * len(events) // 8].split():
            out[moment, sum(word.encode()) * 7 % 32] = 1
    return out


@pytest.fixture(scope="session")
def features(shapes, tmp_path_factory):
    """Packed features of all clips of moving_shapes but two of the training split."""
    root = tmp_path_factory.mktemp("made") / "features"
    root.mkdir()
    for split in ("train", "validation", "test"):
        source = sources.TfdsSource(str(shapes), split)
        for number in range(2 if split == "train" else 0, len(source)):
            record = source[number]
            np.savez(root / f"{record.clip_id}.npz", features=words_of(record.caption))
    pack_features.pack(root, root.parent / "packed")
    return root.parent / "packed"


@pytest.fixture(scope="session")
def environment():
    """Environment of the binaries: they compile quickly, and a restarted process, by the tests' cache, not at all."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


@pytest.fixture(scope="session")
def command(shapes):
    """Builds the argument list of the training binary for a workdir, with changes to the miniature config."""

    def build(workdir, config="configs/smaug.py:tiny", **changes):
        values = {**MICRO, "input.path": str(shapes), "input.tokenizer": str(shapes / "tokenizer.model"), **changes}
        flags = [f"--config.{key}={value}" for key, value in values.items()]
        return [sys.executable, "-m", "vlp_jax.train", f"--config={config}", f"--workdir={workdir}", *flags]

    return build


@pytest.fixture(scope="session")
def run(environment):
    """Runs a command from the repository's root to its end; returns the CompletedProcess with text output."""

    def call(arguments, **more):
        env = {**environment, **more}
        return subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)

    return call


@pytest.fixture(scope="session")
def start(environment):
    """Starts a command in the background, output to a pipe."""

    def call(arguments):
        return subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory, command, run):
    """Workdir of an uninterrupted run of 12 steps."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = run(command(workdir))
    assert done.returncode == 0, done.stderr
    return workdir
