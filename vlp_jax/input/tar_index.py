"""The members of a tar file by a walk over its headers alone, which never reads what the members hold.

Formats: POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU tar, as documented in the GNU tar manual, "Basic Tar Format".
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

_BLOCK = 512
_READ = 8192  # at a time: the short members of a sample usually lie between two headers that one read covers
_PADDING = 2**16  # bytes after the end that are looked at; an archive is padded to 10 KiB as a rule
_REGULAR = (b"0", b"\0", b"7")
_NO_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directories, pipes: whatever their size field says
_LINKS = (b"1", b"2")
_METADATA = (b"x", b"X", b"g", b"L", b"K")  # about the next member: pax records, GNU's long names
_LONGEST_METADATA = 2**24  # bytes; more is damage, and would be read into memory
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


class Member(NamedTuple):
    """A regular file of an archive: `size` bytes from `offset`."""

    name: str
    offset: int
    size: int


class Compressed(Exception):
    """The file is not a tar, but one that was compressed; the text names the compression."""


class Damaged(Exception):
    """The archive ends too early or in something else than headers; members before that are good.

    Attributes:
      name: the member whose data is cut off; '' where it ends between members.
    """

    def __init__(self, reason: str, name: str = ""):
        super().__init__(reason)
        self.name = name


@dataclasses.dataclass(frozen=True)
class Ignored:
    """Something that the archive holds beside its regular files: `what`, in words."""

    what: str


def walk(number: int) -> Iterator[Member | Ignored]:
    """Yields the regular files of an archive in order, and an Ignored for each link, sparse file or second archive.

    Names that are not UTF-8 are written with backslashes. Of several pax records the last counts.

    Args:
      number: an open file descriptor; its position is neither used nor moved.

    Raises:
      Compressed: see there.
      Damaged: after all that is whole was yielded.
    """
    total = os.fstat(number).st_size
    window = _Window(number)
    position = 0
    shared: dict[str, str] = {}  # pax records for all members
    own: dict[str, str] = {}  # pax records, or GNU's long name, for the next member
    if not total:
        raise Damaged("an empty file")
    while True:
        header = window.read(position, _BLOCK)
        if position == 0:
            for magic, compression in _COMPRESSED.items():
                if header.startswith(magic):
                    raise Compressed(compression)
        if len(header) < _BLOCK:
            raise Damaged(f"it ends at byte {total} without the two empty blocks that close a tar")
        if not any(header):
            if any(window.read(position, min(total - position, _PADDING))):
                yield Ignored(
                    f"what follows its end at byte {position}; join archives by `tar --concatenate`, not `cat`"
                )
            return
        if not _sums_up(header):
            raise Damaged(f"no tar header at byte {position}")
        kind = header[156:157]
        records = shared | own if shared or own else own
        name = records.get("path") or _name(header)
        try:
            size = int(records["size"]) if "size" in records and kind not in _METADATA else _number(header[124:136])
        except ValueError:
            size = -1
        if size < 0 or (kind in _METADATA and size > _LONGEST_METADATA):
            raise Damaged(f"a size that cannot be at byte {position}")
        start = position + _BLOCK
        end = start if kind in _NO_DATA else start + size
        if end > total:
            what, own_name = ("a header", "") if kind in _METADATA else (repr(name), name)
            raise Damaged(f"{what} ends at byte {end} of {total}", own_name)
        position = end if kind in _NO_DATA else start + -(-size // _BLOCK) * _BLOCK
        if kind in (b"x", b"X"):
            own |= _pax(window.read(start, size))
        elif kind == b"g":
            shared |= _pax(window.read(start, size))
        elif kind == b"L":
            own["path"] = _text(window.read(start, size))
        elif kind == b"K":
            pass  # the long target of a link
        else:
            if kind == b"S" or any(key.startswith("GNU.sparse.") for key in records):
                yield Ignored(f"the sparse file {name!r}")
            elif kind in _LINKS:
                yield Ignored(f"the link {name!r}")
            elif kind in _REGULAR and not name.endswith("/"):  # such a name is a directory's, in the oldest format
                yield Member(name, start, size)
            own = {}


class _Window:
    """Reads a file in larger pieces than it is asked for."""

    def __init__(self, number: int):
        self._number = number
        self._start, self._data = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Returns up to `size` bytes from `offset`; fewer at the end of the file."""
        if not (self._start <= offset and offset + size <= self._start + len(self._data)):
            self._start, self._data = offset, os.pread(self._number, max(size, _READ), offset)
        at = offset - self._start
        return self._data[at : at + size]


def _sums_up(header: bytes) -> bool:
    """Whether the header's checksum is right, summed as unsigned bytes, or as signed ones, which old writers did."""
    try:
        stored = _number(header[148:156])
    except ValueError:
        return False
    unsigned = sum(header) - sum(header[148:156]) + 8 * ord(" ")  # the sum itself counts as spaces
    if stored == unsigned:
        return True
    return stored == unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:])


def _number(field: bytes) -> int:
    """A number in octal digits, or, with the first bit set, in base 256 (GNU; the second bit is the sign)."""
    if field[0] in (0o200, 0o377):
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0o200 else value - 256 ** (len(field) - 1)
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""  # GNU keeps times there
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode(errors="backslashreplace")


def _pax(data: bytes) -> dict[str, str]:
    """Records `<length> <key>=<value>\\n`, the length counting all of the record."""
    records = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not len(length) + 1 < int(length) <= len(data):
            break  # padding, or something that is no record
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[_text(key)] = value.decode(errors="backslashreplace")
        data = data[int(length) :]
    return records
