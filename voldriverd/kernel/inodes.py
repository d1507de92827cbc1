"""The inodes of a btrfs subvolume, as its metadata tree has them (linux/btrfs_tree.h)."""

import struct
from typing import Final

from voldriverd.kernel import btrfs, ioctl

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
_FLAGS_AT: Final = 64
"""In struct btrfs_inode_item."""
_ITEMS_MAX: Final = 1_000
_MAX_U64: Final = (1 << 64) - 1


def count_flagged(fd: int, flags: int, *, since: int = 0) -> int:
    """Count the inodes of the subvolume of a descriptor that have one of these flags, files and directories alike.

    With `since` only where metadata was written in that generation or later. All kinds of items are passed by
    on the way: 20,000 small files took 180 ms (a busy machine of 2 cores, 6.18). Raises OSError.
    """
    tree_id = btrfs.subvolume_id(fd)
    count = 0
    first = btrfs.BTRFS_FIRST_FREE_OBJECTID
    while True:
        arguments = btrfs.SearchArgs(
            tree_id=tree_id,
            min_objectid=first,
            max_objectid=_MAX_U64,
            min_transid=since,
            max_transid=_MAX_U64,
            min_type=_INODE_ITEM_KEY,
            max_type=_INODE_ITEM_KEY,
            max_offset=_MAX_U64,
            nr_items=_ITEMS_MAX,
        )
        ioctl.call(fd, btrfs.BTRFS_IOC_TREE_SEARCH, arguments)
        content = bytes(arguments.buf)
        position = 0
        for _ in range(arguments.nr_items):
            _, inode, _, kind, length = struct.unpack_from("<QQQII", content, position)
            position += 32  # struct btrfs_ioctl_search_header
            if kind == _INODE_ITEM_KEY and struct.unpack_from("<Q", content, position + _FLAGS_AT)[0] & flags:
                count += 1
            position += length
            first = inode + 1
        if arguments.nr_items == 0:
            return count
