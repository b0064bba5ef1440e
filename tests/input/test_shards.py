import concurrent.futures
import io
import json
import multiprocessing
import operator
import os
import pickle
import tarfile

import numpy as np
import pytest

from vlp_jax import config as config_lib
from vlp_jax.input import shards, sources, tar_index
from vlp_jax.types import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key, caption=None, media=None, **metadata):
    """Members as video2dataset writes them."""
    caption = f"caption of {key}" if caption is None else caption
    metadata = {"url": f"http://{key}", "caption": caption.upper(), "status": "success", **metadata}
    return [
        (f"{key}.json", json.dumps(metadata).encode()),
        (f"{key}.mp4", f"<{key}>".encode() * 300 if media is None else media),
        (f"{key}.txt", caption.encode()),
    ]


@pytest.fixture
def corpus(tmp_path):
    """Three shards of four samples."""
    for shard in range(3):
        members = [m for i in range(4) for m in sample(f"{shard:05d}{i:04d}")]
        pack(tmp_path / "corpus" / f"{shard:05d}.tar", members)
    return tmp_path / "corpus"


def every(source):
    return [source[i] for i in range(len(source))]


def one(tmp_path, members, **options):
    return shards.ShardSource(str(pack(tmp_path / "s.tar", members)), **options)


# --- Records ----------------------------------------------------------------------------------------------------------


def test_samples_become_records_in_the_order_of_the_shards(corpus):
    config = config_lib.update(config_lib.defaults(), {"input.kind": "shards", "input.path": str(corpus)})
    keys = [f"{shard:05d}{i:04d}" for shard in range(3) for i in range(4)]
    source = sources.open_source(config.input, "all")
    expected = [sources.Record(f"<{k}>".encode() * 300, f"caption of {k}", f"{k[:5]}/{k}") for k in keys]
    assert every(source) == expected and not source.problems
    assert source.annotation(5) == sources.Record(b"", expected[5].caption, expected[5].clip_id)
    config.input.caption_key = "caption"
    assert [r.caption for r in every(sources.open_source(config.input, "all"))] == [
        f"caption of {k}".upper() for k in keys
    ]


def test_any_order_of_reading_gives_the_bytes_that_unpacking_gives(tmp_path):
    rng = np.random.Generator(np.random.Philox(7))
    media = {f"k{i}": rng.bytes(int(rng.integers(0, 5000))) for i in range(50)}
    members = [m for key, data in media.items() for m in sample(key, media=data)]
    places = rng.permutation(len(members))
    path = pack(tmp_path / "s.tar", [members[i] for i in places])  # members of a sample need not be neighbours
    source = shards.ShardSource(str(path))
    assert len(source) == 50
    for i in rng.permutation(50):
        record = source[int(i)]
        with tarfile.open(path) as tar:
            assert tar.extractfile(f"{record.clip_id.removeprefix('s/')}.mp4").read() == record.video
    assert {r.clip_id: r.video for r in every(source)} == {f"s/{k}": v for k, v in media.items()}


def test_keys_end_at_the_first_dot_of_the_basename(tmp_path):
    members = [
        ("./v1.2/a.b.mp4", b"no"),
        ("./v1.2/a.MP4", b"yes"),
        ("v1.2/a.txt", b"text"),
        ("v1.2/.hidden.mp4", b"no"),
    ]
    source = one(tmp_path, members)
    assert every(source) == [sources.Record(b"yes", "text", "s/v1.2/a")]
    assert source.problems == [
        (str(tmp_path / "s.tar"), "neither media nor .txt nor .json: 2, the first './v1.2/a.b.mp4'")
    ]


@pytest.mark.parametrize("extension", ["mp4", "webm", "mkv", "avi", "mov", "jpg", "jpeg", "png", "webp", "JPG"])
def test_media_of_each_kind_are_found(tmp_path, extension):
    assert one(tmp_path, [(f"a.{extension}", b"data"), ("a.txt", b"x")])[0].video == b"data"


def test_of_several_media_the_video_is_taken_and_it_is_said(tmp_path):
    source = one(tmp_path, [("a.jpg", b"thumbnail"), ("a.mp4", b"video"), ("a.txt", b"x")])
    assert source[0].video == b"video"
    assert "several media, of which .mp4 is taken: 1, the first 'a'" in source.problems[0][1]


def test_a_sample_whose_member_comes_twice_is_not_used_for_its_caption_may_be_another_ones(tmp_path):
    members = [("a.mp4", b"old"), ("a.txt", b"x"), ("a.mp4", b"new"), ("b.mp4", b"b"), ("b.txt", b"y")]
    source = one(tmp_path, members)
    assert every(source) == [sources.Record(b"b", "y", "s/b")]
    assert "not used, with a member that is in it twice: 1, the first 'a.mp4'" in source.problems[0][1]


def test_half_an_emoji_and_endless_nesting_in_a_json_member_harm_nobody_else(tmp_path):
    members = [("a.mp4", b"a"), ("a.json", b'{"caption": "cut \\ud83d"}')]
    members += [("b.mp4", b"b"), ("b.json", b"[" * 100_000)]
    captions = [record.caption for record in every(one(tmp_path, members, caption_key="caption"))]
    assert captions == ["cut \ufffd", ""]


def test_a_shard_that_cannot_be_read_is_reported_and_the_others_are_used(corpus):
    (corpus / "00001.tar").unlink()
    (corpus / "00001.tar").mkdir()
    source = shards.ShardSource(str(corpus))
    assert len(source) == 8
    assert source.problems == [(str(corpus / "00001.tar"), "no file that this user may read")]


# --- Which shards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "first"),
    [
        ("", 0),
        ("*.tar", 0),
        ("{00000..00002}.tar", 0),
        ("{00001..00002}.tar", 1),
        ("0000{1..2}.tar", 1),
        ("00002.tar", 2),
    ],
)
def test_shards_are_given_by_directory_glob_range_or_name(corpus, pattern, first):
    source = shards.ShardSource(str(corpus / pattern))
    assert [r.clip_id.split("/")[1] for r in every(source)] == [
        f"{shard:05d}{i:04d}" for shard in range(first, 3) for i in range(4)
    ]


def test_shards_of_one_name_in_several_folders_have_different_clip_ids(tmp_path):
    for folder in ("a", "b"):
        pack(tmp_path / folder / "0.tar", sample("k"))
    assert [r.clip_id for r in every(shards.ShardSource(str(tmp_path / "{a,b}" / "0.tar").replace("{a,b}", "*")))] == [
        "a/0/k",
        "b/0/k",
    ]


def test_a_range_of_shards_is_a_split(corpus):
    source = shards.ShardSource(str(corpus), "shards=1..2")
    assert len(source) == 8 and source[0].clip_id == "00001/000010000"


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("none", {}, "no such file or directory; expected a directory of .tar files, a glob, or a range"),
        ("none*.tar", {}, "matches no file"),
        ("{00001..00004}.tar", {}, r"2 of its shards do not exist, the first .*00003.tar"),
        ("", {"split": "train"}, "split 'train' of .*: expected 'all', or 'shards=first..last' .* from 0 to 2, its 3"),
        ("", {"split": "shards=2..3"}, "split 'shards=2..3'"),
        ("", {"split": "shards=2..1"}, "split 'shards=2..1'"),
        ("", {"caption_key": "captoin"}, "caption_key = 'captoin'.*keys url, caption, status; did you mean 'caption'"),
        ("", {"caption_key": "url.x"}, "caption_key = 'url.x': no text there"),
    ],
)
def test_wrong_settings_say_what_is_there(corpus, path, options, message):
    with pytest.raises(UserError, match=message):
        shards.ShardSource(str(corpus / path), **options)


def test_compressed_shards_are_refused_with_the_fix(tmp_path):
    folder = tmp_path / "gz"
    folder.mkdir()
    with tarfile.open(folder / "0.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"))
    for path in (folder, folder / "0.tar.gz"):
        with pytest.raises(UserError, match=r"0\.tar\.gz is compressed.*gunzip"):
            shards.ShardSource(str(path))
    (folder / "0.tar.gz").rename(folder / "0.tar")
    with pytest.raises(UserError, match=r"0\.tar is compressed \(gzip\).*gunzip"):
        shards.ShardSource(str(folder))


@pytest.mark.parametrize("content", [b"", b"no tar" * 200, bytes(10240)], ids=["empty", "no tar", "no member"])
def test_a_set_without_a_sample_is_refused_with_the_reason(tmp_path, content):
    (tmp_path / "s.tar").write_bytes(content)
    reason = {0: "an empty file", 1200: "no tar header at byte 0", 10240: "an archive without a file"}[len(content)]
    with pytest.raises(UserError, match=f"holds no sample: .*s.tar: {reason}"):
        shards.ShardSource(str(tmp_path))


# --- Captions ---------------------------------------------------------------------------------------------------------


def test_without_txt_members_the_keys_of_the_json_are_listed(tmp_path):
    members = [m for m in sample("a", title="t", height=3) if not m[0].endswith(".txt")]
    with pytest.raises(
        UserError, match=r"no .txt member: set config.input.caption_key to one of the keys url, caption, status, title"
    ):
        one(tmp_path, members)
    with pytest.raises(UserError, match=r"no .json member.*set it to ''"):
        one(tmp_path, [("a.mp4", b"x"), ("a.txt", b"y")], caption_key="caption")


def test_keys_may_lead_into_objects_and_may_hold_dots(tmp_path):
    members = sample("a", **{"info": {"title": " nested "}, "dotted.key": "flat"})
    assert one(tmp_path, members, caption_key="info.title")[0].caption == "nested"
    assert one(tmp_path, members, caption_key="dotted.key")[0].caption == "flat"


def test_bad_samples_stay_as_records_that_fail(tmp_path, caplog):
    members = [
        *sample("a"),
        ("no_media.txt", b"x"),
        ("no_media.json", b'{"caption": "X"}'),
        ("no_caption.mp4", b"v"),
        *sample("empty", caption=" "),
        *[("broken.mp4", b"v"), ("broken.json", b'{"caption":'), ("broken.txt", b"\xff text\n")],
        *[("other.mp4", b"v"), ("other.json", b'{"caption": ["list"]}')],
    ]
    found = {r.clip_id: (bool(r.video), r.caption) for r in every(one(tmp_path, members))}
    assert found == {
        "s/a": (True, "caption of a"),
        "s/no_media": (False, "x"),
        "s/no_caption": (True, ""),
        "s/empty": (True, ""),
        "s/broken": (True, "\ufffd text"),
        "s/other": (True, ""),
    }
    assert "1 of 6 samples have no media" in caplog.text and "2 of 6 samples have no .txt member" in caplog.text
    found = {r.clip_id: r.caption for r in every(one(tmp_path, members, caption_key="caption"))}
    assert found["s/a"] == "CAPTION OF A" and found["s/no_media"] == "X"
    assert [found[f"s/{k}"] for k in ("no_caption", "broken", "other")] == ["", "", ""]


# --- Damage -----------------------------------------------------------------------------------------------------------


def test_of_a_truncated_shard_the_whole_samples_are_used_and_the_rest_is_reported(tmp_path, caplog):
    whole = pack(tmp_path / "w.tar", [m for i in range(5) for m in sample(f"k{i}")])
    records, data = every(shards.ShardSource(str(whole))), whole.read_bytes()
    with tarfile.open(whole) as tar:
        media = [m.offset_data + m.size for m in tar if m.name.endswith(".mp4")]
        texts = [(m.offset_data, m.offset_data + m.size) for m in tar if m.name.endswith(".txt")]
    path = tmp_path / "cut" / "w.tar"
    path.parent.mkdir()
    for size in range(texts[0][1], texts[-1][1], 300):
        caplog.clear()
        path.write_bytes(data[:size])
        source = shards.ShardSource(str(path))
        # Where not even the header of a sample's text is there, nothing says that it had one beside its .json.
        expected = sum(m <= size and not start <= size < end for m, (start, end) in zip(media, texts))
        found = every(source)
        assert [r.video for r in found] == [r.video for r in records[:expected]], size
        assert [r.caption for r in found[:-1]] == [r.caption for r in records[: expected - 1]]
        assert found[-1].caption in (records[expected - 1].caption, "")
        (problem,) = source.problems
        assert problem[0] == str(path) and f"{expected} are used" in problem[1]
        assert "1 shards are not used whole" in caplog.text
        assert shards.ShardSource(str(path)).problems == source.problems


def test_a_damaged_shard_does_not_take_the_others_along(corpus):
    data = (corpus / "00001.tar").read_bytes()
    (corpus / "00001.tar").write_bytes(data[: len(data) // 2])
    source = shards.ShardSource(str(corpus))
    ids = [r.clip_id for r in every(source)]
    assert ids[:4] + ids[-4:] == [f"{s:05d}/{s:05d}{i:04d}" for s in (0, 2) for i in range(4)]
    assert 8 < len(ids) < 12 and [name for name, _ in source.problems] == [str(corpus / "00001.tar")]


def test_a_shard_that_shrinks_while_it_is_read_is_a_message(corpus):
    source = shards.ShardSource(str(corpus))
    os.truncate(corpus / "00002.tar", 600)
    with pytest.raises(UserError, match=r"00002.tar became shorter"):
        source[11]
    assert source[0].caption


# --- Processes and threads --------------------------------------------------------------------------------------------


def test_shards_are_walked_once_until_they_change(corpus, monkeypatch):
    shards.ShardSource(str(corpus))
    with monkeypatch.context() as blocked:
        blocked.setattr(tar_index, "walk", lambda *_: pytest.fail("walked again"))
        assert len(shards.ShardSource(str(corpus), caption_key="caption")) == 12
    pack(corpus / "00001.tar", sample("new"))
    assert [r.clip_id for r in every(shards.ShardSource(str(corpus)))][4] == "00001/new"


def test_a_pickled_source_reads_the_same_in_another_process(corpus):
    source = shards.ShardSource(str(corpus))
    first = source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0] == first and copy.problems == source.problems
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(operator.getitem, source, 11).result() == source[11]


def test_threads_share_few_open_files(corpus, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN", 1)
    source = shards.ShardSource(str(corpus))
    expected = every(source)
    before = len(os.listdir("/proc/self/fd"))
    order = np.random.Generator(np.random.Philox(3)).integers(0, 12, 600).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, order)) == [expected[i] for i in order]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
