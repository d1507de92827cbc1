"""Block devices as sysfs shows them (Documentation/ABI/stable/sysfs-block): size, state, and what they are made of.

Nothing here opens a device or waits for one. Whatever a file of sysfs does not say is None.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYSFS: Final = Path("/sys")
SECTOR_BYTES: Final = 512
"""The unit of `size`, whatever the device has (block/genhd.c)."""
DEVICES_MAX: Final = 64
"""How many devices below one are looked at: a large array, and no loop of them."""
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


def look(numbers: str, *, sysfs: Path = SYSFS) -> Device | None:
    """Return what sysfs says of a device (major:minor); None: there is no such device, or not any more."""
    place = sysfs / "dev" / "block" / numbers
    size = read(place / "size")
    if size is None:
        return None
    name = os.path.basename(os.path.realpath(place))
    disk = _disk(place)
    missing = read(disk / "md" / "degraded")
    return Device(
        numbers,
        name,
        int(size) * SECTOR_BYTES,
        is_read_only=read(place / "ro") == "1",
        state=read(disk / "device" / "state"),
        missing=None if missing is None else int(missing),
        backing=_backing(place),
    )


def below(numbers: str, *, sysfs: Path = SYSFS) -> Iterator[str]:
    """Yield a device and those that it is made of (dm, md), each once, DEVICES_MAX at most."""
    waiting, seen = [numbers], {numbers}
    for _ in range(DEVICES_MAX):
        if not waiting:
            return
        found = waiting.pop(0)
        yield found
        slaves = _disk(sysfs / "dev" / "block" / found) / "slaves"
        for name in names(slaves):
            slave = read(slaves / name / "dev")
            if slave is not None and slave not in seen:
                seen.add(slave)
                waiting.append(slave)


def read(path: Path) -> str | None:
    """Return the text of a file of sysfs; None: it is not there, or has nothing to say."""
    try:
        return path.read_text(errors="surrogateescape").rstrip("\n")
    except OSError:  # ENOENT, and ENODEV or EIO of what is just going
        return None


def names(directory: Path) -> list[str]:
    """Return the names in a directory of sysfs, sorted; none if it is not there, or just going."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _disk(place: Path) -> Path:
    """Return the directory of the whole disk that a device or partition belongs to."""
    return place / ".." if (place / "partition").exists() else place


def _backing(place: Path) -> Backing | None:
    text = read(place / "loop" / "backing_file")
    if text is None:
        return None
    if text.endswith(_DELETED):
        return Backing(text.removesuffix(_DELETED), is_deleted=True, size_bytes=None)
    try:
        status = os.stat(text)
    except OSError:  # it is in another mount namespace, or what holds it has died
        return Backing(text, is_deleted=False, size_bytes=None)
    return Backing(text, is_deleted=False, size_bytes=status.st_size if stat.S_ISREG(status.st_mode) else None)
