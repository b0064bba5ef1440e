"""A miniature run that was trained and evaluated, for the notebooks to look into."""

import shutil
import sys

import pytest

# Fixtures.
from tests.end_to_end.conftest import command, environment, finished, run, shapes  # noqa: F401


@pytest.fixture(scope="session")
def evaluated(finished, run):  # noqa: F811
    """Workdir of a run with the results that the quickstart has."""
    arguments = [sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={finished}", "--bootstrap=20"]
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    return finished


@pytest.fixture(scope="session")
def another(evaluated, tmp_path_factory):
    """Another run, as good as the first."""
    return shutil.copytree(evaluated, tmp_path_factory.mktemp("another") / "other_run")
