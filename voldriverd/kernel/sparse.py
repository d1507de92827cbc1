"""The map with which a sparse file's content begins in a tar archive (GNU tar's manual, "Storing Sparse Files")."""

from collections import deque
from collections.abc import Iterator
from typing import Final

from voldriverd.kernel import tar

SEGMENTS_MAX: Final = 1 << 18
"""What a sparse file is made of at most, or its map would fill the memory; it ends with its holes written out."""

Segments = list[tuple[int, int]]
"""(offset, length) of what is no hole, ascending."""


def write(segments: Segments, size_bytes: int) -> bytes:
    """Return what the content of a sparse file begins with."""
    if not segments or sum(segments[-1]) < size_bytes:
        segments = [*segments, (size_bytes, 0)]
    text = b"%d\n" % len(segments) + b"".join(b"%d\n%d\n" % segment for segment in segments)
    return text + bytes(tar.padding(len(text)))


def read(pieces: Iterator[bytes], member: tar.Member) -> Segments:
    """Read the map of a sparse member from an iterator of blocks, as many as it takes. Raises Malformed."""
    numbers = _Numbers(pieces)
    segments: Segments = []
    end, size_bytes = 0, 0
    for _ in range(numbers.take()):
        offset, length = numbers.take(), numbers.take()
        if offset < end or len(segments) > SEGMENTS_MAX:
            raise tar.Malformed("the map of a sparse file is malformed")
        segments.append((offset, length))
        end = offset + length
        size_bytes += length
    if end > (member.sparse_bytes or 0) or size_bytes + numbers.read_bytes != member.size_bytes:
        raise tar.Malformed("the map of a sparse file does not fit it")
    return segments


class _Numbers:
    """The lines of a map, taken one by one. Raises Malformed."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self.read_bytes = 0

    def take(self) -> int:
        while not self._lines:
            piece = next(self._pieces, None)
            if piece is None or len(self._rest) > tar.DIGITS_MAX:
                raise tar.Malformed("the map of a sparse file is malformed")
            self.read_bytes += len(piece)
            *lines, self._rest = (self._rest + piece).split(b"\n")
            self._lines.extend(lines)
        return tar.decimal(self._lines.popleft())
