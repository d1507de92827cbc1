"""Block devices as sysfs shows them (Documentation/ABI/stable/sysfs-block): size, state, and what they are made of.

Nothing here opens a device or waits for one. Whatever a file of sysfs does not say is None.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SYSFS: Final = "/sys"
SECTOR_BYTES: Final = 512
"""The unit of `size`, whatever the device has (block/genhd.c)."""
DEVICES_MAX: Final = 64
"""How many devices below one are looked at: a large array, and no loop of them."""
_PAGE_BYTES: Final = 4096
"""What a file of sysfs can hold (Documentation/filesystems/sysfs.rst)."""
_DELETED: Final = " (deleted)"


@dataclass(frozen=True, slots=True)
class Backing:
    """The file that a loop device shows."""

    path: str
    is_deleted: bool
    size_bytes: int | None
    """None: it is deleted, no plain file, or not to be seen from here."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device as it was when we looked."""

    numbers: str
    """major:minor"""
    name: str
    size_bytes: int
    is_read_only: bool
    state: str | None
    """SCSI and NVMe: `running`, `live`, `offline`, `dead` …"""
    missing: int | None
    """md: how many members the array lacks."""
    backing: Backing | None
    """Of a loop device."""


def look(numbers: str, *, sysfs: str = SYSFS) -> Device | None:
    """Return what sysfs says of a device (major:minor); None: there is no such device, or not any more."""
    place = f"{sysfs}/dev/block/{numbers}"
    size = read(f"{place}/size")
    if size is None:
        return None
    name = os.path.basename(os.path.realpath(place))
    is_read_only = read(f"{place}/ro") == "1"
    backing = _backing(place)
    if backing is not None:  # a loop device has none of the rest
        return Device(numbers, name, int(size) * SECTOR_BYTES, is_read_only, state=None, missing=None, backing=backing)
    disk = _disk(place)
    missing = read(f"{disk}/md/degraded")
    return Device(
        numbers,
        name,
        int(size) * SECTOR_BYTES,
        is_read_only,
        state=read(f"{disk}/device/state"),
        missing=None if missing is None else int(missing),
        backing=None,
    )


def below(numbers: str, *, sysfs: str = SYSFS) -> Iterator[tuple[str, Device | None]]:
    """Yield a device and those that it is made of (dm, md), as `look` finds them, each once, DEVICES_MAX at most."""
    waiting, seen = [numbers], {numbers}
    for _ in range(DEVICES_MAX):
        if not waiting:
            return
        found = waiting.pop(0)
        device = look(found, sysfs=sysfs)
        yield found, device
        if device is None or device.backing is not None:
            continue
        slaves = f"{_disk(f'{sysfs}/dev/block/{found}')}/slaves"
        for name in names(slaves):
            slave = read(f"{slaves}/{name}/dev")
            if slave is not None and slave not in seen:
                seen.add(slave)
                waiting.append(slave)


def read(path: str) -> str | None:
    """Return the text of a file of sysfs; None: it is not there, or has nothing to say."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # ENOENT, and ENODEV of what is just going
        return None
    try:
        return os.fsdecode(os.read(fd, _PAGE_BYTES)).rstrip("\n")
    except OSError:  # the same, and EIO
        return None
    finally:
        os.close(fd)


def names(directory: str) -> list[str]:
    """Return the names in a directory of sysfs, sorted; none if it is not there, or just going."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _disk(place: str) -> str:
    """Return the directory of the whole disk that a device or partition belongs to."""
    return f"{place}/.." if os.path.exists(f"{place}/partition") else place


def _backing(place: str) -> Backing | None:
    text = read(f"{place}/loop/backing_file")
    if text is None:
        return None
    if text.endswith(_DELETED):
        return Backing(text.removesuffix(_DELETED), is_deleted=True, size_bytes=None)
    try:
        status = os.stat(text)
    except OSError:  # it is in another mount namespace, or what holds it has died
        return Backing(text, is_deleted=False, size_bytes=None)
    return Backing(text, is_deleted=False, size_bytes=status.st_size if stat.S_ISREG(status.st_mode) else None)
