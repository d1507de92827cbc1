"""Pipes that hold more than the usual 64 KiB, so that both ends wait for each other less often."""

import fcntl
import os
from pathlib import Path
from typing import Final

BYTES: Final = 1 << 20
"""What /proc/sys/fs/pipe-max-size allows everybody unless somebody changed it (pipe(7))."""


def enlarge(fd: int) -> None:
    """Give a pipe BYTES, or what the machine's limit allows, or leave it as it is if its user has too many."""
    limit = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, min(BYTES, limit))
    except PermissionError:  # pipe-user-pages-soft; without CAP_SYS_RESOURCE only
        return


def make() -> tuple[int, int]:
    """Return the reading and the writing end of a new, large pipe."""
    ends = os.pipe2(os.O_CLOEXEC)
    enlarge(ends[1])
    return ends
