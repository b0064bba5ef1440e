"""A workdir's copy in a store: what is sent when, what comes back, what is refused. The store is fsspec's memory."""

import importlib.util
import pathlib
import threading
import time

import fsspec
import pytest

from tests.stores import ADDRESS, change, largest, opened, restored, save, steps
from vlp_jax import mirror
from vlp_jax.types import UserError


def test_what_one_machine_sends_another_goes_on_with(tmp_path, store):
    one = opened(tmp_path / "one")
    save(tmp_path / "one", 1, 2)
    (tmp_path / "one" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "one" / "lock").touch()
    one.finish()
    assert "lock" not in store()
    two = opened(tmp_path / "two")
    assert restored(tmp_path / "two") == 2
    assert (tmp_path / "two" / "metrics.jsonl").read_text() == "{}\n"
    assert steps(["checkpoints/" + p.name for p in (tmp_path / "two" / "checkpoints").iterdir()]) == ["000000002"]
    save(tmp_path / "two", 3)
    two.finish()
    # The first machine's folder is behind the store now.
    (tmp_path / "two" / "metrics.jsonl").write_text("{}\n{}\n")
    two.finish()
    opened(tmp_path / "one")
    assert restored(tmp_path / "one") == 3
    assert (tmp_path / "one" / "metrics.jsonl").read_text() == "{}\n{}\n"


def test_a_folder_that_is_ahead_of_the_store_keeps_what_it_has(tmp_path, store):
    one = opened(tmp_path / "one")
    save(tmp_path / "one", 1)
    (tmp_path / "one" / "metrics.jsonl").write_text("1\n")
    one.finish()
    save(tmp_path / "one", 2)
    (tmp_path / "one" / "metrics.jsonl").write_text("1\n2\n")
    again = opened(tmp_path / "one")
    assert restored(tmp_path / "one") == 2
    assert (tmp_path / "one" / "metrics.jsonl").read_text() == "1\n2\n"
    again.finish()
    assert steps(store()) == ["000000001", "000000002"] and store()["metrics.jsonl"] == b"1\n2\n"


def test_a_named_step_is_fetched_beside_the_newest(tmp_path, store):
    one = opened(tmp_path / "one")
    save(tmp_path / "one", 4, 8)
    one.finish()
    copy = mirror.Mirror(ADDRESS, tmp_path / "two")
    copy.fetch()
    assert [path.name for path in (tmp_path / "two" / "checkpoints").iterdir()] == ["000000008"]
    copy.fetch(4)
    assert {path.name for path in (tmp_path / "two" / "checkpoints").iterdir()} == {"000000004", "000000008"}
    copy.fetch(5)  # there is none: the evaluation says so


def test_an_error_of_any_kind_ends_no_sending_thread(tmp_path, store, monkeypatch):
    one = opened(tmp_path / "one")
    here, calls = one._here, []

    def fails_once():
        calls.append(1)
        if len(calls) == 1:
            raise FileNotFoundError("went away while it was listed")
        return here()

    monkeypatch.setattr(one, "_here", fails_once)
    one.start()
    one.notify()
    while not calls:
        time.sleep(0.01)
    save(tmp_path / "one", 4)
    one.notify()
    deadline = time.monotonic() + 30
    while not steps(store()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert steps(store()) == ["000000004"]
    one.finish()


def test_a_store_that_refuses_a_new_run_leaves_none_here(tmp_path, store, monkeypatch):
    copy = mirror.Mirror(ADDRESS, tmp_path / "one")

    def refuse(*_):
        raise PermissionError("read only")

    monkeypatch.setattr(copy._fs, "pipe_file", refuse)
    with pytest.raises(UserError, match="read only"):
        copy.fetch()
    monkeypatch.undo()
    copy.fetch()  # the same command, once it may write


def test_steps_that_are_no_longer_kept_leave_the_store(tmp_path, store):
    one = opened(tmp_path / "one")
    for step in range(1, 5):
        save(tmp_path / "one", step, committed=one.notify)
        one.finish()
    assert steps(store()) == ["000000003", "000000004"]


def test_a_command_that_saves_nothing_removes_nothing(tmp_path, store):
    one = opened(tmp_path / "one")
    save(tmp_path / "one", 1, 2, committed=one.notify)
    one.finish()
    two = opened(tmp_path / "two")  # has the newest alone
    two.finish()
    assert steps(store()) == ["000000001", "000000002"]


def test_a_run_that_goes_on_sends_no_step_a_second_time_but_one_that_differs(tmp_path, store, monkeypatch):
    one = opened(tmp_path / "one")
    save(tmp_path / "one", 1, 2)
    one.finish()
    fsspec.filesystem("memory").pipe_file("/bucket/run/checkpoints/000000001/manifest.json", b"of another run")
    sent = []
    put = type(one._fs).put_file
    monkeypatch.setattr(type(one._fs), "put_file", lambda self, a, b, **k: (sent.append(b), put(self, a, b, **k)))
    before = store()
    opened(tmp_path / "one").finish()
    assert steps(name.removeprefix("/bucket/run/") for name in sent) == ["000000001"]
    assert store() == before | {
        "checkpoints/000000001/manifest.json": (tmp_path / "one/checkpoints/000000001/manifest.json").read_bytes()
    }


def test_each_process_sends_its_own_ledger_alone(tmp_path, store):
    first = opened(tmp_path / "first")
    (tmp_path / "first" / "ledger-1.jsonl").write_text("as it was fetched\n")
    (tmp_path / "first" / "ledger.jsonl").write_text("0\n")
    first.finish()
    assert store().keys() == {"run_id", "ledger.jsonl"}
    other = mirror.Mirror(ADDRESS, tmp_path / "other", only="ledger-1.jsonl")
    other.fetch()
    for name in ("ledger.jsonl", "ledger-1.jsonl", "ledger-12.jsonl", "config.json"):
        (tmp_path / "other" / name).write_text("1\n")
    other.finish()
    assert store() == {"run_id": store()["run_id"], "ledger.jsonl": b"0\n", "ledger-1.jsonl": b"1\n"}


def test_what_processes_compare_is_the_newest_intact_steps_or_the_one_asked_for(tmp_path, store):
    one = opened(tmp_path / "one")
    assert one.steps() == ["", ""] and one.steps(3) == []
    save(tmp_path / "one", 1, 2, 3, keep=3)
    assert one.steps() == ["checkpoints/000000003/", ""]
    assert one.steps(1) == ["checkpoints/000000001/"] and one.steps(7) == []
    (tmp_path / "one" / "checkpoints" / "000000003" / "manifest.json").write_text("{}")
    assert one.steps() == ["checkpoints/000000002/", ""]
    (tmp_path / "one" / "checkpoints").rename(tmp_path / "one" / "best")
    assert one.steps() == ["", "best/000000002/"]


def test_a_commit_is_sent_by_the_thread(tmp_path, store):
    one = opened(tmp_path / "one")
    one.start()
    save(tmp_path / "one", 7, committed=one.notify)
    one.finish()
    assert steps(store()) == ["000000007"]


def test_a_damaged_step_is_fetched_again_and_does_not_spoil_the_store(tmp_path, store, caplog):
    one = opened(tmp_path / "one")
    save(tmp_path / "one", 1, 2)
    one.finish()
    before = store()
    damaged = tmp_path / "one" / largest(store(), "000000002")
    damaged.write_bytes(damaged.read_bytes()[:-10])
    opened(tmp_path / "one").finish()
    assert "fetched again" in caplog.text and restored(tmp_path / "one") == 2
    assert store() == before


def test_the_manifest_of_a_step_is_sent_last_and_removed_first(tmp_path, store, monkeypatch):
    one = opened(tmp_path / "one")
    order = []
    fs = type(one._fs)
    put, remove = fs.put_file, fs.rm_file
    monkeypatch.setattr(fs, "put_file", lambda self, a, b, **k: (order.append(("put", b)), put(self, a, b, **k)))
    monkeypatch.setattr(fs, "rm_file", lambda self, a: (order.append(("remove", a)), remove(self, a)))
    for step in (1, 2, 3):
        save(tmp_path / "one", step, committed=one.notify)
        one.finish()
    for step in ("000000002", "000000003"):
        sent = [name for kind, name in order if kind == "put" and f"/{step}/" in name]
        assert len(sent) > 2 and sent[-1].endswith("manifest.json") and "manifest.json" not in "".join(sent[:-1])
    gone = [name for kind, name in order if kind == "remove"]
    assert "/000000001/" in gone[0] and gone[0].endswith("manifest.json")


def test_a_step_without_a_manifest_does_not_exist(tmp_path, store):
    one = opened(tmp_path / "one")
    save(tmp_path / "one", 1, 2)
    one.finish()
    fsspec.filesystem("memory").rm_file("/bucket/run/checkpoints/000000002/manifest.json")
    opened(tmp_path / "two")
    assert restored(tmp_path / "two") == 1


def test_a_changed_byte_in_the_store_is_noticed_and_the_step_before_is_taken(tmp_path, store, caplog):
    one = opened(tmp_path / "one")
    save(tmp_path / "one", 1, 2)
    one.finish()
    change(largest(store(), "000000002"))
    opened(tmp_path / "two")
    assert restored(tmp_path / "two") == 1
    assert "000000002" in caplog.text and "corrupt" in caplog.text
    change(largest(store(), "000000001"))
    with pytest.raises(UserError, match="every checkpoint in memory://bucket/run/checkpoints is corrupt"):
        opened(tmp_path / "three")


def test_a_store_that_fails_is_tried_again_and_is_an_error_at_the_end(tmp_path, store, monkeypatch, caplog):
    one = opened(tmp_path / "one")
    save(tmp_path / "one", 1)
    with monkeypatch.context() as patch:
        patch.setattr(type(one._fs), "put_file", lambda *args, **kwargs: (_ for _ in ()).throw(PermissionError("403")))
        one._attempt()
        assert "tried again at the next checkpoint" in caplog.text
        with pytest.raises(UserError, match=r"403; check the address and the credentials.*run the same command again"):
            one.finish()
    one.finish()
    assert steps(store()) == ["000000001"]


def test_what_is_written_while_the_thread_sends_is_sent_at_the_end(tmp_path, store, monkeypatch):
    one = opened(tmp_path / "one")
    save(tmp_path / "one", 1)
    fs, sending = type(one._fs), threading.Event()
    put = fs.put_file

    def slow(self, *args, **kwargs):
        sending.set()
        time.sleep(0.05)
        put(self, *args, **kwargs)

    monkeypatch.setattr(fs, "put_file", slow)
    one.start()
    one.notify()
    assert sending.wait(10)
    (tmp_path / "one" / "metrics.jsonl").write_text("last\n")
    one.finish()
    assert store()["metrics.jsonl"] == b"last\n"


def test_an_evaluation_elsewhere_sends_its_results_and_touches_nothing_else(tmp_path, store):
    trained = opened(tmp_path / "trained")
    save(tmp_path / "trained", 1, 2)
    (tmp_path / "trained" / "metrics.jsonl").write_text("1\n2\n")
    trained.finish()
    there = mirror.Mirror(ADDRESS, tmp_path / "there", only="evaluation/")
    there.fetch()
    # Meanwhile the run goes on.
    save(tmp_path / "trained", 3)
    (tmp_path / "trained" / "metrics.jsonl").write_text("1\n2\n3\n")
    trained.finish()
    before = store()
    (tmp_path / "there" / "evaluation").mkdir()
    (tmp_path / "there" / "evaluation" / "result.json").write_text("{}")
    there.finish()
    assert store() == before | {"evaluation/result.json": b"{}"}


def test_an_evaluation_of_an_address_without_a_run_is_refused_and_makes_none(tmp_path, store):
    with pytest.raises(UserError, match="holds no run"):
        mirror.Mirror(ADDRESS, tmp_path / "there", only="evaluation/").fetch()
    assert store() == {}


def test_two_runs_are_never_mixed(tmp_path, store):
    opened(tmp_path / "one").finish()
    fsspec.filesystem("memory").rm("/bucket/run", recursive=True)
    with pytest.raises(UserError, match="where there is none"):
        opened(tmp_path / "one")
    opened(tmp_path / "other").finish()
    with pytest.raises(UserError, match="is another run than"):
        opened(tmp_path / "one")


@pytest.mark.parametrize(
    ("address", "words"),
    [("nowhere://bucket/run", "nowhere"), ("gs://bucket/run", "gcsfs")],
)
def test_an_address_without_its_package_says_what_to_install(tmp_path, address, words):
    if words == "gcsfs" and importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed here")
    with pytest.raises(UserError, match=words):
        mirror.Mirror(address, tmp_path)


def test_every_address_has_a_folder_of_its_own_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("VLP_JAX_STAGING", "/scratch")
    folders = {mirror.staging(address) for address in ("gs://a/run", "gs://b/run", "gs://a/run/")}
    assert len(folders) == 2 and {folder.parent for folder in folders} == {pathlib.Path("/scratch")}
    assert len({mirror.staging("gs://a/run", of) for of in ("", "1", "1-evaluation")} - folders) == 2
