"""Pools: whether each is where it should be and what it should be, and whether its file system is well."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd import embedded, names
from voldriverd.doctor.finding import Check, Finding, Level, Trouble, fine, told
from voldriverd.doctor.known import Known
from voldriverd.doctor.scope import Place, Scope
from voldriverd.engine.markers import MARKER
from voldriverd.kernel import btrfs, mount

UNAVAILABLE: Final = Trouble(
    Level.BAD,
    "the daemon does not serve a pool",
    "Its volumes are listed, and every verb on them is refused. Containers that have them go on, if the disk does.",
    "The reason stands beside it; the daemon opens the pool again within a minute after that is mended.",
)
ABSENT: Final = Trouble(
    Level.BAD,
    "a pool that is known is not at its path: the marker file is missing",
    "Its file system is not mounted, or it was emptied. The daemon will not take the empty directory for it.",
    "Mount it (`findmnt --verify`, `mount {path}`), and start the daemon after it: `RequiresMountsFor={path}`.",
)
OTHER: Final = Trouble(
    Level.BAD,
    "another pool is at the path of one that is known",
    "Two disks were exchanged, or a copy was mounted. The daemon leaves it alone.",
    "Mount the right file system at {path}.",
)
WRONG_FS: Final = Trouble(
    Level.BAD,
    "a pool of the btrfs driver lies on another file system",
    "It cannot be opened.",
    "Mount a btrfs at {path}, or configure the pool with another driver.",
)
READ_ONLY: Final = Trouble(
    Level.BAD,
    "the file system of a pool is read-only",
    "It was mounted so, or gave up after an error of its disk. Everything that writes is refused; data can be read.",
    "`dmesg` says why. Save what is on it first (`voldriver backup create`), then check the disk and the file system.",
)
FAILING: Final = Trouble(
    Level.BAD,
    "the file system counts errors of its device",
    "The disk has lost or spoiled data, or has refused writes, since the counters were reset.",
    "`btrfs device stats {path}` and `btrfs scrub start {path}`, or `dmesg`; restore what is damaged from backups, and "
    "replace the disk.",
)
NO_IMAGE: Final = Trouble(
    Level.BAD,
    "the embedded image is missing, and pools in it are known",
    "Its volumes are gone with it. The daemon makes no new one in its place.",
    "Is the disk of the root mounted? Put the image back from where it was moved to, or restore from backups.",
)
SPARSE: Final = Trouble(
    Level.WARNING,
    "the embedded image has holes",
    "Its space is not reserved any more (a sparse copy was made, or it was trimmed): when its host fills up, writes in "
    "it are lost.",
    "With the daemon running and space free: `fallocate -l {size} {path}` reserves it again, content untouched.",
)
NOT_MOUNTED: Final = Trouble(
    Level.NOTE,
    "the embedded image is not mounted, as no daemon runs",
    "What lies in it cannot be looked at now. That is so after a reboot or `voldriverd --release`.",
    "Nothing; the daemon mounts it when it starts.",
)
NOT_MADE: Final = Trouble(
    Level.NOTE,
    "a pool, or the embedded image, was never made",
    "The daemon makes it when it starts.",
    "Nothing; if it should hold volumes already, its file system is not mounted.",
)
UNCONFIGURED: Final = Trouble(
    Level.WARNING,
    "volumes lie in a pool that is not configured any more",
    "They are listed and cannot be used.",
    "Put `[pools.{name}]` back into the configuration, or remove its volumes.",
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is seen of one pool."""

    place: Place
    path: Path
    is_known: bool
    known_uuid: str | None
    """None: the database does not know it."""
    reason: str | None
    found_uuid: str | None
    """None: there is no marker."""
    is_image_mounted: bool = True
    fs_type: str = ""
    is_read_only: bool = False
    errors: int = 0


def _look(scope: Scope) -> Iterator[Seen]:
    image = embedded.Embedded(scope.config.root)
    is_mounted = mount.at(image.mount_point) is not None
    for place in scope.places:
        path = place.config.path
        known = None if scope.known is None else scope.known.pool(place.config.name)
        found = _uuid(path)
        entry = mount.containing(path) if found is not None else None
        yield Seen(
            place,
            path,
            is_known=known is not None,
            known_uuid=None if known is None else known.uuid,
            reason=None if known is None else known.reason,
            found_uuid=found,
            is_image_mounted=is_mounted or not place.is_embedded,
            fs_type="" if entry is None else entry.fs_type,
            is_read_only=found is not None and bool(os.statvfs(path).f_flag & os.ST_RDONLY),
            errors=0 if entry is None else _errors(path, entry),
        )


def judge(seen: Seen) -> Iterator[Finding]:
    """Judge one pool."""
    pool, path = seen.place.config, seen.path
    what = f"{pool.name} ({pool.driver}, {path})"
    if seen.reason is not None:
        yield told(UNAVAILABLE, f"{what}: {seen.reason}")
    if not seen.is_image_mounted:
        return
    if seen.found_uuid is None:
        if seen.reason is None and seen.known_uuid is not None:
            yield told(ABSENT, f"{what}: {MARKER} is missing", path=path)
        elif seen.reason is None:
            yield told(NOT_MADE, f"{what}: it was never made")
        return
    faults = list(_faults(seen, what))
    yield from faults
    if not faults and seen.reason is None:
        yield fine(f"{what} on {seen.fs_type}")


def _faults(seen: Seen, what: str) -> Iterator[Finding]:
    path = seen.path
    if seen.known_uuid not in {None, seen.found_uuid}:
        yield told(OTHER, f"{what}: the marker says {seen.found_uuid} instead of {seen.known_uuid}", path=path)
    if seen.place.config.driver == "btrfs" and seen.fs_type != "btrfs":
        yield told(WRONG_FS, f"{what}: it is on {seen.fs_type}", path=path)
    if seen.is_read_only:
        yield told(READ_ONLY, f"{what}: {seen.fs_type} is read-only")
    if seen.errors:
        yield told(FAILING, f"{what}: {seen.errors} errors are counted", path=path)


def _uuid(path: Path) -> str | None:
    """Return what the marker says; "" if that is nothing."""
    try:
        found = json.loads((path / MARKER).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return ""
    return str(found.get("uuid", "")) if isinstance(found, dict) else ""


def _errors(path: Path, entry: mount.Entry) -> int:
    """Return how many errors a file system has counted, as sysfs tells (fs/btrfs/sysfs.c, fs/ext4/sysfs.c)."""
    if entry.fs_type == "btrfs":
        with btrfs.opened(path) as fd:
            devices = Path(f"/sys/fs/btrfs/{btrfs.file_system_id(fd)}/devinfo").glob("*/error_stats")
        counters = [line.split() for each in devices for line in each.read_text().splitlines()]
        return sum(int(words[1]) for words in counters if len(words) > 1)
    counter = Path("/sys/fs/ext4") / Path(os.path.realpath(f"/sys/dev/block/{entry.device}")).name / "errors_count"
    return int(counter.read_text()) if counter.exists() else 0


# The image, and what is known and not configured


@dataclass(frozen=True, slots=True)
class Image:
    """The embedded image, if that is what the pools lie in."""

    path: Path
    is_there: bool
    is_mounted: bool
    is_wanted: bool
    """Whether the database knows pools that should be in it."""
    size_bytes: int = 0
    allocated_bytes: int = 0


def _look_image(scope: Scope) -> Image | None:
    if not any(place.is_embedded for place in scope.places):
        return None
    image = embedded.Embedded(scope.config.root)
    is_wanted = scope.known is not None and bool(scope.known.pools)
    is_mounted = mount.at(image.mount_point) is not None
    if not image.exists():
        return Image(image.path, is_there=False, is_mounted=is_mounted, is_wanted=is_wanted)
    status = image.path.stat()
    return Image(image.path, True, is_mounted, is_wanted, status.st_size, status.st_blocks * 512)


def judge_image(image: Image) -> Iterator[Finding]:
    """Judge the image."""
    if not image.is_there:
        yield told(NO_IMAGE if image.is_wanted else NOT_MADE, f"{image.path} is not there")
        return
    if image.allocated_bytes < image.size_bytes:
        holes = names.format_size(image.size_bytes - image.allocated_bytes)
        text = f"{image.path}: {holes} of its space is not reserved"
        yield told(SPARSE, text, path=image.path, size=image.size_bytes)
    if not image.is_mounted:
        yield told(NOT_MOUNTED, f"{image.path} is not mounted")


def judge_unconfigured(known: Known | None, configured: frozenset[str]) -> Iterator[Finding]:
    """Judge pools that only the database knows."""
    for pool in () if known is None else known.pools:
        count = 0 if known is None else sum(volume.pool == pool.name for volume in known.volumes)
        if pool.name not in configured and count:
            yield told(UNCONFIGURED, f"{pool.name} at {pool.path}: {count} volumes", name=pool.name)


def _local(scope: Scope) -> Iterator[Finding]:
    image = _look_image(scope)
    if image is not None:
        yield from judge_image(image)
    for seen in _look(scope):
        yield from judge(seen)
    yield from judge_unconfigured(scope.known, frozenset(place.config.name for place in scope.places))


def _served(known: Known | None) -> Iterator[Finding]:
    for pool in () if known is None else known.pools:
        what = f"{pool.name} ({pool.driver}, {pool.path})"
        yield fine(what) if pool.reason is None else told(UNAVAILABLE, f"{what}: {pool.reason}")


CHECKS: Final = (
    Check(
        "pools",
        "Pools",
        "whether each pool is there, is the one that is known, and can be written to; errors of its device",
        lambda scope: _served(scope.known) if scope.is_api_only else _local(scope),
        (
            *(UNAVAILABLE, ABSENT, OTHER, WRONG_FS, READ_ONLY, FAILING),
            *(NO_IMAGE, SPARSE, NOT_MOUNTED, NOT_MADE, UNCONFIGURED),
        ),
        needs_root=True,
        is_remote=True,
    ),
)
