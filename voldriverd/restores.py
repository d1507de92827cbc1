"""The async face of restores: what runs while a volume is RESTORING, and what waits for that."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final, TypeVar

from voldriverd import model, names
from voldriverd.arrivals import END_WAIT_S, LOOK_S, Arrivals, shown
from voldriverd.engine import creation, restores, snapshots, supplies, use, volumes
from voldriverd.errors import Error, InUse, NotFound, Unusable
from voldriverd.jobs import Job
from voldriverd.model import VolumeState

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

ANSWER_S: Final = 40.0
"""How long a target may take until it is known whether a backup is complete: dockerd waits 60 s for `Create`."""
LOOK_ANSWER_S: Final = 8.0
"""When the restore of an existing volume is answered although that is not known yet: the API's Go client waits 10 s."""
RETRY_S: Final = 60.0
"""How long after a failure a new volume that was promised before a crash is restored again; each time twice as long."""
RETRY_MAX_S: Final = 3_600.0


Restoring = tuple[model.Volume, model.Snapshot | None]
"""A volume that has its new content or will, and the snapshot of what that displaces; None: it is not known yet."""


class Restores(Arrivals):
    """Runs restores; lives on one event loop."""

    verb = "restore"
    threads = 10
    """Those that bring, and who looks at targets, which may not answer for a while: no other verb waits for either."""

    async def restore(
        self,
        volume_id: model.VolumeId,
        backup_id: model.BackupId,
        *,
        answer_s: float | None = None,
        allow_holes: bool = False,
    ) -> Restoring:
        """Give an unused volume what a backup holds, and keep its present content as a snapshot.

        After `answer_s` seconds what it will come to is returned in its transitioning state, and it goes on; if its
        target is slow to say what it has, the volume as it is is returned after LOOK_ANSWER_S. `allow_holes`: what is
        damaged of an image or an archive is left as zeros, and named in the volume's message.
        """
        return await self._runner.answered(
            lambda begun: self._restore(volume_id, backup_id, begun, allow_holes=allow_holes),
            lambda reverted: shown(reverted[0].id),
            answer_s=answer_s,
        )

    async def create(
        self,
        request: creation.Request,
        volume_id: model.VolumeId,
        begun: Callable[[model.Volume], None],
        *,
        wait_s: float,
    ) -> model.Volume:
        """Make a volume from a backup; `begun` is called once it exists for everybody. What fails leaves no volume."""
        what = f"cannot create volume {request.name}"
        source = request.options.source
        assert isinstance(source, names.BackupSource), "a volume that is restored has a backup"
        async with AsyncExitStack() as stack:
            async with self._locks.hold(("name", request.name), "create", what=what, wait_s=wait_s):
                existing = await self._runner.in_thread(volumes.existing, self._engine, request)
                if existing is not None:
                    return existing
                backup = await self._runner.in_thread(restores.backup_of, self._engine, source, what)
                job = stack.enter_context(self._going(volume_id, _uses(backup)))
                supply = await stack.enter_async_context(self._supplied(backup, job, what, within_s=ANSWER_S))
                begin = functools.partial(restores.begin_create, self._engine, request, volume_id, supply)
                plan = await self._locked(volume_id, what, begin)
            begun(plan.volume)
            try:
                return await self._bring_new(plan.volume, supply, job)
            except Exception:  # whatever it was: a volume that nobody waits for any more must not stay
                if not _stops(job):
                    await self._give_up_new(plan.volume)
                raise

    def is_new(self, volume: model.Volume) -> bool:
        """Tell whether a volume is being restored that never had anything else in it; to remove it is to cancel."""
        return volume.state is VolumeState.RESTORING and restores.is_new(volume)

    async def settled(self, volume: model.Volume, verb: str, *, within_s: float) -> float:
        """Wait for the end of a volume's restore, if one runs, and return the seconds that are left.

        Raises InUse, saying how far it is.
        """
        running = self._running(volume.id)
        if volume.state is not VolumeState.RESTORING or running is None:
            return within_s
        job, ended = running
        end_s = time.monotonic() + within_s
        try:
            async with asyncio.timeout(within_s):
                await ended.wait()
        except TimeoutError as err:
            raise InUse(f"cannot {verb} volume {volume.name}: it is being restored: {job.message()}") from err
        return max(0.0, end_s - time.monotonic())

    async def resume(self) -> None:
        """Take up what a crash has cut off of new volumes, for the start; it goes on until done or cancelled."""
        for volume in restores.resumable(self._engine):
            self._runner.spawn(self._resume(volume))

    async def _restore(
        self,
        volume_id: model.VolumeId,
        backup_id: model.BackupId,
        begun: Callable[[Restoring], None],
        *,
        allow_holes: bool,
    ) -> Restoring:
        volume = self._row(volume_id)
        what = _what(volume)
        use.ensure_resting(volume, what)  # the network is not asked for what will be refused
        backup = await self._runner.in_thread(self._engine.store.backup, backup_id)
        if backup is None:
            raise NotFound(f"{what}: there is no backup 1b{backup_id}")
        with self._going(volume_id, _uses(backup)) as job:
            self._runner.forget_fault(shown(volume_id))
            job.waits_for = "its target"  # until the row says that something goes on
            slow = asyncio.get_running_loop().call_later(LOOK_ANSWER_S, begun, (volume, None))
            async with self._supplied(backup, job, what, within_s=ANSWER_S, until=slow.cancel) as supply:

                def begin() -> snapshots.Displacing:
                    return restores.begin(self._engine, self._row(volume_id), supply, allow_holes=allow_holes)

                going = await self._relieved(volume_id, what, begin)
                job.waits_for = None
                begun((going.volume, going.kept))
                try:
                    return await self._bring(going, supply, job, allow_holes=allow_holes)
                except Exception as err:  # whatever it was: the volume is wanted again
                    give_up = functools.partial(restores.give_up, self._engine, going, _reason(err, volume))
                    await self._locked(volume_id, what, give_up, wait_s=END_WAIT_S)
                    raise

    async def _bring(
        self, going: snapshots.Displacing, supply: supplies.Supply, job: Job, *, allow_holes: bool
    ) -> snapshots.Reverted:
        bring = functools.partial(restores.bring, self._engine, going, supply, job, allow_holes=allow_holes)

        async def work() -> snapshots.Reverted:
            arrived = await self._in_turn(job, bring)
            finish = functools.partial(restores.finish, self._engine, going, supply, arrived)
            return await self._locked(going.volume.id, _what(going.volume), finish, wait_s=END_WAIT_S)

        return await self._told(going.volume, supply, job, work())

    async def _bring_new(self, volume: model.Volume, supply: supplies.Supply, job: Job) -> model.Volume:
        bring = functools.partial(restores.bring_new, self._engine, volume, supply, job)

        async def work() -> model.Volume:
            arrived = await self._in_turn(job, bring)
            finish = functools.partial(restores.finish_new, self._engine, volume.id, supply, arrived)
            return await self._locked(volume.id, _what(volume), finish, wait_s=END_WAIT_S)

        return await self._told(volume, supply, job, work())

    async def _told(self, volume: model.Volume, supply: supplies.Supply, job: Job, work: Awaitable[_T]) -> _T:
        """Await the end of a restore, and have it told."""
        pool = self._engine.pools.get(volume.pool_id).row.name
        known = {"volume": volume.name, "pool": pool, "driver": volume.driver, "backup": supply.backup.shown_name}
        return await self._runner.timed("restore-backup", lambda: {**known, "content_bytes": job.done_bytes}, work)

    async def _give_up_new(self, volume: model.Volume) -> None:
        give_up = functools.partial(restores.give_up_new, self._engine, volume.id)
        await self._locked(volume.id, _what(volume), give_up, wait_s=END_WAIT_S)

    async def _resume(self, volume: model.Volume) -> None:
        """Restore a new volume that was promised, until that is done or nobody wants it any more."""
        source = restores.source_of(volume)
        pause_s = RETRY_S
        with self._going(volume.id, frozenset({source.id})) as job:
            while not job.cancelled.is_set():
                try:
                    await self._take_up(volume, source, job)
                except Exception as err:  # noqa: BLE001 - whatever it was: the volume was promised
                    reason = _reason(err, volume)
                else:
                    return
                if not job.cancelled.is_set():
                    await self._postpone(volume, reason)
                    await _pause(job, pause_s, reason)
                    pause_s = min(2 * pause_s, RETRY_MAX_S)
            if not _stops(job):
                await self._give_up_new(volume)

    async def _postpone(self, volume: model.Volume, reason: str) -> None:
        postpone = functools.partial(restores.postpone, self._engine, volume.id, reason)
        try:
            await self._locked(volume.id, _what(volume), postpone, wait_s=END_WAIT_S)
        except Error as err:  # a full disk, for one: it is tried again whether or not the volume can say so
            _log.warning("verb=restore volume=%s result=%s", volume.name, err)

    async def _take_up(self, volume: model.Volume, source: names.BackupSource, job: Job) -> None:
        what = _what(volume)
        backup = await self._runner.in_thread(restores.backup_of, self._engine, source, what)
        async with self._supplied(backup, job, what) as supply:
            await self._bring_new(volume, supply, job)

    @asynccontextmanager
    async def _supplied(
        self,
        backup: model.Backup,
        job: Job,
        what: str,
        *,
        within_s: float | None = None,
        until: Callable[[], object] = lambda: None,
    ) -> AsyncIterator[supplies.Supply]:
        """Have the repository of a backup open for the block; `until` is called when its target has answered, or not.

        Raises Unusable after `within_s` seconds.
        """
        looking = self._threads.submit(functools.partial(supplies.look, self._engine, backup, work=job, what=what))
        await asyncio.wait([looking], timeout=within_s)
        until()
        if not looking.done() and not job.cancelled.is_set():
            job.stop()
            self._runner.spawn(self._close(looking))  # whenever that ends: it may sleep in the kernel
            raise Unusable(f"{what}: its target does not answer within {within_s:.0f} s")
        supply = await looking
        try:
            yield supply
        finally:
            await self._threads.submit(supply.close)

    async def _close(self, looking: "asyncio.Future[supplies.Supply]") -> None:
        with suppress(Error, OSError):  # what it comes to now is of no interest
            await self._threads.submit((await looking).close)


async def _pause(job: Job, pause_s: float, reason: str) -> None:
    """Wait before the next try, or until nobody wants it any more."""
    job.restart()
    job.waits_for = f"another try in {names.format_duration(int(pause_s))}: {reason}"
    end_s = time.monotonic() + pause_s
    while time.monotonic() < end_s and not job.cancelled.is_set():  # noqa: ASYNC110 - any thread may set that event
        await asyncio.sleep(LOOK_S)
    job.waits_for = None


def _stops(job: Job) -> bool:
    """Tell whether a job ends because the daemon does: then it is taken up at the next start."""
    return job.cancelled.is_set() and not job.is_given_up


def _reason(err: Exception, volume: model.Volume) -> str:
    if isinstance(err, Error):
        return str(err)
    _log.error("verb=restore volume=%s result=internal error", volume.name, exc_info=err)
    return f"{_what(volume)}: internal error of voldriverd"


def _what(volume: model.Volume) -> str:
    return f"cannot restore volume {volume.name}"


def _uses(backup: model.Backup) -> frozenset[str]:
    return frozenset({backup.shown_name, f"1bt{backup.target_id}"})
