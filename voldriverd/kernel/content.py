"""What files hold, copied by the best way that the file system has."""

import errno
import os
from collections.abc import Iterator
from typing import Final

from voldriverd.kernel import fs

_CHUNK_BYTES: Final = 16 << 20
"""Long enough to cost nothing, short enough that a signal is not kept waiting."""
_NO_REFLINKS: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.ENOSYS})
_NO_RANGES: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS})


class Content:
    """Copies files from one file system to one other; what cannot be done there is tried once only.

    First FICLONE, which shares the extents; else the data between the holes by copy_file_range(2),
    else by sendfile(2). Space that is reserved but not written becomes a hole.
    """

    def __init__(self) -> None:
        self._has_reflinks = True
        self._has_ranges = True

    def copy(self, source_fd: int, target_fd: int, size_bytes: int) -> None:
        """Fill an empty file; one that shrinks meanwhile gets zeros for what has gone. Raises OSError."""
        if size_bytes == 0 or self._reflink(source_fd, target_fd):
            return
        for start, end in _segments(source_fd, size_bytes):
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


def _segments(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what is no hole (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size_bytes:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:
                return  # nothing but a hole follows
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size_bytes)
        if start < end:
            yield start, end
