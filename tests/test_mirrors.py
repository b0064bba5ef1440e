"""The mirrors of several processes: each with a folder of its own, all at one step, or all with one error."""

import threading

import jax
import pytest

from tests.stores import ADDRESS, change, largest, opened, restored, save
from vlp_jax import distributed, launch, mirror, mirrors
from vlp_jax.types import UserError


@pytest.fixture
def processes(tmp_path, monkeypatch):
    """Calls a function in several threads, each of which is a process of one job; returns results or errors.

    No more than two where they read from the store: its files are shared objects, each with one position.
    """
    monkeypatch.setenv("VLP_JAX_STAGING", str(tmp_path))

    def run(count, work):
        own, meeting, said = threading.local(), threading.Barrier(count, timeout=30), [None] * count
        results = [None] * count

        def gather(value):
            said[own.number] = value
            meeting.wait()
            everyones = list(said)
            meeting.wait()
            return everyones

        def one(number):
            own.number = number
            try:
                results[number] = work()
            except UserError as error:
                results[number] = error

        with monkeypatch.context() as patch:
            patch.setattr(distributed, "gather", gather)
            patch.setattr(jax, "process_count", lambda: count)
            patch.setattr(jax, "process_index", lambda: own.number)
            threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return results

    return run


def trained(*numbers):
    """A run of one process that has saved and sent these steps; its folder."""
    folder = mirror.staging(ADDRESS)
    one = opened(folder)
    save(folder, *numbers)
    one.finish()
    return folder


def test_processes_have_the_step_that_the_first_is_ahead_of_the_store(store, processes):
    folder = trained(1)
    save(folder, 2)
    stale = mirror.staging(ADDRESS, "1") / "checkpoints" / "000000009"
    stale.mkdir(parents=True)
    both = processes(2, lambda: mirrors.open_together(ADDRESS, "", None))
    assert [restored(one.folder) for one in both] == [2, 2]
    assert both[0].folder != both[1].folder and not stale.exists()


def test_a_step_that_is_damaged_in_the_store_is_sent_again_before_others_fetch_it(store, processes):
    trained(1, 2)
    before = store()
    change(largest(store(), "000000002"))
    assert [restored(one.folder) for one in processes(2, lambda: mirrors.open_together(ADDRESS, "", None))] == [2, 2]
    assert store() == before


@pytest.mark.parametrize("kind", ["checkpoints", "best"])
def test_an_evaluation_whose_processes_would_read_different_steps_is_refused_by_all(store, processes, kind):
    folder = trained(1)
    save(folder, 2)
    if kind == "best":
        (folder / "checkpoints" / "000000002").rename(folder / "000000002")
        (folder / "best").mkdir()
        (folder / "000000002").rename(folder / "best" / "000000002")
    before = store()
    errors = processes(2, lambda: mirrors.open_together(ADDRESS, "evaluation/", None))
    for error in errors:
        assert f"process 0 has checkpoints/{'000000002' if kind == 'checkpoints' else '000000001, best'}" in str(error)
        assert "process 1 fetched checkpoints/000000001 from the store" in str(error)
    assert store() == before
    # A step that both have.
    assert len(processes(2, lambda: mirrors.open_together(ADDRESS, "evaluation/", 1).folder)) == 2


def test_the_error_of_one_process_ends_all(store, processes):
    trained(1)
    mirror.staging(ADDRESS, "1").write_text("no folder")
    errors = processes(3, lambda: mirrors.open_together(ADDRESS, "", None))
    assert [type(error) for error in errors] == [UserError] * 3 and len(set(map(str, errors))) == 1
    assert str(errors[0]).startswith("process 1: ")


def test_a_second_job_leaves_the_folders_of_the_first_alone(store, processes):
    trained(1)
    first = processes(2, lambda: mirrors.open_together(ADDRESS, "", None))
    (first[1].folder / "ledger-1.jsonl").write_text("{}\n")
    errors = processes(2, lambda: mirrors.open_together(ADDRESS, "", None))
    assert all("in use by another training process" in str(error) for error in errors)
    assert (first[1].folder / "ledger-1.jsonl").exists()
    for one in first:
        one.finish()
    assert "ledger-1.jsonl" in store()
    again = processes(2, lambda: mirrors.open_together(ADDRESS, "", None))
    assert (again[1].folder / "ledger-1.jsonl").read_text() == "{}\n"


def test_processes_with_different_addresses_are_refused(processes):
    def open_workdir():
        with launch.open_workdir(f"memory://bucket/run{jax.process_index()}", print):
            raise AssertionError("opened")

    errors = processes(2, open_workdir)
    assert "'memory://bucket/run0' and 'memory://bucket/run1'" in str(errors[0]) and str(errors[0]) == str(errors[1])
