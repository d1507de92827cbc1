"""Headers of tar archives: pax (POSIX.1-2001) with the records that GNU tar, bsdtar and docker have beside it.

Owners are numeric, times in ns, extended attributes raw in `SCHILY.xattr.*` (ACLs and capabilities among them, as
they are stored), inode flags in `SCHILY.fflags` as bsdtar names them (GNU tar warns and leaves them out), holes as
GNU tar's sparse format 1.0. A member always gives the same bytes: there is no atime, no ctime, no process id.
"""

import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

from voldriverd.kernel import attributes, fs

BLOCK_BYTES: Final = 512
HEADERS_MAX: Final = 16 << 20
"""The most bytes of extended headers for one member: all attributes that ext4 and btrfs allow, and any path."""
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s167s")
_MAGIC: Final = b"ustar\x0000"
_SUM: Final = slice(148, 156)
_SIZE: Final = slice(124, 136)
_KIND: Final = 156
_PREFIX: Final = slice(345, 500)
_NAME_MAX: Final = 100
_SIZE_MAX: Final = 0o77777777777
_ID_MAX: Final = 0o7777777
_PAX: Final = ord("x")
_LONG: Final = {ord("L"): b"path", ord("K"): b"linkpath"}
"""GNU's old way for long names."""
_EXTENDED: Final = frozenset({_PAX, ord("g"), *_LONG})
_SPARSE: Final = ord("S")
_SPARSE_MORE: Final = 482
_SPARSE_LAST: Final = 504
"""Of GNU's old sparse header and of the blocks that go on with it: whether one (more) of those follows."""
DIGITS_MAX: Final = 20
"""Of a number of 64 bits."""
_XATTR: Final = b"SCHILY.xattr."
_FLAGS: Final = {
    b"sappnd": fs.FS_APPEND_FL,
    b"schg": fs.FS_IMMUTABLE_FL,
    b"nodump": attributes.FS_NODUMP_FL,
    b"noatime": attributes.FS_NOATIME_FL,
    b"sync": attributes.FS_SYNC_FL,
    b"dirsync": attributes.FS_DIRSYNC_FL,
    b"compress": fs.FS_COMPR_FL,
    b"nocompress": attributes.FS_NOCOMP_FL,
    b"nocow": fs.FS_NOCOW_FL,
}


class Kind(IntEnum):
    """The types of members that we write."""

    FILE = ord("0")
    LINK = ord("1")
    SYMLINK = ord("2")
    CHARACTER = ord("3")
    BLOCK = ord("4")
    DIRECTORY = ord("5")
    FIFO = ord("6")


_KINDS: Final = frozenset(Kind)
_CONTENTLESS: Final = _KINDS - {Kind.FILE}
_DEVICES: Final = frozenset({Kind.CHARACTER, Kind.BLOCK})


class Malformed(ValueError):
    """These bytes are no header."""


@dataclass(frozen=True, slots=True)
class Member:
    """One name in an archive."""

    path: bytes
    kind: int
    """A Kind, or what another archiver has put there."""
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size_bytes: int = 0
    """Of the content in the archive, which is padded to whole blocks; of a sparse file the map and its segments."""
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    flags: int = 0
    """Inode flags (linux/fs.h)."""
    sparse_bytes: int | None = None
    """The real size of a sparse file, whose content begins with its map; else None."""
    is_foreign: bool = False
    """It is something that we neither write nor can read: another type, another format of sparse files."""


def header(member: Member) -> bytes:
    """Return all the headers of a member. Raises OSError: E2BIG above HEADERS_MAX."""
    path = member.path
    records = []
    if member.sparse_bytes is not None:
        records.append((b"GNU.sparse.major", b"1"))
        records.append((b"GNU.sparse.minor", b"0"))
        records.append((b"GNU.sparse.name", path))
        records.append((b"GNU.sparse.realsize", b"%d" % member.sparse_bytes))
        directory, slash, name = path.rpartition(b"/")
        path = b"%s%sGNUSparseFile.0/%s" % (directory, slash, name)
    if len(path) > _NAME_MAX:
        records.append((b"path", path))
    if len(member.link) > _NAME_MAX:
        records.append((b"linkpath", member.link))
    if member.mtime_ns % 10**9 or not 0 <= member.mtime_ns <= _SIZE_MAX * 10**9:
        records.append((b"mtime", _seconds(member.mtime_ns)))
    for field, number, largest in (
        (b"size", member.size_bytes, _SIZE_MAX),
        (b"uid", member.uid, _ID_MAX),
        (b"gid", member.gid, _ID_MAX),
    ):
        if number > largest:
            records.append((field, b"%d" % number))
    # As GNU tar writes them: a name with "=" would end too early.
    records += [(_XATTR + name.replace(b"%", b"%25").replace(b"=", b"%3D"), value) for name, value in member.xattrs]
    if member.flags:
        names = [name for name, flag in _FLAGS.items() if member.flags & flag]
        records.append((b"SCHILY.fflags", b",".join(names)))
    return (_extended(records) if records else b"") + _ustar(member, path)


def padding(size_bytes: int) -> int:
    """Return how many zeros follow a content of this size."""
    return -size_bytes % BLOCK_BYTES


def _extended(records: list[tuple[bytes, bytes]]) -> bytes:
    content = b"".join(_record(keyword, value) for keyword, value in records)
    if len(content) > HEADERS_MAX:
        raise OSError(errno.E2BIG, f"{len(content)} bytes of names and attributes")
    return _extended_header(len(content)) + content + bytes(padding(len(content)))


@lru_cache(maxsize=256)
def _extended_header(size_bytes: int) -> bytes:
    member = Member(b"././@PaxHeader", _PAX, 0o644, 0, 0, 0, size_bytes)
    return _ustar(member, member.path)


def _record(keyword: bytes, value: bytes) -> bytes:
    """Return `length keyword=value newline`, where the length counts its own digits (pax(1))."""
    rest = len(keyword) + len(value) + 3
    length = rest + 1
    while length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, keyword, value)


def _ustar(member: Member, path: bytes) -> bytes:
    """Return the header of 1988, which holds what has room in it; the records say the rest."""
    size_bytes = member.size_bytes if member.size_bytes <= _SIZE_MAX else 0
    block = _HEADER.pack(
        path[-_NAME_MAX:],
        b"%07o" % member.mode,
        b"%07o" % (member.uid if member.uid <= _ID_MAX else 0),
        b"%07o" % (member.gid if member.gid <= _ID_MAX else 0),
        b"%011o" % size_bytes,
        b"%011o" % min(max(member.mtime_ns // 10**9, 0), _SIZE_MAX),
        b"        ",
        b"%c" % member.kind,
        member.link[-_NAME_MAX:],
        _MAGIC,
        b"",
        b"",
        b"%07o" % member.device[0],
        b"%07o" % member.device[1],
        b"",
    )
    return block[: _SUM.start] + b"%06o\0 " % sum(block) + block[_SUM.stop :]


def _seconds(time_ns: int) -> bytes:
    sign = b"-" if time_ns < 0 else b""
    return sign + b"%d.%09d" % divmod(abs(time_ns), 10**9)


class Headers:
    """Puts the headers of one member after the other together, from pieces of `wanted` bytes each."""

    def __init__(self) -> None:
        """Begin before the first member."""
        self.wanted = BLOCK_BYTES
        self._extended: tuple[int, int] | None = None
        """Kind and size of the extended header that comes next."""
        self._member: Member | None = None
        """What is ready but for the rest of its map, which lies before its content in GNU's old format."""
        self._records: dict[bytes, bytes] = {}
        self._xattrs: list[tuple[bytes, bytes]] = []

    def take(self, piece: bytes) -> Member | None:
        """Take the next `wanted` bytes; returns the member whose headers they end. Its content follows.

        Raises Malformed; what came of this member so far is forgotten then, and the next block is expected.
        """
        assert len(piece) == self.wanted
        self.wanted = BLOCK_BYTES
        try:
            return self._take(piece)
        except ValueError as err:
            self._begin()
            raise Malformed(str(err)) from err

    @property
    def is_between(self) -> bool:
        """Whether nothing of a member has been taken yet."""
        return not (self._extended or self._member or self._records or self._xattrs)

    def _begin(self) -> None:
        self._extended, self._member = None, None
        self._records, self._xattrs = {}, []

    def _take(self, piece: bytes) -> Member | None:
        if self._extended is not None:
            (kind, size_bytes), self._extended = self._extended, None
            self._add(kind, piece[:size_bytes])
            return None
        if self._member is not None:
            return None if piece[_SPARSE_LAST] else self._end()
        if _octal(piece[_SUM]) != sum(piece) - sum(piece[_SUM]) + 8 * ord(" "):
            raise Malformed("the checksum of a header is wrong")
        kind, size_bytes = piece[_KIND], _octal(piece[_SIZE])
        if kind in _EXTENDED:
            if size_bytes > HEADERS_MAX:
                raise Malformed("an extended header is too long")
            if size_bytes:
                self._extended = kind, size_bytes
                self.wanted = size_bytes + padding(size_bytes)
            return None
        self._member = _merged(piece, self._records, self._xattrs)
        return None if kind == _SPARSE and piece[_SPARSE_MORE] else self._end()

    def _end(self) -> Member:
        member = self._member
        assert member is not None
        self._begin()
        return member

    def _add(self, kind: int, content: bytes) -> None:
        if kind in _LONG:
            self._records[_LONG[kind]] = content.rstrip(b"\0")
        elif kind == _PAX:
            for keyword, value in _parse_records(content):
                if keyword.startswith(_XATTR):
                    name = keyword[len(_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
                    self._xattrs.append((name, value))
                else:
                    self._records[keyword] = value


def _parse_records(content: bytes) -> Iterable[tuple[bytes, bytes]]:
    position = 0
    while position < len(content):
        space = content.find(b" ", position, position + 10)
        end = position + decimal(content[position:space]) if space > 0 else 0
        keyword, equals, value = content[space + 1 : end - 1].partition(b"=")
        if end <= space + 1 or not equals or content[end - 1 : end] != b"\n":
            raise Malformed("a record of an extended header is malformed")
        yield keyword, value
        position = end


def _merged(block: bytes, records: dict[bytes, bytes], xattrs: list[tuple[bytes, bytes]]) -> Member:
    """Return a member as its header and its records say together."""
    fields = _HEADER.unpack(block)
    kind, path = block[_KIND] or Kind.FILE, fields[0].partition(b"\0")[0]
    if fields[9] == _MAGIC and block[_PREFIX.start]:
        path = block[_PREFIX].partition(b"\0")[0] + b"/" + path
    if kind == Kind.FILE and path.endswith(b"/"):
        kind = Kind.DIRECTORY
    sparse = {keyword: value for keyword, value in records.items() if keyword.startswith(b"GNU.sparse.")}
    is_ours = sparse.get(b"GNU.sparse.major") == b"1" and sparse.get(b"GNU.sparse.minor") == b"0"
    size_bytes = decimal(records[b"size"]) if b"size" in records else _octal(fields[4])
    flags = records.get(b"SCHILY.fflags")
    return Member(
        path=sparse.get(b"GNU.sparse.name", records.get(b"path", path)),
        kind=kind,
        mode=_octal(fields[1]) & 0o7777,
        uid=decimal(records[b"uid"]) if b"uid" in records else _octal(fields[2]),
        gid=decimal(records[b"gid"]) if b"gid" in records else _octal(fields[3]),
        mtime_ns=_nanoseconds(records[b"mtime"]) if b"mtime" in records else _octal(fields[5]) * 10**9,
        # Nothing follows a link or a directory, whatever some archivers say there.
        size_bytes=0 if kind in _CONTENTLESS else size_bytes,
        link=records.get(b"linkpath", fields[8].partition(b"\0")[0]),
        device=(_octal(fields[12]), _octal(fields[13])) if kind in _DEVICES else (0, 0),
        xattrs=tuple(xattrs),
        flags=sum(_FLAGS.get(name, 0) for name in set(flags.split(b","))) if flags else 0,
        sparse_bytes=decimal(sparse.get(b"GNU.sparse.realsize", b"")) if is_ours else None,
        is_foreign=(bool(sparse) and not is_ours) or kind not in _KINDS,
    )


def decimal(text: bytes) -> int:
    """Read digits. Raises Malformed if they are none, or too many for 64 bits."""
    if not text.isdigit() or len(text) > DIGITS_MAX:
        raise Malformed("a number is malformed")
    return int(text)


def _octal(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's way for large numbers
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    return int(text, 8) if text else 0


def _nanoseconds(text: bytes) -> int:
    whole, _, part = text.removeprefix(b"-").partition(b".")
    time_ns = decimal(whole) * 10**9 + (decimal(part[:9].ljust(9, b"0")) if part else 0)
    return -time_ns if text.startswith(b"-") else time_ns
