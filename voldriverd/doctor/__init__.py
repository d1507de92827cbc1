"""Looks at a host, above all when the daemon is dead: what is wrong, what that means, what to do.

    scope.explore      what is known before the first check: configuration, daemon, database, pools
    CHECKS             each gathers its facts from the scope, and a pure function judges them
    mend               does what is safe about what was found

Nothing is written but by `mend`, except for probes that vanish at once: a nameless file in a pool, a loop device of a
temporary file, a tmpfs at a mount point of its own. The database is read from a copy. Nothing needs the daemon; what
it alone knows the caller asks it for, and hands over as `known.Known`.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final

from voldriverd.doctor import (
    backups,
    clock,
    docker,
    features,
    host,
    loops,
    mounts,
    pools,
    root,
    service,
    sockets,
    space,
    tools,
    trees,
)
from voldriverd.doctor.finding import RANK, Check, Finding, Level
from voldriverd.doctor.scope import Scope
from voldriverd.errors import Error

CHECKS: Final[tuple[Check, ...]] = (
    *host.CHECKS,
    *tools.CHECKS,
    *clock.CHECKS,
    *service.CHECKS,
    *sockets.CHECKS,
    *root.CHECKS,
    *docker.CHECKS,
    *pools.CHECKS,
    *features.CHECKS,
    *space.CHECKS,
    *loops.CHECKS,
    *mounts.CHECKS,
    *trees.CHECKS,
    *backups.CHECKS,
)
"""In the order in which they are shown."""


def examine(scope: Scope, names: Collection[str] = ()) -> list[Finding]:
    """Run the checks of some names, all if none is given. One that cannot look says so and hinders no other."""
    asked = [check for check in CHECKS if not names or check.name in names]
    found = [
        replace(finding, check=check.name, subject=check.subject)
        for check in asked
        if not scope.is_remote or check.is_remote
        for finding in _run(check, scope)
    ]
    left = [check.name for check in asked if not check.is_remote]
    if scope.is_remote and left:
        text = f"not looked at, for the API does not tell: {', '.join(left)}"
        remedy = "Run `voldriver doctor` on the host itself, as root."
        found.append(Finding(Level.NOTE, text, remedy=remedy, check="host", subject="Not looked at"))
    return found


def worst(findings: list[Finding]) -> Level:
    """Return the level that matters most; ok of none."""
    return max((finding.level for finding in findings), key=RANK.index, default=Level.OK)


def _run(check: Check, scope: Scope) -> Iterator[Finding]:
    knows = scope.is_remote or (scope.known is not None and check.is_remote)
    if check.needs_root and not scope.is_root and not knows:
        yield Finding(Level.NOTE, "not looked at: needs root", remedy="Run `voldriver doctor` as root.")
        return
    if check.needs_known and scope.known is None:
        text = "not looked at: neither a daemon nor its database tells what there is"
        yield Finding(Level.NOTE, text, remedy="Mend the daemon or the database first.")
        return
    try:
        yield from check.run(scope)
    except (Error, OSError) as err:
        text = f"could not be looked at: {err}"
        yield Finding(Level.NOTE, text, remedy="If the reason is not plain, look at `dmesg`.")
