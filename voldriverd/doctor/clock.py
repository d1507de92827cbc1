"""The clock: whether it is behind what is written down, and whether somebody keeps it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from voldriverd.doctor.finding import Check, Finding, Level, Trouble, fine, told
from voldriverd.doctor.scope import Scope
from voldriverd.kernel import clock

_SLACK: Final = timedelta(seconds=30)
"""Two hosts that keep their clocks differ by less."""

BEHIND: Final = Trouble(
    Level.WARNING,
    "the clock is behind the latest time that is written down",
    "It was set back, or was ahead before. The trash and snapshots that expire stay longer by as much; names of "
    "automatic snapshots tell a wrong time. Order never goes by the clock, and nothing is lost.",
    "Set the clock (`timedatectl`, chrony); if it is right now, nothing more.",
)
UNKEPT: Final = Trouble(
    Level.NOTE,
    "the kernel says that nobody keeps the clock",
    "It may drift: what expires goes early or late, and S3 refuses requests when it is off by 15 minutes.",
    "`timedatectl set-ntp true`, or install chrony; where the host of a virtual machine keeps it, nothing.",
)


@dataclass(frozen=True, slots=True)
class Clock:
    """What it says, and what it should not be behind."""

    now: datetime
    newest_at: datetime | None
    """None: not known."""
    is_kept: bool | None
    """None: not known."""


def _look(scope: Scope) -> Clock:
    newest_at = None if scope.known is None else scope.known.newest_at
    return Clock(scope.now, newest_at, None if scope.is_remote else clock.is_synchronised())


def judge(facts: Clock) -> Iterator[Finding]:
    """Judge a clock."""
    if facts.newest_at is not None and facts.now < facts.newest_at - _SLACK:
        behind_s = int((facts.newest_at - facts.now).total_seconds())
        times = f"it is {facts.now:%Y-%m-%d %H:%M:%S}, and {facts.newest_at:%Y-%m-%d %H:%M:%S} UTC is written down"
        yield told(BEHIND, f"{behind_s} s behind: {times}")
    elif facts.is_kept is not False:
        yield fine(f"{facts.now:%Y-%m-%d %H:%M:%S} UTC")
    if facts.is_kept is False:
        yield told(UNKEPT, "nobody keeps it in step")


CHECKS: Final = (
    Check(
        "clock",
        "Host",
        "the clock against the latest time that the database tells of",
        lambda scope: judge(_look(scope)),
        (BEHIND, UNKEPT),
        is_remote=True,
    ),
)
