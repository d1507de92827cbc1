"""Tar archives that come from outside, made into what a driver receives: unpacked, and cut where the archive ends.

A driver reads an archive as one of ours, and takes zeros in it for a part that a damaged backup has lost. One that
somebody sends must be whole: it begins with a member, it ends with two blocks of zeros, and what follows those is
zeros. Names that lead out of the tree are refused here; what can only be seen while it is extracted (a link through a
directory that is none, two of one name) is refused there.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from voldriverd.driver import PART_MAX, Part
from voldriverd.errors import Invalid
from voldriverd.kernel import tar
from voldriverd.kernel.reader import Reader

PIECE_BYTES: Final = 1 << 20
"""How much is unpacked at once: what few bytes become may be gigabytes."""
MEMORY_MAX: Final = 256 << 20
"""What unpacking may take: xz -9 needs 65 MiB, zstd --long 128 MiB."""
_WINDOW_MAX: Final = 128 << 20
_ZEROS: Final = bytes(tar.BLOCK_BYTES)
_GZIP: Final = 31
"""zlib.h, inflateInit2: a window of 32 KiB, and a header of gzip."""
_UNKNOWN: Final = {
    b"BZh": "bzip2",
    b"\x1f\x9d": "compress",
    b"LZIP": "lzip",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
}
_WHAT: Final = "cannot read the archive"
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Opened:
    """An archive that is about to be read."""

    parts: Iterator[Part]
    """Raise Invalid: it is no archive, or a damaged or a hostile one; and what its source raises."""
    is_compressed: bool


def read(pieces: Iterator[bytes]) -> Opened:
    """Look at the beginning of an archive, which is plain or compressed by gzip, xz or zstd.

    Raises Invalid: it is something else.
    """
    source = iter(pieces)
    begun = b""
    for piece in source:
        begun += piece
        if len(begun) >= tar.BLOCK_BYTES:
            break
    unpack = next((each for magic, each in _UNPACKERS.items() if begun.startswith(magic)), None)
    name = next((each for magic, each in _UNKNOWN.items() if begun.startswith(magic)), None)
    if name is not None:
        raise _invalid(f"it is packed by {name}; give a tar, plain or compressed by gzip, xz or zstd")
    whole = _chained(begun, source)
    return Opened(_parts(_bounded(whole if unpack is None else unpack(whole))), unpack is not None)


def _chained(begun: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if begun:
        yield begun
    yield from rest


def _bounded(pieces: Iterator[bytes]) -> Iterator[bytes | memoryview]:
    """Yield an archive up to its end, and read what follows."""
    source, headers = Reader(pieces), tar.Headers()
    try:
        while piece := source.read(headers.wanted):
            if piece == _ZEROS and headers.is_between:
                break
            try:
                member = headers.take(piece)
            except tar.Malformed as err:
                first = "" if source.position > tar.BLOCK_BYTES else "it is no tar archive, or it is damaged: "
                raise _invalid(f"{first}{err}, at byte {source.position}") from err
            yield piece
            if member is not None:
                _check(member)
                yield from source.pieces(member.size_bytes + tar.padding(member.size_bytes))
        if source.position <= tar.BLOCK_BYTES:
            raise _invalid("there is nothing in it, or it ends too early")
        if not headers.is_between or source.read(tar.BLOCK_BYTES) != _ZEROS:
            raise _invalid(f"it ends too early, at byte {source.position}")
        yield 2 * _ZEROS
        _drain(source)
    except EOFError as err:
        if err is source.failure:
            raise
        raise _invalid(f"it ends too early: {err}") from err


def _drain(source: Reader) -> None:
    """Read what follows the end of an archive. Raises Invalid: it is not zeros."""
    try:
        for piece in source.pieces(sys.maxsize):
            if bytes(piece).strip(b"\0"):
                raise _invalid(f"something follows its end, before byte {source.position}")
    except EOFError as err:
        if err is source.failure:
            raise


def _check(member: tar.Member) -> None:
    """Refuse a name that is not inside. Raises Invalid."""
    links = [member.link] if member.kind == tar.Kind.LINK else []
    for path in (member.path, *links):
        if path.startswith(b"/") or b".." in path.split(b"/") or b"\0" in path:
            raise _invalid(f"{path[:_SHOWN].decode(errors='replace')!r} leads out of the tree")
    if member.is_foreign:
        shown = member.path[:_SHOWN].decode(errors="replace")
        raise _invalid(f"{shown!r} is of a kind that is not known here; make it with `tar --format=pax`")


def _parts(pieces: Iterator[bytes | memoryview]) -> Iterator[Part]:
    """Join pieces to parts that are worth handing on."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= PIECE_BYTES:
            data = bytes(waiting[:PART_MAX])
            del waiting[:PART_MAX]
            yield Part(data, len(data))
    if waiting:
        yield Part(bytes(waiting), len(waiting))


def _gunzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    work = zlib.decompressobj(_GZIP)
    for piece in pieces:
        data = piece
        while True:
            if work.eof:
                data = (work.unused_data + data).lstrip(b"\0")  # as gzip: zeros may fill up a tape
                if not data:
                    break
                work = zlib.decompressobj(_GZIP)
            try:
                found = work.decompress(data, PIECE_BYTES)
            except zlib.error as err:
                raise _invalid(f"what gzip made is damaged: {err}") from err
            if found:
                yield found
            data = work.unconsumed_tail
            if not work.eof and not data and len(found) < PIECE_BYTES:
                break
            if work.eof:
                data = b""
    if not work.eof:
        raise _invalid("what gzip made ends too early")


def _unxz(pieces: Iterator[bytes]) -> Iterator[bytes]:
    import lzma  # noqa: PLC0415 - few archives need it

    work = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MEMORY_MAX)
    for piece in pieces:
        data = piece
        while True:
            if work.eof:
                data = (work.unused_data + data).lstrip(b"\0")  # the format's own padding
                if not data:
                    break
                work = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MEMORY_MAX)
            try:
                found = work.decompress(data, PIECE_BYTES)
            except lzma.LZMAError as err:
                raise _invalid(f"what xz made cannot be read: {err}") from err
            data = b""
            if found:
                yield found
            if not work.eof and work.needs_input:
                break
    if not work.eof:
        raise _invalid("what xz made ends too early")


def _unzstd(pieces: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard  # noqa: PLC0415 - few archives need it

    work = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
    source: Any = _File(pieces)  # whose `read` is all that is asked of an IO
    with work.stream_reader(source, read_across_frames=True, closefd=False) as reader:
        while True:
            try:
                found = reader.read(PIECE_BYTES)
            except zstandard.ZstdError as err:
                raise _invalid(f"what zstd made cannot be read: {err}") from err
            if not found:
                return
            yield found


class _File:
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size_bytes: int) -> bytes:
        """Return at most so many bytes, none at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        found, self._rest = self._rest[:size_bytes], self._rest[size_bytes:]
        return found


_UNPACKERS: Final[dict[bytes, Callable[[Iterator[bytes]], Iterator[bytes]]]] = {
    b"\x1f\x8b": _gunzip,
    b"\xfd7zXZ\0": _unxz,
    b"\x28\xb5\x2f\xfd": _unzstd,
}


def _invalid(cause: str) -> Invalid:
    return Invalid(f"{_WHAT}: {cause}")
