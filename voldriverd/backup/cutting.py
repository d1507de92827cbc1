"""Streams cut into chunks of PART_MAX at most, and made of them again.

Where a cut is decides what two backups share. BTRFS: every PART_MAX. BLOCKS: a whole one at every multiple of
PART_MAX of the image, so that the next whole one has the same chunks but for what changed; an increment is packed.
TAR: by content (FastCDC), so that what is inserted moves the cuts around it only.
"""

import heapq
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from typing import Final

from fastcdc.fastcdc_cy import fastcdc_cy  # type: ignore[import-untyped]

from voldriverd.backup.index import Index, Row
from voldriverd.backup.ranges import Ranges
from voldriverd.driver import PART_MAX, Part, Stream, StreamFormat
from voldriverd.errors import Unusable

TAR_MIN: Final = 256 << 10
TAR_AVERAGE: Final = 1 << 20
"""Of what FastCDC cuts: smaller ones share more, and cost a request each."""


class Cut:
    """One stream being cut. `chunks` can be read once; the lists are whole after its end."""

    def __init__(self, stream: Stream) -> None:
        """Take nothing of the stream yet."""
        self._stream = stream
        self.ranges = Ranges()
        """Of BLOCKS: what the chunks hold, one after the other."""
        self.holes = Ranges()
        """Of BLOCKS: what reads as zeros."""
        self.index = Index()
        """Of TAR: the members."""

    def chunks(self) -> Iterator[bytes]:
        """Yield the chunks; what the stream raises passes through."""
        match self._stream.format:
            case StreamFormat.BTRFS:
                return _packed(_data(self._stream.parts))
            case StreamFormat.BLOCKS:
                data = self._blocks(is_cut=not self._stream.is_incremental)
                return _packed(data)
            case StreamFormat.TAR:
                return _by_content(self._indexed(_data(self._stream.parts)))

    def _blocks(self, *, is_cut: bool) -> Iterator[bytes | None]:
        """Yield data with None where there must be a cut, and note where it belongs."""
        window = 0
        for part in self._stream.parts:
            assert part.offset is not None, "a part of an image has a place"
            assert part.offset >= max(self.ranges.end, self.holes.end), "the parts of an image are ascending"
            if part.data is None:
                self.holes.add(part.offset, part.length)
                continue
            self.ranges.add(part.offset, part.length)
            if not is_cut:
                yield part.data
                continue
            start = 0
            while start < part.length:
                here = part.offset + start
                if here // PART_MAX != window:
                    window = here // PART_MAX
                    yield None
                end = min(part.length, (window + 1) * PART_MAX - part.offset)
                yield part.data[start:end]
                start = end

    def _indexed(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.index.feed(piece)
            yield piece


def parts(
    form: StreamFormat,
    contents: Iterator[Part],
    *,
    ranges: Ranges,
    holes: Ranges,
    index: Iterable[Row] | None,
) -> Iterator[Part]:
    """Make the parts of a stream of the contents of its chunks; one without data is a chunk that is lost.

    What is lost comes as a hole (BLOCKS), or as zeros (TAR with its index; all of a member whose headers are lost).
    The lists of BLOCKS are needed, and the index if a chunk of TAR may be lost. Raises Unusable: ranges and contents
    do not fit.
    """
    if form is StreamFormat.BLOCKS:
        return _image_parts(contents, ranges, holes)
    if form is StreamFormat.TAR and index is not None:
        return _tar_parts(contents, index)
    return contents


def _data(parts: Iterator[Part]) -> Iterator[bytes]:
    for part in parts:
        assert part.data is not None, "only an image has holes"
        yield part.data


def _packed(pieces: Iterator[bytes | None]) -> Iterator[bytes]:
    """Yield chunks of PART_MAX; None among the pieces ends one earlier."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    for piece in pieces:
        if piece is not None:
            waiting.append(piece)
            waiting_bytes += len(piece)
            if waiting_bytes < PART_MAX:
                continue
        joined = b"".join(waiting)
        whole_bytes = waiting_bytes if piece is None else waiting_bytes - waiting_bytes % PART_MAX
        for start in range(0, whole_bytes, PART_MAX):
            yield joined[start : start + PART_MAX]
        waiting, waiting_bytes = [joined[whole_bytes:]], waiting_bytes - whole_bytes
    if waiting_bytes:
        yield b"".join(waiting)


def _by_content(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield chunks as FastCDC cuts them, however the pieces come: no cut depends on more than PART_MAX bytes."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    for piece in pieces:
        waiting.append(piece)
        waiting_bytes += len(piece)
        if waiting_bytes >= 2 * PART_MAX:
            rest = yield from _cut_off(b"".join(waiting), least_bytes=PART_MAX)
            waiting, waiting_bytes = [rest], len(rest)
    yield from _cut_off(b"".join(waiting), least_bytes=1)


def _cut_off(data: bytes, *, least_bytes: int) -> Generator[bytes, None, bytes]:
    """Yield chunks as long as so many bytes are left, and return the rest."""
    start = 0
    while len(data) - start >= least_bytes:
        # A generator for one chunk each: it would go on to where more bytes may still come.
        found = next(fastcdc_cy(memoryview(data)[start : start + PART_MAX], TAR_MIN, TAR_AVERAGE, PART_MAX))
        yield data[start : start + found.length]
        start += found.length
    return data[start:]


def _image_parts(contents: Iterator[Part], ranges: Ranges, holes: Ranges) -> Iterator[Part]:
    """Yield what the ranges and holes say, ascending, with the data of the contents."""
    source = _Contents(contents)
    for offset, length, is_hole in _ascending(ranges, holes):
        position, end = offset, offset + length
        while position < end:
            part = Part(None, end - position) if is_hole else source.take(end - position)
            yield replace(part, offset=position)
            position += part.length
    source.expect_end()


def _ascending(ranges: Ranges, holes: Ranges) -> Iterator[tuple[int, int, bool]]:
    """Yield (offset, length, whether it is a hole). Raises Unusable if any overlap."""
    with_data = ((offset, length, False) for offset, length in ranges)
    without = ((offset, length, True) for offset, length in holes)
    end = 0
    for found in heapq.merge(with_data, without):
        if found[0] < end:
            raise Unusable(f"cannot read the backup: its ranges overlap at byte {found[0]}")
        end = found[0] + found[1]
        yield found


class _Contents:
    """Chunks one after the other, taken in the lengths that are wanted."""

    def __init__(self, contents: Iterator[Part]) -> None:
        self._contents = contents
        self._part = Part(b"", 0)
        self._start = 0

    def take(self, most_bytes: int) -> Part:
        """Return up to so many bytes, at least one. Raises Unusable at the end."""
        while self._start == self._part.length:
            part = next(self._contents, None)
            if part is None:
                raise Unusable("cannot read the backup: its ranges are longer than its chunks")
            self._part, self._start = part, 0
        start, end = self._start, min(self._part.length, self._start + most_bytes)
        self._start = end
        data = self._part.data
        return Part(None if data is None else data[start:end], end - start)

    def expect_end(self) -> None:
        """Raise Unusable if anything is left."""
        if self._start < self._part.length or any(part.length for part in self._contents):
            raise Unusable("cannot read the backup: its chunks are longer than its ranges")


def _tar_parts(contents: Iterator[Part], rows: Iterable[Row]) -> Iterator[Part]:
    """Yield the contents with zeros for what is lost; nothing is left of a member whose headers are not whole."""
    members = iter(rows)
    member = "", 0, 0
    seen = Index()
    position, lost_until = 0, 0
    for part in contents:
        start, position = position, position + part.length
        data = part.data
        if data is None:
            had_headers = seen.is_between
            while member[1] + member[2] <= position and (following := next(members, None)) is not None:
                member = following
            _, begin, length = member
            if begin < position < begin + length and (begin >= start or not had_headers):
                lost_until = begin + length
            data = bytes(part.length)
        elif start < lost_until:
            zeros = min(lost_until, position) - start
            data = bytes(zeros) + data[zeros:]
        if start < lost_until <= position:
            seen = Index()
            seen.feed(data[lost_until - start :])
        else:
            seen.feed(data)
        yield Part(data, part.length)
