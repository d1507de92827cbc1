"""Subvolumes of btrfs: make, snapshot, destroy, what is nested in them, and commits (linux/btrfs.h).

Everything takes descriptors of directories and names in them, so that nothing follows a link that
a container put there. What has others nested in it is handled
by `nested`; quota groups are in `qgroup`, the difference of two snapshots in `send`.
"""

import ctypes
import os
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd.kernel import ioctl

BTRFS_FIRST_FREE_OBJECTID: Final = 256
"""linux/btrfs_tree.h; the inode number of every subvolume's root directory."""

BTRFS_SUBVOL_RDONLY: Final = 1 << 1
BTRFS_SUBVOL_QGROUP_INHERIT: Final = 1 << 2
BTRFS_QGROUP_INHERIT_SET_LIMITS: Final = 1 << 0
"""linux/btrfs.h"""

_ROOT_TREE_OBJECTID: Final = 1
_ORPHAN_OBJECTID: Final = 2**64 - 5
_ORPHAN_ITEM_KEY: Final = 48
_ROOT_ITEM_KEY: Final = 132
_ROOT_REF_KEY: Final = 156
"""linux/btrfs_tree.h: BTRFS_ROOT_TREE_OBJECTID and its like"""

_FILEID_BTRFS_WITHOUT_PARENT: Final = 0x4D
"""linux/exportfs.h, fs/btrfs/export.h"""

_CLEANING_S: Final = 0.01
"""Between two looks at what the cleaner has done; it cleaned 1.5 GiB in 3 ms (6.18, VM)."""
_MAX_U64: Final = (1 << 64) - 1

_libc = ctypes.CDLL(None, use_errno=True)


class _VolArgs(ctypes.Structure):
    """struct btrfs_ioctl_vol_args."""

    _fields_ = (("fd", ctypes.c_int64), ("name", ctypes.c_char * 4088))


class _VolArgsV2(ctypes.Structure):
    """struct btrfs_ioctl_vol_args_v2 with its unions as create and snapshot use them."""

    _fields_ = (
        ("fd", ctypes.c_int64),
        ("transid", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("qgroup_inherit", ctypes.c_void_p),
        ("unused", ctypes.c_uint64 * 2),
        ("name", ctypes.c_char * 4040),
    )


class Limit(ctypes.Structure):
    """struct btrfs_qgroup_limit."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("max_rfer", ctypes.c_uint64),
        ("max_excl", ctypes.c_uint64),
        ("rsv_rfer", ctypes.c_uint64),
        ("rsv_excl", ctypes.c_uint64),
    )


class _Inherit(ctypes.Structure):
    """struct btrfs_qgroup_inherit without groups."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("num_qgroups", ctypes.c_uint64),
        ("num_ref_copies", ctypes.c_uint64),
        ("num_excl_copies", ctypes.c_uint64),
        ("lim", Limit),
    )


class _InoLookupArgs(ctypes.Structure):
    """struct btrfs_ioctl_ino_lookup_args."""

    _fields_ = (("treeid", ctypes.c_uint64), ("objectid", ctypes.c_uint64), ("name", ctypes.c_char * 4080))


class _FsInfoArgs(ctypes.Structure):
    """struct btrfs_ioctl_fs_info_args, what we do not read as one block."""

    _fields_ = (
        ("max_id", ctypes.c_uint64),
        ("num_devices", ctypes.c_uint64),
        ("fsid", ctypes.c_uint8 * 16),
        ("rest", ctypes.c_uint8 * 992),
    )


class SearchArgs(ctypes.Structure):
    """struct btrfs_ioctl_search_args with its key spread out."""

    _fields_ = (
        ("tree_id", ctypes.c_uint64),
        ("min_objectid", ctypes.c_uint64),
        ("max_objectid", ctypes.c_uint64),
        ("min_offset", ctypes.c_uint64),
        ("max_offset", ctypes.c_uint64),
        ("min_transid", ctypes.c_uint64),
        ("max_transid", ctypes.c_uint64),
        ("min_type", ctypes.c_uint32),
        ("max_type", ctypes.c_uint32),
        ("nr_items", ctypes.c_uint32),
        ("unused", ctypes.c_uint32 * 9),
        ("buf", ctypes.c_uint8 * 3992),
    )


class _FileHandle(ctypes.Structure):
    """struct file_handle (open_by_handle_at(2)) holding a struct btrfs_fid without its parent half."""

    _pack_ = 4
    _fields_ = (
        ("handle_bytes", ctypes.c_uint32),
        ("handle_type", ctypes.c_int32),
        ("objectid", ctypes.c_uint64),
        ("root_objectid", ctypes.c_uint64),
        ("gen", ctypes.c_uint32),
    )


BTRFS_IOC_RESIZE: Final = ioctl.iow(0x94, 3, ctypes.sizeof(_VolArgs))
BTRFS_IOC_SYNC: Final = ioctl.io(0x94, 8)
BTRFS_IOC_SNAP_DESTROY: Final = ioctl.iow(0x94, 15, ctypes.sizeof(_VolArgs))
BTRFS_IOC_TREE_SEARCH: Final = ioctl.iowr(0x94, 17, ctypes.sizeof(SearchArgs))
BTRFS_IOC_INO_LOOKUP: Final = ioctl.iowr(0x94, 18, ctypes.sizeof(_InoLookupArgs))
BTRFS_IOC_SNAP_CREATE_V2: Final = ioctl.iow(0x94, 23, ctypes.sizeof(_VolArgsV2))
BTRFS_IOC_SUBVOL_CREATE_V2: Final = ioctl.iow(0x94, 24, ctypes.sizeof(_VolArgsV2))
BTRFS_IOC_SUBVOL_GETFLAGS: Final = ioctl.ior(0x94, 25, 8)
BTRFS_IOC_SUBVOL_SETFLAGS: Final = ioctl.iow(0x94, 26, 8)
BTRFS_IOC_FS_INFO: Final = ioctl.ior(0x94, 31, ctypes.sizeof(_FsInfoArgs))


@dataclass(frozen=True, slots=True)
class Nested:
    """A subvolume inside another: where its name stands, by tree and inode, whatever the path's length."""

    id: int
    parent_id: int
    directory_inode: int
    name: bytes


def create(directory_fd: int, name: str, *, limit: Limit | None = None) -> None:
    """Make an empty subvolume, from the first instant under its limit; not committed. Raises OSError (EEXIST)."""
    _make(BTRFS_IOC_SUBVOL_CREATE_V2, directory_fd, os.fsencode(name), _VolArgsV2(), limit)


def snapshot(
    source_fd: int, directory_fd: int, name: str | bytes, *, read_only: bool, limit: Limit | None = None
) -> None:
    """Snapshot the subvolume of a descriptor; it is committed with all that was dirty in the source.

    Raises OSError (EEXIST; ETXTBSY: a swap file in it is active).
    """
    arguments = _VolArgsV2(fd=source_fd, flags=BTRFS_SUBVOL_RDONLY if read_only else 0)
    _make(BTRFS_IOC_SNAP_CREATE_V2, directory_fd, os.fsencode(name), arguments, limit)


def destroy(directory_fd: int, name: str | bytes) -> None:
    """Delete a subvolume, mounted or not; not committed, so that a power cut may bring it back.

    Raises OSError (ENOENT; ENOTEMPTY: others are nested in it; EPERM: a send reads it, a swap file in it is active,
    or its root directory is immutable).
    """
    ioctl.call(directory_fd, BTRFS_IOC_SNAP_DESTROY, _VolArgs(name=os.fsencode(name)))


def is_read_only(fd: int) -> bool:
    """Tell whether the subvolume of a descriptor is read-only. Raises OSError."""
    flags = ctypes.c_uint64(0)
    ioctl.call(fd, BTRFS_IOC_SUBVOL_GETFLAGS, flags)
    return bool(flags.value & BTRFS_SUBVOL_RDONLY)


def set_read_only(fd: int, *, read_only: bool) -> None:
    """Change the flag of the subvolume of a descriptor, which must be of its root directory; commits.

    Descriptors that are open for writing go on writing: only for subvolumes that nobody can have open.
    """
    ioctl.call(fd, BTRFS_IOC_SUBVOL_SETFLAGS, ctypes.c_uint64(BTRFS_SUBVOL_RDONLY if read_only else 0))


def subvolume_id(fd: int) -> int:
    """Return the tree id of the subvolume that holds a file. Raises OSError."""
    arguments = _InoLookupArgs(objectid=BTRFS_FIRST_FREE_OBJECTID)
    ioctl.call(fd, BTRFS_IOC_INO_LOOKUP, arguments)
    return int(arguments.treeid)


def exists(fd: int, tree_id: int) -> bool:
    """Tell whether there is a subvolume of that id, or a deleted one that is still being cleaned. Raises OSError."""
    return next(search(fd, _ROOT_TREE_OBJECTID, tree_id, _ROOT_ITEM_KEY), None) is not None


def file_system_id(fd: int) -> str:
    """Return the UUID of the file system as /sys/fs/btrfs spells it. Raises OSError (ENOTTY: not btrfs)."""
    arguments = _FsInfoArgs()
    ioctl.call(fd, BTRFS_IOC_FS_INFO, arguments)
    return str(uuid.UUID(bytes=bytes(arguments.fsid)))


def children(fd: int, parent_id: int) -> list[Nested]:
    """Return the subvolumes directly inside the one of that id (one ioctl if there are none). Raises OSError."""
    found = []
    for child_id, item in search(fd, _ROOT_TREE_OBJECTID, parent_id, _ROOT_REF_KEY):
        directory_inode, _, length = struct.unpack_from("<QQH", item)  # struct btrfs_root_ref
        found.append(Nested(child_id, parent_id, directory_inode, item[18 : 18 + length]))
    return found


def descendants(fd: int, parent_id: int) -> list[Nested]:
    """Return all subvolumes inside the one of that id, parents before children. Raises OSError."""
    found = children(fd, parent_id)
    for nested in found:  # grows meanwhile
        found.extend(children(fd, nested.id))
    return found


def search(fd: int, tree_id: int, objectid: int, kind: int, offset: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, content) of the items of one object and type in a metadata tree. Raises OSError.

    With `offset` only the item of that key.
    """
    first, last = (0, _MAX_U64) if offset is None else (offset, offset)
    while True:
        arguments = SearchArgs(
            tree_id=tree_id,
            min_objectid=objectid,
            max_objectid=objectid,
            min_type=kind,
            max_type=kind,
            min_offset=first,
            max_offset=last,
            max_transid=_MAX_U64,
            nr_items=1_000,
        )
        ioctl.call(fd, BTRFS_IOC_TREE_SEARCH, arguments)
        content = bytes(arguments.buf)
        position = 0
        for _ in range(arguments.nr_items):
            _, _, key_offset, _, length = struct.unpack_from("<QQQII", content, position)
            position += 32  # struct btrfs_ioctl_search_header
            yield key_offset, content[position : position + length]
            position += length
            first = key_offset + 1
        if arguments.nr_items == 0 or first > last:
            return


@contextmanager
def opened(path: Path | str | bytes, *, directory_fd: int | None = None) -> Iterator[int]:
    """Open a directory, not through a link, and close it at the end. Raises OSError (ENOENT, ENOTDIR)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened_inode(
    fd: int, tree_id: int, inode: int = BTRFS_FIRST_FREE_OBJECTID, *, flags: int = os.O_DIRECTORY
) -> Iterator[int]:
    """Open a directory by tree and inode number, on the mount of `fd`, and close it at the end. Raises OSError.

    With other flags of open(2) another file.

    No path is walked, so that neither its length nor what lies on it matters. It needs CAP_DAC_READ_SEARCH.
    Generation 0 matches every inode (fs/btrfs/export.c, btrfs_get_dentry, 6.18).
    """
    handle = _FileHandle(20, _FILEID_BTRFS_WITHOUT_PARENT, inode, tree_id, 0)
    result = _libc.open_by_handle_at(fd, ctypes.byref(handle), os.O_RDONLY | os.O_CLOEXEC | flags)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        yield result
    finally:
        os.close(result)


def commit(directory_fd: int, name: str) -> None:
    """Commit the file system by making, deleting and syncing a subvolume of that name. Raises OSError.

    fsync(2) of a directory commits everything if a subvolume was made, deleted or renamed in it since the last
    commit (fs/btrfs/tree-log.c, 6.18), and does not wait for the dirty data of other files as syncfs(2) does.
    BTRFS_IOC_START_SYNC is not used: 5 of 6 calls blocked for 31 s, until the periodic commit (6.18).
    """
    with suppress(FileExistsError):  # a commit before this one could not delete it
        create(directory_fd, name)
    destroy(directory_fd, name)
    os.fsync(directory_fd)


def reclaim(fd: int, *, timeout_s: float) -> bool:
    """Have what was deleted so far cleaned now and its space given back; False if that takes longer. Raises OSError.

    Left alone the cleaner comes every 30 s; BTRFS_IOC_SYNC wakes it (fs/btrfs/ioctl.c, 6.18), at the price of
    writing out the file system. What it frees may be used after the commit that follows.
    """
    deadline_s = time.monotonic() + timeout_s
    ioctl.call(fd, BTRFS_IOC_SYNC)
    orphans = {tree_id for tree_id, _ in search(fd, _ROOT_TREE_OBJECTID, _ORPHAN_OBJECTID, _ORPHAN_ITEM_KEY)}
    while any(exists(fd, tree_id) for tree_id in orphans):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_CLEANING_S)
    ioctl.call(fd, BTRFS_IOC_SYNC)
    return True


def resize(fd: int, size: str) -> None:
    """Resize the mounted file system of a descriptor, `max` for all of its device. Raises OSError."""
    ioctl.call(fd, BTRFS_IOC_RESIZE, _VolArgs(name=size.encode()))


def _make(request: int, directory_fd: int, name: bytes, arguments: _VolArgsV2, limit: Limit | None) -> None:
    arguments.name = name
    if limit is not None:
        inherit = _Inherit(flags=BTRFS_QGROUP_INHERIT_SET_LIMITS, lim=limit)
        arguments.flags |= BTRFS_SUBVOL_QGROUP_INHERIT
        arguments.size = ctypes.sizeof(inherit)
        arguments.qgroup_inherit = ctypes.addressof(inherit)
    ioctl.call(directory_fd, request, arguments)
