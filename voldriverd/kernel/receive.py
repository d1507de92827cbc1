"""Send streams made into subvolumes again, by `btrfs receive`, which is confined (btrfs-progs 6.2, cmds/receive.c).

A stream may come from a place that others can write to, and `btrfs receive` trusts what it reads: it follows the
symlinks that the stream made, writes through its device nodes, and finds the trees that the stream builds on by
their UUIDs in the whole file system. Hence:

- It runs in a chroot, the root of a subvolume that is mounted for it alone, nosuid and nodev. There every path ends
  inside, no device can be opened, and no tree outside can be built on or cloned from ("not reachable").
- What it is fed was looked through. The one subvolume gets a name and a UUID of ours, new each time, and refers to
  nothing but the one before by its; so that two restores of one backup do not find each other's trees, nor the one
  that was sent if it lies in the same file system.
- It makes each file in the root directory first, where it inherits a default ACL and a compression that it may not
  have had. These attributes of the root are kept back, for who makes a tree of the last subvolume.

What this leaves: the process is root's and parses what others may have written, and it may fill the file system; a
fifo that the stream makes and then clones from lasts until the time limit.
"""

import ctypes
import errno
import os
import re
import shutil
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from voldriverd.kernel import btrfs, ioctl, mount, run
from voldriverd.kernel.send import CLONE_UUID, HEADER, MAGIC, PATH, UUID, XATTR_DATA, XATTR_NAME, Command

TOOL: Final = "btrfs"
PACKAGE: Final = "btrfs-progs"

_VERSIONS: Final = (1, 2)
_TOOL_OF_VERSION_2: Final = (6, 2)
"""5.19 was the first, but lost or spoiled compressed data until 6.0.2 and 6.2 (its CHANGES)."""
_RELEASE_S: Final = 30.0
"""A tool whose feeder was killed ends when it has made what its pipe holds, a MiB, and perhaps waits for a commit."""
_LOOK_S: Final = 0.01
_FIRST: Final = frozenset({Command.SUBVOL, Command.SNAPSHOT})
_XATTR: Final = frozenset({Command.SET_XATTR, Command.REMOVE_XATTR})
_LOOKED_AT: Final = frozenset({*_FIRST, *_XATTR, Command.CLONE, Command.END})
_LOOKED_AT_MAX: Final = 1 << 17
"""These hold two paths and some numbers, or a path and an attribute of 64 KiB."""
_HANDED_DOWN: Final = frozenset({b"system.posix_acl_default", b"btrfs.compression"})
_HEAD_BYTES: Final = len(MAGIC) + 4
_ATTRIBUTE: Final = struct.Struct("<HH")
_ROOT: Final = _ATTRIBUTE.pack(PATH, 0)
"""How a command begins that is about the root directory."""
_POLYNOMIAL: Final = 0x82F63B78
"""Of CRC-32C, reflected (RFC 3720, B.4)."""


class Refused(OSError):
    """This is no stream, not all of it, or it wants what is not its business."""

    def __init__(self, cause: str) -> None:
        """Keep the cause, which goes on after "the stream"."""
        super().__init__(errno.EBADMSG, f"the stream {cause}")


class _SubvolInfo(ctypes.Structure):
    """struct btrfs_ioctl_get_subvol_info_args, what we do not read as blocks."""

    _fields_ = (
        ("before", ctypes.c_uint8 * 328),
        ("received_uuid", ctypes.c_uint8 * 16),
        ("ctransid", ctypes.c_uint64),
        ("otransid", ctypes.c_uint64),
        ("after", ctypes.c_uint8 * 144),
    )


BTRFS_IOC_GET_SUBVOL_INFO: Final = ioctl.ior(0x94, 60, ctypes.sizeof(_SubvolInfo))


@dataclass(frozen=True, slots=True)
class Received:
    """A subvolume that was made from a stream: what the next stream calls it, and what it is called here."""

    sent: bytes
    own: bytes
    kept_back: dict[bytes, bytes] = field(default_factory=dict)
    """Extended attributes that its root directory should have and has not."""


def newest_version() -> int:
    """Return the newest version of streams that the installed tool reads rightly, 0 without one. Raises ToolError."""
    search = os.environ.get("PATH")
    path = _found(TOOL, search)
    if path is None or not os.path.exists(path):  # it came meanwhile, or went
        _found.cache_clear()
        path = _found(TOOL, search)
    if path is None:
        return 0
    status = os.stat(path)
    return _newest_version(path, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=1)
def _found(tool: str, search: str | None) -> str | None:
    """Return where in PATH a tool is, or None; once, for to look through it waits for the disk."""
    return shutil.which(tool, path=search)


@lru_cache(maxsize=4)
def _newest_version(path: str, *_: int) -> int:
    """Ask the tool; once for each that is installed, for that takes 5 to 20 ms, of increments of 100."""
    found = re.search(r"v(\d+)\.(\d+)", run.run([path, "--version"]))
    return 2 if found is not None and (int(found[1]), int(found[2])) >= _TOOL_OF_VERSION_2 else 1


@contextmanager
def confined(place: Path) -> Iterator[None]:
    """Mount a subvolume's root on itself for the block, so that nothing in it can be a device. Raises OSError."""
    mount.mount(str(place), place, flags=mount.MS_BIND)
    try:
        flags = mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC
        mount.mount("none", place, flags=mount.MS_BIND | mount.MS_REMOUNT | flags)
        yield
    finally:
        release(place)


def release(place: Path) -> None:
    """Take one mount of `confined` away, as soon as what worked in it has ended. Raises OSError (EBUSY: it has not)."""
    deadline_s = time.monotonic() + _RELEASE_S
    while True:
        try:
            mount.unmount(place)
        except OSError as err:
            if err.errno != errno.EBUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(_LOOK_S)
        else:
            return


def receive(place: Path, name: str, pieces: Iterable[bytes], parent: Received | None) -> Received:
    """Make the read-only subvolume `name` in a confined place, from a whole stream or one that builds on `parent`.

    After an error something may lie there. Raises Refused, ToolError and FileNotFoundError (no tool), and what
    `pieces` raises.
    """
    translation = _Translation(name, parent)
    with run.feeding([TOOL, "receive", "--quiet", "--chroot", "-e", str(place)]) as feed:
        for piece in pieces:
            for part in translation.translate(piece):
                feed.write(part)
        received = translation.end()
    with btrfs.opened(place / name) as fd:
        if not btrfs.is_read_only(fd) or received_uuid(fd) != received.own:
            raise Refused("was received without its end")
    return received


def received_uuid(fd: int) -> bytes:
    """Return the UUID by which streams that build on the subvolume of a descriptor call it; zeros if it has none.

    A writable snapshot has none. Raises OSError.
    """
    arguments = _SubvolInfo()
    ioctl.call(fd, BTRFS_IOC_GET_SUBVOL_INFO, arguments)
    return bytes(arguments.received_uuid)


def changed_in(fd: int) -> int:
    """Return the generation in which the content of a subvolume was changed last. Raises OSError.

    A snapshot has that of its origin, and one of a snapshot too; whatever its origin is changed in after that, it is in
    a later generation (fs/btrfs/root-tree.c, btrfs_update_root_times).
    """
    arguments = _SubvolInfo()
    ioctl.call(fd, BTRFS_IOC_GET_SUBVOL_INFO, arguments)
    return int(arguments.ctransid)


class _Translation:
    """Lets a stream pass with other names for the subvolumes in it; only where these stand it is looked at."""

    def __init__(self, name: str, parent: Received | None) -> None:
        self._name = name
        self._parent = parent
        self._received: Received | None = None
        self._carried = b""
        """The beginning of something that must be looked at and has not come as a whole yet."""
        self._passing_bytes = 0
        """How much is still to come of a command that is not looked at."""
        self._has_begun = False
        self._has_ended = False

    def translate(self, piece: bytes) -> Iterator[bytes | memoryview]:
        """Yield what stands for the next piece of the stream. Raises Refused."""
        data = self._carried + piece
        view = memoryview(data)
        start = 0
        position = min(self._passing_bytes, len(data))
        self._passing_bytes -= position
        if not self._has_begun:
            if len(data) < _HEAD_BYTES:
                self._carried = data
                return
            _check_head(data)
            self._has_begun = True
            position = _HEAD_BYTES
        while len(data) - position >= HEADER.size:
            length, number, _ = HEADER.unpack_from(data, position)
            end = position + HEADER.size + length
            if number in _LOOKED_AT or self._received is None or self._has_ended:
                if length > _LOOKED_AT_MAX or self._has_ended:
                    raise Refused("holds what no stream holds")
                if end > len(data):
                    break
                command = data[position:end]
                if self._is_concerned(number, command):
                    yield view[start:position]
                    yield self._translated(number, command)
                    start = end
            elif end > len(data):
                self._passing_bytes = end - len(data)
                position = len(data)
                break
            position = end
        yield view[start:position]
        self._carried = data[position:]

    def end(self) -> Received:
        """Return what was received. Raises Refused: it was not all, or more than that."""
        if not self._has_ended or self._carried or self._received is None:
            raise Refused("does not end with its end")
        return self._received

    def _is_concerned(self, number: int, command: bytes) -> bool:
        return number not in _XATTR or self._received is None or command.startswith(_ROOT, HEADER.size)

    def _translated(self, number: int, command: bytes) -> bytes:
        if command != _sealed(number, command[HEADER.size :]):
            raise Refused("is damaged: a checksum is wrong")
        if number == Command.END:
            self._has_ended = True
            return command
        try:
            return self._renamed(number, _attributes(command[HEADER.size :]))
        except KeyError as err:
            raise Refused("holds a command without what it needs") from err

    def _renamed(self, number: int, attributes: dict[int, bytes]) -> bytes:
        if number in _XATTR and self._received is not None:
            if attributes[XATTR_NAME] in _HANDED_DOWN:
                self._keep_back(attributes[XATTR_NAME], attributes.get(XATTR_DATA))
                return b""
        elif number == Command.CLONE:
            attributes[CLONE_UUID] = self._own(attributes[CLONE_UUID])
        elif self._received is not None or number not in _FIRST:
            raise Refused("does not begin with its one subvolume")
        else:
            if (number == Command.SNAPSHOT) != (self._parent is not None):
                raise Refused("builds on another" if self._parent is None else "builds on no other")
            if number == Command.SNAPSHOT:
                attributes[CLONE_UUID] = self._own(attributes[CLONE_UUID])
            kept_back = {} if self._parent is None else dict(self._parent.kept_back)
            self._received = Received(attributes[UUID], uuid.uuid4().bytes, kept_back)
            attributes |= {PATH: self._name.encode(), UUID: self._received.own}
        return _sealed(number, b"".join(_ATTRIBUTE.pack(kind, len(data)) + data for kind, data in attributes.items()))

    def _keep_back(self, name: bytes, value: bytes | None) -> None:
        assert self._received is not None
        if value is None:
            self._received.kept_back.pop(name, None)
        else:
            self._received.kept_back[name] = value

    def _own(self, sent: bytes) -> bytes:
        """Return what a subvolume to which the stream refers is called here."""
        for known in (self._received, self._parent):
            if known is not None and known.sent == sent:
                return known.own
        raise Refused(f"builds on {uuid.UUID(bytes=sent[:16].ljust(16))}, which is not the one before it")


def _check_head(data: bytes) -> None:
    version = int.from_bytes(data[len(MAGIC) : _HEAD_BYTES], "little")
    if not data.startswith(MAGIC):
        raise Refused("is none of btrfs")
    if version not in _VERSIONS:
        raise Refused(f"has version {version}")


def _attributes(content: bytes) -> dict[int, bytes]:
    """Return the attributes in their order. Raises Refused."""
    found = {}
    position = 0
    while position < len(content):
        try:
            kind, length = _ATTRIBUTE.unpack_from(content, position)
        except struct.error as err:
            raise Refused("holds half an attribute") from err
        position += _ATTRIBUTE.size + length
        if position > len(content) or kind in found:
            raise Refused("holds half an attribute, or one twice")
        found[kind] = content[position - length : position]
    return found


def _sealed(number: int, content: bytes) -> bytes:
    """Return a command with its checksum."""
    checksum = crc32c(HEADER.pack(len(content), number, 0) + content)
    return HEADER.pack(len(content), number, checksum) + content


def crc32c(data: bytes) -> int:
    """Return the checksum as the kernel makes it for streams: seed 0, and not inverted at the end."""
    checksum = 0
    for byte in data:
        checksum = _TABLE[(checksum ^ byte) & 0xFF] ^ checksum >> 8
    return checksum


def _table() -> tuple[int, ...]:
    rows = []
    for row in range(256):
        value = row
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_TABLE: Final = _table()
