"""Looks at a host, above all when the daemon is dead: what is wrong, what that means, what to do.

    scope.explore      what is known before the first check: configuration, daemon, database, pools
    CHECKS             each gathers its facts from the scope, and a pure function judges them
    mend               does what is safe about what was found

Nothing is written but by `mend`, except for probes that vanish at once: a nameless file in a pool, a loop device of a
temporary file, a tmpfs at a mount point of its own. The database is read from a copy. Nothing needs the daemon; what
it alone knows the caller asks it for, and hands over as `known.Known`. A check that hangs is given up and told.
"""

import threading
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

LIMIT_S: Final = 20.0
"""How long one check may take; all together take less than a second on a host that is well."""
HUNG: Final = Finding(
    Level.BAD,
    f"not done within {LIMIT_S:.0f} s",
    "What it looks at does not answer: a disk or an NFS server that hangs. Verbs on it hang too.",
    "`dmesg`, and `ps -eo pid,stat,wchan,args | grep ' D'` for who waits; bring the disk or server back, or restart.",
)

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
    yield from _within(check, scope)


def _within(check: Check, scope: Scope) -> list[Finding]:
    """Run one check in a thread of its own, for a disk or server that hangs holds whoever looks at it."""
    found: list[Finding] = []
    thread = threading.Thread(target=_look, args=(check, scope, found), name=f"doctor-{check.name}", daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return [HUNG] if thread.is_alive() else found


def _look(check: Check, scope: Scope, found: list[Finding]) -> None:
    try:
        found.extend(check.run(scope))
    except Exception as err:  # noqa: BLE001 - whatever it is, on a bad day the other checks are wanted
        words = str(err) if isinstance(err, Error | OSError) else f"{type(err).__name__}: {err}"
        remedy = "If the reason is not plain, look at `dmesg`."
        found.append(Finding(Level.NOTE, f"could not be looked at: {words}", remedy=remedy))
