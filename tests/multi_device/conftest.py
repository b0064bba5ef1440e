"""Running a script on eight devices: JAX fixes their number when it starts, so it is a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def on_eight_devices(eight_devices):
    """Runs a script that reads a job from stdin, as JSON, and prints a result as its last line; returns the result."""

    def run(script, job=None):
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(job),
            cwd=ROOT,
            env={**os.environ, **eight_devices, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
