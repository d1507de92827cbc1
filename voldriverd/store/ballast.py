"""A few MiB kept for the day the disk is full, so that unmount, remove and purge can still be written down."""

import os
from pathlib import Path
from typing import Final

BALLAST_BYTES: Final = 8 * 1024**2
"""Some 2,000 commits of one page each: enough to empty a trash and free real space."""


class Ballast:
    """A preallocated file that is given up once and made again when there is room."""

    def __init__(self, path: Path) -> None:
        """Keep the file at `path`; nothing is made yet."""
        self._path = path

    def keep(self) -> bool:
        """Make the file if it is missing; tells whether it is there now."""
        if self._path.exists():
            return True
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, BALLAST_BYTES)
        except OSError:  # ENOSPC: there is no room for it now; the worker asks again
            self._path.unlink()
            return False
        finally:
            os.close(fd)
        return True

    def give_up(self) -> bool:
        """Free the space; tells whether there was any."""
        if not self._path.exists():
            return False
        self._path.unlink()
        return True
