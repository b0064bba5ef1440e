"""Apache Beam writes the same records as the plain path: byte for byte, in the same order."""

import sys

import pytest

from data import prepare
from data.corpora import beam, writer
from data.corpora.corpus import Clip, Corpus, Stream
from vlp_jax.types import UserError

needs_beam = pytest.mark.skipif(
    "apache_beam" not in sys.modules and not __import__("importlib.util").util.find_spec("apache_beam"),
    reason="apache-beam is not installed: pip install -e .[beam]",
)


@pytest.fixture
def corpus(make_video, make_image, tmp_path):
    clips = []
    for i in range(11):
        path = tmp_path / "in" / f"v{i}"
        data = make_image(path) if i % 4 == 3 else make_video(path, count=3 + i)
        if i == 5:
            path.write_bytes(data[:700])  # neither path can re-encode it
        clips.append(Clip(f"v{i}", path, f"caption {i}"))
    return Corpus("some", {"train": Stream(lambda: iter(clips[:8]), 8), "validation": clips[8:]})


@needs_beam
@pytest.mark.parametrize("encoding", [writer.Encoding(), writer.Encoding(short_side=32, fps=4)])
def test_beam_writes_the_records_of_the_plain_path_in_the_same_order(
    corpus, read_records, tmp_path, encoding, monkeypatch
):
    monkeypatch.setattr(beam, "_CHUNK", 3)  # several work items
    (tmp_path / "plain").mkdir()
    (tmp_path / "beam").mkdir()
    plain = writer.write(tmp_path / "plain", corpus, encoding, workers=2)
    beamed = beam.write(tmp_path / "beam", corpus, encoding)
    assert beamed.counts == plain.counts == {"train": 8, "validation": 3}
    for split in plain.counts:
        assert read_records(beamed.path, split) == read_records(plain.path, split)
    assert beamed.failed == plain.failed
    assert [row["clip_id"] for row in plain.failed] == (["v5"] if encoding else [])


@needs_beam
def test_beam_keeps_the_order_over_several_shards(make_video, read_records, tmp_path, monkeypatch):
    from tensorflow_datasets.core.utils import shard_utils

    monkeypatch.setattr(shard_utils.ShardConfig, "min_shard_size", 2000)
    monkeypatch.setattr(shard_utils.ShardConfig, "max_shard_size", 10000)
    path = tmp_path / "v.mp4"
    make_video(path)
    clips = [Clip(f"v{i}", path) for i in range(60)]
    written = beam.write(tmp_path, Corpus("some", {"train": clips}))
    assert len(list(written.path.glob("*train*array_record*"))) > 3
    assert [r["clip_id"] for r in read_records(written.path, "train")] == [c.clip_id for c in clips]


@needs_beam
def test_the_command_takes_beam_and_its_options(make_image, read_records, tmp_path, capsys):
    make_image(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "Train_GCC-training.tsv").write_text("x\ta.jpg\n")
    flags = ["cc3m", "--root", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--beam"]
    assert prepare.main([*flags, "--beam-options", "--runner=DirectRunner --direct_num_workers=1"]) == 0
    assert "--direct_num_workers=1" in capsys.readouterr().err
    assert read_records(tmp_path / "out", "train")[0]["clip_id"] == "a"
    assert not list(tmp_path.glob("*.tmp"))


def test_without_apache_beam_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"pip install -e \.\[beam\]"):
        prepare.prepare(prepare.Settings("cc3m", str(tmp_path / "in")), tmp_path / "out", beam_options="")
