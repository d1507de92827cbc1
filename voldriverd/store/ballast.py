"""A few MiB kept for the day the disk is full, so that unmount, remove and purge can still be written down."""

import errno
import os
from pathlib import Path
from typing import Final

BALLAST_BYTES: Final = 8 * 1024**2
"""Twice what the database's journal grows to before it is used anew from its beginning."""
STEP_BYTES: Final = 64 * 1024
"""What is given up at a time: several commits of a few pages each, and little for others to take on a full disk.
Each is allocated for itself, for btrfs frees nothing of an extent of which a part is still in use."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Ballast:
    """A preallocated file that is given up in steps, and made again when there is room."""

    def __init__(self, path: Path) -> None:
        """Keep the file at `path`; nothing is made yet."""
        self._path = path
        self._directory = str(path.parent)

    def keep(self) -> bool:
        """Make of the file what is missing; tells whether it is whole now, or else the disk is full."""
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            return _is_full(err)
        try:
            for position in range(os.fstat(fd).st_size, BALLAST_BYTES, STEP_BYTES):
                os.posix_fallocate(fd, position, STEP_BYTES)
        except OSError as err:
            return _is_full(err)
        finally:
            os.close(fd)
        return True

    def is_disk_roomy(self) -> bool:
        """Tell whether the disk holds another step beside the ballast.

        What is free for others is looked at first; where that is nothing, it is tried: root may have some of its own.
        """
        probe = self._path.with_name(f"{self._path.name}.probe")
        try:
            state = os.statvfs(self._directory)
            if state.f_bavail * state.f_frsize >= STEP_BYTES:
                return True
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, STEP_BYTES)
            finally:
                os.close(fd)
                probe.unlink()
        except OSError as err:
            return err.errno not in _FULL  # whatever else it is, the database will tell
        return True

    def give_up(self) -> bool:
        """Free a step of its space; tells whether there was any, and the disk lets it go."""
        try:
            size_bytes = self._path.stat().st_size
            if size_bytes <= STEP_BYTES:
                self._path.unlink()
            else:
                os.truncate(self._path, size_bytes - STEP_BYTES)
        except OSError:  # it is not there, or the disk fails or is read-only now
            return False
        return size_bytes > 0


def _is_full(err: OSError) -> bool:
    """Return False if a disk is full, and raise the error if it is anything else."""
    if err.errno not in _FULL:
        raise err
    return False
