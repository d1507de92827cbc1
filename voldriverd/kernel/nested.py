"""Subvolumes that have others nested in them: snapshots and deletions that take those along.

Containers that run docker, podman or snapper make such trees. In a snapshot a nested subvolume is
an empty directory with inode number 2. All directories keep their inode numbers, by which the place
of each nested one is found again in the copy.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from voldriverd.kernel import btrfs, fs


def snapshot(
    source_fd: int,
    nested: Sequence[btrfs.Nested],
    directory_fd: int,
    name: str,
    *,
    read_only: bool,
    limit: btrfs.Limit | None = None,
) -> None:
    """Snapshot a subvolume and then those nested in it, parents first, each as read-only as it was.

    For a name that nobody can open yet: the copy is writable until the last one is in its place, and its root
    directory is neither immutable nor append-only even if the source's is, so that it can be renamed. A failure or a
    crash leaves it incomplete. Raises OSError.
    """
    btrfs.snapshot(source_fd, directory_fd, name, read_only=False, limit=limit)
    with btrfs.opened(name, directory_fd=directory_fd) as copy_fd:
        copies = {btrfs.subvolume_id(source_fd): btrfs.subvolume_id(copy_fd)}
        frozen = []
        for child in nested:
            with btrfs.opened_inode(source_fd, child.id) as child_fd:
                copies[child.id] = _put(child_fd, child.name, copy_fd, copies[child.parent_id], child.directory_inode)
                if btrfs.is_read_only(child_fd):
                    frozen.append(copies[child.id])
        for copy_id in frozen:
            with btrfs.opened_inode(copy_fd, copy_id) as fd:
                btrfs.set_read_only(fd, read_only=True)
        unlock(copy_fd)
        if read_only:
            btrfs.set_read_only(copy_fd, read_only=True)


def destroy(directory_fd: int, name: str) -> None:
    """Delete a subvolume and all that are nested in it, whatever flags stand in the way.

    A failure or a crash leaves a part of it; the call may be repeated. Raises OSError (EPERM: a send reads one of
    them or a swap file in it is active).
    """
    with btrfs.opened(name, directory_fd=directory_fd) as fd:
        nested = btrfs.descendants(fd, btrfs.subvolume_id(fd))
        unlock(fd)
        for child in nested:
            with btrfs.opened_inode(fd, child.id) as child_fd:
                unlock(child_fd)
        for child in reversed(nested):
            with btrfs.opened_inode(fd, child.parent_id, child.directory_inode) as place_fd, _writable(place_fd):
                btrfs.destroy(place_fd, child.name)
    btrfs.destroy(directory_fd, name)


def unlock(fd: int) -> None:
    """Make a subvolume writable and its root directory deletable and renameable. Raises OSError."""
    if btrfs.is_read_only(fd):
        btrfs.set_read_only(fd, read_only=False)
    flags = fs.get_flags(fd)
    if flags & (fs.FS_IMMUTABLE_FL | fs.FS_APPEND_FL):
        fs.set_flags(fd, flags & ~(fs.FS_IMMUTABLE_FL | fs.FS_APPEND_FL))


def _put(child_fd: int, name: bytes, copy_fd: int, parent_id: int, directory_inode: int) -> int:
    """Replace the placeholder of a nested subvolume by its snapshot and return that one's id."""
    with btrfs.opened_inode(copy_fd, parent_id, directory_inode) as place_fd, _writable(place_fd):
        os.rmdir(name, dir_fd=place_fd)
        btrfs.snapshot(child_fd, place_fd, name, read_only=False)
        with btrfs.opened(name, directory_fd=place_fd) as fd:
            return btrfs.subvolume_id(fd)


@contextmanager
def _writable(fd: int) -> Iterator[None]:
    """Let names in a directory be changed although it is immutable or append-only; its flags and times come back."""
    status = os.fstat(fd)
    flags = fs.get_flags(fd)
    locks = flags & (fs.FS_IMMUTABLE_FL | fs.FS_APPEND_FL)
    if locks:
        fs.set_flags(fd, flags & ~locks)
    yield
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    if locks:
        fs.set_flags(fd, flags)
