import contextlib
import io
import os
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlp_jax.input import tar_index


def pack(path, members, format=tarfile.PAX_FORMAT, **options):
    """Writes `members`, name -> bytes or TarInfo, with the standard library."""
    with tarfile.open(path, "w", format=format, **options) as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def walk(path):
    """Members, what is ignored, and the damage."""
    number = os.open(path, os.O_RDONLY)
    found, damage = [], None
    try:
        for one in tar_index.walk(number):
            found.append(one)
    except tar_index.Damaged as e:
        damage = e
    finally:
        os.close(number)
    members = [one for one in found if isinstance(one, tar_index.Member)]
    return members, [one.what for one in found if isinstance(one, tar_index.Ignored)], damage


def oracle(path):
    with tarfile.open(path, "r:") as tar:
        return [tar_index.Member(m.name, m.offset_data, m.size) for m in tar if m.isreg()]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/\\"), min_size=1, max_size=30)
PATHS = st.one_of(NAMES, st.tuples(NAMES, st.integers(1, 300)).map(lambda x: f"{x[0]}/{'d' * x[1]}/{x[0]}.mp4"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(
        st.tuples(PATHS, st.sampled_from([0, 1, 511, 512, 513, 9000]).map(lambda n: b"x" * n)), min_size=1, max_size=6
    ),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    pax=st.dictionaries(st.sampled_from(["comment", "VENDOR.keywörd"]), NAMES),
)
def test_members_are_those_of_tarfile(tmp_path, members, format, pax):
    more = {"pax_headers": pax} if format == tarfile.PAX_FORMAT else {}
    path = pack(tmp_path / "t.tar", members, format, **more)
    found, ignored, damage = walk(path)
    assert found == oracle(path) and not ignored and damage is None
    assert len(found) == len(members)


def test_ustar_prefixes_are_joined(tmp_path):
    name = "d" * 120 + "/" + "f" * 90 + ".mp4"
    path = pack(tmp_path / "t.tar", [(name, b"abc")], tarfile.USTAR_FORMAT)
    assert [m.name for m in walk(path)[0]] == [name] and walk(path)[0] == oracle(path)


def test_sizes_in_base_256_and_in_pax_records_are_read(tmp_path):
    # Sparse on the disk: sizes beyond 8 GiB do not fit into octal digits.
    size = 9 * 2**30
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("big.mp4")
        info.size = size
        end = tarfile.TarInfo("end.txt")
        end.size = 2
        path = tmp_path / f"{format}.tar"
        with open(path, "wb") as f:
            f.write(info.tobuf(format))
            f.seek(size, os.SEEK_CUR)
            f.write(end.tobuf(format) + b"ok".ljust(512, b"\0") + bytes(1024))
        assert walk(path)[0] == oracle(path)
        assert [(m.name, m.size) for m in walk(path)[0]] == [("big.mp4", size), ("end.txt", 2)]
        path.unlink()


def test_negative_and_absurd_sizes_are_damage(tmp_path):
    for field in (b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"99999999999\0"):
        header = bytearray(tarfile.TarInfo("a.mp4").tobuf(tarfile.GNU_FORMAT))
        header[124:136] = field
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        (tmp_path / "t.tar").write_bytes(bytes(header) + bytes(1024))
        members, _, damage = walk(tmp_path / "t.tar")
        assert not members and damage is not None


def test_links_directories_and_devices_hold_no_data(tmp_path):
    def special(kind, size=0):
        info = tarfile.TarInfo(f"{kind}.mp4")
        info.type, info.linkname, info.size = kind.encode(), "a.mp4", size
        return info

    members = [("a.mp4", b"x" * 700), ("", special("5")), ("", special("1")), ("", special("2")), ("", special("6"))]
    path = pack(tmp_path / "t.tar", [*members, ("b.txt", b"y")])
    found, ignored, damage = walk(path)
    assert found == oracle(path) and [m.name for m in found] == ["a.mp4", "b.txt"] and damage is None
    assert ignored == ["the link '1.mp4'", "the link '2.mp4'"]


def test_names_that_are_not_utf8_stay_apart(tmp_path):
    names = [b"\xe4.mp4".decode(errors="surrogateescape"), b"\xf6.mp4".decode(errors="surrogateescape")]
    path = pack(tmp_path / "t.tar", [(n, b"x") for n in names], tarfile.GNU_FORMAT, errors="surrogateescape")
    assert [m.name for m in walk(path)[0]] == [r"\xe4.mp4", r"\xf6.mp4"]


def test_what_follows_the_end_is_said(tmp_path):
    one, two = pack(tmp_path / "1.tar", [("a.mp4", b"x")]), pack(tmp_path / "2.tar", [("b.mp4", b"y")])
    (tmp_path / "both.tar").write_bytes(one.read_bytes() + two.read_bytes())
    members, ignored, damage = walk(tmp_path / "both.tar")
    assert [m.name for m in members] == ["a.mp4"] and damage is None
    assert len(ignored) == 1 and "what follows its end" in ignored[0]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_truncated_anywhere_the_members_before_the_cut_are_found(tmp_path, format):
    names = ["a.mp4", "ü" * 80 + ".txt", "c.mp4"]  # the second has a header of its own for its name
    whole = pack(tmp_path / "t.tar", [(n, b"x" * 700) for n in names], format)
    expected, data = oracle(whole), whole.read_bytes()
    assert len(expected) == 3
    end = expected[-1].offset + 1024
    for size in range(0, end + 512, 100):
        (tmp_path / "cut.tar").write_bytes(data[:size])
        members, _, damage = walk(tmp_path / "cut.tar")
        assert members == [m for m in expected if m.offset + m.size <= size], size
        assert damage is not None or size >= end + 512
    (tmp_path / "cut.tar").write_bytes(data[: end + 512])
    assert walk(tmp_path / "cut.tar")[2] is None


def test_a_flipped_header_ends_the_walk_with_its_place(tmp_path):
    path = pack(tmp_path / "t.tar", [("a.mp4", b"x"), ("b.mp4", b"y")], tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[1024 + 10] ^= 1
    path.write_bytes(data)
    members, _, damage = walk(path)
    assert [m.name for m in members] == ["a.mp4"] and "no tar header at byte 1024" in str(damage)


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_archives_are_told_apart_from_damage(tmp_path, mode):
    with tarfile.open(tmp_path / "t.tar", f"w:{mode}") as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"))
    with pytest.raises(tar_index.Compressed, match={"gz": "gzip", "bz2": "bzip2", "xz": "xz"}[mode]):
        walk(tmp_path / "t.tar")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=3000), flips=st.lists(st.integers(0, 5000), max_size=8))
def test_no_bytes_make_it_crash(tmp_path, data, flips):
    whole = pack(tmp_path / "w.tar", [("a" * 200 + ".mp4", b"x" * 700), ("b.txt", b"")]).read_bytes()
    for content in (data, whole[:512] + data):
        (tmp_path / "t.tar").write_bytes(content)
        with contextlib.suppress(tar_index.Compressed):  # three bytes make an archive of another kind
            walk(tmp_path / "t.tar")
    flipped = bytearray(whole)
    for place in flips:
        flipped[place] ^= 0x41
    (tmp_path / "t.tar").write_bytes(flipped)
    members, _, _ = walk(tmp_path / "t.tar")
    assert all(0 <= m.offset <= m.offset + m.size <= len(flipped) for m in members)
