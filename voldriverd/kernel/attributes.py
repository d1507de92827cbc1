"""What an inode has besides its content: owner, mode, times, extended attributes, flags.

A place is a descriptor, or the path in /proc of an O_PATH descriptor: that one leads to the inode
itself, be it a symlink, a fifo or a device, and opens nothing.
"""

import errno
import os
import stat
from typing import Final

from voldriverd.kernel import fs

FS_SYNC_FL: Final = 0x8
FS_NODUMP_FL: Final = 0x40
FS_NOATIME_FL: Final = 0x80
FS_NOCOMP_FL: Final = 0x400
FS_DIRSYNC_FL: Final = 0x10000
"""linux/fs.h"""

STORAGE_FLAGS: Final = fs.FS_COMPR_FL | FS_NOCOMP_FL | fs.FS_NOCOW_FL
"""How content is stored: a file needs them before it has any, a directory hands them down to what is made in it.

To be set before the extended attributes: on btrfs one of those names the kind of compression.
"""
OTHER_FLAGS: Final = FS_SYNC_FL | fs.FS_IMMUTABLE_FL | fs.FS_APPEND_FL | FS_NODUMP_FL | FS_NOATIME_FL | FS_DIRSYNC_FL

Xattrs = list[tuple[str, bytes]]


def place(fd: int) -> str:
    """Return the path by which the inode of an O_PATH descriptor can be read and changed."""
    return f"/proc/self/fd/{fd}"


def read_xattrs(where: int | str) -> Xattrs:
    """Return the extended attributes of all namespaces; POSIX ACLs are among them. Raises OSError."""
    try:
        names = os.listxattr(where)
    except OSError as err:
        if err.errno == errno.EOPNOTSUPP:
            return []
        raise
    values = ((name, _read_xattr(where, name)) for name in names)
    return [(name, value) for name, value in values if value is not None]


def _read_xattr(where: int | str, name: str) -> bytes | None:
    """Return a value, None if it was removed since it was listed."""
    try:
        return os.getxattr(where, name)
    except OSError as err:
        if err.errno == errno.ENODATA:
            return None
        raise


def write(where: int | str, status: os.stat_result, xattrs: Xattrs) -> None:
    """Set owner, mode, extended attributes and times (ns), in the order in which none undoes another."""
    os.chown(where, status.st_uid, status.st_gid)  # clears set-user-id bits and capabilities
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(where, stat.S_IMODE(status.st_mode))
    for name, value in xattrs:
        os.setxattr(where, name, value)
    os.utime(where, ns=(status.st_atime_ns, status.st_mtime_ns))


def read_flags(fd: int) -> int:
    """Return those inode flags that a copy can carry, none where the file system has no flags."""
    try:
        return fs.get_flags(fd) & (STORAGE_FLAGS | OTHER_FLAGS)
    except OSError as err:
        if err.errno in {errno.ENOTTY, errno.EOPNOTSUPP}:
            return 0
        raise


def add_flags(fd: int, flags: int) -> None:
    """Add inode flags to those that are set. Raises OSError."""
    if flags:
        fs.set_flags(fd, fs.get_flags(fd) | flags)


def strip(fd: int) -> None:
    """Take from a new directory what it got from its parent and would hand down: flags and ACLs."""
    if read_flags(fd):
        fs.set_flags(fd, fs.get_flags(fd) & ~(STORAGE_FLAGS | OTHER_FLAGS))
    for name, _ in read_xattrs(fd):
        if name.startswith("system.posix_acl_"):
            os.removexattr(fd, name)
