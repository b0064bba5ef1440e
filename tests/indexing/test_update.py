"""Only new and changed files are embedded; what ends an update costs it no more than a batch; bad files are told."""

import dataclasses
import errno
import os
import shutil

import av
import numpy as np
import pytest

from tests.indexing.conftest import READING, MeanColour, coloured, moving
from tests.input.bad_media import audio, clip
from vlp_jax.indexing import update
from vlp_jax.indexing.folder import UNREADABLE, Found, Stamp
from vlp_jax.indexing.store import Entry, Store
from vlp_jax.input import decoder
from vlp_jax.types import UserError

PATHS = ["dark.mp4", "sub/light.mp4", "sub/mid.mp4"]


def values(store):
    """Path -> grey of each window, as the index has it."""
    entries, matrix = store.matrix()
    found, row = {}, 0
    for entry in entries:
        found[entry.path] = [round(255 * float(x)) for x in matrix[row : row + len(entry.spans), 0]]
        row += len(entry.spans)
    return found


def near(found, expected):
    assert list(found) == list(expected)
    for path, wanted in expected.items():
        np.testing.assert_allclose(found[path], wanted, atol=4)


def test_a_folder_is_embedded_once_in_batches_of_one_shape(index):
    store, todo, embed = index()
    assert todo == update.Plan(PATHS, [], [], [])
    near(values(store), {"dark.mp4": [30], "sub/light.mp4": [220], "sub/mid.mp4": [120]})
    assert embed.shapes == {(2, 2, 16, 16, 3)} and embed.calls == 2
    store, todo, embed = index()
    assert not todo and not embed.calls
    near(values(store), {"dark.mp4": [30], "sub/light.mp4": [220], "sub/mid.mp4": [120]})


def test_new_changed_renamed_and_removed_files_are_told_apart(index, videos):
    index()
    coloured(videos / "new.mp4", 60)
    coloured(videos / "dark.mp4", 90, 1.2)
    (videos / "sub").rename(videos / "moved")
    (videos / "moved" / "light.mp4").unlink()
    store, todo, embed = index()
    assert todo == update.Plan(["new.mp4"], ["dark.mp4"], [("sub/mid.mp4", "moved/mid.mp4")], ["sub/light.mp4"])
    assert embed.calls == 1
    near(values(store), {"dark.mp4": [90], "moved/mid.mp4": [120], "new.mp4": [60]})
    assert not index()[1]


def test_a_change_of_the_time_alone_is_a_change(index, videos):
    index()
    os.utime(videos / "dark.mp4", ns=(1, 1))
    assert index()[1].changed == ["dark.mp4"]


def test_a_copy_under_another_name_is_new_and_not_a_renamed_one(index, videos):
    index()
    shutil.copy2(videos / "dark.mp4", videos / "copy.mp4")
    _, todo, _ = index()
    assert todo == update.Plan(["copy.mp4"], [], [], [])


def test_files_below_a_folder_that_cannot_be_listed_stay():
    entries = {path: Entry(path, Stamp(1, 2, n)) for n, path in enumerate(("a/x.mp4", "ab/y.mp4"))}
    todo = update.plan(entries, Found({}, {"a": "Permission denied"}))
    assert todo.removed == ["ab/y.mp4"] and not todo.moved


def test_two_files_that_could_not_be_looked_at_are_not_taken_for_one():
    unknown = Stamp(0, UNREADABLE, 0)
    todo = update.plan({"a.mp4": Entry("a.mp4", unknown)}, Found({"b.mp4": unknown}, {}))
    assert todo == update.Plan(["b.mp4"], [], [], ["a.mp4"])


@pytest.mark.parametrize("batches", [0, 1])
def test_an_update_that_was_ended_goes_on_where_it_was(index, tmp_path, batches):
    class Killed(MeanColour):
        def __call__(self, tubes):
            if self.calls == batches:
                raise KeyboardInterrupt
            return super().__call__(tubes)

    with pytest.raises(KeyboardInterrupt):
        index(embed=Killed())
    kept = len(Store.open(tmp_path / "index").entries)
    assert kept == 2 * batches
    store, todo, _ = index()
    assert len(todo.new) == 3 - kept
    near(values(store), {"dark.mp4": [30], "sub/light.mp4": [220], "sub/mid.mp4": [120]})


def test_long_videos_are_windows_with_their_times(index, videos):
    coloured(videos / "long.mp4", 50, 5.0)
    store, _, embed = index(reading=update.Reading(2.0, 2.0, 2, 16, 20.0, 2**20))
    assert store.entries["long.mp4"].spans == ((0.0, 2.0), (2.0, 4.0), (3.0, 5.0))
    assert store.entries["dark.mp4"].spans == ((0.0, 1.0),)
    near(values(store), {"dark.mp4": [30], "long.mp4": [50] * 3, "sub/light.mp4": [220], "sub/mid.mp4": [120]})
    assert embed.calls == 3  # six windows


def test_bad_files_are_told_with_reasons_and_not_tried_again_until_they_change(index, videos):
    sound = moving(1)
    for name, data in {
        "empty.mp4": b"",
        "text.mp4": b"caption\n" * 100,
        "cut.mp4": sound[: len(sound) // 2],
        "audio.mp4": audio(),
        "short.mp4": clip(count=1),
    }.items():
        (videos / name).write_bytes(data)
    store, _, _ = index()
    reasons = {entry.path: entry.bad[0].error for entry in store.entries.values() if entry.bad}
    assert sorted(reasons) == ["audio.mp4", "cut.mp4", "empty.mp4", "short.mp4", "text.mp4"]
    assert "no video stream" in reasons["audio.mp4"] and "empty: 0 bytes" in reasons["empty.mp4"]
    assert "1 frames, fewer than the 2 asked" in reasons["short.mp4"]
    assert all(entry.bad[0].start is None for entry in store.entries.values() if entry.bad)
    assert list(values(store)) == PATHS
    assert index()[1] == update.Plan([], [], [], [])
    coloured(videos / "empty.mp4", 70)
    store, todo, _ = index()
    assert todo.changed == ["empty.mp4"] and not store.entries["empty.mp4"].bad


def test_a_bad_window_does_not_cost_the_others(index, videos, monkeypatch):
    coloured(videos / "long.mp4", 50, 5.0)
    real = update.Reading.tube

    def tube(self, path, span, end):
        if span == (2.0, 4.0):
            raise update.VideoError("undecodable: damaged frame")
        return real(self, path, span, end)

    monkeypatch.setattr(update.Reading, "tube", tube)
    store, _, _ = index(reading=update.Reading(2.0, 2.0, 2, 16, 20.0, 2**20))
    entry = store.entries["long.mp4"]
    assert entry.spans == ((0.0, 2.0), (3.0, 5.0))
    assert [(b.start, b.end, b.error) for b in entry.bad] == [(2.0, 4.0, "undecodable: damaged frame")]


def test_what_a_library_raises_of_a_damaged_file_is_a_reason_and_no_end(index, monkeypatch):
    real = update.Reading.tube

    def tube(self, path, span, end):
        if path.endswith("light.mp4"):
            raise ValueError("inconsistent\nheader")
        return real(self, path, span, end)

    monkeypatch.setattr(update.Reading, "tube", tube)
    store, _, _ = index()
    assert store.entries["sub/light.mp4"].bad[0].error == "ValueError: inconsistent header"
    assert list(values(store)) == ["dark.mp4", "sub/mid.mp4"]


def test_a_file_that_cannot_be_opened_is_tried_at_every_run(index, videos):
    (videos / "link.mp4").symlink_to(videos / "nowhere")
    assert index()[0].entries["link.mp4"].bad[0].error == "file not readable: No such file or directory"
    _, todo, _ = index()
    assert todo.again == ["link.mp4"] and not todo
    shutil.copy(videos / "dark.mp4", videos / "nowhere")
    store, todo, _ = index()
    assert todo.changed == ["link.mp4"] and not store.entries["link.mp4"].bad
    assert not index()[1]


def state(place):
    """Every file of an index: its content, and the time of its last change."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in place.iterdir()}


def test_files_that_fail_in_the_same_way_again_write_nothing(index, videos, tmp_path):
    (videos / "link.mp4").symlink_to(videos / "nowhere")
    index()
    before = state(tmp_path / "index")
    for _ in range(3):
        _, todo, _ = index()
        assert todo.again == ["link.mp4"] and state(tmp_path / "index") == before


def test_what_was_not_decoded_in_time_is_tried_again_at_the_next_run(index):
    for _ in range(2):
        store, _, _ = index(reading=dataclasses.replace(READING, timeout_s=1e-9))
        assert all(entry.bad[0].again for entry in store.entries.values()) and not values(store)
    store, todo, _ = index()
    assert todo.again == PATHS and not todo.changed
    near(values(store), {"dark.mp4": [30], "sub/light.mp4": [220], "sub/mid.mp4": [120]})
    assert index()[1] == update.Plan([], [], [], [])


def test_the_decoders_own_time_limit_is_told_from_damage(videos):
    reader = decoder.Reader((videos / "dark.mp4").read_bytes(), 20.0)
    reader._timeout_s = -1.0
    with pytest.raises(update.VideoError) as error:
        reader.read(lambda count: [0], lambda: None)
    assert "time limit" in str(error.value) and update._may_pass(error.value)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (MemoryError("no room"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (av.error.OSError(errno.EIO, "Input/output error"), True),
        (av.error.ExitError(0, "Immediate exit requested"), True),
        (av.error.InvalidDataError(0, "Invalid data found"), False),
        (av.error.BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), False),
        (ValueError("inconsistent"), False),
        (update.VideoError("truncated"), False),
    ],
    ids=lambda x: x if isinstance(x, bool) else f"{type(x).__module__} {type(x).__name__}",
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_reasons_of_the_machine_are_tried_again_and_those_of_the_content_are_not(
    index, monkeypatch, error, passes, wrapped
):
    def tube(self, path, span, end):
        if wrapped:
            raise update.VideoError("not a readable video") from error
        raise error

    monkeypatch.setattr(update.Reading, "tube", tube)
    index()
    monkeypatch.undo()
    store, todo, _ = index()
    assert todo.again == (PATHS if passes else []) and list(values(store)) == todo.again


def test_of_a_file_with_bad_windows_only_those_of_the_machine_are_tried_again(index, videos, tmp_path, monkeypatch):
    coloured(videos / "long.mp4", 50, 7.0)
    reading = update.Reading(2.0, 2.0, 2, 16, 20.0, 2**20)
    real, real_end = update.Reading.tube, update.Reading.end_of
    errors = {(2.0, 4.0): MemoryError("no room"), (4.0, 6.0): update.VideoError("undecodable: damaged frame")}
    decoded = []

    def tube(self, path, span, end):
        decoded.append((os.path.basename(path), span))
        if path.endswith("long.mp4") and span in errors:
            raise errors[span]
        return real(self, path, span, end)

    def slow(self, path):
        raise update.OutOfTime("its end was not found within the time limit of 1 s")

    monkeypatch.setattr(update.Reading, "tube", tube)
    entry = index(reading=reading)[0].entries["long.mp4"]
    assert entry.spans == ((0.0, 2.0), (5.0, 7.0)) and [bad.again for bad in entry.bad] == [True, False]
    # What decoded stays, whatever a second try meets, and then nothing is written.
    before = state(tmp_path / "index")
    monkeypatch.setattr(update.Reading, "end_of", slow)
    index(reading=reading)
    monkeypatch.setattr(update.Reading, "end_of", real_end)
    decoded.clear()
    index(reading=reading)
    assert decoded == [("long.mp4", (2.0, 4.0))] and state(tmp_path / "index") == before
    del errors[2.0, 4.0]
    store, _, embed = index(reading=reading)
    entry = store.entries["long.mp4"]
    assert entry.spans == ((0.0, 2.0), (2.0, 4.0), (5.0, 7.0)) and embed.calls == 1
    assert [(bad.start, bad.again) for bad in entry.bad] == [(4.0, False)]
    near(values(store), {"dark.mp4": [30], "long.mp4": [50] * 3, "sub/light.mp4": [220], "sub/mid.mp4": [120]})
    assert not index(reading=reading)[1].again


def test_a_pipe_named_as_a_video_does_not_stop_the_update(index, videos):
    os.mkfifo(videos / "pipe.mp4")
    assert index()[0].entries["pipe.mp4"].bad[0].error == "not a regular file"


def test_names_of_any_bytes_are_read(index, videos):
    for name in ("caf\udce9 100%d.mp4", "a\nb.mp4", "concat:x.mp4"):
        shutil.copy(videos / "dark.mp4", videos / name)
    store, _, _ = index()
    assert not [entry.bad for entry in store.entries.values() if entry.bad]
    assert len(store.entries) == 6


def test_embeddings_that_are_not_finite_stop_the_update(index, tmp_path):
    with pytest.raises(UserError, match="not finite"):
        index(embed=type("Diverged", (MeanColour,), {"__call__": lambda self, x: np.full((len(x), 2), np.nan)})())
    assert not Store.open(tmp_path / "index").entries


def test_many_bad_files_are_committed_on_the_way(index, videos, monkeypatch):
    for number in range(20):
        (videos / f"bad{number:02}.mp4").write_bytes(b"")
    added = []
    real = Store.add
    monkeypatch.setattr(
        Store, "add", lambda self, entries, rows: (added.append(len(entries)), real(self, entries, rows))
    )
    index(batch_size=2)
    assert sum(added) == 23 and max(added) <= 4
