"""Free space: of the root and of the pools, and what loop volumes may still want."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd import names
from voldriverd.doctor import scope as scopes
from voldriverd.doctor.finding import Check, Finding, Level, Trouble, fine, told
from voldriverd.doctor.scope import Place, Scope
from voldriverd.kernel import fs
from voldriverd.store.ballast import BALLAST_BYTES

_ROOT_MIN_BYTES: Final = 64 << 20
"""Some journals of the database, and copies of it before an upgrade."""
_FULL_SHARE: Final = 0.01
_INODES_MIN_SHARE: Final = 0.02

ROOT_SHORT: Final = Trouble(
    Level.BAD,
    "less than 64 MiB are free where the root directory lies",
    "The database will soon take no changes but unmount, remove and purge, and those from 8 MiB that were set aside.",
    "Free space on that disk, or move the root to a larger one.",
)
BALLAST: Final = Trouble(
    Level.WARNING,
    "the space that is set aside for the database is not whole",
    "The disk of the root was full, and part of it was given up: less is left for the next time.",
    "Free space; the daemon sets it aside again within a minute.",
)
FULL: Final = Trouble(
    Level.BAD,
    "less than 1 % of a pool is free",
    "Containers get ENOSPC. On a loop volume that looks like a disk that fails: its file system becomes read-only.",
    "`voldriver volume purge` what is in the trash, remove snapshots and volumes, or grow the pool: "
    "`voldriver pool grow {name} SIZE` for the embedded image, else the disk under it.",
)
SHORT: Final = Trouble(
    Level.WARNING,
    "less than the reserve of a pool is free",
    "The oldest trash is purged early; if that is not enough, create, clone, snapshot and restore are refused.",
    "Remove volumes or snapshots, or grow the pool (`voldriver pool grow {name} SIZE`, or the disk under it).",
)
NO_INODES: Final = Trouble(
    Level.BAD,
    "less than 2 % of the inodes of a file system are free",
    "No new file can be made in it although there is space.",
    "Remove volumes with many files; make the file system anew with more inodes, or as btrfs or xfs.",
)
PROMISED: Final = Trouble(
    Level.NOTE,
    "the images of a loop pool may grow by more than is free",
    "Sizes are promises there: when all are used, the pool is full before the volumes are.",
    "Watch the pool, or use `-o thick=yes` for volumes that must not run out.",
)


@dataclass(frozen=True, slots=True)
class Space:
    """One file system, as it is for the root or a pool."""

    name: str
    is_root: bool
    total_bytes: int
    free_bytes: int
    reserve: float = 0.0
    free_inodes: float = 1.0
    """The share that is free; 1 where inodes are made as they are wanted."""
    promised_bytes: int = 0
    """By how much images may still grow."""
    ballast_bytes: int | None = None
    """None: none is set aside yet."""


def _look(scope: Scope) -> Iterator[Space]:
    if scope.is_api_only:
        for pool in () if scope.known is None else scope.known.pools:
            if pool.capacity_bytes is not None and pool.free_bytes is not None:
                yield Space(pool.name, False, pool.capacity_bytes, pool.free_bytes, scope.config.reserve)
        return
    root = scope.config.root
    if root.is_dir():
        ballast = root / "ballast"
        size_bytes = ballast.stat().st_size if ballast.exists() else None
        total, free = fs.capacity(root)
        yield Space("root", True, total, free, free_inodes=_free_inodes(root), ballast_bytes=size_bytes)
    for sharing in _sharing(scope):
        path = sharing[0].config.path
        total, free = fs.capacity(path)
        promised = sum(_promised(each.config.path / "trees") for each in sharing if each.config.driver == "loop")
        pools = ", ".join(each.config.name for each in sharing)
        yield Space(pools, False, total, free, scope.config.reserve, _free_inodes(path), promised)


def _sharing(scope: Scope) -> list[list[Place]]:
    """Return the pools that are there, those together that lie in one file system."""
    found: dict[int, list[Place]] = {}
    for place in scope.places:
        if scopes.is_there(place.config.path):
            found.setdefault(place.config.path.stat().st_dev, []).append(place)
    return list(found.values())


def judge(space: Space) -> Iterator[Finding]:
    """Judge one file system."""
    figures = f"{names.format_size(space.free_bytes)} of {names.format_size(space.total_bytes)} free"
    text = f"{'the root directory' if space.is_root else space.name}: {figures}"
    found = [told(trouble, text, name=space.name.partition(",")[0]) for trouble in _troubles(space)]
    yield from found or [fine(text)]
    if space.promised_bytes > space.free_bytes:
        yield told(PROMISED, f"{space.name}: images may grow by {names.format_size(space.promised_bytes)}, {figures}")


def _troubles(space: Space) -> Iterator[Trouble]:
    if space.is_root and space.free_bytes < _ROOT_MIN_BYTES:
        yield ROOT_SHORT
    if space.ballast_bytes is not None and space.ballast_bytes < BALLAST_BYTES:
        yield BALLAST
    if not space.is_root and space.free_bytes < space.total_bytes * _FULL_SHARE:
        yield FULL
    elif not space.is_root and space.free_bytes < space.total_bytes * space.reserve:
        yield SHORT
    if space.free_inodes < _INODES_MIN_SHARE:
        yield NO_INODES


def _free_inodes(path: Path) -> float:
    status = os.statvfs(path)
    return status.f_favail / status.f_files if status.f_files else 1.0


def _promised(trees: Path) -> int:
    """Return by how much sparse, writable images may grow."""
    if not trees.is_dir():
        return 0
    statuses = [entry.stat() for entry in os.scandir(trees) if entry.is_file() and not entry.name.startswith(".")]
    return sum(max(0, each.st_size - each.st_blocks * 512) for each in statuses if each.st_mode & 0o200)


CHECKS: Final = (
    Check(
        "space",
        "Pools",
        "free space and inodes of the root and of each pool, and what loop volumes may still want",
        lambda scope: (finding for space in _look(scope) for finding in judge(space)),
        (ROOT_SHORT, BALLAST, FULL, SHORT, NO_INODES, PROMISED),
        needs_root=True,
        is_remote=True,
    ),
)
