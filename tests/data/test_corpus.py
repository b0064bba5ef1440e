"""Files of a corpus: found by name, missed by name, tables read by column."""

import pytest

from data.corpora.corpus import (
    Clip,
    find_file,
    find_videos,
    read_json,
    read_table,
    report_missing,
    require_file,
    stream_present,
)
from data.corpora.rows import json_lines
from vlp_jax.types import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_videos_are_found_at_any_depth_by_stem_by_name_and_under_another_extension(tmp_path):
    touch(tmp_path, "a.mp4", "deep/er/b.WEBM", "12@N0_c.mov.mp4", "d.txt", "e.f.mkv", "unasked.mp4")
    ids = ["b", "a", "12@N0_c.mov", "d", "e.f", "a.avi", "none"]
    found = find_videos(tmp_path, ids)
    assert {i: str(p.relative_to(tmp_path)) for i, p in found.items()} == {
        **{"b": "deep/er/b.WEBM", "a": "a.mp4", "12@N0_c.mov": "12@N0_c.mov.mp4", "e.f": "e.f.mkv", "a.avi": "a.mp4"},
    }
    assert list(found)[:2] == ["b", "a"]


def test_links_are_followed_and_loops_end(tmp_path):
    touch(tmp_path, "store/a.mp4")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "root")
    assert find_videos(tmp_path / "root", ["a"]) == {"a": tmp_path / "root" / "link" / "a.mp4"}


def test_two_files_of_one_video_are_refused_by_name(tmp_path):
    touch(tmp_path, "x/a.mp4", "y/a.webm", "x/b.mp4", "y/b.mp4")
    with pytest.raises(UserError, match=r"'a': .*x/a\.mp4 and .*y/a\.webm"):
        find_videos(tmp_path, ["a"])
    touch(tmp_path, "c.avi", "c.avi.mp4")
    with pytest.raises(UserError, match=r"'c\.avi': .*c\.avi and .*c\.avi\.mp4"):
        find_videos(tmp_path, ["c.avi"])


def test_a_wrong_folder_names_what_was_expected_and_what_is_there(tmp_path):
    touch(tmp_path, "other.json", "videos/a.mp4")
    assert find_file(tmp_path, "x.json") is None
    with pytest.raises(UserError, match=r"expected the file x\.json or y\.json; .* holds other\.json, videos/\. From"):
        require_file(tmp_path, ["x.json", "y.json"], "From Mars")
    with pytest.raises(UserError, match=r"no such directory\. From Mars"):
        require_file(tmp_path / "absent", "x.json", "From Mars")
    assert require_file(tmp_path, ["x.json", "other.json"], "") == tmp_path / "other.json"
    with pytest.raises(UserError, match="no directory"):
        find_videos(tmp_path / "absent", ["a"])


def test_missing_videos_stop_unless_their_share_is_allowed():
    def report(count, share):
        ids = [f"v{i}" for i in range(count)]
        return report_missing("some", ids, "ROOT/<id>.mp4", "From Mars", listed=100, allow_share=share)

    assert report(0, 0) == [] and report(10, 0.1) == [f"v{i}" for i in range(10)] and len(report(99, 1)) == 99
    with pytest.raises(
        UserError, match=r"7 of 100 .*: v0, v1, v2, v3, v4, \.\.\.; .*<id>\.mp4; .*--allow-missing\. From"
    ):
        report(7, 0)
    with pytest.raises(UserError, match=r"0\.1 allows 10"):
        report(11, 0.1)
    with pytest.raises(UserError, match="check --root"):  # nothing at all is there: going on would help nobody
        report(100, 1)


def test_a_stream_leaves_out_missing_files_and_counts_empty_captions(tmp_path):
    touch(tmp_path, "a", "second/c", "d")
    rows = [(k, [f"{tmp_path}/{k}", f"{tmp_path}/second/{k}"], "" if k == "d" else k.upper()) for k in "abcd"]
    arguments = ("train", lambda: iter(rows), "ROOT/<id>", "From Mars")
    with pytest.raises(UserError, match=r"train: 1 of 4 .*: b; "):
        stream_present(*arguments, allow_share=0.0)
    stream, missing, note = stream_present(*arguments, allow_share=0.25)
    assert len(stream) == 3 and missing == ["b"] and "1 captions are empty" in note
    wanted = [Clip("a", tmp_path / "a", "A"), Clip("c", tmp_path / "second/c", "C"), Clip("d", tmp_path / "d", "")]
    assert list(stream()) == list(stream()) == wanted


def test_tables_are_read_by_column_and_refused_by_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffa,b\n1,"x, ""y"""\n\n2,z\n', encoding="utf-8")
    assert list(read_table(path, ("a", "b"))) == [{"a": "1", "b": 'x, "y"'}, {"a": "2", "b": "z"}]
    with pytest.raises(UserError, match="'c'; it holds 'a', 'b'"):
        list(read_table(path, ("a", "c")))
    path.write_text("a,b\n1,2\n3\n")
    with pytest.raises(UserError, match=r"line 3: .* fewer cells"):
        list(read_table(path, ("a", "b")))
    path.write_bytes(b"a,b\n1,\xff\n")
    with pytest.raises(UserError, match="UTF-8"):
        list(read_table(path, ("a", "b")))
    path.write_bytes(b"{")
    with pytest.raises(UserError, match="expected JSON"):
        read_json(path)


def test_halves_of_characters_in_json_become_replacements_and_whole_ones_stay(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(r'{"\udc00": ["a \ud83d", {"b": "\ud83d\ude00 \u00e9", "c": 1.5}], "d": "\\ud83d"}')
    assert read_json(path) == {"\ufffd": ["a \ufffd", {"b": "😀 é", "c": 1.5}], "d": r"\ud83d"}
    path.write_text(r'{"a": "\ud83d"}')
    assert json_lines(path, ["a"]) == [{"a": "\ufffd"}]
