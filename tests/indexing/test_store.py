"""An index is whole whenever the process that writes it dies, and damage is told."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vlp_jax.indexing.folder import Stamp
from vlp_jax.indexing.store import MANIFEST, Bad, Entry, Store, lock
from vlp_jax.types import UserError


def entry(path, windows, row=0, bad=()):
    spans = tuple((float(i), float(i + 1)) for i in range(windows))
    return Entry(path, Stamp(len(path), 5, 6), row, spans, bad)


def rows(*values):
    return np.array([[value, 0, -value] for value in values], np.float32)


def replaced(old, new):
    """A damage of the manifest."""

    def damage(manifest, _):
        assert old in manifest.read_bytes()
        manifest.write_bytes(manifest.read_bytes().replace(old, new, 1))

    return damage


@pytest.fixture
def store(tmp_path):
    """b of two windows, a of one, and a bad file."""
    store = Store.create(tmp_path, {"model": "m"}, 3)
    store.add([entry("b", 2), entry("bad", 0, bad=(Bad(None, None, "no video"),))], rows(1, 2))
    store.add([entry("a", 1)], rows(3))
    return store


def content(store):
    entries, matrix = store.matrix()
    return [(e.path, len(e.spans)) for e in entries], matrix[:, 0].tolist()


def test_what_is_added_comes_back_by_path(store, tmp_path):
    again = Store.open(tmp_path)
    assert content(again) == content(store) == ([("a", 1), ("b", 2)], [3, 1, 2])
    assert again.entries == store.entries and again.settings == {"model": "m"} and again.width == 3
    assert again.entries["bad"].bad == (Bad(None, None, "no video"),)


def test_an_empty_folder_holds_none(tmp_path):
    assert Store.open(tmp_path) is None and Store.open(tmp_path / "nowhere") is None


def test_names_of_any_bytes_come_back(store, tmp_path):
    names = ['caf\udce9 \n".mp4', "红/\u202e.mp4"]
    store.add([entry(name, 1, row) for row, name in enumerate(names)], rows(7, 8))
    assert set(names) <= set(Store.open(tmp_path).entries)


def test_a_changed_file_a_renamed_and_a_removed_one(store, tmp_path):
    store.add([entry("b", 1)], rows(9))
    store.move([("a", "z")], {"z": Stamp(1, 2, 3)})
    for one in (store, Store.open(tmp_path)):
        assert content(one) == ([("b", 1), ("z", 1)], [9, 3])
        assert one.entries["z"].stamp == Stamp(1, 2, 3) and "a" not in one.entries
    store.remove(["b", "bad"])
    assert content(Store.open(tmp_path)) == ([("z", 1)], [3])


def test_a_manifest_cut_anywhere_is_the_index_from_before(store, tmp_path):
    before = (tmp_path / MANIFEST).read_bytes()
    store.add([entry("c", 1)], rows(4))
    after = (tmp_path / MANIFEST).read_bytes()
    for length in range(len(before), len(after)):
        (tmp_path / MANIFEST).write_bytes(after[:length])
        assert content(Store.open(tmp_path)) == ([("a", 1), ("b", 2)], [3, 1, 2])
    # And the next entry does not run into what is left.
    again = Store.open(tmp_path)
    again.add([entry("d", 2)], rows(5, 6))
    assert content(Store.open(tmp_path)) == ([("a", 1), ("b", 2), ("d", 2)], [3, 1, 2, 5, 6])


def test_a_long_line_cut_in_two_leaves_nothing_behind(store, tmp_path):
    with (tmp_path / MANIFEST).open("ab") as f:
        f.write(b'{"path": "' + b"x" * 2**17)
    Store.open(tmp_path).add([entry("c", 1)], rows(4))
    assert content(Store.open(tmp_path)) == ([("a", 1), ("b", 2), ("c", 1)], [3, 1, 2, 4])
    assert b"xx" not in (tmp_path / MANIFEST).read_bytes()


def test_rows_that_no_entry_names_are_written_over(store, tmp_path):
    (file,) = tmp_path.glob("*.f32")
    with file.open("ab") as f:
        f.write(b"half a batch, and no entry")
    Store.open(tmp_path).add([entry("c", 1)], rows(4))
    assert content(Store.open(tmp_path)) == ([("a", 1), ("b", 2), ("c", 1)], [3, 1, 2, 4])


def test_compacting_drops_dead_rows_and_keeps_the_rest(store, tmp_path):
    store.compact()
    (before,) = tmp_path.glob("*.f32")
    assert before.stat().st_size == 3 * 3 * 4  # nothing is dead
    store.add([entry("b", 1)], rows(9))
    store.compact()
    (file,) = tmp_path.glob("*.f32")
    assert file != before and file.stat().st_size == 2 * 3 * 4
    for one in (store, Store.open(tmp_path)):
        assert content(one) == ([("a", 1), ("b", 1)], [3, 9]) and one.entries["bad"].bad
    store.add([entry("c", 1)], rows(4))
    assert content(Store.open(tmp_path)) == ([("a", 1), ("b", 1), ("c", 1)], [3, 9, 4])


def test_a_compaction_that_was_ended_before_its_manifest_changes_nothing(store, tmp_path, monkeypatch):
    store.add([entry("b", 1)], rows(9))

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlp_jax.indexing.store.write_atomically", die)
    with pytest.raises(KeyboardInterrupt):
        store.compact()
    assert content(Store.open(tmp_path)) == ([("a", 1), ("b", 1)], [3, 9])


def test_lines_that_newer_ones_replace_count_for_compacting(store, tmp_path):
    for number in range(9):
        store.add([entry("bad", 0, bad=(Bad(None, None, f"reason {number}", True),))], np.zeros((0, 3), np.float32))
    Store.open(tmp_path).compact()
    assert (tmp_path / MANIFEST).read_bytes().count(b"\n") == 1 + 3
    again = Store.open(tmp_path)
    assert content(again) == ([("a", 1), ("b", 2)], [3, 1, 2]) and again.entries["bad"].bad[0].error == "reason 8"
    (before,) = tmp_path.glob("*.f32")
    again.compact()
    assert before.exists()  # nothing is dead


def test_a_reader_opens_again_what_another_process_wrote_anew_meanwhile(store, tmp_path, monkeypatch):
    store.add([entry("b", 1)], rows(9))
    real = Store.matrix

    def late(self):
        if self is not store:
            store.compact()  # the other process, between the manifest and the rows
        return real(self)

    monkeypatch.setattr(Store, "matrix", late)
    _, entries, matrix = Store.read(tmp_path)
    assert [e.path for e in entries] == ["a", "b"] and matrix[:, 0].tolist() == [3, 9]


def test_rows_that_are_gone_for_good_are_damage(store, tmp_path):
    (embeddings,) = tmp_path.glob("*.f32")
    embeddings.unlink()
    with pytest.raises(UserError, match=r"is damaged .*No such file.*--reindex makes it anew"):
        Store.read(tmp_path)
    with pytest.raises(UserError, match=r"is damaged .*No such file"):
        store.matrix()


def test_an_index_of_before_reads_without_the_mark_of_a_second_try(store, tmp_path):
    text = (tmp_path / MANIFEST).read_text()
    assert '"no video", false]' in text
    (tmp_path / MANIFEST).write_text(text.replace('"no video", false]', '"no video"]'))
    assert Store.open(tmp_path).entries == store.entries


def test_making_an_index_anew_leaves_nothing_of_the_old_one(store, tmp_path):
    Store.create(tmp_path, {"model": "n"}, 2)
    again = Store.open(tmp_path)
    assert again.settings == {"model": "n"} and again.width == 2 and not again.entries
    assert len(list(tmp_path.glob("*.f32"))) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m, e: m.write_bytes(b"\n" + m.read_bytes()), "is damaged .*--reindex"),
        (lambda m, e: m.write_bytes(m.read_bytes().replace(b'"stamp"', b'"stump"', 1)), "is damaged .*stamp"),
        (lambda m, e: m.write_bytes(b""), "is damaged"),
        (replaced(b'"width": 3', b'"width": "3"'), "is damaged .*--reindex"),
        (replaced(b'"width": 3', b'"width": -3'), "is damaged .*width -3"),
        (replaced(b'"settings": {"model": "m"}', b'"settings": []'), "is damaged"),
        (replaced(b'"row": 0', b'"row": -1'), "is damaged .*row -1"),
        (replaced(b'"row": 0', b'"row": 0.5'), "is damaged"),
        (replaced(b"[0.0, 1.0]", b'["0", 1.0]'), "is damaged .*unexpected '0'"),
        (replaced(b'"path": "b"', b'"path": 3'), "is damaged"),
        (lambda m, e: e.unlink(), "is damaged .*No such file"),
        (lambda m, e: e.write_bytes(e.read_bytes()[:-1]), "35 bytes, 36 expected"),
        (lambda m, e: m.write_text(json.dumps({"format": 9}) + "\n"), "has format 9, not 1"),
    ],
)
def test_damage_is_told_with_the_way_out(store, tmp_path, damage, message):
    (embeddings,) = tmp_path.glob("*.f32")
    damage(tmp_path / MANIFEST, embeddings)
    with pytest.raises(UserError, match=message):
        Store.open(tmp_path)


def test_two_processes_do_not_write_at_once_and_a_dead_one_holds_nothing(tmp_path):
    code = (
        "import pathlib, sys, time\nfrom vlp_jax.indexing.store import lock\n"
        "with lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="is being written by another process"), lock(tmp_path):
        pass
    other.kill()
    other.wait()
    with lock(tmp_path):
        pass


def test_a_place_that_cannot_be_written_is_told_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*give --index=DIR"), lock(tmp_path / "file" / "index"):
        pass
