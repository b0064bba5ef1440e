"""Precomputed features: which of them are read, which files are bad clips, and how they come into batches."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import pack_features
from vlp_jax import config as config_lib
from vlp_jax.input import check, features, pipeline, sources
from vlp_jax.input.ledger import Ledger
from vlp_jax.input.mixture import Mixture, Part
from vlp_jax.input.sources import Record
from vlp_jax.input.tokenizer import open_tokenizer
from vlp_jax.input.video import TooFewFrames, VideoError, sample_frames
from vlp_jax.types import UserError

WIDTH = 5


def made(number, count=12, regions=0, boxes=0, dtype=np.float16):
    """Features that tell the clip and the moment; a second apart, from 0.5 s on."""
    rng = np.random.default_rng(number)
    arrays = {"features": rng.normal(size=(count, *([regions] if regions else []), WIDTH)).astype(dtype)}
    if boxes:
        arrays["boxes"] = rng.random((count, regions, boxes)).astype(np.float32)
    return {**arrays, "times": np.arange(count) + 0.5}


def npz(**arrays):
    target = io.BytesIO()
    np.savez(target, **arrays)
    return target.getvalue()


def settings(path, frames=4, **form):
    c = config_lib.defaults()
    config_lib.update(c, {"input.features.path": str(path), "input.features.width": WIDTH, "input.frames": frames})
    return config_lib.update(c, {f"input.features.{key}": value for key, value in form.items()}).input


def record(clip_id, span=None):
    return Record(b"", "a caption", sources.span_id(clip_id, span), span)


@pytest.fixture(params=["folder", "packed"])
def store(request, tmp_path):
    """`store(files, **form)`: a FeatureStore of the files, as they are and packed."""

    def make(files, frames=4, **form):
        root = tmp_path / "features"
        for name, data in files.items():
            path = root / f"{name}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else npz(**data))
        if request.param == "packed":
            pack_features.pack(root, tmp_path / "packed")
            root = tmp_path / "packed"
        return features.FeatureStore(settings(root, frames, **form))

    return make


# --- What is read -----------------------------------------------------------------------------------------------------


def test_each_clip_has_its_own_features_whatever_its_name(store):
    names = ["b", "a", "videos/a.mp4", "größe", "z" * 90, "0"]
    made_of = {name: made(number) for number, name in enumerate(names)}
    opened = pickle.loads(pickle.dumps(store(made_of)))
    for name in names:
        got = opened.read(record(name), 12)
        assert got.dtype == np.float32 and got.shape == (12, 1, WIDTH)
        np.testing.assert_array_equal(got[:, 0], made_of[name]["features"].astype(np.float32))
        assert name in opened.origin(record(name)) or opened.origin(record(name)).endswith("packed")


@given(st.integers(1, 40), st.integers(1, 12), st.none() | st.integers(0, 2**32))
def test_moments_are_chosen_as_frames_are(tmp_path_factory, count, frames, seed):
    root = tmp_path_factory.mktemp("features")
    (root / "a.npz").write_bytes(npz(**made(1, count)))
    opened = features.FeatureStore(settings(root))
    draw = lambda: None if seed is None else np.random.default_rng(seed)
    if count < frames:
        with pytest.raises(TooFewFrames, match=f"{count} frames with features, fewer than the {frames} asked"):
            opened.read(record("a"), frames, draw())
        return
    expected = made(1, count)["features"][sample_frames(count, frames, draw())]
    np.testing.assert_array_equal(opened.read(record("a"), frames, draw())[:, 0], expected.astype(np.float32))


@given(st.integers(0, 12), st.integers(1, 13))
def test_a_span_takes_the_moments_inside_it(tmp_path_factory, start, length):
    root = tmp_path_factory.mktemp("features")
    (root / "a.npz").write_bytes(npz(**made(1, 12)))
    opened, span = features.FeatureStore(settings(root)), (float(start), float(start + length))
    inside = [i for i in range(12) if span[0] <= i + 0.5 < span[1]]
    if not inside:
        with pytest.raises(VideoError, match=f"no features in the span {start} to {start + length} s.*11.50 s"):
            opened.read(record("a", span), 1)
        return
    got = opened.read(record("a", span), len(inside))[:, 0]
    np.testing.assert_array_equal(got, made(1, 12)["features"][inside].astype(np.float32))
    with pytest.raises(TooFewFrames, match=f"{len(inside)} frames from {start} to"):
        opened.read(record("a", span), len(inside) + 1)


@pytest.mark.parametrize("boxes", [0, 4, 6])
def test_each_region_is_followed_by_its_box_where_boxes_are_wanted(store, boxes):
    clip = made(1, regions=3, boxes=6 if boxes != 4 else 4)
    got = store({"a": clip}, regions=3, boxes=boxes).read(record("a"), 12)
    assert got.shape == (12, 3, WIDTH + boxes)
    np.testing.assert_array_equal(got[..., :WIDTH], clip["features"].astype(np.float32))
    if boxes:
        np.testing.assert_array_equal(got[..., WIDTH:], clip["boxes"])


# --- What is refused --------------------------------------------------------------------------------------------------

SPOILT = {
    "no array": (npz(feature=np.zeros((4, WIDTH), np.float32)), "no array 'features' in the .npz file, only feature"),
    "empty file": (b"", "not a readable .npz file"),
    "no zip": (b"\x93NUMPY nonsense" * 9, "not a readable .npz file"),
    "cut": (npz(**made(1))[:300], "not a readable .npz file"),
    "pickled": (npz(features=np.array([{}, {}], object)), "not a readable .npz file.*allow_pickle"),
    "one array": (npz(features=np.float32(3)), r"features of shape \[\]"),
    "no moment": (npz(features=np.zeros((0, WIDTH), np.float32)), r"features of shape \[0, 5\]"),
    "integers": (npz(features=np.zeros((4, WIDTH), int)), "features of type int64: expected float16 or float32"),
    "doubles": (npz(features=np.zeros((4, WIDTH))), "features of type float64"),
    "nan": (npz(features=np.full((4, WIDTH), np.nan, np.float32)), "features hold 20 values that are nan or infinite"),
    "infinite": (npz(features=np.full((4, WIDTH), np.inf, np.float16)), "features hold 20 values"),
    "times": (npz(**{**made(1), "times": np.arange(3)}), r"times of shape \[3\] beside features of shape \[12, 5\]"),
    "unordered": (npz(**{**made(1), "times": np.arange(12)[::-1]}), "times that go back"),
    "worded": (npz(**{**made(1), "times": np.array(["1"] * 12)}), "times of type <U1"),
    "boxes alone": (npz(**{**made(1), "boxes": np.zeros((12, 1, 4), np.float32)}), r"boxes of shape \[12, 1, 4\]"),
    "width": (
        npz(features=np.zeros((4, 7), np.float32)),
        f"features have width 7, config.input.features.width = {WIDTH}",
    ),
    "regions": (npz(**made(1, regions=2)), "regions 2, config.input.features.regions = 0"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_file_that_cannot_serve_is_a_bad_clip_with_its_reason(tmp_path, name):
    data, reason = SPOILT[name]
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(VideoError, match=reason) as caught:
        features.FeatureStore(settings(tmp_path)).read(record("a"), 2)
    assert "\n" not in str(caught.value)


def test_boxes_that_are_wanted_and_absent_are_a_bad_clip(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz(**made(1, regions=3)))
    with pytest.raises(VideoError, match=r"boxes 0, config.input.features.boxes = 6"):
        features.FeatureStore(settings(tmp_path, regions=3, boxes=6)).read(record("a"), 2)


def test_a_span_without_times_is_a_bad_clip(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz(features=made(1)["features"]))
    with pytest.raises(VideoError, match="span 1 to 3 s needs an array 'times'"):
        features.FeatureStore(settings(tmp_path)).read(record("a", (1.0, 3.0)), 1)


def test_a_clip_without_features_is_a_bad_one(store):
    with pytest.raises(VideoError, match=r"no features.*zz"):
        store({"a": made(1), "b": made(2)}).read(record("zz"), 2)


@given(st.binary(max_size=40) | st.tuples(st.integers(0, 900), st.integers(0, 255)))
def test_damage_gives_a_reason_or_changes_nothing(change):
    whole = npz(**made(1))
    data = change
    if isinstance(change, tuple):
        at, value = change
        data = whole[: at % len(whole)] + bytes([value]) + whole[at % len(whole) + 1 :]
    try:
        clip = features.parse(data)
    except VideoError as e:
        assert str(e)
        return
    np.testing.assert_array_equal(clip.features[:, 0], made(1)["features"])


def test_a_directory_of_another_width_is_refused_at_once_with_both_numbers(tmp_path):
    root = tmp_path / "features"
    root.mkdir()
    (root / "a.npz").write_bytes(npz(features=np.zeros((4, 9), np.float16)))
    pack_features.pack(root, tmp_path / "packed")
    with pytest.raises(UserError, match=f"width 9, config.input.features.width = {WIDTH}"):
        features.FeatureStore(settings(tmp_path / "packed"))
    with pytest.raises(UserError, match=r"no such directory; expected a folder of CLIP_ID.npz"):
        features.FeatureStore(settings(tmp_path / "nowhere"))


# --- In batches -------------------------------------------------------------------------------------------------------

CLIPS = 10
BAD = {3: "no features: there is no file", 6: "features hold 5 values that are nan", 8: "2 frames with features"}


@pytest.fixture
def table(tmp_path):
    """A table of ten videos, none of which exists, and features of all but number 3."""
    lines = ["video,caption"]
    for number in range(CLIPS):
        lines.append(f"c{number}.mp4,a small red square moves {number}")
        arrays = made(number, 2 if number == 8 else 12)
        if number == 6:
            arrays["features"][4] = np.nan
        if number != 3:
            (tmp_path / "features").mkdir(exist_ok=True)
            (tmp_path / "features" / f"c{number}.mp4.npz").write_bytes(npz(**arrays))
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def config(table):
    changes = {"batch_size": 10, "seed": 3, "input.kind": "table", "input.path": str(table / "clips.csv")}
    changes |= {"input.split": "all", "input.frames": 4, "input.max_text_tokens": 12, "input.features.width": WIDTH}
    return config_lib.update(config_lib.defaults(), {**changes, "input.features.path": str(table / "features")})


@pytest.fixture
def tokenizer(model):
    return open_tokenizer(model, 12)


def train(config, tokenizer, start, stop):
    mixture = Mixture((Part("", config.input, sources.open_source(config.input)),))
    return list(pipeline.train_batches(config, mixture, tokenizer, start_step=start, stop_step=stop))


def test_training_reads_features_in_place_of_videos_and_counts_bad_ones(config, table, tokenizer):
    ledger = Ledger(None, max_bad_share=0.5, min_examples=1)
    for item in train(config, tokenizer, 0, 2):
        assert item.batch.video.dtype == np.float32 and item.batch.video.shape == (10, 4, 1, WIDTH)
        for row, number in enumerate(item.records):
            assert item.origins[row] == str(table / "features" / f"c{number}.mp4.npz")
            assert item.batch.valid[row] == (number not in BAD)
            assert BAD.get(number, "") in item.errors[row] and item.batch.video[row].any() == bool(
                item.batch.valid[row]
            )
            if item.batch.valid[row]:
                rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((3, int(item.batch.index[row])))))
                expected = made(number)["features"][sample_frames(12, 4, rng)]
                np.testing.assert_array_equal(item.batch.video[row, :, 0], expected.astype(np.float32))
        ledger.add(item)
    assert (ledger.seen, ledger.bad) == (20, 6) and "2 x 2 frames with features" in ledger.summary()
    with pytest.raises(UserError, match=r"3 of 10 examples .* over config.input.max_bad_share = 0.2"):
        Ledger(None, max_bad_share=0.2, min_examples=1).add(item)


def test_worker_processes_read_the_same(config, tokenizer):
    expected = train(config, tokenizer, 0, 2)
    config.input.workers = 1
    for got, own in zip(train(config, tokenizer, 0, 2), expected):
        np.testing.assert_array_equal(got.batch.video, own.batch.video)


def test_evaluation_takes_the_centres_and_the_frames_of_the_evaluation(config, tokenizer):
    config.evaluation.frames = 3
    source = sources.open_source(config.input)
    (item,) = pipeline.evaluation_batches(config, source, tokenizer, batch_size=10)
    expected = made(1)["features"][sample_frames(12, 3, None)]
    np.testing.assert_array_equal(item.batch.video[1, :, 0], expected.astype(np.float32))


def test_ablations_take_features_away_or_shuffle_them(config, tokenizer):
    source = sources.open_source(config.input)
    read = lambda: next(iter(pipeline.evaluation_batches(config, source, tokenizer, batch_size=10))).batch
    whole = read()
    config.input.ablate = "video"
    assert not read().video.any() and (read().valid == whole.valid).all()
    assert not train(config, tokenizer, 0, 1)[0].batch.video.any()
    config.input.ablate = "order"
    for row in np.flatnonzero(whole.valid):
        shuffled = read().video[row]
        assert not np.array_equal(shuffled, whole.video[row])
        np.testing.assert_array_equal(np.sort(shuffled, axis=0), np.sort(whole.video[row], axis=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input.features.width": 7}, r"width 5, config.input.features.width = 7; check config.input.features$"),
        ({"input.features.regions": 2}, "regions 0, config.input.features.regions = 2"),
        ({"input.frames": 13}, r"config.input.frames = 13, but clip 'c\d.mp4' has .* frames"),
    ],
)
def test_a_source_that_the_config_does_not_fit_stops_before_the_run(config, changes, message):
    source = sources.open_source(config.input)
    pipeline.probe_source(config.input, source)
    config_lib.update(config, changes)
    with pytest.raises(UserError, match=message):
        pipeline.probe_source(config.input, source)


def test_the_wrong_folder_of_features_stops_before_the_run(config, table):
    (table / "other").mkdir()
    config.input.features.path = str(table / "other")
    with pytest.raises(UserError, match=r"none of 8 clips .* no file .*other/c0.mp4.npz; check .*features.path"):
        pipeline.probe_source(config.input, sources.open_source(config.input))


def test_the_check_of_a_source_reads_its_features(config, table, monkeypatch, capsys):
    monkeypatch.setattr(
        check.scan, "scan", lambda parts, records, workers: (check.scan.examine(parts, *r) for r in records)
    )
    flags = [f"--config.input.features.path={table / 'features'}", f"--config.input.features.width={WIDTH}"]
    assert check.main([str(table / "clips.csv"), "--max-bad-share=0.1", *flags]) == 1
    said = capsys.readouterr().out
    assert "10 clips examined: 7 good, 3 bad" in said and "c3.mp4.npz" in said
