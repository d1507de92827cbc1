"""What files hold: copied by the best way that the file system has, read past the page cache, made holes of."""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from voldriverd.kernel import fs, watch

_CHUNK_BYTES: Final = 16 << 20
"""Long enough to cost nothing, short enough that a signal is not kept waiting."""
FALLOC_FL_KEEP_SIZE: Final = 0x1
FALLOC_FL_PUNCH_HOLE: Final = 0x2
"""linux/falloc.h"""
_ALIGNMENT: Final = 4096
"""Of what is read directly: no disk has larger logical blocks."""
Advance = Callable[[int], None]
"""Is called with how many bytes were done since; what it raises ends the work."""
_NO_REFLINKS: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.ENOSYS})
_NO_RANGES: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


class Content:
    """Copies files from one file system to one other; what cannot be done there is tried once only.

    First FICLONE, which shares the extents; else the data between the holes by copy_file_range(2),
    else by sendfile(2). Space that is reserved but not written becomes a hole. `advance` None: `watch` is told.
    """

    def __init__(self, advance: Advance | None = None) -> None:
        self._advance = advance or watch.advance
        self._has_reflinks = True
        self._has_ranges = True

    def copy(self, source_fd: int, target_fd: int, size_bytes: int) -> None:
        """Fill an empty file; one that shrinks meanwhile gets zeros for what has gone. Raises OSError."""
        if size_bytes == 0 or self._reflink(source_fd, target_fd):
            self._advance(size_bytes)
            return
        for start, end in segments(source_fd, size_bytes):
            self._copy_segment(source_fd, target_fd, start, end)
        os.ftruncate(target_fd, size_bytes)

    def _reflink(self, source_fd: int, target_fd: int) -> bool:
        if not self._has_reflinks:
            return False
        try:
            fs.reflink(source_fd, target_fd)
        except OSError as err:
            if err.errno in _NO_REFLINKS:
                self._has_reflinks = False
            elif err.errno != errno.EINVAL:  # EINVAL: these two files only, one has checksums and one has not
                raise
            return False
        return True

    def _copy_segment(self, source_fd: int, target_fd: int, start: int, end: int) -> None:
        while start < end:
            count = self._copy_chunk(source_fd, target_fd, start, min(end - start, _CHUNK_BYTES))
            if count == 0:
                return  # the file has been cut off
            start += count
            self._advance(count)

    def _copy_chunk(self, source_fd: int, target_fd: int, start: int, count: int) -> int:
        if self._has_ranges:
            try:
                return os.copy_file_range(source_fd, target_fd, count, start, start)
            except OSError as err:
                if err.errno not in _NO_RANGES:
                    raise
                self._has_ranges = False
        os.lseek(target_fd, start, os.SEEK_SET)
        return os.sendfile(target_fd, source_fd, start, count)


class Reader:
    """Reads one file in pieces by direct I/O: what is read once for a backup would only push others out of the cache.

    Where the file system has no direct I/O, what was read is dropped from the cache.
    """

    def __init__(self, fd: int, piece_max_bytes: int, *, is_direct: bool) -> None:
        self.fd = fd
        self.size_bytes = os.fstat(fd).st_size
        self.read_bytes = 0
        """How much was read from the file so far."""
        self._is_direct = is_direct
        # What direct I/O fills begins with a page, and is there: else btrfs reads through the cache (6.18).
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self._buffer = mmap.mmap(-1, piece_max_bytes + 2 * _ALIGNMENT, flags=flags)

    def read(self, start: int, end: int) -> bytes:
        """Return a range, with zeros for what lies behind the end of the file. Raises OSError."""
        first = start - start % _ALIGNMENT
        wanted = min(end + -end % _ALIGNMENT, self.size_bytes) - first
        count = 0
        while count < wanted:
            got = os.preadv(self.fd, [memoryview(self._buffer)[count : wanted + -wanted % _ALIGNMENT]], first + count)
            if got == 0:
                raise OSError(errno.EIO, "the file is shorter than it was")
            count += got
        self.read_bytes += count
        if not self._is_direct:
            os.posix_fadvise(self.fd, first, wanted, os.POSIX_FADV_DONTNEED)
        data = self._buffer[start - first : min(end - first, count)]
        return data if len(data) == end - start else data + bytes(end - start - len(data))


@contextmanager
def reading(path: Path, piece_max_bytes: int) -> Iterator[Reader]:
    """Open a file to read pieces of it for the block. Raises OSError."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd, is_direct = os.open(path, flags | os.O_DIRECT), True
    except OSError as err:
        if err.errno != errno.EINVAL:  # open(2): no direct I/O here
            raise
        fd, is_direct = os.open(path, flags), False
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead, which would stay
    try:
        yield Reader(fd, piece_max_bytes, is_direct=is_direct)
    finally:
        os.close(fd)


def punch(fd: int, start: int, end: int) -> None:
    """Make a hole of a range (fallocate(2)); the file keeps its length. Raises OSError."""
    if _libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, end - start) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def segments(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what is no hole (lseek(2), SEEK_DATA); `watch` is told that it goes on."""
    end = 0
    while end < size_bytes:
        watch.advance()
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:
                return  # nothing but a hole follows
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size_bytes)
        if start < end:
            yield start, end
