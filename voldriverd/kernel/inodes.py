"""The inodes of a btrfs subvolume, as its metadata tree has them (linux/btrfs_tree.h)."""

import ctypes
import struct
from collections.abc import Iterator
from typing import Final

from voldriverd.kernel import btrfs, ioctl, watch

BTRFS_INODE_NODATACOW: Final = 1 << 1
BTRFS_INODE_SYNC: Final = 1 << 5
BTRFS_INODE_IMMUTABLE: Final = 1 << 6
BTRFS_INODE_APPEND: Final = 1 << 7
BTRFS_INODE_NODUMP: Final = 1 << 8
BTRFS_INODE_NOATIME: Final = 1 << 9
BTRFS_INODE_DIRSYNC: Final = 1 << 10
"""linux/btrfs_tree.h"""

UNSENT: Final = (
    BTRFS_INODE_NODATACOW
    | BTRFS_INODE_SYNC
    | BTRFS_INODE_IMMUTABLE
    | BTRFS_INODE_APPEND
    | BTRFS_INODE_NODUMP
    | BTRFS_INODE_NOATIME
    | BTRFS_INODE_DIRSYNC
)
"""What somebody set by chattr(1) and a send stream does not tell. Compression is an attribute too, which it tells."""

_INODE_ITEM_KEY: Final = 1
_EXTENT_DATA_KEY: Final = 108
_TRANSID_AT: Final = 8
_FLAGS_AT: Final = 64
"""In struct btrfs_inode_item."""
_COMPRESSION_AT: Final = 16
_TYPE_AT: Final = 20
_PLACE_AT: Final = 21
"""In struct btrfs_file_extent_item; data in the metadata itself begins at the last one."""
_FILE_EXTENT_INLINE: Final = 0
_FILE_EXTENT_REG: Final = 1
_HEADER: Final = struct.Struct("<QQQII")
"""struct btrfs_ioctl_search_header: generation, object, offset, type, length"""
_BUFFER_BYTES: Final = 64 << 10
"""Of some 400 items: with the 4 KiB of the older call 20,000 small files took 3,200 calls."""
_MAX_U64: Final = (1 << 64) - 1


class _SearchArgsV2(ctypes.Structure):
    """struct btrfs_ioctl_search_args_v2 with its key spread out, and its buffer."""

    _fields_ = (
        *((name, kind) for name, kind, *_ in btrfs.SearchArgs._fields_ if name != "buf"),
        ("buf_size", ctypes.c_uint64),
        ("buf", ctypes.c_uint8 * _BUFFER_BYTES),
    )


BTRFS_IOC_TREE_SEARCH_V2: Final = ioctl.iowr(0x94, 17, ctypes.sizeof(_SearchArgsV2) - _BUFFER_BYTES)


def count_flagged(fd: int, flags: int) -> int:
    """Count the inodes of the subvolume of a descriptor that have one of these flags, files and directories alike.

    Raises OSError.
    """
    return sum(_has_flag(item, flags) for _, kind, item in _items(fd, 0) if kind == _INODE_ITEM_KEY)


def changes(fd: int, flags: int, *, since: int) -> tuple[int, int]:
    """Return what was written in a generation or later: how many inodes with one of these flags, bytes of file data.

    Of data what it takes on the disk; what lies beside it in the metadata is told along, and counts only if it is as
    new. Raises OSError.
    """
    count = data_bytes = 0
    for _, kind, item in _items(fd, since, is_whole=True):
        if kind == _INODE_ITEM_KEY:
            count += _has_flag(item, flags)
        elif kind == _EXTENT_DATA_KEY and struct.unpack_from("<Q", item)[0] >= since:
            data_bytes += _data_bytes(item)
    return count, data_bytes


def _has_flag(inode: memoryview, flags: int) -> bool:
    return bool(struct.unpack_from("<Q", inode, _FLAGS_AT)[0] & flags)


def _data_bytes(extent: memoryview) -> int:
    """Return what an extent has on the disk, or of inline data all; nothing of a hole, or of what is reserved."""
    if extent[_TYPE_AT] == _FILE_EXTENT_INLINE:
        return len(extent) - _PLACE_AT
    place, disk_bytes, _, file_bytes = struct.unpack_from("<QQQQ", extent, _PLACE_AT)
    if extent[_TYPE_AT] != _FILE_EXTENT_REG or not place:
        return 0
    return int(disk_bytes if extent[_COMPRESSION_AT] else file_bytes)


def with_data(fd: int, *, since: int = 0) -> Iterator[int]:
    """Yield the files of the subvolume of a descriptor whose data begins on the disk, not compressed; by their numbers.

    In ascending order; with `since` only those that were changed in that generation or later. Raises OSError.
    """
    wanted = 0
    for inode, kind, item in _items(fd, since):
        if kind == _INODE_ITEM_KEY:
            wanted = inode if struct.unpack_from("<Q", item, _TRANSID_AT)[0] >= since else 0
        if kind != _EXTENT_DATA_KEY or inode != wanted:
            continue
        wanted = 0
        is_on_disk = item[_TYPE_AT] == _FILE_EXTENT_REG and any(item[_PLACE_AT : _PLACE_AT + 8])
        if is_on_disk and not item[_COMPRESSION_AT]:
            yield inode


def _items(fd: int, since: int, *, is_whole: bool = False) -> Iterator[tuple[int, int, memoryview]]:
    """Yield inode, type and content of the items of a subvolume, in order; unless whole, not all extents of a file.

    They are passed by on the way: 20,000 small files took 60 ms (2 cores, 6.18). `watch` is told of each page of them.
    """
    tree_id = btrfs.subvolume_id(fd)
    inode, kind, offset = btrfs.BTRFS_FIRST_FREE_OBJECTID, 0, 0
    while True:
        arguments = _SearchArgsV2(
            tree_id=tree_id,
            min_objectid=inode,
            max_objectid=_MAX_U64,
            min_type=kind,
            max_type=_EXTENT_DATA_KEY,
            min_offset=offset,
            max_offset=_MAX_U64,
            min_transid=since,
            max_transid=_MAX_U64,
            nr_items=_BUFFER_BYTES,
            buf_size=_BUFFER_BYTES,
        )
        watch.advance()
        ioctl.call(fd, BTRFS_IOC_TREE_SEARCH_V2, arguments)
        if arguments.nr_items == 0:
            return
        content = memoryview(bytes(arguments.buf))
        position = 0
        for _ in range(arguments.nr_items):
            _, inode, offset, kind, length = _HEADER.unpack_from(content, position)
            position += _HEADER.size
            yield inode, kind, content[position : position + length]
            position += length
        is_next_inode = kind == _EXTENT_DATA_KEY and not is_whole
        inode, kind, offset = (inode + 1, 0, 0) if is_next_inode else (inode, kind, offset + 1)
