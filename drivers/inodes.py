"""What inodes get from an archive, and what their file system cannot keep of it."""

import errno
import os
import time
from typing import Final

from voldriverd.kernel import attributes, tar, tree

_CANNOT_HOLD: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.E2BIG, errno.EINVAL, errno.EPERM, errno.ERANGE})
"""What a file system answers to an attribute or flag that it has no place for."""
_ROOM_BYTES: Final = 1 << 20
"""With so much free, ENOSPC for an attribute means that the inode has no room for it (ext4)."""
_TIMES_NS: Final = range(2**31 * 10**9)
"""What every file system holds; others are read back."""
_PATH_SHOWN: Final = 200


class Inodes:
    """Gives inodes their owners, modes, extended attributes, times and flags, and notes what could not be kept."""

    def __init__(self, root_fd: int) -> None:
        """Work on the file system of this descriptor, which stays open meanwhile."""
        self._root_fd = root_fd
        self._now_ns = time.time_ns()
        self._notes: dict[str, tuple[str, int]] = {}

    def set(self, where: int | str, member: tar.Member, path: bytes) -> None:
        """Set owner, mode, extended attributes and times, in the order in which none undoes another."""
        os.chown(where, member.uid, member.gid)
        if member.kind != tar.Kind.SYMLINK:
            os.chmod(where, member.mode)
        for name, value in member.xattrs:
            try:
                os.setxattr(where, name, value)
            except OSError as err:
                if not self._cannot_hold(err):
                    raise
                self.note(f"{os.fsdecode(name)!r} cannot be kept here ({err.strerror})", path)
        os.utime(where, ns=(self._now_ns, member.mtime_ns))
        if member.mtime_ns not in _TIMES_NS and os.stat(where).st_mtime_ns != member.mtime_ns:
            self.note("its time cannot be kept here", path)

    def add_flags(self, fd: int, flags: int, path: bytes) -> None:
        """Add inode flags, all or none of them."""
        try:
            attributes.add_flags(fd, flags)
        except OSError as err:
            if not self._cannot_hold(err):
                raise
            self.note(f"its inode flags (lsattr) cannot be kept here ({err.strerror})", path)

    def _cannot_hold(self, err: OSError) -> bool:
        if err.errno == errno.ENOSPC:
            state = os.fstatvfs(self._root_fd)
            return state.f_bavail * state.f_frsize > _ROOM_BYTES
        return err.errno in _CANNOT_HOLD

    def note(self, what: str, path: bytes) -> None:
        """Note what could not be kept of a path; of many paths with the same fault the first is named."""
        first, count = self._notes.get(what, (shown(path), 0))
        self._notes[what] = first, count + 1

    def notes(self) -> tuple[str, ...]:
        """Return what could not be kept, for people."""
        return tuple(
            f"{first}: {what}" if count == 1 else f"{first} and {count - 1} more: {what}"
            for what, (first, count) in self._notes.items()
        )


def shown(path: bytes) -> str:
    """Return a path for people, cut if it is very long."""
    return tree.legible(os.fsdecode(path.removeprefix(b"./"))[:_PATH_SHOWN])
