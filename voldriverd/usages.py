"""What volumes use and how full pools are: asked in threads, answered from memory."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from voldriverd import model
from voldriverd.driver import Usage
from voldriverd.engine import pools, space
from voldriverd.engine.context import Engine
from voldriverd.errors import Error
from voldriverd.runner import Runner

_T = TypeVar("_T")

SPACE_TIMEOUT_S: Final = 2.0
"""How long a file system may take to say how full it is, before it is shown as not known."""
USAGE_AGE_S: Final = 1.0
"""How old the usage in an answer from memory may be before it is asked for again."""

_UNKNOWN: Final = Usage(None, None, None)


@dataclass(slots=True)
class _Batch:
    """Volumes of a pool that are asked together."""

    rows: dict[model.VolumeId, model.Volume] = field(default_factory=dict)
    told: asyncio.Event = field(default_factory=asyncio.Event)


class Usages:
    """The usages of volumes as they were told last; lives on one event loop."""

    def __init__(self, engine: Engine, runner: Runner) -> None:
        """Know nothing yet."""
        self._engine = engine
        self._runner = runner
        self._known: dict[model.VolumeId, tuple[float, Usage]] = {}
        self._asked: dict[tuple[str, model.PoolId], asyncio.Task[Any]] = {}
        self._asking: dict[model.PoolId, asyncio.Task[None]] = {}
        """One for each pool: one that does not answer takes one thread, and not one for each time it is asked."""
        self._wanted: dict[model.PoolId, _Batch] = {}
        """What is asked next."""

    def of(self, volume: model.Volume) -> Usage:
        """Return the usage of a volume from memory, and have it asked again if it is old."""
        known = self._known.get(volume.id)
        if known is None or time.monotonic() - known[0] > USAGE_AGE_S:
            known = self._known[volume.id] = (time.monotonic(), known[1] if known else _UNKNOWN)
            self._want(volume.pool_id, [volume])
        return known[1]

    def known(self, volume_id: model.VolumeId) -> Usage | None:
        """Return the usage that was asked for last, None if it never was."""
        known = self._known.get(volume_id)
        return None if known is None else known[1]

    async def refresh(self, rows: list[model.Volume]) -> None:
        """Ask again for usages that are old; a pool that does not answer in time keeps the old."""
        now_s = time.monotonic()
        old: dict[model.PoolId, list[model.Volume]] = {}
        for row in rows:
            if row.id not in self._known or now_s - self._known[row.id][0] > USAGE_AGE_S:
                old.setdefault(row.pool_id, []).append(row)
        batches = [self._want(pool_id, mine) for pool_id, mine in old.items()]
        with suppress(TimeoutError):
            async with asyncio.timeout(SPACE_TIMEOUT_S):
                for batch in batches:
                    await batch.told.wait()

    def forget_gone(self) -> None:
        """Drop the usages of volumes that are gone."""
        for volume_id in [each for each in self._known if self._engine.store.volume(each) is None]:
            del self._known[volume_id]

    async def spaces(self) -> dict[model.PoolId, tuple[int, int]]:
        """Return (total, free) bytes of the pools that are available and answer in time."""
        return await self.of_pools("space", space.capacity)

    async def of_pools(self, question: str, ask: Callable[[pools.Pool], _T]) -> dict[model.PoolId, _T]:
        """Return what `ask` answers for each pool that is available, in time and without an error.

        One that has not answered a question yet is not asked it again, whoever wants to know: a file system that hangs
        takes one thread for each question, and not one for each time.
        """
        available = [pool for pool in self._engine.pools if pool.driver is not None]
        asked = {pool.row.id: self._ask_pool(question, pool, ask) for pool in available}
        if asked:
            await asyncio.wait(asked.values(), timeout=SPACE_TIMEOUT_S)
        answered = {pool_id: task for pool_id, task in asked.items() if task.done() and task.exception() is None}
        return {pool_id: task.result() for pool_id, task in answered.items()}

    def _ask_pool(self, question: str, pool: pools.Pool, ask: Callable[[pools.Pool], _T]) -> "asyncio.Task[_T]":
        key = question, pool.row.id
        going: asyncio.Task[_T] | None = self._asked.get(key)
        if going is None or going.done():
            going = self._asked[key] = asyncio.create_task(self._runner.in_thread(ask, pool))
            going.add_done_callback(_retrieve)
        return going

    def _want(self, pool_id: model.PoolId, rows: list[model.Volume]) -> _Batch:
        """Have volumes of a pool asked, all in one thread, as soon as it has answered what it was asked before."""
        batch = self._wanted.setdefault(pool_id, _Batch())
        batch.rows |= {row.id: row for row in rows}
        asking = self._asking.get(pool_id)
        if asking is None or asking.done():
            self._asking[pool_id] = self._runner.spawn(self._ask(pool_id))
        return batch

    async def _ask(self, pool_id: model.PoolId) -> None:
        while (batch := self._wanted.pop(pool_id, None)) is not None:
            try:
                found = await self._runner.in_thread(_ask_all, self._engine, list(batch.rows.values()))
                now_s = time.monotonic()
                self._known |= {volume_id: (now_s, usage) for volume_id, usage in found.items()}
            finally:
                batch.told.set()


def _retrieve(task: "asyncio.Task[Any]") -> None:
    """Look at what came of a question for which nobody waits any more, so that it is not reported as forgotten."""
    if not task.cancelled():
        task.exception()


def _ask_all(engine: Engine, rows: list[model.Volume]) -> dict[model.VolumeId, Usage]:
    found = {}
    for volume in rows:
        try:
            found[volume.id] = engine.pools.driver(volume.pool_id).usage(volume.tree)
        except (Error, OSError):  # an unavailable pool, or the tree has just gone
            found[volume.id] = _UNKNOWN
    return found
