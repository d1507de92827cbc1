"""Send streams kept, taken apart and put together, for tests."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from voldriverd.driver import PART_MAX, Driver, Key, Part, Stream, StreamFormat
from voldriverd.kernel import receive, send

HEAD: Final = send.MAGIC + (1).to_bytes(4, "little")
END: Final = receive._sealed(send.Command.END, b"")
INODE: Final = 3
RDEV: Final = 8
MODE: Final = 5
FILE_OFFSET: Final = 18
DATA: Final = 19
CLONE_CTRANSID: Final = 21
CLONE_PATH: Final = 22
CLONE_OFFSET: Final = 23
CLONE_LEN: Final = 24
"""BTRFS_SEND_A_INO and its like"""


@dataclass(frozen=True, slots=True)
class Kept:
    """A stream with all its parts read."""

    stream: Stream
    parts: tuple[Part, ...]

    @property
    def data(self) -> bytes:
        return b"".join(part.data or b"" for part in self.parts)

    def again(self) -> Stream:
        """Return it as it came."""
        return replace(self.stream, parts=iter(self.parts))


def keep(driver: Driver, key: str, base: str | None = None, *, wanted: StreamFormat | None = None) -> Kept:
    """Read a stream to its end."""
    with driver.send(Key(key), None if base is None else Key(base), wanted=wanted) as stream:
        return Kept(stream, tuple(stream.parts))


def replay(*kept: Kept) -> Iterator[Stream]:
    """Yield streams as a chain."""
    return (one.again() for one in kept)


def made(data: bytes, *, is_incremental: bool = False, version: int = 1) -> Stream:
    """Return bytes as a btrfs stream."""
    pieces = [data[start : start + PART_MAX] for start in range(0, len(data), PART_MAX)]
    parts = (Part(piece, len(piece)) for piece in pieces)
    return Stream(StreamFormat.BTRFS, version, is_incremental, None, None, parts)


def command(number: int, attributes: dict[int, bytes | int]) -> bytes:
    """Return a command as version 1 has it."""
    content = b""
    for kind, value in attributes.items():
        data = value.to_bytes(8, "little") if isinstance(value, int) else value
        content += struct.pack("<HH", kind, len(data)) + data
    return receive._sealed(number, content)


def commands(data: bytes) -> list[bytes]:
    """Return the commands of a stream."""
    found = []
    position = len(HEAD)
    while position < len(data):
        length, _, _ = send.HEADER.unpack_from(data, position)
        found.append(data[position : position + send.HEADER.size + length])
        position += len(found[-1])
    return found
