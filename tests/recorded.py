"""A disk that is recorded with its flushes, and what it may hold after a power cut at any point of the record.

The disk is an image behind qemu-storage-daemon (the `blklogwrites` filter), which exports it as one file by FUSE; a
loop device on that file passes each flush on as an fsync. The export serves one request after the other, so the record
is in the order in which the disk took and completed them: what stands before a flush is what that flush made durable.
Closing any descriptor of the export, that of a forked child too, is a flush for FUSE: who wants none keeps it open and
does not fork.
"""

import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Final, Self

from tests.scratch import unmount_under
from voldriverd.kernel import content, fs, mount

BLOCK_BYTES: Final = 4_096
"""Of the record; what a disk writes whole or not at all."""
_MAGIC: Final = 0x6A736677736872
"""WRITE_LOG_MAGIC of qemu's block/blklogwrites.c, which is that of dm-log-writes, as is the format."""
_SUPER: Final = struct.Struct("<QQQI")
_ENTRY: Final = struct.Struct("<QQQQ")
_WAIT_S: Final = 10.0


class Flags(IntFlag):
    """LOG_*_FLAG of qemu's block/blklogwrites.c."""

    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One request: what was written where, or no data for a flush or discard."""

    flags: Flags
    start: int
    """The first byte on the disk."""
    size_bytes: int
    data_at: int
    """Where in the record the data stand."""

    @property
    def is_flush(self) -> bool:
        """Whether all before it is durable."""
        return Flags.FLUSH in self.flags


@contextmanager
def recorded(image: Path, record: Path) -> Iterator[Path]:
    """Serve an image for the block; yields the file to write to. The record is complete afterwards."""
    export = record.with_name(f"{record.name}.export")
    export.touch()
    record.touch()
    sizes = f"log-sector-size={BLOCK_BYTES},log-super-update-interval=1"
    argv = ["qemu-storage-daemon"]  # a node without `discard` does nothing, and says it did, when it shall make zeroes
    argv += ["--blockdev", f"driver=file,node-name=disk,filename={image},discard=unmap"]
    argv += ["--blockdev", f"driver=file,node-name=record,filename={record}"]
    argv += ["--blockdev", f"driver=blklogwrites,node-name=recorded,file=disk,log=record,discard=unmap,{sizes}"]
    argv += ["--export", f"type=fuse,id=export,node-name=recorded,mountpoint={export},writable=on"]
    with subprocess.Popen(argv) as process:
        try:
            _wait_for_mount(export, process)
            yield export
        finally:
            unmount_under(export.parent / export.name)
            process.send_signal(signal.SIGTERM)
            process.wait(_WAIT_S)
    export.unlink()


def _wait_for_mount(export: Path, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + _WAIT_S
    while mount.at(export) is None:
        assert process.poll() is None, "qemu-storage-daemon has ended"
        assert time.monotonic() < end_s, "qemu-storage-daemon does not serve"
        time.sleep(0.01)


def entries(record: Path) -> list[Entry]:
    """Return all that was recorded so far, in order."""
    found = []
    with record.open("rb") as file:
        magic, version, count, block_bytes = _SUPER.unpack(file.read(_SUPER.size))
        assert (magic, version, block_bytes) == (_MAGIC, 1, BLOCK_BYTES), "not a record of ours"
        at = BLOCK_BYTES
        for _ in range(count):
            file.seek(at)
            sector, sectors, flags, _ = _ENTRY.unpack(file.read(_ENTRY.size))
            entry = Entry(Flags(flags), sector * BLOCK_BYTES, sectors * BLOCK_BYTES, at + BLOCK_BYTES)
            found.append(entry)
            at = entry.data_at + (0 if Flags.DISCARD in entry.flags else entry.size_bytes)
    return found


class Replay:
    """Makes what the disk may hold after a cut, from what it held before the record and the record; cuts go forward."""

    def __init__(self, before: Path, record: Path, *, always_from: int) -> None:
        """Take a copy of the disk that may be changed, on a file system with reflinks.

        What lies at `always_from` and beyond is never lost: it is no part of the disk under test.
        """
        self._durable = before
        self._record = record
        self._always_from = always_from
        self._entries = entries(record)
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def first_after(self, slots: Iterable[int]) -> int:
        """Return the number of the first entry by which something was written at each of some bytes of the disk."""
        firsts = {entry.start: number for number, entry in reversed(list(enumerate(self._entries))) if entry.size_bytes}
        return max(firsts[slot] for slot in slots) + 1

    def ends(self, first: int, count: int, *, chance: random.Random) -> list[int]:
        """Choose points for cuts: by lot, but rather where much is written and not flushed."""
        weights, waiting = [], 0
        for entry in self._entries[first:]:
            weights.append(1 + waiting)
            is_counted = entry.size_bytes and entry.start < self._always_from
            waiting = 0 if entry.is_flush else waiting + is_counted * entry.size_bytes // BLOCK_BYTES
        return sorted(chance.choices(range(first, len(self)), weights, k=count))

    def flushes(self, first: int) -> int:
        """Return how many flushes follow."""
        return sum(entry.is_flush for entry in self._entries[first:])

    def cut(self, end: int, target: Path, *, chance: random.Random) -> tuple[int, int]:
        """Make the disk of a cut before an entry: all up to the last flush, and any of the blocks written since then.

        Returns how many blocks were kept of those, and how many were not.
        """
        flushed = max((number for number in range(self._next, end) if self._entries[number].is_flush), default=-1)
        with self._open(self._durable) as durable:
            if flushed >= 0:
                self._apply(durable, self._entries[self._next : flushed + 1])
                self._next = flushed + 1
            with target.open("wb") as file:
                fs.reflink(durable, file.fileno())
        share = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        kept = lost = 0
        with self._open(target) as changed:
            for entry in self._entries[self._next : end]:
                for block in self._blocks(entry):
                    if block.start >= self._always_from:
                        self._apply(changed, [block])
                    elif Flags.FUA in entry.flags or chance.random() < share:
                        self._apply(changed, [block])
                        kept += 1
                    else:
                        lost += 1
        return kept, lost

    def _blocks(self, entry: Entry) -> Iterator[Entry]:
        for offset in range(0, entry.size_bytes, BLOCK_BYTES):
            yield Entry(entry.flags, entry.start + offset, BLOCK_BYTES, entry.data_at + offset)

    def _apply(self, fd: int, part: Iterable[Entry]) -> None:
        with self._open(self._record) as record:
            for entry in part:
                if Flags.DISCARD in entry.flags:
                    content.punch(fd, entry.start, entry.start + entry.size_bytes)
                elif entry.size_bytes:
                    os.pwrite(fd, os.pread(record, entry.size_bytes, entry.data_at), entry.start)

    @contextmanager
    def _open(self, path: Path) -> Iterator[int]:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


class Marks:
    """Numbers that are written beyond the end of a file system, in the order of its own writes, by who knows more."""

    def __init__(self, disk: Path, start: int) -> None:
        """Take the disk and the byte where its file system ends."""
        self._fd = os.open(disk, os.O_WRONLY | os.O_CLOEXEC)
        self._start = start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def put(self, slot: int, *numbers: int) -> None:
        """Write some numbers, in one block."""
        os.pwrite(self._fd, (" ".join(map(str, numbers)) + "\n").encode().ljust(BLOCK_BYTES, b"\0"), self.at(slot))

    def at(self, slot: int) -> int:
        """Return the byte where a slot stands."""
        return self._start + slot * BLOCK_BYTES


def marked(disk: Path, at: int) -> list[int]:
    """Return the numbers of a slot; none if it was never written."""
    with disk.open("rb") as file:
        file.seek(at)
        return [int(word) for word in file.read(BLOCK_BYTES).rstrip(b"\0").split()]
