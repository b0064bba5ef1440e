import json
import os
import pathlib
import pickle

import pyarrow as pa
import pytest

from vlp_jax.input import arrow_cache
from vlp_jax.types import UserError

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def blocks(count, size=3, notes=None):
    for start in range(0, count, size):
        numbers = range(start, min(start + size, count))
        yield pa.record_batch({"n": list(numbers), "text": [f"t{n}" for n in numbers]}, schema=SCHEMA)
    return notes or {}


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_rows_and_notes_survive(count, monkeypatch):
    monkeypatch.setattr(arrow_cache, "_BLOCK_ROWS", 4)
    rows = arrow_cache.open_rows(["k"], SCHEMA, lambda: blocks(count, notes={"odd": [1, "ä"]}))
    again = arrow_cache.open_rows(["k"], SCHEMA, lambda: pytest.fail("built again"))
    for one in (rows, again, pickle.loads(pickle.dumps(rows))):
        assert [one[i] for i in range(len(one))] == [{"n": n, "text": f"t{n}"} for n in range(count)]
        assert one.notes == {"odd": [1, "ä"]}
        for wrong in (-1, count):
            with pytest.raises(IndexError):
                one[wrong]


def test_a_cached_file_is_as_readable_as_any_other_new_file(cache, tmp_path):
    (tmp_path / "new").touch()
    arrow_cache.open_rows(["shared"], SCHEMA, lambda: blocks(1))
    (file,) = cache.glob("*.arrow")
    assert file.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_each_key_has_its_own_file(cache):
    for key in (["a"], ["b"], ["a", "b"]):
        arrow_cache.open_rows(key, SCHEMA, lambda: blocks(2))
    assert len(list(cache.iterdir())) == 3


def test_identity_tells_a_changed_file(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"1")
    first = arrow_cache.identity(file)
    os.utime(file, ns=(1, 1))
    second = arrow_cache.identity(file)
    file.write_bytes(b"12")
    os.utime(file, ns=(1, 1))
    assert len({json.dumps(x) for x in (first, second, arrow_cache.identity(file))}) == 3


def test_a_builder_that_fails_leaves_nothing(cache):
    def failing():
        yield from blocks(4)
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        arrow_cache.open_rows(["k"], SCHEMA, failing)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("damage", [b"", b"ARROW1", None])
def test_a_damaged_file_is_made_anew_and_said(cache, caplog, damage):
    arrow_cache.open_rows(["k"], SCHEMA, lambda: blocks(5))
    (file,) = cache.iterdir()
    data = file.read_bytes()
    file.unlink()  # others may have it mapped
    file.write_bytes(data[:-40] if damage is None else damage)
    assert len(arrow_cache.open_rows(["k"], SCHEMA, lambda: blocks(5))) == 5
    assert "is damaged" in caplog.text and file.read_bytes() == data


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLP_JAX_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"file/below cannot be written \(Not a directory\).*VLP_JAX_CACHE"):
        arrow_cache.open_rows(["k"], SCHEMA, lambda: blocks(2))


def test_a_cache_without_room_names_the_variable(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa, "OSFile", full)
    with pytest.raises(UserError, match=r"No space left.*VLP_JAX_CACHE"):
        arrow_cache.open_rows(["k"], SCHEMA, lambda: blocks(2))
    assert not list(cache.iterdir())


def test_errors_of_the_originals_are_not_blamed_on_the_cache():
    def failing():
        yield from blocks(1)
        raise PermissionError(13, "Permission denied")

    with pytest.raises(PermissionError):
        arrow_cache.open_rows(["k"], SCHEMA, failing)


def test_a_file_that_vanished_before_a_worker_reads_is_a_message(cache):
    rows = pickle.loads(pickle.dumps(arrow_cache.open_rows(["k"], SCHEMA, lambda: blocks(2))))
    for file in cache.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="vanished from the cache"):
        rows[0]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("VLP_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert arrow_cache.directory() == tmp_path / "xdg" / "vlp_jax" / "tables"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arrow_cache.directory() == tmp_path / ".cache" / "vlp_jax" / "tables"
    monkeypatch.setenv("VLP_JAX_CACHE", "here")
    assert arrow_cache.directory() == pathlib.Path.cwd() / "here"
