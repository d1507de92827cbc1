"""Where the data of a file lies on the disk, and what two files share of it.

FS_IOC_FIEMAP: Documentation/filesystems/fiemap.rst, linux/fiemap.h. Two files that have the same place on the disk at
the same offset have the same bytes there, so that two images of one origin need not be read to be compared.
"""

import ctypes
import errno
import hashlib
import os
import struct
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from voldriverd.kernel import fs, ioctl, watch

FS_IOC_FIEMAP: Final = ioctl.iowr(ord("f"), 11, 32)
"""linux/fs.h"""
FIEMAP_FLAG_SYNC: Final = 0x1
FIEMAP_EXTENT_LAST: Final = 0x1
FIEMAP_EXTENT_UNKNOWN: Final = 0x2
FIEMAP_EXTENT_DELALLOC: Final = 0x4
FIEMAP_EXTENT_ENCODED: Final = 0x8
FIEMAP_EXTENT_DATA_ENCRYPTED: Final = 0x80
FIEMAP_EXTENT_NOT_ALIGNED: Final = 0x100
FIEMAP_EXTENT_DATA_INLINE: Final = 0x200
FIEMAP_EXTENT_DATA_TAIL: Final = 0x400
FIEMAP_EXTENT_UNWRITTEN: Final = 0x800
FIEMAP_EXTENT_MERGED: Final = 0x1000
FIEMAP_EXTENT_SHARED: Final = 0x2000
"""linux/fiemap.h"""

_TELLS_NOTHING: Final = FIEMAP_EXTENT_LAST | FIEMAP_EXTENT_MERGED | FIEMAP_EXTENT_SHARED
"""Flags of an extent that say nothing about where its bytes are."""
_PAGE: Final = 512
"""Extents asked for at once: 28 KiB."""
_ENTRY: Final = struct.Struct("=QQQ16xI12x")
_WINDOW_BYTES: Final = 256 << 20
"""How much of two files is compared at once: 65,536 extents of each at worst, some 10 MB."""
_NO_MAP: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY})


class _Request(ctypes.Structure):
    """struct fiemap with room for the answer."""

    _fields_ = (
        ("fm_start", ctypes.c_uint64),
        ("fm_length", ctypes.c_uint64),
        ("fm_flags", ctypes.c_uint32),
        ("fm_mapped_extents", ctypes.c_uint32),
        ("fm_extent_count", ctypes.c_uint32),
        ("fm_reserved", ctypes.c_uint32),
        ("fm_extents", ctypes.c_uint8 * (_ENTRY.size * _PAGE)),
    )


class Kind(IntEnum):
    """What an extent's place on the disk tells about its bytes."""

    PLAIN = 0
    """They are there, one after the other."""
    ENCODED = 1
    """They are made from what begins there (compressed), but the map does not tell from which part of it."""
    UNKNOWN = 2
    """Nothing: not written yet, kept among metadata, encrypted, or of a kind that we do not know."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of a file, in bytes, and where on the disk it begins."""

    start: int
    end: int
    physical: int
    kind: Kind


class Found(IntEnum):
    """How a range of a file differs from the same range of another."""

    DATA = 0
    """It has data that may be another."""
    HOLE = 1
    """It is a hole, where the other has data."""
    DOUBT = 2
    """Only its bytes can tell."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of a file, in bytes, and what was found there."""

    start: int
    end: int
    found: Found


class Spans:
    """Spans in ascending order, joined where they touch and are alike; a million of them take 24 MB."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._numbers = array("Q")
        for span in spans:
            self.add(span.start, span.end, span.found)

    def add(self, start: int, end: int, found: Found) -> None:
        """Add one behind all others."""
        numbers = self._numbers
        if numbers and numbers[-2] == start and numbers[-1] == found:
            numbers[-2] = end
            return
        numbers.extend((start, end, found))

    def __iter__(self) -> Iterator[Span]:
        numbers = self._numbers
        for at in range(0, len(numbers), 3):
            yield Span(numbers[at], numbers[at + 1], Found(numbers[at + 2]))

    def count_bytes(self, found: Found) -> int:
        """Return how long all spans of a kind are together."""
        return sum(span.end - span.start for span in self if span.found is found)


def has_map(directory: Path) -> bool:
    """Try it with a nameless file. Raises OSError.

    A full xfs has no place for one: then btrfs and xfs are taken to have maps.
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            next(read(file.fileno(), 0, 1), None)
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            return fs.magic(directory) in {fs.BTRFS_MAGIC, fs.XFS_MAGIC}
        if err.errno in _NO_MAP:
            return False
        raise
    return True


def read(fd: int, start: int, end: int) -> Iterator[Extent]:
    """Yield the extents of a range, ascending and cut to it; what waits in memory is written first. Raises OSError.

    `watch` is told that it goes on, with each answer of the kernel: a map of a million extents takes seconds.
    A space that is reserved and not written is a hole. Plain extents that continue each other are one, however the
    kernel cut them.
    """
    last = None
    for extent in _raw(fd, start, end):
        if last is None:
            last = extent
        elif _continues(last, extent):
            last = Extent(last.start, extent.end, last.physical, last.kind)
        else:
            yield last
            last = extent
    if last is not None:
        yield last


def compare(extents: Iterable[Extent], others: Iterable[Extent]) -> Iterator[Span]:
    """Yield how a file differs from another, ascending, by the extents of the same range of both."""
    pending, other_pending = iter(extents), iter(others)
    extent, other = next(pending, None), next(other_pending, None)
    position = 0
    while extent is not None or other is not None:
        start = max(position, min(each.start for each in (extent, other) if each is not None))
        end, here, there = _step(extent, other, start)
        found = _judge(here, there, start)
        if found is not None:
            yield Span(start, end, found)
        position = end
        if extent is not None and extent.end <= position:
            extent = next(pending, None)
        if other is not None and other.end <= position:
            other = next(other_pending, None)


def difference(fd: int, base_fd: int) -> Spans | None:
    """Return how a file differs from its base, both at rest; None if the base's data was moved meanwhile.

    What a defragmentation or a balance frees may at once become the place of something else. Each range of the base's
    map is therefore read before the file's, and all of it once more at the end. Only plain extents count there: only
    they are ever found equal, and btrfs cuts compressed ones otherwise as soon as somebody else shares a part of them
    (fs/btrfs/fiemap.c, emit_fiemap_extent: of those that follow each other on the disk it makes one if their flags are
    the same). Raises OSError.
    """
    size_bytes = os.fstat(fd).st_size
    base_bytes = min(os.fstat(base_fd).st_size, size_bytes)
    spans = Spans()
    seen = hashlib.blake2b()
    for start, end in _windows(size_bytes):
        base = list(read(base_fd, start, min(end, base_bytes)))
        _note(seen, base)
        for span in compare(read(fd, start, end), base):
            spans.add(span.start, span.end, span.found)
    again = hashlib.blake2b()
    for start, end in _windows(base_bytes):
        _note(again, read(base_fd, start, end))
    return spans if again.digest() == seen.digest() else None


def missing_bytes(spans: Iterable[Span], others: Iterable[Span]) -> int:
    """Return how many bytes the first spans have that none of the others has."""
    count = 0
    pending = iter(others)
    other = next(pending, None)
    for span in spans:
        start = span.start
        while start < span.end:
            if other is None or other.start >= span.end:
                count += span.end - start
                break
            count += max(0, other.start - start)
            start = max(start, min(other.end, span.end))
            if other.end <= span.end:
                other = next(pending, None)
    return count


def _raw(fd: int, start: int, end: int) -> Iterator[Extent]:
    """Yield extents as the kernel has cut them; one answer may not hold all, nor begin or end where asked."""
    request = _Request()
    while start < end:
        watch.advance()
        request.fm_start, request.fm_length = start, end - start
        request.fm_flags, request.fm_extent_count = FIEMAP_FLAG_SYNC, _PAGE
        request.fm_mapped_extents = 0
        ioctl.call(fd, FS_IOC_FIEMAP, request)
        page = memoryview(request.fm_extents).cast("B")[: request.fm_mapped_extents * _ENTRY.size]
        before = start
        for logical, physical, length, flags in _ENTRY.iter_unpack(bytes(page)):
            begin, stop = max(logical, start), min(logical + length, end)
            start = max(start, logical + length)
            kind = _kind(flags)
            if kind is not None and begin < stop:
                yield Extent(begin, stop, physical + (begin - logical if kind is Kind.PLAIN else 0), kind)
        if start == before:
            return  # nothing but a hole follows


def _kind(flags: int) -> Kind | None:
    """Return None for what reads as zeros."""
    flags &= ~_TELLS_NOTHING
    if flags == FIEMAP_EXTENT_UNWRITTEN:
        return None
    if flags == FIEMAP_EXTENT_ENCODED:
        return Kind.ENCODED
    return Kind.UNKNOWN if flags else Kind.PLAIN


def _continues(last: Extent, extent: Extent) -> bool:
    return (
        last.kind is extent.kind is Kind.PLAIN
        and last.end == extent.start
        and last.physical + (last.end - last.start) == extent.physical
    )


def _step(extent: Extent | None, other: Extent | None, start: int) -> tuple[int, Extent | None, Extent | None]:
    """Return up to where nothing begins or ends in either file, and the extents that are there."""
    ends: list[int] = []
    here: list[Extent | None] = []
    for each in (extent, other):
        is_here = each is not None and each.start <= start
        here.append(each if is_here else None)
        if each is not None:
            ends.append(each.end if is_here else each.start)
    return min(ends), here[0], here[1]


def _judge(extent: Extent | None, other: Extent | None, at: int) -> Found | None:
    """Return None if the bytes are the same."""
    if extent is None:
        return Found.HOLE
    if other is None or extent.kind is not other.kind or extent.kind is Kind.UNKNOWN:
        return Found.DATA
    if extent.kind is Kind.ENCODED:
        return Found.DOUBT if extent.physical == other.physical else Found.DATA
    is_same = extent.physical + (at - extent.start) == other.physical + (at - other.start)
    return None if is_same else Found.DATA


def _windows(size_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size_bytes, _WINDOW_BYTES):
        yield start, min(start + _WINDOW_BYTES, size_bytes)


def _note(digest: "hashlib.blake2b", extents: Iterable[Extent]) -> None:
    for extent in extents:
        if extent.kind is Kind.PLAIN:
            digest.update(struct.pack("=QQQ", extent.start, extent.end, extent.physical))
