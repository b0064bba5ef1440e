import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from vlp_jax import config as config_lib
from vlp_jax.input import pipeline, sources, video
from vlp_jax.input.mixture import Mixture, Part
from vlp_jax.input.tokenizer import open_tokenizer
from vlp_jax.types import UserError

CLIPS = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_clip):
    """23 clips of 12 frames: number 5 is missing, 11 is empty, 17 has 3 frames; 8 and 9 are captions of clip 8."""
    root = tmp_path_factory.mktemp("clips")
    rows = []
    for i in range(CLIPS):
        name = f"c{8 if i == 9 else i}.mp4"
        rows.append(f"{name},a small {'red' if i % 4 else 'blue'} square {'moves left' if i % 2 else 'grows'}")
        if i == 11:
            (root / name).write_bytes(b"")
        elif i not in (5, 9):
            make_clip(root / name, count=3 if i == 17 else 12, width=32, height=32, seed=i)
    (root / "clips.csv").write_text("video,caption\n" + "\n".join(rows) + "\n")
    return root


BAD = {5, 11, 17}


@pytest.fixture
def config(folder):
    changes = {
        "batch_size": 8,
        "seed": 3,
        "input.kind": "table",
        "input.path": str(folder / "clips.csv"),
        "input.split": "all",
        "input.frames": 4,
        "input.image_size": 16,
        "input.max_text_tokens": 12,
    }
    return config_lib.update(config_lib.defaults(), changes)


@pytest.fixture
def source(config):
    return sources.open_source(config.input)


@pytest.fixture
def tokenizer(model):
    return open_tokenizer(model, 12)


def alone(config, source):
    return Mixture((Part("", config.input, source),))


def train(config, source, tokenizer, start, stop, **where):
    return list(
        pipeline.train_batches(config, alone(config, source), tokenizer, start_step=start, stop_step=stop, **where)
    )


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
            np.testing.assert_array_equal(x, y)
            assert getattr(x, "dtype", None) == getattr(y, "dtype", None)


# --- Order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 8, 32])
def test_each_epoch_holds_each_record_once_in_a_new_order(config, source, tokenizer, size):
    config.batch_size = size
    stream = np.concatenate([b.records for b in train(config, source, tokenizer, 0, -(-3 * CLIPS // size))])
    epochs = stream[: 3 * CLIPS].reshape(3, CLIPS)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(CLIPS), (3, 1)))
    assert len({tuple(e) for e in epochs}) == 3


def test_another_seed_gives_another_order_in_every_epoch(config, source, tokenizer):
    config.batch_size = CLIPS
    runs = {}
    for seed in (0, 1, 2):
        config.seed = seed
        runs[seed] = {tuple(b.records) for b in train(config, source, tokenizer, 0, 3)}
    assert not runs[0] & runs[1] and not runs[1] & runs[2]


def test_resuming_at_a_step_continues_the_uninterrupted_run(config, source, tokenizer):
    whole = train(config, source, tokenizer, 0, 7)
    assert_same(train(config, source, tokenizer, 4, 7), whole[4:])
    assert train(config, source, tokenizer, 7, 7) == []


def test_index_is_the_position_in_the_endless_stream(config, source, tokenizer):
    for step, item in enumerate(train(config, source, tokenizer, 2, 6), start=2):
        np.testing.assert_array_equal(item.batch.index, np.arange(8 * step, 8 * step + 8))
        assert item.batch.index.dtype == np.int32


def test_processes_share_the_rows_of_the_single_process_run(config, source, tokenizer):
    whole = train(config, source, tokenizer, 0, 3)
    parts = [train(config, source, tokenizer, 0, 3, own=own) for own in (np.arange(2), np.arange(2, 7), np.array([7]))]
    for step in range(3):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *[part[step].batch for part in parts])
        assert_same([joined], [whole[step].batch])
        assert [x for part in parts for x in part[step].clip_ids] == whole[step].clip_ids


def test_augmentation_is_drawn_from_seed_and_index(config, source, tokenizer):
    item = train(config, source, tokenizer, 1, 2)[0]
    for row in range(8):
        if item.batch.valid[row]:
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((3, int(item.batch.index[row])))))
            expected = video.decode(
                source[int(item.records[row])].video, frames=4, size=16, rng=rng, crop_scale=(0.5, 1.0), flip=True
            )
            np.testing.assert_array_equal(item.batch.video[row], expected)


def test_a_clip_looks_different_in_each_epoch(config, source, tokenizer):
    config.batch_size = CLIPS
    first, second = train(config, source, tokenizer, 0, 2)
    looks = [item.batch.video[np.flatnonzero(item.records == 0)[0]] for item in (first, second)]
    assert not np.array_equal(*looks)


# --- Contents ---------------------------------------------------------------------------------------------------------


def test_failed_clips_stay_in_place_and_nothing_is_swapped(config, source, tokenizer):
    for item in train(config, source, tokenizer, 0, 3):
        for row, number in enumerate(item.records):
            record = source[int(number)]
            assert (item.clip_ids[row], item.captions[row], item.origins[row]) == (
                record.clip_id,
                record.caption,
                record.video,
            )
            assert item.batch.valid[row] == (int(number) not in BAD) == (item.errors[row] == "")
            assert item.batch.video[row].any() == bool(item.batch.valid[row])
        assert not item.is_padding.any()
        errors = {int(n): e for n, e in zip(item.records, item.errors) if e}
        for number, expected in ((5, "No such file"), (11, "empty: 0 bytes"), (17, "3 frames, fewer than the 4 asked")):
            assert expected in errors.get(number, expected)


def test_text_is_that_of_the_tokenizer(config, source, tokenizer):
    item = train(config, source, tokenizer, 0, 1)[0]
    ids, mask, cut = tokenizer.encode(item.captions)
    np.testing.assert_array_equal(item.batch.text_ids, ids)
    np.testing.assert_array_equal(item.batch.text_mask, mask)
    assert item.cut == cut > 0
    assert item.batch.video.dtype == np.uint8 and item.batch.video.shape == (8, 4, 16, 16, 3)


@pytest.mark.parametrize("kind", ["clip", "caption"])
def test_positives_share_a_number_and_others_do_not(config, source, tokenizer, kind):
    config.input.positives = kind
    config.batch_size = CLIPS
    item = train(config, source, tokenizer, 0, 1)[0]
    names = np.array(item.clip_ids if kind == "clip" else item.captions)
    ids = item.batch.positive_id
    np.testing.assert_array_equal(ids[:, None] == ids, names[:, None] == names)
    assert (names[:, None] == names).sum() > CLIPS and ids.dtype == np.int32 and (ids >= 0).all()


def test_positive_numbers_are_the_same_in_every_process():
    assert [pipeline._hash31(x) for x in ("", "c0.mp4", "größe")] == [634351890, 359960596, 1489565344]


# --- Threads and workers ----------------------------------------------------------------------------------------------


def test_threads_workers_and_cache_do_not_change_a_batch(config, source, tokenizer):
    expected = train(config, source, tokenizer, 1, 6)
    for changes in (
        {"threads": 1, "prefetch": 1},
        {"threads": 5, "prefetch": 2},
        {"cache_gib": 0.1},
        {"cache_gib": 1e-4},  # room for some of the clips
        {"workers": 1},
        {"workers": 2, "cache_gib": 0.1},
    ):
        changed = config_lib.from_json(config_lib.to_json(config))
        config_lib.update(changed, {f"input.{k}": v for k, v in changes.items()})
        got = train(changed, source, tokenizer, 1, 6)
        assert_same(got, expected)
        assert all(type(x) is np.ndarray for item in got for x in jax.tree.leaves(item.batch))


def test_clips_of_one_name_keep_their_own_frames_and_questions_about_one_clip_share_them(config, make_clip, tokenizer):
    class Twins:
        name, columns = "twins", frozenset({"caption"})
        clips = tuple(make_clip(count=12, seed=seed) for seed in (1, 2))

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return sources.Record(self.clips[index % 2], f"a small red square {index}", "twin")

    plain = train(config, Twins(), tokenizer, 0, 4)
    config_lib.update(config, {"input.cache_gib": 0.1})
    assert_same(train(config, Twins(), tokenizer, 0, 4), plain)


class Broken:
    """A source whose record 7 cannot be read."""

    name = "broken"
    columns = frozenset({"caption"})

    def __init__(self, source):
        self._source = source

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        if index == 7:
            raise OSError("the disk is gone")
        return self._source[index]


def test_an_error_of_the_source_reaches_the_consumer(config, source, tokenizer):
    config.batch_size = 1
    with pytest.raises(OSError, match="the disk is gone"):
        train(config, Broken(source), tokenizer, 0, CLIPS)


def test_a_killed_worker_is_an_error_and_leaves_no_process(config, source, tokenizer):
    config.input.workers = 1
    batches = pipeline.train_batches(config, alone(config, source), tokenizer, start_step=0, stop_step=10_000)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="terminated unexpectedly"):
        for _ in batches:
            pass
    assert not multiprocessing.active_children()


def test_workers_outlive_an_interrupt_so_that_the_trainer_can_finish_its_step(config, source, tokenizer):
    expected = train(config, source, tokenizer, 0, 40)
    config.input.workers = 1
    batches = pipeline.train_batches(config, alone(config, source), tokenizer, start_step=0, stop_step=40)
    got = [next(batches)]
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    assert_same(got + list(batches), expected)


def test_closing_early_ends_the_workers(config, source, tokenizer):
    config.input.workers = 1
    batches = pipeline.train_batches(config, alone(config, source), tokenizer, start_step=0, stop_step=10_000)
    next(batches)
    batches.close()
    assert not multiprocessing.active_children()


ORPHAN = """
import json, multiprocessing, sys
from vlp_jax import config as config_lib
from vlp_jax.input import mixture, pipeline
from vlp_jax.input.tokenizer import open_tokenizer
if __name__ == "__main__":
    config = config_lib.from_json(open(sys.argv[1]).read())
    config.input.workers = 1
    batches = pipeline.train_batches(
        config, mixture.open_mixture(config), open_tokenizer(sys.argv[2], 12), start_step=0, stop_step=10000
    )
    next(batches)
    print(json.dumps([p.pid for p in multiprocessing.active_children()]), flush=True)
    sys.stdin.read()
"""


def test_workers_end_when_the_trainer_is_killed(config, model, tmp_path):
    for name, content in (("run.py", ORPHAN), ("config.json", config_lib.to_json(config))):
        (tmp_path / name).write_text(content)
    (tmp_path / "t.model").write_bytes(model)
    command = [sys.executable, *(str(tmp_path / n) for n in ("run.py", "config.json", "t.model"))]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as trainer:
        (worker,) = json.loads(trainer.stdout.readline())
        os.kill(worker, 0)
        trainer.kill()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        # Nobody may be left to collect it; a zombie has ended all the same.
        status = pathlib.Path(f"/proc/{worker}/status")
        if status.exists() and "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its trainer by 30 s")


# --- Limits -----------------------------------------------------------------------------------------------------------


def test_more_examples_than_int32_counts_are_refused(config, source, tokenizer):
    config.batch_size = 2**20
    assert pipeline.train_batches(config, alone(config, source), tokenizer, start_step=2047, stop_step=2047) is not None
    with pytest.raises(UserError, match=r"2048 steps of 1048576 examples exceed.*at most 2047 steps"):
        pipeline.train_batches(config, alone(config, source), tokenizer, start_step=0, stop_step=2048)


# --- Evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "processes"), [(8, 1), (8, 4), (32, 2), (23, 1), (1, 1)])
def test_evaluation_sees_each_record_once_in_order(config, source, tokenizer, size, processes):
    parts = [
        list(pipeline.evaluation_batches(config, source, tokenizer, batch_size=size, own=own))
        for own in np.split(np.arange(size), processes)
    ]
    assert {len(p) for p in parts} == {-(-CLIPS // size)}
    rows = [part[step] for step in range(len(parts[0])) for part in parts]
    index = np.concatenate([r.batch.index for r in rows])
    padding = np.concatenate([r.is_padding for r in rows])
    np.testing.assert_array_equal(index, np.arange(len(index)))
    np.testing.assert_array_equal(padding, index >= CLIPS)
    assert all(r.batch.video.shape[0] == size // processes for r in rows)
    names = [x for r in rows for x in r.clip_ids]
    assert names == [source[i].clip_id for i in range(CLIPS)] + [""] * (len(index) - CLIPS)
    valid = np.concatenate([r.batch.valid for r in rows])
    np.testing.assert_array_equal(valid, [i < CLIPS and i not in BAD for i in range(len(index))])
    errors = [x for r in rows for x in r.errors]
    assert {i for i, e in enumerate(errors) if e} == BAD


def test_evaluation_frames_are_the_deterministic_ones(config, source, tokenizer):
    first = list(pipeline.evaluation_batches(config, source, tokenizer, batch_size=8))
    config.seed = 99
    assert_same(list(pipeline.evaluation_batches(config, source, tokenizer, batch_size=8)), first)
    np.testing.assert_array_equal(first[0].batch.video[2], video.decode(source[2].video, frames=4, size=16))


@pytest.mark.parametrize(("size", "processes"), [(2, 1), (4, 2), (8, 1)])
def test_evaluation_of_chosen_records_reads_these_alone_and_in_their_order(config, source, tokenizer, size, processes):
    chosen = np.array([20, 3, 5, 3, 0])
    parts = [
        list(pipeline.evaluation_batches(config, source, tokenizer, batch_size=size, records=chosen, own=own))
        for own in np.split(np.arange(size), processes)
    ]
    rows = [part[step] for step in range(len(parts[0])) for part in parts]
    records, index = (np.concatenate(x) for x in zip(*[(r.records, r.batch.index) for r in rows]))
    np.testing.assert_array_equal(records[:5], chosen)
    np.testing.assert_array_equal(index[:5], chosen)
    assert (records[5:] == -1).all() and (index[5:] >= CLIPS).all() and len(set(index[5:])) == len(index) - 5
    whole = next(iter(pipeline.evaluation_batches(config, source, tokenizer, batch_size=CLIPS)))
    for field in ("video", "text_ids", "valid"):
        got = np.concatenate([getattr(r.batch, field) for r in rows])[:5]
        np.testing.assert_array_equal(got, getattr(whole.batch, field)[chosen])


def test_frames_at_test_replace_those_of_training(config, source, tokenizer):
    config.evaluation.frames = 6
    (item,) = pipeline.evaluation_batches(config, source, tokenizer, batch_size=2, records=np.array([2, 4]))
    assert config.input.frames == 4 and item.batch.video.shape[:2] == (2, 6)
    np.testing.assert_array_equal(item.batch.video[0], video.decode(source[2].video, frames=6, size=16))


def test_padding_rows_carry_a_token_so_that_attention_stays_finite(config, source, tokenizer):
    last = list(pipeline.evaluation_batches(config, source, tokenizer, batch_size=8))[-1]
    assert last.is_padding.sum() == 1 and last.batch.text_mask.any(axis=1).all() and last.records[-1] == -1


# --- Probe ------------------------------------------------------------------------------------------------------------


def test_probe_passes_where_one_clip_decodes(config, source):
    pipeline.probe(alone(config, source))


def test_probe_names_the_frame_count_where_all_are_too_short(config, source):
    config.input.frames = 32
    with pytest.raises(UserError, match=re.escape("config.input.frames = 32, but clip 'c0.mp4' has 12 frames")):
        pipeline.probe(alone(config, source))


def test_probe_stops_where_nothing_decodes(config, tmp_path, folder):
    config.input.video_root = str(tmp_path)
    with pytest.raises(
        UserError, match=r"none of 8 clips of .* decodes; the first is 'c0.mp4' .*No such file.*video_root"
    ):
        pipeline.probe(alone(config, sources.open_source(config.input)))


def test_probe_tries_at_most_eight_clips(config, source, monkeypatch):
    tried = []

    def refuse(clip, **_):
        tried.append(clip)
        raise video.VideoError("no")

    monkeypatch.setattr(video, "decode", refuse)
    with pytest.raises(UserError):
        pipeline.probe(alone(config, source))
    assert len(tried) == len(set(tried)) == 8
