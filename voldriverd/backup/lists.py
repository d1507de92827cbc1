"""The lists of a backup, as lines of JSON in chunks of their own: written and read a piece at a time.

A backup of many million files has lists of gigabytes; neither end ever holds more than a piece of them.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Any, Final

from voldriverd.backup.manifest import Malformed, is_chunk_name
from voldriverd.driver import PART_MAX

LINE_ROWS: Final = 1000
LINE_CHARACTERS: Final = 64 << 10
"""A line ends when it is longer; the row that ends it is not cut. Parsing one holds the GIL for a millisecond."""
PIECE_BYTES: Final = 1 << 20
"""A chunk of lists ends with the line that makes it longer."""
_LINE_MAX: Final = 1 << 20
_END: Final = (1 << 63) - 1

Row = tuple[Any, ...]


class Kind(StrEnum):
    """Of which list a row is."""

    CHUNKS = "chunks"
    """(name, length)"""
    RANGES = "ranges"
    """(offset, length)"""
    HOLES = "holes"
    """(offset, length)"""
    INDEX = "index"
    """(path, where its headers begin in the body, bytes up to the next member)"""


class Writer:
    """Takes rows of all lists, each list's in order, and gives pieces of lines away."""

    def __init__(self, give: Callable[[bytes], None]) -> None:
        """`give` gets pieces of at most PART_MAX bytes, in order."""
        self._give = give
        self._rows: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        self._characters = dict.fromkeys(Kind, 0)
        self._piece: list[bytes] = []
        self._piece_bytes = 0

    def add(self, kind: Kind, *row: str | int) -> None:
        """Add one row to a list."""
        text = json.dumps(row, separators=(",", ":"))
        rows = self._rows[kind]
        rows.append(text)
        self._characters[kind] += len(text)
        if len(rows) >= LINE_ROWS or self._characters[kind] >= LINE_CHARACTERS:
            self._end_line(kind)

    def close(self) -> None:
        """Give the rest away."""
        for kind in Kind:
            self._end_line(kind)
        self._end_piece()

    def _end_line(self, kind: Kind) -> None:
        rows = self._rows[kind]
        if not rows:
            return
        line = f'{{"{kind}":[{",".join(rows)}]}}\n'.encode("ascii")
        rows.clear()
        self._characters[kind] = 0
        self._piece.append(line)
        self._piece_bytes += len(line)
        if self._piece_bytes >= PIECE_BYTES:
            self._end_piece()

    def _end_piece(self) -> None:
        if self._piece:
            self._give(b"".join(self._piece))
        self._piece.clear()
        self._piece_bytes = 0


def rows(pieces: Iterable[bytes], kind: Kind) -> Iterator[Row]:
    """Yield the rows of one list, each checked by itself. Raises Malformed."""
    head = f'{{"{kind}":'.encode()
    is_row = _IS_ROW[kind]
    for piece in pieces:
        for line in piece.splitlines():
            if not line.startswith(head):
                continue
            for row in _rows_of(line, kind):
                if not isinstance(row, list) or not is_row(row):
                    raise Malformed(f"its list of {kind} has a row that cannot stand there")
                yield tuple(row)


def _rows_of(line: bytes, kind: Kind) -> list[Any]:
    if len(line) > _LINE_MAX:
        raise Malformed(f"its list of {kind} has a line of {len(line)} bytes")
    try:
        found = json.loads(line)[kind]
    except (ValueError, RecursionError) as err:
        raise Malformed(f"its list of {kind} is no JSON") from err
    if not isinstance(found, list):
        raise Malformed(f"its list of {kind} is none")
    return found


def _is_chunk(row: list[Any]) -> bool:
    match row:
        case [str(name), int(length)]:
            return is_chunk_name(name) and 0 < length <= PART_MAX
    return False


def _is_span(row: list[Any]) -> bool:
    match row:
        case [int(offset), int(length)]:
            return offset >= 0 and length > 0 and offset + length <= _END
    return False


def _is_member(row: list[Any]) -> bool:
    match row:
        case [str(), int(), int()]:
            return _is_span(row[1:])
    return False


_IS_ROW: Final = {
    Kind.CHUNKS: _is_chunk,
    Kind.RANGES: _is_span,
    Kind.HOLES: _is_span,
    Kind.INDEX: _is_member,
}
