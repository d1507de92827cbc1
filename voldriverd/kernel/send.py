r"""The kernel's own difference of two snapshots: the send stream without file data (fs/btrfs/send.h, version 1).

    stream    "btrfs-stream\0", version le32, commands up to END
    command   length of its attributes le32, number le16, crc32c le32, attributes
    attribute type le16, length le16, data

The commands turn the older snapshot into the newer one, step by step. Names like `o257-12-0` are
those of inodes that have no place yet or no more.
"""

import ctypes
import os
import struct
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, Final

from voldriverd.kernel import ioctl

BTRFS_SEND_FLAG_NO_FILE_DATA: Final = 0x1
"""linux/btrfs.h; writes come as UPDATE_EXTENT, and no data is read."""

_MAGIC: Final = b"btrfs-stream\0"
_PATH: Final = 15
_PATH_TO: Final = 16
_PATH_LINK: Final = 17
"""BTRFS_SEND_A_PATH and its like"""
_ATTRIBUTES_MAX: Final = 1 << 20
"""Without data the longest command holds two paths or an xattr of 64 KiB."""


class Command(IntEnum):
    """BTRFS_SEND_C_*: what a step does."""

    SUBVOL = 1
    SNAPSHOT = 2
    MKFILE = 3
    MKDIR = 4
    MKNOD = 5
    MKFIFO = 6
    MKSOCK = 7
    SYMLINK = 8
    RENAME = 9
    LINK = 10
    UNLINK = 11
    RMDIR = 12
    SET_XATTR = 13
    REMOVE_XATTR = 14
    WRITE = 15
    CLONE = 16
    TRUNCATE = 17
    CHMOD = 18
    CHOWN = 19
    UTIMES = 20
    END = 21
    UPDATE_EXTENT = 22


@dataclass(frozen=True, slots=True)
class Step:
    """One command with the paths it names, relative to the snapshot."""

    command: Command
    path: bytes
    other: bytes
    """RENAME: the new path; LINK: an existing path of the inode; else empty."""


class _SendArgs(ctypes.Structure):
    """struct btrfs_ioctl_send_args."""

    _fields_ = (
        ("send_fd", ctypes.c_int64),
        ("clone_sources_count", ctypes.c_uint64),
        ("clone_sources", ctypes.c_void_p),
        ("parent_root", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("version", ctypes.c_uint32),
        ("reserved", ctypes.c_uint8 * 28),
    )


BTRFS_IOC_SEND: Final = ioctl.iow(0x94, 38, ctypes.sizeof(_SendArgs))


@contextmanager
def sending(fd: int, *, parent_id: int, flags: int) -> Iterator[BinaryIO]:
    """Yield the stream that turns the snapshot of id `parent_id` into that of `fd`; both must be read-only.

    The kernel writes it from a thread that ends with the block. A reader that leaves early ends it. A failure of
    the kernel is raised at the end of the block, after the stream has ended too early. Raises OSError (EPERM: one
    of them is writable; ENAMETOOLONG: a path has more than 4,095 bytes).
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    failure: list[OSError] = []

    def send() -> None:
        try:
            ioctl.call(fd, BTRFS_IOC_SEND, _SendArgs(send_fd=writing, parent_root=parent_id, flags=flags))
        except OSError as err:
            failure.append(err)
        finally:
            os.close(writing)

    thread = threading.Thread(target=send, name="btrfs-send")
    with open(reading, "rb") as stream:
        thread.start()
        try:
            yield stream
        except EOFError:
            thread.join()
            if failure:
                raise failure[0] from None
            raise
        finally:
            stream.close()
            thread.join()


def steps(fd: int, *, parent_id: int) -> Generator[Step, None, None]:
    """Yield what turns the snapshot of id `parent_id` into that of `fd`, without file data. Raises OSError as above."""
    with sending(fd, parent_id=parent_id, flags=BTRFS_SEND_FLAG_NO_FILE_DATA) as stream:
        header = _read(stream, len(_MAGIC) + 4)
        assert header.startswith(_MAGIC)
        while True:
            length, number, _ = struct.unpack("<IHI", _read(stream, 10))
            assert length <= _ATTRIBUTES_MAX
            attributes = _attributes(_read(stream, length))
            command = Command(number)
            if command is Command.END:
                return
            other = attributes.get(_PATH_TO, attributes.get(_PATH_LINK, b""))
            yield Step(command, attributes.get(_PATH, b""), other)


def _attributes(content: bytes) -> dict[int, bytes]:
    found = {}
    position = 0
    while position < len(content):
        kind, length = struct.unpack_from("<HH", content, position)
        found[kind] = content[position + 4 : position + 4 + length]
        position += 4 + length
    return found


def _read(stream: BinaryIO, length: int) -> bytes:
    """Read exactly so many bytes. Raises EOFError."""
    content = stream.read(length)
    if len(content) < length:
        raise EOFError("the stream ended within a command")
    return content
