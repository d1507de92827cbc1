"""How pools and mounted volumes fare, as the kernel tells it: their file systems, and the devices below them.

A pool is looked at where its root lies. Of volumes only those have an own look that are mounted, held or not, from a
loop device of their own; the others fare as their pool does. What is found stands in the pools and in
`engine.ailments`, which tell who watches when the kinds of trouble are others than before. A look takes 0.14 ms of a
core for each such volume, and 13 ms for 2,000 mounts of the host (two loaded cores, 6.18; 100 volumes).
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from voldriverd import model
from voldriverd.driver import Key
from voldriverd.engine import pools
from voldriverd.engine.context import Engine
from voldriverd.kernel import block, counters, loop, mount
from voldriverd.model import Ailment, Trouble

_EXT: Final = frozenset({"ext2", "ext3", "ext4"})
_READ_ONLY: Final = frozenset({"ro", "emergency_ro", "shutdown"})
"""Options of a superblock: the second and third of ext4 (6.15), which keeps `rw` beside them."""
_RUNNING: Final = frozenset({"running", "live", "created", "new", "quiesce", "resetting", "connecting", "blocked"})
"""States of SCSI (drivers/scsi/scsi_sysfs.c) and NVMe (drivers/nvme/host/sysfs.c) that end by themselves."""
_FAILS: Final = frozenset({errno.EIO, errno.EUCLEAN, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO})
"""What stat(2) says on a file system that has given up: xfs that was shut down, an NFS or FUSE that died."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Somebody who fares otherwise than before."""

    kind: str
    """`pool` or `volume`"""
    name: str
    health: model.Health
    text: str | None
    """What is wrong; None: nothing any more."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one look has come to."""

    turns: list[Turn]
    resized: list[tuple[pools.Pool, str]]
    """The pools that have a device of another size than before, each with what there is to say of it."""
    devices: set[str]
    """major:minor of all below pools: what happens to these and the next ones is worth another look."""
    volumes: set[str] = field(default_factory=set)
    """The same below volumes."""


@dataclass(frozen=True, slots=True)
class _Seen:
    ailments: tuple[Ailment, ...]
    counts: tuple[counters.Count, ...]
    devices: tuple[block.Device, ...]
    """Those that the file system itself lies on, as far as they are there."""
    numbers: frozenset[str]
    """Of all devices below it."""


_Place = tuple[str, int, str]
"""Who has a device, on which mount, and its numbers."""
_Sizes = dict[_Place, tuple[int, int]]


class Looks:
    """Looks, and remembers how large devices were; one thread at a time."""

    def __init__(self, engine: Engine) -> None:
        """Know of no device yet."""
        self._engine = engine
        self._fared: dict[str, tuple[model.Health, set[Trouble]]] = {}
        """What was told last of each pool."""
        self._sizes: _Sizes = {}
        """The largest and the last size of each device; forgotten with its mount."""

    def look(self) -> Found:
        """Look at all pools and mounted volumes once. Raises OSError: the mount table cannot be read."""
        found = Found([], [], set())
        before, self._sizes = self._sizes, {}
        places = {pool.row.id: pool for pool in self._engine.pools.available()}
        ids = {pool_id: mount_id for pool_id, pool in places.items() if (mount_id := _mount_of(pool)) is not None}
        loops = rf"^\d+ \d+ {loop.LOOP_MAJOR}:"
        entries = mount.matching(re.compile("|".join([loops, *(f"^{each} " for each in ids.values())])))
        mounted = {entry.mount_id: entry for entry in entries}
        for pool_id, mount_id in ids.items():
            if mount_id in mounted:  # else it was unmounted just now
                self._look_at_pool(places[pool_id], mounted[mount_id], before, found)
        found.turns.extend(self._turned())
        self._look_at_volumes({entry.mount_point: entry for entry in entries}, before, found)
        return found

    def _look_at_pool(self, pool: pools.Pool, entry: mount.Entry, before: _Sizes, found: Found) -> None:
        seen = _looked_at(entry, pool.row.path)
        if seen is None:
            return
        shrunk, others = self._measure(f"pool={pool.row.name}", entry, seen, before)
        found.devices.update(seen.numbers)
        found.resized.extend((pool, text) for text in others)
        self._engine.pools.note(pool, (*seen.ailments, *shrunk), seen.counts)

    def _turned(self) -> Iterator[Turn]:
        """Yield the pools that fare otherwise than was told last, whoever found that."""
        for pool in self._engine.pools:
            fares = (pool.health, {ailment.trouble for ailment in pool.ailments})
            if pool.spec is not None and fares != self._fared.get(pool.row.name, (model.Health.AVAILABLE, set())):
                self._fared[pool.row.name] = fares
                yield Turn("pool", pool.row.name, pool.health, pool.trouble)

    def _look_at_volumes(self, shown: Mapping[str, mount.Entry], before: _Sizes, found: Found) -> None:
        store, ailing = self._engine.store, {}
        place = os.path.realpath(self._engine.mounts)  # as the mount table has it
        ours = {point: entry for point, entry in shown.items() if os.path.dirname(point) == place}
        volumes = {volume.key: volume for volume in store.volumes()} if ours else {}
        for point, entry in ours.items():
            volume = volumes.get(Key(os.path.basename(point)))
            if volume is None or entry.device in found.devices:  # a snapshot, or the device is that of the pool
                continue
            seen = _looked_at(replace(entry, options=""), point)  # a read-only look at a volume is no trouble of its
            if seen is None:
                continue
            shrunk, _ = self._measure(f"volume={volume.name}", entry, seen, before)
            found.volumes.update(seen.numbers)
            if seen.ailments or shrunk:
                ailing[volume.id] = (*seen.ailments, *shrunk)
        for volume_id in self._engine.ailments.put(ailing):
            volume = store.volume(volume_id)
            if volume is not None:
                ailments = ailing.get(volume_id, ())
                found.turns.append(Turn("volume", volume.name, model.health_of(ailments), model.told(ailments)))

    def _measure(self, what: str, entry: mount.Entry, seen: _Seen, before: _Sizes) -> tuple[list[Ailment], list[str]]:
        """Compare devices with what they were; return what shrank, and what else is of another size than before."""
        shrunk, others = [], []
        for device in seen.devices:
            place = (what, entry.mount_id, device.numbers)
            largest, last = before.get(place, (device.size_bytes, device.size_bytes))
            self._sizes[place] = (max(largest, device.size_bytes), device.size_bytes)
            if device.size_bytes < largest and all(each.trouble != Trouble.DEVICE_SHRUNK for each in seen.ailments):
                text = f"its device {device.name} shrank to {_mib(device.size_bytes)}, it had {_mib(largest)}"
                shrunk.append(Ailment(Trouble.DEVICE_SHRUNK, text))
            if device.size_bytes != last:
                others.append(f"its device {device.name} has {_mib(device.size_bytes)} now, it had {_mib(last)}")
        return shrunk, others


def _looked_at(entry: mount.Entry, place: str) -> _Seen | None:
    """Look at one file system; None: it has just gone, and the next look will do without it."""
    try:
        return _examine(entry, place)
    except OSError:
        return None


def _examine(entry: mount.Entry, place: str) -> _Seen:
    """Look at one file system where it is mounted, and at what is below it."""
    ailments = list(_of_calls(place))
    counts: tuple[counters.Count, ...] = ()
    numbers: tuple[str, ...] = () if entry.device.startswith("0:") else (entry.device,)
    identity = _btrfs(place, ailments) if entry.fs_type == "btrfs" and not ailments else None
    if identity is not None:
        members, counts = counters.members(identity), counters.of_btrfs(identity)
        numbers = members.numbers
        if members.missing:
            text = f"its btrfs lacks a device ({', '.join(members.missing)})"
            ailments.append(Ailment(Trouble.MEMBERS_MISSING, text))
    options = {*entry.super_options.split(","), *entry.options.split(",")} & _READ_ONLY
    if options:
        ailments.append(Ailment(Trouble.READ_ONLY, f"its {entry.fs_type} is read-only ({', '.join(sorted(options))})"))
    stacks = [list(block.below(each)) for each in numbers]
    devices = [device for (_, device), *_ in stacks if device is not None]
    if entry.fs_type in _EXT:
        counts = tuple(count for device in devices for count in counters.of_ext4(device.name))
    if any(each.count for each in counts):
        counted = ", ".join(f"{each.kind} {each.count}" for each in counts if each.count)
        ailments.append(Ailment(Trouble.ERRORS, f"its {entry.fs_type} has counted errors: {counted}"))
    below = {number: device for stack in stacks for number, device in stack}
    for number, device in below.items():
        ailments.extend(_of_device(number, device, is_written=not options))
    if len(devices) == len(numbers):
        ailments.extend(_of_size(place, devices))
    return _Seen(tuple(ailments), counts, tuple(devices), frozenset(below))


def _of_calls(place: str) -> Iterator[Ailment]:
    """Find out whether a file system still answers."""
    try:
        os.stat(place)
    except OSError as err:
        if err.errno in _FAILS:
            yield Ailment(Trouble.SHUT_DOWN, f"its file system fails: {err.strerror}")


def _btrfs(place: str, ailments: list[Ailment]) -> str | None:
    """Return the id of the btrfs at a place; None, and an ailment, where it does not even tell that."""
    try:
        return counters.file_system_id(place)
    except OSError as err:
        if err.errno not in _FAILS:
            raise
        ailments.append(Ailment(Trouble.SHUT_DOWN, f"its file system fails: {err.strerror}"))
        return None


def _of_device(numbers: str, device: block.Device | None, *, is_written: bool) -> Iterator[Ailment]:
    if device is None:
        yield Ailment(Trouble.DEVICE_GONE, f"its device {numbers} went away")
        return
    if device.state is not None and device.state not in _RUNNING:
        yield Ailment(Trouble.DEVICE_OFFLINE, f"its device {device.name} is {device.state}")
    if device.is_read_only and is_written:
        yield Ailment(Trouble.DEVICE_READ_ONLY, f"its device {device.name} is read-only")
    if device.missing:
        yield Ailment(Trouble.MEMBERS_MISSING, f"its array {device.name} lacks devices: {device.missing}")
    backing = device.backing
    if backing is not None and backing.is_deleted:
        text = f"the image {backing.path} of its device {device.name} was deleted: it is lost with the mount"
        yield Ailment(Trouble.IMAGE_DELETED, text)
    if backing is not None and backing.size_bytes is not None and backing.size_bytes < device.size_bytes:
        sizes = f"has {_mib(backing.size_bytes)}, the device {device.name} {_mib(device.size_bytes)}"
        yield Ailment(Trouble.IMAGE_SHORT, f"its image {backing.path} was cut short: it {sizes}")


def _of_size(place: str, devices: list[block.Device]) -> Iterator[Ailment]:
    """Find out whether a file system is larger than all its devices."""
    try:
        state = os.statvfs(place)
    except OSError:  # it has just been unmounted, or will be met by the next look
        return
    total_bytes, there_bytes = state.f_blocks * state.f_frsize, sum(device.size_bytes for device in devices)
    if devices and total_bytes > there_bytes:
        names = ", ".join(device.name for device in devices)
        text = f"its file system of {_mib(total_bytes)} lies on {names} of {_mib(there_bytes)}"
        yield Ailment(Trouble.DEVICE_SHRUNK, text)


def _mount_of(pool: pools.Pool) -> int | None:
    try:
        return mount.id_of(Path(pool.row.path))
    except OSError:  # it has just gone
        return None


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.1f} MiB".replace(".0 ", " ")
