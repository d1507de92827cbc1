"""Trees at their mount points: what the drivers share."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from voldriverd.driver import Key, User
from voldriverd.errors import InUse
from voldriverd.kernel import mount, process

_UNMOUNT_TRIES: Final = 5
"""Busy, and nobody has it open: a process that another thread starts holds our descriptors until its exec."""


def attach(key: Key, directory: Path, point: Path, *, read_only: bool) -> None:
    """Bind-mount a directory; what else is mounted there is unmounted first. Raises InUse, OSError."""
    wanted = directory.stat()
    is_new = make_point(point)
    try:
        if not uncover(key, point, lambda: _is_same(point, wanted)):
            mount.bind(directory, point, read_only=read_only)
        elif bool(os.statvfs(point).f_flag & os.ST_RDONLY) != read_only:
            mount.set_read_only(point, read_only=read_only)
    except OSError:
        if is_new:
            remove_point(point)
        raise


def detach(key: Key, point: Path) -> None:
    """Unmount all that is mounted there. The mount point stays until the tree is removed. Raises InUse, OSError.

    rmdir(2) of a directory on which another mount namespace has something mounted unmounts it there, lazily and under
    whoever works in it (fs/namespace.c, __detach_mounts), and nothing would show any more that the tree is in use; to
    look at all namespaces at each unmount would cost it 3 ms.
    """
    while _unmount("detach", key, point):
        pass


def make_point(point: Path) -> bool:
    """Make a mount point; tells whether it was missing."""
    try:
        point.mkdir(0o700)
    except FileExistsError:
        return False
    return True


def users(directory: Path, point: Path) -> list[User]:
    """Return who has a directory, or something in it, mounted elsewhere than at its own mount point."""
    try:
        device, inside = mount.location(directory)
    except FileNotFoundError:
        return []
    found = mount.elsewhere(device, inside, own=point)
    return [User(pid, mount.process_name(pid), entry.mount_point) for pid, entry in found]


def check_unused(key: Key, directory: Path, point: Path) -> None:
    """Raise InUse if a tree is mounted anywhere; a file system lets it be removed under its users."""
    if _is_same(point, directory.stat()):
        raise InUse(f"cannot remove tree {key}: it is attached")
    check_no_users(key, users(directory, point))


def check_no_users(key: Key, found: list[User]) -> None:
    """Raise InUse, with their names, if there are any."""
    if found:
        who = ", ".join(f"{user.process} (pid {user.pid}) at {user.mount_point}" for user in found)
        raise InUse(f"cannot remove tree {key}: mounted by {who}")


def uncover(key: Key, point: Path, is_right: Callable[[], bool]) -> bool:
    """Unmount at a mount point until what is right is seen there; False: nothing is mounted any more. Raises InUse."""
    while not is_right():
        if not _unmount("attach", key, point):
            return False
    return True


def remove_point(point: Path) -> None:
    """Remove the mount point of a tree that nobody uses, if it is there and nothing is in it."""
    try:
        point.rmdir()
    except OSError as err:
        if err.errno not in {errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY}:
            raise


def _unmount(verb: str, key: Key, point: Path) -> bool:
    """Unmount the uppermost mount of a mount point; False: there is none. Raises InUse."""
    for tries_left in reversed(range(_UNMOUNT_TRIES)):
        try:
            mount.unmount(point)
        except OSError as err:
            if err.errno in {errno.EINVAL, errno.ENOENT}:
                return False
            if err.errno != errno.EBUSY:
                raise
            who = ", ".join(f"{name} (pid {pid}) has {path} open" for pid, name, path in process.openers(point))
            if who or not tries_left:
                reason = who or "something is mounted in it"
                raise InUse(f"cannot {verb} tree {key}: {point} is busy: {reason}") from err
        else:
            return True
    raise AssertionError  # the last try returns or raises


def _is_same(path: Path, wanted: os.stat_result) -> bool:
    """Tell whether a path shows this directory; every btrfs subvolume has a device number of its own."""
    try:
        found = path.stat()
    except OSError:  # absent, or a dead file system is mounted there: in any case it is not the one wanted
        return False
    return os.path.samestat(found, wanted)
