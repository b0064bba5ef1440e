"""Damage to a checkpoint: every changed byte is noticed, said, and the step before is restored."""

import logging

import jax.numpy as jnp
import pytest

from tests.checkpoints import abstract, assert_same_bits, make_state, step_folder
from vlp_jax import manifest
from vlp_jax.types import UserError


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
    problem = manifest.problem

    def slow(folder):
        if writer.latest() == 1:
            writer.save(2, state, {})  # and drops step 1, which the reader has just begun to read
        return problem(folder)

    monkeypatch.setattr(manifest, "problem", slow)
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
