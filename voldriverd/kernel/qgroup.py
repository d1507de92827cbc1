"""Quota groups of btrfs (linux/btrfs.h): mode, limits and counts of one subvolume, each in constant time.

The group of a subvolume is 0/<its id>. The kernel makes it with the subvolume.
"""

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from voldriverd.kernel import btrfs, ioctl

BTRFS_QUOTA_CTL_ENABLE: Final = 1
BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA: Final = 4
BTRFS_QGROUP_LIMIT_MAX_RFER: Final = 1 << 0
BTRFS_QGROUP_LIMIT_RSV_RFER: Final = 1 << 2
"""linux/btrfs.h"""

_QUOTA_TREE_OBJECTID: Final = 8
_QGROUP_LIMIT_KEY: Final = 244
"""linux/btrfs_tree.h: BTRFS_QUOTA_TREE_OBJECTID, BTRFS_QGROUP_LIMIT_KEY"""


_SIMPLE: Final = Path("/sys/fs/btrfs/features/simple_quota")
"""fs/btrfs/sysfs.c, 6.7"""
_GONE: Final = frozenset({errno.ENOENT, errno.ENODEV})
"""What reading from sysfs gives when a group has gone, and when it goes at that moment (fs/kernfs, 6.18)."""

_NUMBER_MAX: Final = 32
"""Longer than any number of 64 bits and its newline."""


class Mode(StrEnum):
    """What the kernel counts: nothing, who wrote an extent first, or who refers to it."""

    OFF = "off"
    SIMPLE = "simple"
    FULL = "full"


class _QuotaCtlArgs(ctypes.Structure):
    """struct btrfs_ioctl_quota_ctl_args."""

    _fields_ = (("cmd", ctypes.c_uint64), ("status", ctypes.c_uint64))


class _QgroupLimitArgs(ctypes.Structure):
    """struct btrfs_ioctl_qgroup_limit_args."""

    _fields_ = (("qgroupid", ctypes.c_uint64), ("lim", btrfs.Limit))


class _QgroupCreateArgs(ctypes.Structure):
    """struct btrfs_ioctl_qgroup_create_args."""

    _fields_ = (("create", ctypes.c_uint64), ("qgroupid", ctypes.c_uint64))


BTRFS_IOC_QUOTA_CTL: Final = ioctl.iowr(0x94, 40, ctypes.sizeof(_QuotaCtlArgs))
BTRFS_IOC_QGROUP_LIMIT: Final = ioctl.ior(0x94, 43, ctypes.sizeof(_QgroupLimitArgs))
BTRFS_IOC_QGROUP_CREATE: Final = ioctl.iow(0x94, 42, ctypes.sizeof(_QgroupCreateArgs))
BTRFS_IOC_QUOTA_RESCAN_WAIT: Final = ioctl.io(0x94, 46)


@dataclass(frozen=True, slots=True)
class Group:
    """The counts of one subvolume as of the last commit."""

    referenced_bytes: int
    limit_bytes: int | None


def mode(file_system_id: str) -> Mode:
    """Return what the mounted file system counts. Raises OSError."""
    try:
        name = Path(f"{_sysfs(file_system_id)}/mode").read_text().strip()
    except FileNotFoundError:  # the directory is there only while quotas are on
        return Mode.OFF
    return {"squota": Mode.SIMPLE, "qgroup": Mode.FULL}.get(name, Mode.OFF)


def has_simple() -> bool:
    """Tell whether the kernel has simple quotas; asked once a btrfs is mounted, for before its module may be absent."""
    return _SIMPLE.exists()


def enable(fd: int, wanted: Mode) -> None:
    """Turn quotas on for the file system of a descriptor; with `full`, return when all is counted.

    Raises OSError (EINVAL: the kernel, before 6.7, has no simple quotas).
    """
    command = BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA if wanted is Mode.SIMPLE else BTRFS_QUOTA_CTL_ENABLE
    ioctl.call(fd, BTRFS_IOC_QUOTA_CTL, _QuotaCtlArgs(cmd=command))
    if wanted is Mode.FULL:  # limits do not hold before
        ioctl.call(fd, BTRFS_IOC_QUOTA_RESCAN_WAIT)


def limit(*, size_bytes: int | None, inherited_bytes: int = 0) -> btrfs.Limit:
    """Return the limit of a new subvolume; `inherited_bytes` is kept with it and limits nothing.

    The reserved-bytes field that holds it is stored with the group by every kernel and enforced by
    none (fs/btrfs/qgroup.c, qgroup_check_limits, 6.18), and it comes to be with the subvolume.
    """
    result = btrfs.Limit(flags=BTRFS_QGROUP_LIMIT_RSV_RFER, rsv_rfer=inherited_bytes)
    if size_bytes is not None:
        result.flags |= BTRFS_QGROUP_LIMIT_MAX_RFER
        result.max_rfer = size_bytes
    return result


def set_size(fd: int, subvolume_id: int, size_bytes: int) -> None:
    """Limit what a subvolume may use; not committed. Raises OSError."""
    lim = btrfs.Limit(flags=BTRFS_QGROUP_LIMIT_MAX_RFER, max_rfer=size_bytes)
    ioctl.call(fd, BTRFS_IOC_QGROUP_LIMIT, _QgroupLimitArgs(subvolume_id, lim))


def set_inherited(fd: int, subvolume_id: int, inherited_bytes: int) -> None:
    """Correct what `limit` stored beside a subvolume's limit; not committed. Raises OSError."""
    lim = btrfs.Limit(flags=BTRFS_QGROUP_LIMIT_RSV_RFER, rsv_rfer=inherited_bytes)
    ioctl.call(fd, BTRFS_IOC_QGROUP_LIMIT, _QgroupLimitArgs(subvolume_id, lim))


def inherited(fd: int, subvolume_id: int) -> int:
    """Return what `limit` stored beside a subvolume's limit, 0 if nothing. Raises OSError."""
    for _, item in btrfs.search(fd, _QUOTA_TREE_OBJECTID, 0, _QGROUP_LIMIT_KEY, subvolume_id):
        return int(struct.unpack_from("<5Q", item)[3])  # struct btrfs_qgroup_limit_item
    return 0


def group(file_system_id: str, subvolume_id: int) -> Group | None:
    """Return the counts of a subvolume, None if there are none. Raises OSError."""
    try:
        is_limited = _read(file_system_id, subvolume_id, "limit_flags") & BTRFS_QGROUP_LIMIT_MAX_RFER
        limit_bytes = _read(file_system_id, subvolume_id, "max_referenced") if is_limited else None
        return Group(referenced_bytes(file_system_id, subvolume_id), limit_bytes)
    except OSError as err:
        if err.errno in _GONE:
            return None
        raise


def referenced_bytes(file_system_id: str, subvolume_id: int) -> int:
    """Return what a subvolume is charged as of the last commit. Raises OSError, also if nothing is counted for it."""
    return _read(file_system_id, subvolume_id, "referenced")


def exclusive_bytes(file_system_id: str, subvolume_id: int) -> int | None:
    """Return what of that no other subvolume refers to, None if nothing is counted. Raises OSError.

    With simple quotas it is all of it.
    """
    try:
        return _read(file_system_id, subvolume_id, "exclusive")
    except OSError as err:
        if err.errno in _GONE:
            return None
        raise


def sweep(fd: int, file_system_id: str) -> None:
    """Remove the groups that count nothing any more and whose subvolume has gone. Raises OSError.

    The kernel does that only for groups that are empty when their subvolume goes (6.18); with simple
    quotas the group of one that was cloned is not.
    """
    for name in os.listdir(_sysfs(file_system_id)):
        level, _, number = name.partition("_")
        if level != "0" or not number:
            continue
        subvolume_id = int(number)
        try:
            if referenced_bytes(file_system_id, subvolume_id) == 0 and not btrfs.exists(fd, subvolume_id):
                ioctl.call(fd, BTRFS_IOC_QGROUP_CREATE, _QgroupCreateArgs(0, subvolume_id))
        except OSError as err:  # the kernel was quicker, or is not done with it; the next sweep comes
            if err.errno not in _GONE | {errno.EBUSY}:
                raise


def _read(file_system_id: str, subvolume_id: int, name: str) -> int:
    """Read a number of a group: in a third of the time of `Path.read_text`, and every snapshot reads three."""
    fd = os.open(f"{_sysfs(file_system_id)}/0_{subvolume_id}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, _NUMBER_MAX))
    finally:
        os.close(fd)


def _sysfs(file_system_id: str) -> str:
    return f"/sys/fs/btrfs/{file_system_id}/qgroups"
