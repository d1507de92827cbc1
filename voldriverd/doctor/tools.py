"""The programs that are run: whether they are there, and what is known of their versions."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from voldriverd.doctor.finding import Check, Finding, Level, Trouble, fine, told
from voldriverd.doctor.scope import Scope
from voldriverd.kernel import image, nfs, run

SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where the daemon looks too: `su` of Debian leaves it out of root's PATH."""
_TIMEOUT_S: Final = 10.0
_BTRFS: Final = "btrfs-progs"
_EXT4: Final = image.FORMATS["ext4"].package
_XFS: Final = image.FORMATS["xfs"].package
_NFS: Final = "nfs-common"
_ASKED: Final[Mapping[str, tuple[str, str]]] = {
    _BTRFS: ("btrfs", "--version"),
    _EXT4: ("mkfs.ext4", "-V"),
    _XFS: ("mkfs.xfs", "-V"),
}
"""By package, who is asked for its version."""

MISSING: Final = Trouble(
    Level.BAD,
    "a program that a pool or target needs is not installed, or not on the PATH",
    "Verbs that run it are refused, and a daemon that needs it for a pool does not start.",
    "`apt install {package}`",
)
OLD_BTRFS: Final = Trouble(
    Level.NOTE,
    "btrfs-progs is older than 6.2",
    "Up to 6.0.2 and 6.2 `btrfs receive` lost or spoiled compressed data of streams of version 2; backups are made and "
    "restored with streams of version 1 instead, which are larger.",
    "Nothing; with btrfs-progs 6.2 or later they get smaller.",
)
NO_CHECK: Final = Trouble(
    Level.NOTE,
    "btrfs-progs is older than 6.7, and simple quotas are used",
    "`btrfs check` refuses file systems with simple quotas. The daemon never runs it.",
    "Should a pool ever need it, run that of btrfs-progs 6.7 or later.",
)
DEAF_EXT4: Final = Trouble(
    Level.NOTE,
    "e2fsprogs is 1.47.0 or older",
    "mkfs.ext4 and resize2fs may end well although writes failed (seen with 1.47.0); the daemon checks what they made.",
    "Nothing; do not trust their exit status when you run them by hand on a disk that fails.",
)
NO_REFLINKS: Final = Trouble(
    Level.NOTE,
    "xfsprogs is older than 5.1",
    "mkfs.xfs makes file systems without reflinks: loop pools on them copy whole images for clones and snapshots.",
    "Make the file system of a pool with `mkfs.xfs -m reflink=1`.",
)


@dataclass(frozen=True, slots=True)
class Tools:
    """Packages with what is missing of each, and with the version of each that is there."""

    missing: Mapping[str, tuple[str, ...]]
    versions: Mapping[str, tuple[int, ...]]
    """Empty: it could not be read."""
    has_simple_quotas: bool


def _look(scope: Scope) -> Tools:
    path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:{SBIN}"
    needed = _needed(scope)
    missing = {}
    for package, names in needed.items():
        absent = tuple(name for name in names if shutil.which(name, path=path) is None)
        if absent:
            missing[package] = absent
    versions = {
        package: _version(shutil.which(_ASKED[package][0], path=path), _ASKED[package][1])
        for package in needed
        if package in _ASKED
    }
    return Tools(missing, versions, any(place.config.quota == "simple" for place in scope.places))


def _needed(scope: Scope) -> dict[str, tuple[str, ...]]:
    drivers = {place.config.driver for place in scope.places}
    needed: dict[str, tuple[str, ...]] = {}
    if "btrfs" in drivers:
        needed[_BTRFS] = ("btrfs",)
    if any(place.is_embedded for place in scope.places):
        needed[_BTRFS] = ("btrfs", "mkfs.btrfs")
    if "loop" in drivers:
        needed |= {kind.package: kind.tools for kind in image.FORMATS.values()}
    if any(target.url.startswith("nfs:") for target in scope.config.targets):
        needed[_NFS] = (nfs.TOOL,)
    return needed


def _version(tool: str | None, option: str) -> tuple[int, ...]:
    if tool is None:
        return ()
    try:  # those of e2fsprogs say it on standard error, which nothing but an error carries
        said = run.run([tool, option], timeout_s=_TIMEOUT_S, good=())
    except OSError as err:
        said = str(err.strerror)
    found = re.search(r"\bv?(\d+)\.(\d+)(?:\.(\d+))?", said.partition(": ")[2] or said)
    return () if found is None else tuple(int(part) for part in found.groups() if part is not None)


def judge(tools: Tools) -> Iterator[Finding]:
    """Judge packages one by one."""
    for package, names in sorted(tools.missing.items()):
        yield told(MISSING, f"{', '.join(names)} (Debian package {package})", package=package)
    for package, version in sorted(tools.versions.items()):
        if package in tools.missing:
            continue
        shown = f"{package} {'.'.join(map(str, version)) or 'of unknown version'}"
        found = list(_known_of(package, version, has_simple_quotas=tools.has_simple_quotas)) if version else []
        if not found:
            yield fine(shown)
        for trouble in found:
            yield told(trouble, shown)
    if not tools.missing and not tools.versions:
        yield fine("the pools need none")


def _known_of(package: str, version: tuple[int, ...], *, has_simple_quotas: bool) -> Iterator[Trouble]:
    if package == _BTRFS and version < (6, 2):
        yield OLD_BTRFS
    if package == _BTRFS and version < (6, 7) and has_simple_quotas:
        yield NO_CHECK
    if package == _EXT4 and version <= (1, 47, 0):
        yield DEAF_EXT4
    if package == _XFS and version < (5, 1):
        yield NO_REFLINKS


CHECKS: Final = (
    Check(
        "tools",
        "Host",
        "the programs that are run, and known faults of their versions",
        lambda scope: judge(_look(scope)),
        (MISSING, OLD_BTRFS, NO_CHECK, DEAF_EXT4, NO_REFLINKS),
    ),
)
