"""What the file system of each pool can do: reflinks, direct I/O, quotas."""

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd.doctor import scope as scopes
from voldriverd.doctor.finding import Check, Finding, Level, Trouble, fine, or_fine, some, told
from voldriverd.doctor.loops import Bound, bound_under
from voldriverd.doctor.scope import Place, Scope
from voldriverd.kernel import btrfs, fs, loop, qgroup
from voldriverd.kernel.qgroup import Mode

_NO_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


def _present(scope: Scope, *drivers: str) -> Iterator[Place]:
    return (place for place in scope.places if place.config.driver in drivers and scopes.is_there(place.config.path))


# Reflinks

COPIES: Final = Trouble(
    Level.NOTE,
    "the file system of a loop pool has no reflinks (FICLONE)",
    "A snapshot or clone copies the whole image, a mounted volume cannot be snapshotted, and each backup reads all.",
    "Keep loop pools on btrfs or on xfs (`mkfs.xfs -m reflink=1`, the default since 5.1).",
)


def judge_reflinks(pool: str, *, has_reflinks: bool) -> Iterator[Finding]:
    """Judge one loop pool."""
    yield fine(f"{pool}: images are cloned by FICLONE") if has_reflinks else told(COPIES, f"{pool}: no FICLONE")


def _reflinks(scope: Scope) -> Iterator[Finding]:
    def each() -> Iterator[Finding]:
        for place in _present(scope, "loop"):
            yield from judge_reflinks(place.config.name, has_reflinks=fs.has_reflinks(place.config.path))

    yield from or_fine(each(), "no loop pool is there")


# Direct I/O

CACHED: Final = Trouble(
    Level.WARNING,
    "files of a loop pool cannot be opened for direct I/O, or are copied on write with checksums",
    "Loop devices go through the page cache: everything is kept in memory twice, and a flush takes longer. On btrfs "
    "that is so if the directory of images had lost its no-copy-on-write flag (`chattr +C`).",
    "Use a file system with direct I/O. On btrfs: `chattr +C {path}/trees` while no image lies in it; those that lie "
    "in it stay as they are.",
)
DEVICE_CACHED: Final = Trouble(
    Level.NOTE,
    "a loop device of ours does not do direct I/O, though its pool can",
    "It was made by somebody else, or its disk has larger blocks than the image: that volume goes through the page "
    "cache.",
    "Unmount the volume and mount it again.",
)


@dataclass(frozen=True, slots=True)
class Direct:
    """One loop pool."""

    pool: str
    path: Path
    is_possible: bool
    is_nocow: bool
    """Or needs not be: it is no btrfs."""
    cached: tuple[str, ...]
    """Devices that do none."""


def _look_direct(place: Place, bound: list[Bound]) -> Direct:
    trees = place.config.path / "trees"
    is_nocow = True
    if trees.is_dir() and fs.magic(trees) == fs.BTRFS_MAGIC:
        fd = os.open(trees, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            is_nocow = bool(fs.get_flags(fd) & fs.FS_NOCOW_FL)
        finally:
            os.close(fd)
    own = [each for each in bound if each.backing.parent == trees.resolve() and not each.is_direct]
    cached = tuple(f"/dev/loop{each.number} of {each.backing.name}" for each in own)
    return Direct(place.config.name, place.config.path, has_direct_io(place.config.path), is_nocow, cached)


def has_direct_io(directory: Path) -> bool:
    """Try it with a block of a nameless file; a full disk has none to try, and then it is taken to have it."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file, mmap.mmap(-1, loop.BLOCK_BYTES) as block:
            fd = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
            try:
                return os.pwrite(fd, block, 0) == loop.BLOCK_BYTES
            finally:
                os.close(fd)
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        if err.errno in _NO_DIRECT:
            return False
        raise


def judge_direct(found: Direct) -> Iterator[Finding]:
    """Judge one loop pool."""
    if not found.is_possible:
        yield told(CACHED, f"{found.pool}: {found.path} has no direct I/O", path=found.path)
    elif not found.is_nocow:
        yield told(CACHED, f"{found.pool}: images in {found.path}/trees are copied on write", path=found.path)
    elif found.cached:
        yield told(DEVICE_CACHED, f"{found.pool}: {some(found.cached)}")
    else:
        yield fine(f"{found.pool}: images are read and written past the page cache")


def _direct(scope: Scope) -> Iterator[Finding]:
    def each() -> Iterator[Finding]:
        bound = bound_under([place.config.path / "trees" for place in _present(scope, "loop")])
        for place in _present(scope, "loop"):
            yield from judge_direct(_look_direct(place, bound))

    yield from or_fine(each(), "no loop pool is there")


# Quotas

STOPPED: Final = Trouble(
    Level.BAD,
    "quotas are configured for a pool, and its file system has none",
    "Somebody ran `btrfs quota disable`: no size of a btrfs volume holds, and a container can fill the pool.",
    "`systemctl restart voldriverd` turns them on again; then give each volume its size anew: "
    "`voldriver volume resize NAME SIZE`. With simple quotas only what is written from then on is counted.",
)
OTHER_MODE: Final = Trouble(
    Level.WARNING,
    "a file system has quotas of another mode than is configured for its pool",
    "The daemon does not open such a pool when it starts next. Full quotas make snapshots eight times slower (386 "
    "instead of 48 ms, with 150 of them).",
    'Configure `quota = "{mode}"`, or run `btrfs quota disable {path}` and restart the daemon.',
)
INCONSISTENT: Final = Trouble(
    Level.WARNING,
    "the kernel says that the counts of full quotas are not right",
    "Sizes and usage are wrong until they are counted anew.",
    "`btrfs quota rescan {path}`",
)


@dataclass(frozen=True, slots=True)
class Quota:
    """One btrfs pool."""

    pool: str
    path: Path
    wanted: Mode
    found: Mode
    is_consistent: bool


def _look_quota(place: Place) -> Quota:
    path = place.config.path
    with btrfs.opened(path) as fd:
        identity = btrfs.file_system_id(fd)
    found = qgroup.mode(identity)
    flag = Path(f"/sys/fs/btrfs/{identity}/qgroups/inconsistent")
    is_consistent = found is not Mode.FULL or not flag.exists() or flag.read_text().strip() == "0"
    return Quota(place.config.name, path, Mode(place.config.quota), found, is_consistent)


def judge_quota(quota: Quota) -> Iterator[Finding]:
    """Judge one btrfs pool."""
    text = f"{quota.pool}: {quota.wanted} is configured, {quota.found} is found"
    if quota.found is Mode.OFF and quota.wanted is not Mode.OFF:
        yield told(STOPPED, text)
    elif quota.found is not quota.wanted and quota.wanted is not Mode.OFF:
        yield told(OTHER_MODE, text, mode=quota.found, path=quota.path)
    elif not quota.is_consistent:
        yield told(INCONSISTENT, f"{quota.pool}: {quota.found}, not consistent", path=quota.path)
    else:
        yield fine(f"{quota.pool}: {quota.found}")


def _quota(scope: Scope) -> Iterator[Finding]:
    def each() -> Iterator[Finding]:
        for place in _present(scope, "btrfs"):
            if fs.magic(place.config.path) == fs.BTRFS_MAGIC:
                yield from judge_quota(_look_quota(place))

    yield from or_fine(each(), "no btrfs pool is there")


CHECKS: Final = (
    Check("reflinks", "Pools", "whether the loop pools clone images by FICLONE", _reflinks, (COPIES,), needs_root=True),
    Check(
        "direct-io",
        "Pools",
        "whether the images of loop pools are read and written past the page cache",
        _direct,
        (CACHED, DEVICE_CACHED),
        needs_root=True,
    ),
    Check(
        "quotas",
        "Pools",
        "whether the quotas of btrfs pools are those that are configured",
        _quota,
        (STOPPED, OTHER_MODE, INCONSISTENT),
        needs_root=True,
    ),
)
