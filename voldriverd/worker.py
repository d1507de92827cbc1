"""What the daemon does on its own: copies of the catalogue, tidying, expiry, shortage, reconciliation, backups."""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from voldriverd.engine import catalogue, upkeep
from voldriverd.errors import Error
from voldriverd.service import Service

_log = logging.getLogger(__name__)

CATALOGUE_S: Final = 1.0
"""How far a pool's copy of the catalogue may be behind (D12)."""
TIDY_S: Final = 5.0
"""How long a new tree may be unsettled and a removed one keep its row: one sync per pool serves all of them."""


class Worker:
    """Loops on the event loop; each passes over what fails and comes back to it."""

    def __init__(self, service: Service, *, reconcile_interval_s: float) -> None:
        """Do nothing until `start`."""
        self._service = service
        self._catalogue = catalogue.Catalogue(service.engine)
        self._reconcile_interval_s = reconcile_interval_s
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin the loops."""
        loops = (
            (CATALOGUE_S, self._save),
            (CATALOGUE_S, self._collect),
            (TIDY_S, self._settle),
            (TIDY_S, self._keep),
            (TIDY_S, self._empty),
            (self._reconcile_interval_s, self._reconcile),
        )
        self._tasks = [asyncio.create_task(self._repeat(pause_s, work)) for pause_s, work in loops]
        self._tasks.append(asyncio.create_task(self._service.stalls.watch()))

    async def stop(self) -> None:
        """End the loops; what runs in a thread goes on, and `Service.stop` waits for it."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):  # it is what we asked for
                await task

    def save(self) -> None:
        """Bring the copies of the catalogue up to date, once the verbs have ended; blocks."""
        self._catalogue.save()

    async def _repeat(self, pause_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            begun_s = time.monotonic()
            await _try(work)
            await asyncio.sleep(max(0.05, pause_s - (time.monotonic() - begun_s)))

    async def _save(self) -> None:
        await self._service.runner.in_thread(self._catalogue.save)

    async def _collect(self) -> None:
        """Remove trees soon after they lost their pointer: their space is wanted."""
        wake = self._service.engine.garbage.wake
        if wake.is_set():
            wake.clear()
            await self._service.runner.in_thread(upkeep.collect, self._service.engine, is_long=True)

    async def _keep(self) -> None:
        """Keep what stands for the day on which it is needed."""
        for work in (self._service.backups.look, self._keep_ballast):
            await _try(work)
        self._service.usages.forget_gone()

    async def _empty(self) -> None:
        """Destroy what has expired, then what a shortage wants: more than that would go if both were done at once.

        Whatever becomes of the first; and for themselves, for the sync of a disk that hangs would keep all trash.
        """
        for work in (self._expire, self._relieve):
            await _try(work)

    async def _settle(self) -> None:
        await self._service.runner.in_thread(upkeep.tidy, self._service.engine, is_long=True)

    async def _expire(self) -> None:
        service, engine = self._service, self._service.engine
        for volume in await service.runner.in_thread(upkeep.expired_volumes, engine):
            await service.expire(volume)
        for snapshot in await service.runner.in_thread(upkeep.expired_snapshots, engine):
            await service.expire_snapshot(snapshot)

    async def _relieve(self) -> None:
        service = self._service
        for pool in await service.runner.in_thread(upkeep.short_pools, service.engine):
            await _try(functools.partial(service.relieve, pool.row.id))

    async def _keep_ballast(self) -> None:
        await self._service.runner.in_thread(self._service.store.keep_ballast)

    async def _reconcile(self) -> None:
        await self._service.open_pools()
        await self._service.reconcile()
        await self._service.backups.resume()


async def _try(work: Callable[[], Awaitable[None]]) -> None:
    """Do something; what fails is logged, and its turn comes again."""
    try:
        await work()
    except (Error, OSError) as err:
        _log.warning("verb=upkeep result=%s", err)
    except Exception:  # noqa: BLE001 - our own bug in one round must not end trash, reconciliation and catalogue for good
        _log.exception("verb=upkeep result=internal error")
