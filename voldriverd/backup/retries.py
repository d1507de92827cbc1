"""Trying again: what may pass is tried with longer and longer pauses, until it is given up or cancelled."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from voldriverd.backup.faults import Cancelled, Fault

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 15.0
_TICK_S: Final = 0.25
"""How late a pause notices that its work is of no use any more."""

_T = TypeVar("_T")


class Transient(Fault):
    """A fault that may pass by itself."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How long to go on, and when to stop at once."""

    give_up_s: float
    """From the first failure of one call, however often it is tried."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise Cancelled if the work is, or is of no use any more."""
        if self.cancelled.is_set() or _run.abandoned.is_set():
            raise Cancelled

    def call(self, function: Callable[[], _T]) -> _T:
        """Call until it succeeds or fails for good. Raises Cancelled, Fault: the last one."""
        failed_at = None
        pause_s = FIRST_PAUSE_S
        while True:
            self.check()
            try:
                return function()
            except Transient:
                failed_at = failed_at or time.monotonic()
                left_s = failed_at + self.give_up_s - time.monotonic()
                if left_s <= 0:
                    raise
            self.pause(min(random.uniform(pause_s / 2, pause_s), left_s))  # noqa: S311 - only that not all come at once
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def pause(self, seconds: float) -> None:
        """Wait. Raises Cancelled soon after the work is."""
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            self.check()
            self.cancelled.wait(min(left_s, _TICK_S))
        self.check()


class _Run(threading.local):
    """What this thread works for at the moment."""

    abandoned = threading.Event()


_run = _Run()


def run_for(abandoned: threading.Event, function: Callable[[], _T]) -> _T:
    """Call a function whose pauses end when this event is set, too."""
    _run.abandoned = abandoned
    try:
        return function()
    finally:
        del _run.abandoned
