"""Named locks of the event loop, whose waiters are told what they wait for."""

import asyncio
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
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

    @asynccontextmanager
    async def hold(self, name: Hashable, verb: str, *, what: str, wait_s: float) -> AsyncIterator[None]:
        """Hold the lock of a name for a verb. Raises InUse, naming the verb that has it, after `wait_s` seconds."""
        entry = self._entries.setdefault(name, _Entry())
        entry.users += 1
        try:
            if entry.lock.locked():
                await self._wait(entry, what, wait_s)
            else:
                await entry.lock.acquire()
            entry.verb, entry.since_s = verb, time.monotonic()
            try:
                yield
            finally:
                entry.lock.release()
        finally:
            entry.users -= 1
            if entry.users == 0:
                del self._entries[name]

    def is_held(self, name: Hashable) -> bool:
        """Tell whether a verb holds the lock of a name now."""
        return name in self._entries

    async def _wait(self, entry: _Entry, what: str, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await entry.lock.acquire()
        except TimeoutError as err:
            running_s = time.monotonic() - entry.since_s
            raise InUse(f"{what}: {entry.verb} has been running on it for {running_s:.0f} s") from err
