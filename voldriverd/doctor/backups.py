"""How old the newest backup of each volume is."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from voldriverd import names
from voldriverd.doctor.finding import Check, Finding, Level, Trouble, fine, or_fine, some, told
from voldriverd.doctor.known import Known, KnownBackups, KnownTarget
from voldriverd.doctor.scope import Scope

OLD: Final = timedelta(days=7)
"""Whoever makes backups at all makes one a week."""
_NEW: Final = timedelta(days=1)
"""A volume younger than this may still wait for its first one."""
_FILE: Final = "file://"
_ANONYMOUS: Final = re.compile(r"[0-9a-f]{64}")

NO_TARGET: Final = Trouble(
    Level.NOTE,
    "there is no target for backups",
    "What the disk loses is lost: a snapshot lies on the same one.",
    "Configure `[targets.NAME]`, or `voldriver target create`: docs/backups.md.",
)
NEVER: Final = Trouble(
    Level.WARNING,
    "there is a target, and volumes older than a day have no backup",
    "They are lost with their disk.",
    "`voldriver backup create NAME`, and a timer that does it.",
)
STALE: Final = Trouble(
    Level.WARNING,
    "the newest backup of volumes is older than 7 days",
    "A restore brings back what they were then.",
    "Does the timer that makes them still run? `voldriver backup create NAME`",
)
FAILED: Final = Trouble(
    Level.WARNING,
    "the latest backup of a volume was given up",
    "Older ones are whole and can be restored.",
    "The reason stands beside it; `voldriver backup ls` and `voldriver target ls` tell more.",
)


@dataclass(frozen=True, slots=True)
class Target:
    """One target."""

    known: KnownTarget
    path: Path | None
    """Its directory, if it is one and no daemon tells about it."""
    is_there: bool


@dataclass(frozen=True, slots=True)
class Backed:
    """One live, named volume."""

    name: str
    created_at: datetime
    backups: KnownBackups


def _look(known: Known) -> list[Backed]:
    return [
        Backed(volume.name, volume.created_at, known.backups.get(volume.id, KnownBackups()))
        for volume in known.volumes
        if volume.is_live and not _ANONYMOUS.fullmatch(volume.name)
    ]


def judge(volumes: list[Backed], *, target_count: int, now: datetime) -> Iterator[Finding]:
    """Judge all volumes together."""
    if not target_count:
        yield told(NO_TARGET, f"{len(volumes)} volumes, and no target")
        return
    never = [each.name for each in volumes if each.backups.newest_at is None and now - each.created_at > _NEW]
    ages = {each.name: now - each.backups.newest_at for each in volumes if each.backups.newest_at is not None}
    stale = [f"{name} ({names.format_duration(age.days * 86_400)})" for name, age in ages.items() if age > OLD]
    failed = [each for each in volumes if each.backups.failure is not None]
    if never:
        yield told(NEVER, f"never: {some(never)}")
    if stale:
        yield told(STALE, f"old: {some(stale)}")
    for each in failed:
        yield told(FAILED, f"{each.name}: {each.backups.failure}")
    if not never and not stale and not failed:
        yield fine(f"{len(ages)} volumes have one of the last 7 days")


def _backups(scope: Scope) -> Iterator[Finding]:
    assert scope.known is not None
    yield from judge(_look(scope.known), target_count=len(scope.known.targets), now=scope.now)


# Targets

UNREACHABLE: Final = Trouble(
    Level.WARNING,
    "the daemon could not use a target when it last tried",
    "No backup goes there and none comes back, until it can.",
    "The reason stands beside it; `voldriver backup scan {name}` tries again.",
)
GONE: Final = Trouble(
    Level.WARNING,
    "the directory of a target is not there, and no daemon runs that could tell more",
    "Its disk or share is not mounted: no backup goes there and none comes back.",
    "Mount it: {path}",
)


def _look_targets(known: Known) -> Iterator[Target]:
    for each in known.targets:
        path = None if known.is_served or not each.url.startswith(_FILE) else Path(each.url.removeprefix(_FILE))
        yield Target(each, path, is_there=path is None or path.is_dir())


def judge_targets(targets: Iterable[Target]) -> Iterator[Finding]:
    """Judge each target."""

    def troubles() -> Iterator[Finding]:
        for each in targets:
            known = each.known
            if known.fault is not None:
                yield told(UNREACHABLE, f"{known.name}: {known.fault}", name=known.name)
            if not each.is_there:
                yield told(GONE, f"{known.name}: {each.path} is not there", path=each.path)

    yield from or_fine(troubles(), "none is known to be out of reach")


def _targets(scope: Scope) -> Iterator[Finding]:
    assert scope.known is not None
    yield from judge_targets(_look_targets(scope.known))


CHECKS: Final = (
    Check(
        "targets",
        "Backups",
        "whether the targets of backups can be reached, as far as the daemon tells; their directories if there is none",
        _targets,
        (UNREACHABLE, GONE),
        needs_root=True,
        is_remote=True,
        needs_known=True,
    ),
    Check(
        "backups",
        "Backups",
        "the age of the newest backup of each volume that has a name",
        _backups,
        (NO_TARGET, NEVER, STALE, FAILED),
        needs_root=True,
        is_remote=True,
        needs_known=True,
    ),
)
