r"""Send streams: a read-only subvolume written down, whole or as what changed since another (fs/btrfs/send.h).

    stream    "btrfs-stream\0", version le32, commands up to END
    command   length of its attributes le32, number le16, crc32c le32 (seed 0, of the command without it), attributes
    attribute type le16, length le16, data; in version 2 DATA has no length and is the last

The commands turn nothing, or the older snapshot, into the newer one, step by step. Names like `o257-12-0` are
those of inodes that have no place yet or no more. Version 2 (Linux 6.0) can carry compressed extents as they are.
"""

import ctypes
import errno
import os
import signal
import struct
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, Final

from voldriverd.kernel import ioctl, pipe, watch

BTRFS_SEND_FLAG_NO_FILE_DATA: Final = 0x1
BTRFS_SEND_FLAG_VERSION: Final = 0x8
BTRFS_SEND_FLAG_COMPRESSED: Final = 0x10
"""linux/btrfs.h; without file data writes come as UPDATE_EXTENT, and no data is read."""

MAGIC: Final = b"btrfs-stream\0"
HEADER: Final = struct.Struct("<IHI")
"""Of a command: length of the attributes, number, checksum."""
ATTRIBUTES_MAX: Final = 1 << 20
"""Without data the longest command holds two paths or an xattr of 64 KiB."""
UUID: Final = 1
CTRANSID: Final = 2
INO: Final = 3
SIZE: Final = 4
XATTR_NAME: Final = 13
XATTR_DATA: Final = 14
PATH: Final = 15
PATH_TO: Final = 16
PATH_LINK: Final = 17
CLONE_UUID: Final = 20
"""BTRFS_SEND_A_UUID and its like"""

PATH_MAX: Final = 4_080
"""Who receives a stream puts the name of the subvolume before each path, and may use 4,095 bytes."""

_TOLD_EVERY: Final = 4_096
"""Commands, some 10 ms."""
_NO_FD: Final = -1
_VERSION: Final = Path("/sys/fs/btrfs/features/send_stream_version")


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
    ENCODED_WRITE = 25
    """From version 2 on."""


_WITH_DATA: Final = frozenset({Command.WRITE, Command.ENCODED_WRITE})
"""After those of a file its path comes again, in UTIMES at the latest."""


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


class Reader:
    """The reading end of a stream that the kernel writes meanwhile."""

    def __init__(self, stream: BinaryIO, thread: threading.Thread, failure: list[OSError]) -> None:
        """Serve a block of `sending`."""
        self._stream = stream
        self._thread = thread
        self._failure = failure

    def read(self, length: int) -> bytes:
        """Return the next so many bytes, fewer only at the end. Raises OSError if the kernel failed on the way."""
        data = self._stream.read(length)
        if len(data) < length:
            self._thread.join()
            if self._failure:
                raise self._failure[0]
        return data


class Position:
    """Where a stream is, from its bytes as they come: the number of the inode that was made last.

    A whole stream goes through them in ascending order (fs/btrfs/send.c).
    """

    def __init__(self) -> None:
        """Begin before the first byte."""
        self.inode = 0
        self._skipped = len(MAGIC) + 4
        self._kept = b""

    def advance(self, data: bytes) -> None:
        """Take the next bytes. Raises OSError (ENAMETOOLONG): a path is so long that nobody could receive it."""
        if self._kept:
            data = self._kept + data
        at = self._skipped
        while at + HEADER.size <= len(data):
            length, number, _ = HEADER.unpack_from(data, at)
            if number == Command.MKFILE or (length > PATH_MAX and number not in _WITH_DATA):
                content = data[at + HEADER.size : at + HEADER.size + length]
                if len(content) < length:
                    break
                attributes = _attributes(content)
                _refuse_long_path(number, attributes)
                if number == Command.MKFILE:
                    self.inode = int.from_bytes(attributes[INO], "little")
            at += HEADER.size + length
        self._kept, self._skipped = data[at:], max(0, at - len(data))


@contextmanager
def sending(fd: int, *, parent_id: int, flags: int = 0, version: int = 1) -> Iterator[Reader]:
    """Yield the stream that makes the snapshot of `fd` from that of id `parent_id`, or from nothing (0).

    The kernel writes it from a thread that ends with the block. A reader that leaves early ends it: with its next
    write, or after all of it if nothing more is to be written. While it runs neither snapshot can be deleted or made
    writable. The reader raises OSError (EPERM: one of them is writable; ENAMETOOLONG: a path has more than 4,095
    bytes; EPROTO: the kernel does not know the version; EINTR: see below).

    A signal that finds the kernel waiting for the reader makes it call the ioctl again, which writes the stream from
    its beginning into the middle of a command, and succeeds (6.18; btrfs-progs issues 719 and 1063). The end of any
    child did that here, while another was being started. Hence the thread takes no signals; and as stopping the
    process or freezing it does the same, a second call finds no descriptor any more, and fails.
    """
    reading, writing = pipe.make()
    failure: list[OSError] = []
    arguments = _SendArgs(
        send_fd=writing, parent_root=parent_id, flags=flags | BTRFS_SEND_FLAG_VERSION, version=version
    )
    if version == 1:  # kernels before 5.16 refuse the flag
        arguments.flags = flags

    def send() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            ioctl.call(fd, BTRFS_IOC_SEND, arguments)
        except OSError as err:
            is_second_call = err.errno == errno.EBADF
            failure.append(InterruptedError(errno.EINTR, "it was interrupted") if is_second_call else err)
        finally:
            os.close(writing)

    thread = threading.Thread(target=send, name="btrfs-send")
    with open(reading, "rb") as stream:
        thread.start()
        try:
            stream.peek(1)  # it writes, so it has read its arguments
            arguments.send_fd = _NO_FD
            yield Reader(stream, thread, failure)
        finally:
            stream.close()
            thread.join()


def newest_version() -> int:
    """Return the newest version of the stream that this kernel writes; it is only called where there is btrfs."""
    try:
        return int(_VERSION.read_text())
    except FileNotFoundError:  # before 5.16
        return 1


def steps(fd: int, *, parent_id: int) -> Generator[Step, None, None]:
    """Yield what turns the snapshot of id `parent_id` into that of `fd`, without file data. Raises OSError as above."""
    with sending(fd, parent_id=parent_id, flags=BTRFS_SEND_FLAG_NO_FILE_DATA) as reader:
        for command, content in _commands(reader):
            attributes = _attributes(content)
            other = attributes.get(PATH_TO, attributes.get(PATH_LINK, b""))
            yield Step(command, attributes.get(PATH, b""), other)


def survey(fd: int, *, parent_id: int) -> int:
    """Return how long a stream would be, more than that if data is compressed or shared; reads no data.

    `watch` is told meanwhile. Raises OSError as above, and ENAMETOOLONG already for paths that nobody could receive.
    """
    total = 0
    watch.prepare("looks how much there is")
    with sending(fd, parent_id=parent_id, flags=BTRFS_SEND_FLAG_NO_FILE_DATA) as reader:
        for number, (command, content) in enumerate(_commands(reader)):
            if number % _TOLD_EVERY == 0:
                watch.advance()
            total += HEADER.size + len(content)
            if len(content) > PATH_MAX:
                _refuse_long_path(command, _attributes(content))
            if command is Command.UPDATE_EXTENT:
                total += int.from_bytes(_attributes(content)[SIZE], "little")
    return total


def _refuse_long_path(command: int, attributes: dict[int, bytes]) -> None:
    """Raise OSError (ENAMETOOLONG) for a path that nobody could receive."""
    kinds = {PATH, PATH_TO, PATH_LINK} - ({PATH_LINK} if command == Command.SYMLINK else set())  # that one is content
    if any(len(attributes.get(kind, b"")) > PATH_MAX for kind in kinds):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _commands(reader: Reader) -> Iterator[tuple[Command, bytes]]:
    """Yield the commands before the end with their attributes. Raises EOFError and OSError."""
    header = _read(reader, len(MAGIC) + 4)
    assert header.startswith(MAGIC)
    while True:
        length, number, _ = HEADER.unpack(_read(reader, HEADER.size))
        assert length <= ATTRIBUTES_MAX
        content = _read(reader, length)
        command = Command(number)
        if command is Command.END:
            return
        yield command, content


def _attributes(content: bytes) -> dict[int, bytes]:
    found = {}
    position = 0
    while position < len(content):
        kind, length = struct.unpack_from("<HH", content, position)
        found[kind] = content[position + 4 : position + 4 + length]
        position += 4 + length
    return found


def _read(reader: Reader, length: int) -> bytes:
    """Read exactly so many bytes. Raises EOFError and OSError."""
    content = reader.read(length)
    if len(content) < length:
        raise EOFError("the stream ended within a command")
    return content
