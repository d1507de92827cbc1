"""Everything about a tree that a faithful copy must have, seen by means of its own and disturbing nothing.

Not for deep trees: it goes by paths. Access times are read before anything that may change them;
directories and files are opened with O_NOATIME. A symlink's access time has no such protection, so
trees to be described twice need symlinks whose access time is recent (relatime).
"""

import hashlib
import os
import stat
from collections import defaultdict
from pathlib import Path
from typing import Final

from voldriverd.kernel import fs

_FLAGS: Final = 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x4 | 0x400 | 0x10000 | 0x800000
"""SYNC, IMMUTABLE, APPEND, NODUMP, NOATIME, COMPR, NOCOMP, DIRSYNC, NOCOW."""

Facts = dict[str, object]


def describe(root: Path) -> dict[bytes, Facts]:
    """Return the facts of every path in a tree, of the root as well."""
    fs.sync_file_system(root)  # what waits in memory has no place yet
    found: dict[bytes, Facts] = {}
    names: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    pending = [b"."]
    while pending:
        path = pending.pop()
        full = os.path.join(os.fsencode(root), path)
        status = os.lstat(full)
        names[status.st_dev, status.st_ino].append(path)
        found[path] = _facts(full, status)
        if stat.S_ISDIR(status.st_mode):
            pending.extend(os.path.join(path, name) for name in _list(full))
    for group in names.values():
        for path in group:
            found[path]["names"] = sorted(group)
    return found


def data_mebibytes(path: bytes | Path) -> set[int]:
    """Return which mebibytes of a file hold data; finer than that, xfs shows what it reserved now and then."""
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        found: set[int] = set()
        end = os.fstat(fd).st_size
        position = 0
        while position < end:
            try:
                start = os.lseek(fd, position, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                break
            position = os.lseek(fd, start, os.SEEK_HOLE)
            found.update(range(start >> 20, ((position - 1) >> 20) + 1))
        return found
    finally:
        os.close(fd)


def _facts(full: bytes, status: os.stat_result) -> Facts:
    facts: Facts = {
        "mode": oct(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "times": (status.st_atime_ns, status.st_mtime_ns),
        "xattrs": {
            name: os.getxattr(full, name, follow_symlinks=False) for name in os.listxattr(full, follow_symlinks=False)
        },
    }
    if stat.S_ISLNK(status.st_mode):
        facts["target"] = os.readlink(full)
    elif stat.S_ISREG(status.st_mode):
        facts |= {"size": status.st_size, "flags": _flags(full), "data": data_mebibytes(full), "content": _digest(full)}
    elif stat.S_ISDIR(status.st_mode):
        facts["flags"] = _flags(full)
    else:
        facts["device"] = status.st_rdev
    return facts


def _open(full: bytes) -> int:
    return os.open(full, os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW | os.O_CLOEXEC)


def _list(full: bytes) -> list[bytes]:
    fd = _open(full)
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)


def _flags(full: bytes) -> str:
    fd = _open(full)
    try:
        return hex(fs.get_flags(fd) & _FLAGS)
    finally:
        os.close(fd)


def _digest(full: bytes) -> str:
    with open(_open(full), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
