"""How long the event loop stood still: asked ten times a second how late a timer is.

What is late is everything that the loop serves, `Get` of a running container included. It counts what blocks the loop,
work of its own that takes long, threads that keep the GIL, and a host that gives the process no time.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Final

_log = logging.getLogger(__name__)

TICK_S: Final = 0.1
"""Between two looks."""
LIMIT_S: Final = 0.25
"""A stall from which on it is a line of the log: a twentieth of the 5 s after which podman gives up."""
WINDOW_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Stall:
    ended_s: float
    length_s: float


class Stalls:
    """The longest stalls of the loop on which `watch` runs."""

    def __init__(self) -> None:
        """Know of none."""
        self.longest_s = 0.0
        """Since the start."""
        self._recent: deque[_Stall] = deque()
        """Of the last minute, each shorter than the one before it."""

    def recent_s(self) -> float:
        """Return the longest of the last minute."""
        return self._recent[0].length_s if self._recent else 0.0

    async def watch(self) -> None:
        """Look until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self.note(loop.time() - due_s, now_s=loop.time())

    def note(self, length_s: float, *, now_s: float) -> None:
        """Note how late a timer was at a time of the monotonic clock."""
        while self._recent and self._recent[0].ended_s <= now_s - WINDOW_S:
            self._recent.popleft()
        while self._recent and self._recent[-1].length_s <= length_s:
            self._recent.pop()
        self._recent.append(_Stall(now_s, max(0.0, length_s)))
        self.longest_s = max(self.longest_s, length_s)
        if length_s > LIMIT_S:
            _log.warning("verb=serve stall_ms=%.0f result=the event loop stood still", length_s * 1e3)
