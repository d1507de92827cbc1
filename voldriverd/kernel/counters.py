"""The errors that file systems have counted, as sysfs shows them.

btrfs  /sys/fs/btrfs/<uuid>/devinfo/<id>/error_stats   kept on disk until `btrfs device stats -z` (5.14)
ext4   /sys/fs/ext4/<device>/errors_count              kept on disk until e2fsck
       /sys/fs/ext4/<device>/warning_count             since the mount; data that could not be written is here alone
xfs    counts nothing; it shuts down, and then every call fails with EIO
"""

from dataclasses import dataclass
from typing import Final

from voldriverd.kernel import block, btrfs

_EXT4: Final = ("errors_count", "warning_count")


@dataclass(frozen=True, slots=True)
class Count:
    """How often something has failed."""

    device: str
    """Its name; btrfs: the id of the device in the file system."""
    kind: str
    """As the kernel calls it."""
    count: int


@dataclass(frozen=True, slots=True)
class Members:
    """What a btrfs is made of."""

    numbers: tuple[str, ...]
    """major:minor of each device that is there."""
    missing: tuple[str, ...]
    """The ids of those that are not."""


def of_ext4(device: str, *, sysfs: str = block.SYSFS) -> tuple[Count, ...]:
    """Return the counters of an ext4, by the name of its device; none if it is not mounted."""
    texts = {kind: block.read(f"{sysfs}/fs/ext4/{device}/{kind}") for kind in _EXT4}
    return tuple(Count(device, kind, int(text)) for kind, text in texts.items() if text is not None)


def of_btrfs(file_system_id: str, *, sysfs: str = block.SYSFS) -> tuple[Count, ...]:
    """Return the counters of a btrfs; none if it is not mounted, or the kernel is older than 5.14."""
    found = []
    for device, place in _devices(file_system_id, sysfs):
        for line in (block.read(f"{place}/error_stats") or "").splitlines():
            kind, _, count = line.partition(" ")
            if count.isdecimal():  # the kernel may have nothing but "invalid" to say
                found.append(Count(device, kind, int(count)))
    return tuple(found)


def members(file_system_id: str, *, sysfs: str = block.SYSFS) -> Members:
    """Return the devices of a btrfs that is mounted."""
    place = f"{sysfs}/fs/btrfs/{file_system_id}/devices"
    numbers = (block.read(f"{place}/{name}/dev") for name in block.names(place))
    missing = (device for device, info in _devices(file_system_id, sysfs) if block.read(f"{info}/missing") == "1")
    return Members(tuple(each for each in numbers if each is not None), tuple(missing))


def file_system_id(path: str) -> str:
    """Return the id of the btrfs that holds a directory. Raises OSError."""
    with btrfs.opened(path) as fd:
        return btrfs.file_system_id(fd)


def _devices(file_system_id: str, sysfs: str) -> list[tuple[str, str]]:
    place = f"{sysfs}/fs/btrfs/{file_system_id}/devinfo"
    return [(device, f"{place}/{device}") for device in block.names(place)]
