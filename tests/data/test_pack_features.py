"""Packing a folder of features: what is in the directory, what is left out, and when nothing is done."""

import json

import numpy as np
import pytest

from data import pack_features
from vlp_jax.config import defaults, update
from vlp_jax.input import features
from vlp_jax.input.sources import Record
from vlp_jax.types import UserError


def write(path, shape=(6, 4), **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.savez(file, features=np.ones(shape, np.float32), **more)


@pytest.fixture
def root(tmp_path):
    for name in ("b", "a", "deep/er/c"):
        write(tmp_path / "features" / f"{name}.npz")
    (tmp_path / "features" / "notes.txt").write_text("no features")
    return tmp_path / "features"


def test_the_command_packs_every_file_and_says_how_to_train(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert pack_features.main(["--root", str(root), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "3 clips of 3" in said.out
    assert f"--config.input.features.path={out} --config.input.features.width=4\n" in said.out
    assert "features: 3/3 clips (100.0%)" in said.err
    assert features.read_form(out) == features.Form(4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["features", "out"]


def test_many_shards_hold_the_clips_in_the_order_of_the_index(root, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_features, "SHARD_BYTES", 1)
    for number in range(12):
        write(root / f"{number}.npz", times=np.arange(6.0) + number)
    pack_features.pack(root, tmp_path / "out")
    assert len(list((tmp_path / "out").glob(features.SHARDS))) == 15
    knobs = {"input.features.path": str(tmp_path / "out"), "input.features.width": 4}
    store = features.FeatureStore(update(defaults(), knobs).input)
    for number in range(12):
        assert store.read(Record(b"", "", f"{number}#t=0,{number + 1}", (0.0, number + 1.0)), 1).shape == (1, 1, 4)


def test_unfit_files_and_those_of_another_form_are_left_out_and_listed(root, tmp_path):
    write(root / "wide.npz", (6, 5))
    write(root / "regions.npz", (6, 2, 4))
    (root / "empty.npz").write_bytes(b"")
    line = pack_features.pack(root, tmp_path / "out")
    assert "3 clips of 6; 3 skipped" in line
    rows = [json.loads(row) for row in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [row["clip_id"] for row in rows] == ["empty", "regions", "wide"]
    assert "not a readable" in rows[0]["reason"] and "where the first clip, 'a', has" in rows[2]["reason"]


def test_a_second_run_does_nothing_and_other_files_are_refused(root, tmp_path):
    pack_features.pack(root, tmp_path / "out")
    assert "nothing done" in pack_features.pack(root, tmp_path / "out")
    write(root / "d.npz")
    with pytest.raises(UserError, match=r"made of other files than .* holds now"):
        pack_features.pack(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "a").mkdir(parents=True), "holds no .npz file"),
        (lambda root: None, "no such directory"),
        (lambda root: (root.mkdir(), (root / "a.npz").write_bytes(b"x")), "none of 1 files is fit; the first is a: "),
    ],
)
def test_nothing_to_pack_is_an_error_and_leaves_nothing(tmp_path, spoil, message):
    spoil(tmp_path / "features")
    with pytest.raises(UserError, match=message):
        pack_features.pack(tmp_path / "features", tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} <= {"features"}
