"""Videos are found by name wherever they lie below a folder, whatever they are called, and loops do not matter."""

import os

from vlp_jax.indexing import folder


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def test_videos_are_found_in_order_and_hidden_and_other_files_are_not(tmp_path):
    for name in ("b.MP4", "a b/é\n.webm", ".hidden.mp4", ".git/c.mp4", "notes.txt", "picture.png", "a b/c.mov"):
        touch(tmp_path / name)
    assert list(folder.find(tmp_path).files) == ["a b/c.mov", "a b/é\n.webm", "b.MP4"]


def test_names_that_are_no_utf_8_are_found(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.mp4"), "wb"):
        pass
    assert list(folder.find(tmp_path).files) == ["caf\udce9.mp4"]


def test_links_are_followed_and_loops_end(tmp_path):
    touch(tmp_path / "elsewhere" / "a.mp4")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "videos")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    assert list(folder.find(tmp_path / "videos").files) == ["linked/a.mp4"]


def test_a_link_to_nowhere_is_never_the_same(tmp_path):
    (tmp_path / "a.mp4").symlink_to(tmp_path / "gone")
    (stamp,) = folder.find(tmp_path).files.values()
    assert not stamp.same(stamp)


def test_a_stamp_tells_size_and_time_apart_and_takes_a_restored_copy_for_the_same():
    stamp = folder.Stamp(1, 2, 3)
    assert stamp.same(folder.Stamp(1, 2, 9))
    assert not stamp.same(folder.Stamp(9, 2, 3)) and not stamp.same(folder.Stamp(1, 9, 3))


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    touch(tmp_path / "locked" / "a.mp4")
    touch(tmp_path / "b.mp4")
    real = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = folder.find(tmp_path)
    assert list(found.files) == ["b.mp4"] and found.unreadable == {"locked": "Permission denied"}
