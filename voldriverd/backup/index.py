"""What is where in a tar archive: built while it passes, and one file or folder taken out by it."""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

from voldriverd.backup.ranges import Ranges
from voldriverd.errors import NotFound, Unusable
from voldriverd.kernel import tar
from voldriverd.kernel.reader import Reader

Row = tuple[str, int, int]
"""A path without `./` before it (`.` is the root), where its headers begin, and the bytes up to the next member."""
Read = Callable[[int, int], Iterator[bytes]]
"""Reads the body from an offset on for so many bytes."""

_PATH_MAX: Final = 4_096
"""linux/limits.h"""
_ZEROS: Final = bytes(tar.BLOCK_BYTES)


class Index:
    """The rows of an archive that is fed to it; some 30 bytes of memory for each, if each is near the one before.

    Of a path only its first PATH_MAX bytes are kept: nobody can ask for more, and a hundred thousand nested directories
    would fill the memory with theirs.
    """

    def __init__(self) -> None:
        """Begin at the first byte."""
        self._starts = array("Q")
        self._shared = array("H")
        """How many bytes of each path are those of the one before."""
        self._rests = bytearray()
        """The others, each with a zero behind it."""
        self._last = b""
        self._headers = tar.Headers()
        self._pending = bytearray()
        self._position = 0
        self._start = 0
        self._skipped = 0
        self._is_lost = False

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Row]:
        path, position = b"", 0
        for number, (start, shared) in enumerate(zip(self._starts, self._shared, strict=True), 1):
            end = self._rests.index(b"\0", position)
            path = (path + b"/")[:shared] + self._rests[position:end]
            after = self._starts[number] if number < len(self._starts) else self._start
            yield os.fsdecode(path), start, after - start
            position = end + 1

    @property
    def is_between(self) -> bool:
        """Whether no header has been begun and not ended: the next byte is content, or of a new member."""
        return not self._pending and self._headers.is_between

    def feed(self, data: bytes) -> None:
        """Take what follows; bytes that are no archive end the index and nothing else."""
        position = 0
        while position < len(data) and not self._is_lost:
            if self._skipped:
                step = min(self._skipped, len(data) - position)
                self._skipped -= step
            else:
                step = min(self._headers.wanted - len(self._pending), len(data) - position)
                self._pending += data[position : position + step]
            position += step
            self._position += step
            if len(self._pending) == self._headers.wanted:
                piece = bytes(self._pending)
                self._pending.clear()
                self._take(piece)

    def _take(self, piece: bytes) -> None:
        if piece == _ZEROS and self._headers.is_between:
            return
        try:
            member = self._headers.take(piece)
        except tar.Malformed:
            self._is_lost = True
            return
        if member is None:
            return
        self._add(normal(member.path).replace(b"\0", b"")[:_PATH_MAX])
        self._skipped = member.size_bytes + tar.padding(member.size_bytes)
        self._start = self._position + self._skipped

    def _add(self, path: bytes) -> None:
        near = self._last + b"/"
        while near and not path.startswith(near):
            near = near[: near.rfind(b"/", 0, -1) + 1]
        self._starts.append(self._start)
        self._shared.append(len(near))
        self._rests += path[len(near) :] + b"\0"
        self._last = path


def extract(rows: Iterable[Row], path: str, read: Read) -> Iterator[bytes]:
    """Return a tar archive of one file or folder; its entries begin with the path's last name, `.` if none.

    `rows` may be read several times. A hard link to a file outside of the folder becomes that file. Raises NotFound
    at the call; Unusable (rows and body do not fit) and what `read` raises while it is read.
    """
    wanted = normal(os.fsencode(path))
    spans = Ranges((start, length) for found, start, length in rows if _is_below(os.fsencode(found), wanted))
    if not spans:
        raise NotFound(f"cannot read path {path!r}: the backup has no such file or directory")
    return _Extraction(rows, wanted, read).run(spans)


class _Extraction:
    """One run of extract."""

    def __init__(self, rows: Iterable[Row], wanted: bytes, read: Read) -> None:
        self._rows = rows
        self._wanted = wanted
        self._read = read
        self._outside: dict[bytes, list[tar.Member]] = {}
        """Files outside of the folder, each with the links to it that are inside."""

    def run(self, spans: Ranges) -> Iterator[bytes]:
        try:
            yield from self._run(spans)
        except EOFError as err:
            raise Unusable(f"cannot read the backup: {err}") from err

    def _run(self, spans: Ranges) -> Iterator[bytes]:
        for start, length in spans:
            for member, reader in self._members(start, length):
                target = normal(member.link)
                if member.kind == tar.Kind.LINK and not _is_below(target, self._wanted):
                    self._outside.setdefault(target, []).append(member)
                    continue
                yield tar.header(self._renamed(member))
                yield from _content(member, reader)
        if self._outside:
            yield from self._from_outside()
        yield bytes(2 * tar.BLOCK_BYTES)

    def _from_outside(self) -> Iterator[bytes]:
        """Yield what links lead to outside of the folder, under the name of the first, and links for the others."""
        for path, start, length in self._rows:
            first, *others = self._outside.pop(os.fsencode(path), [None])
            if first is None:
                continue
            for member, reader in self._members(start, length):
                yield tar.header(self._renamed(replace(member, path=first.path)))
                yield from _content(member, reader)
            for other in others:
                assert other is not None
                yield tar.header(self._renamed(replace(other, link=first.path)))
        if self._outside:
            raise Unusable(f"cannot read the backup: it has no {os.fsdecode(next(iter(self._outside)))!r} to link to")

    def _members(self, start: int, length: int) -> Iterator[tuple[tar.Member, Reader]]:
        """Yield the members of a span of the body, each with the reader of its content, which must be read."""
        reader = Reader(self._read(start, length))
        headers = tar.Headers()
        while piece := reader.read(headers.wanted):
            if piece == _ZEROS and headers.is_between:
                continue
            try:
                member = headers.take(piece)
            except tar.Malformed as err:
                raise Unusable(f"cannot read the backup: {err}, about byte {start + reader.position}") from err
            if member is not None:
                yield member, reader

    def _renamed(self, member: tar.Member) -> tar.Member:
        link = self._new_name(member.link) if member.kind == tar.Kind.LINK else member.link
        slash = b"/" if member.kind == tar.Kind.DIRECTORY else b""
        return replace(member, path=self._new_name(member.path) + slash, link=link)

    def _new_name(self, path: bytes) -> bytes:
        old = normal(path)
        if self._wanted == b".":
            return old if old == b"." else b"./" + old
        return self._wanted.rpartition(b"/")[2] + old[len(self._wanted) :]


def _content(member: tar.Member, reader: Reader) -> Iterator[bytes]:
    for piece in reader.pieces(member.size_bytes + tar.padding(member.size_bytes)):
        yield bytes(piece)


def _is_below(path: bytes, folder: bytes) -> bool:
    return folder in {b".", path} or path.startswith(folder + b"/")


def normal(path: bytes) -> bytes:
    """Return a path as it stands in the index, but for its length."""
    if path.startswith(b"./") and b"//" not in path and b"/." not in path:
        return path[2:].removesuffix(b"/") or b"."
    return b"/".join(name for name in path.split(b"/") if name not in {b"", b"."}) or b"."
