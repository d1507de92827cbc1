"""Where a directory lies."""

import errno
import os
from pathlib import Path

from voldriverd.kernel import btrfs


def are_together(one: Path, other: Path) -> bool:
    """Tell whether two directories lie on one file system; links are followed. Raises OSError."""
    # Subvolumes have device numbers of their own.
    if os.stat(one).st_dev == os.stat(other).st_dev:
        return True
    found = []
    for path in (one, other):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found.append(btrfs.file_system_id(fd))
        except OSError as err:
            if err.errno != errno.ENOTTY:  # ioctl(2): it is not btrfs
                raise
            return False
        finally:
            os.close(fd)
    return found[0] == found[1]
