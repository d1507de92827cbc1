"""Named locks of the event loop, whose waiters are told what they wait for."""

import asyncio
import time
from collections.abc import Hashable
from dataclasses import dataclass, field

from voldriverd.errors import InUse


@dataclass(slots=True)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    verb: str = ""
    since_s: float = 0.0


class Locks:
    """One lock per name, made when first asked for and forgotten when nobody waits any more."""

    def __init__(self) -> None:
        """Begin with none."""
        self._entries: dict[Hashable, _Entry] = {}

    def hold(self, name: Hashable, verb: str, *, what: str, wait_s: float) -> "_Hold":
        """Hold the lock of a name for a verb. Raises InUse, naming the verb that has it, after `wait_s` seconds."""
        return _Hold(self._entries, name, verb, what, wait_s)

    def is_held(self, name: Hashable) -> bool:
        """Tell whether a verb holds the lock of a name now."""
        return name in self._entries


class _Hold:
    """What `async with` enters; a class, since a generator costs 15 µs more on the way of every verb."""

    __slots__ = ("_entries", "_entry", "_name", "_verb", "_wait_s", "_what")

    def __init__(self, entries: dict[Hashable, _Entry], name: Hashable, verb: str, what: str, wait_s: float) -> None:
        self._entries = entries
        self._name = name
        self._verb = verb
        self._what = what
        self._wait_s = wait_s

    async def __aenter__(self) -> None:
        self._entry = self._entries.setdefault(self._name, _Entry())
        self._entry.users += 1
        try:
            if self._entry.users > 1:  # one has it, or is about to: a lock that is free may be promised to who waits
                await self._wait()
            else:
                await self._entry.lock.acquire()
        except BaseException:
            self._leave()
            raise
        self._entry.verb, self._entry.since_s = self._verb, time.monotonic()

    async def __aexit__(self, *_: object) -> None:
        self._entry.lock.release()
        self._leave()

    def _leave(self) -> None:
        self._entry.users -= 1
        if self._entry.users == 0:
            del self._entries[self._name]

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._entry.lock.acquire()
        except TimeoutError as err:
            running_s = time.monotonic() - self._entry.since_s
            raise InUse(f"{self._what}: {self._entry.verb} has been running on it for {running_s:.0f} s") from err
