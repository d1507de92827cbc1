"""What restores and imports share: data arrives in a volume while its state keeps other verbs off it.

The volume's lock is held only to begin and to end. What goes on is listed among the jobs, under the volume's id, until
it has ended.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import ClassVar, Final, TypeVar

from voldriverd import model
from voldriverd.engine import space
from voldriverd.engine.context import Engine
from voldriverd.errors import NotFound
from voldriverd.jobs import Job, Jobs
from voldriverd.locks import Locks
from voldriverd.model import VolumeState
from voldriverd.runner import Runner, as_cause
from voldriverd.threads import Threads

_T = TypeVar("_T")

AT_ONCE: Final = 4
"""How many of a kind bring data at a time; others wait, and each volume says so."""
WAIT_S: Final = 5.0
"""How long one waits for a verb that has its volume or name before it begins."""
END_WAIT_S: Final = 3_600.0
"""The same for its end: what it has done is not thrown away for a verb that takes long."""
CANCEL_S: Final = 8.0
"""How long the answer to a cancel waits for the end of what it ends; the API's Go client gives up after 10 s."""
LOOK_S: Final = 0.2
"""How soon a pause ends that is of no use any more."""


class Arrivals:
    """Those of one verb that run now; lives on one event loop."""

    verb: ClassVar[str]
    threads: ClassVar[int] = AT_ONCE

    def __init__(
        self,
        engine: Engine,
        runner: Runner,
        locks: Locks,
        jobs: Jobs,
        *,
        relieve: Callable[[space.Shortage], Awaitable[None]],
    ) -> None:
        """Run nothing yet; `relieve` destroys trash for a shortage, and raises it if that takes long."""
        self._engine = engine
        self._runner = runner
        self._locks = locks
        self._jobs = jobs
        self._relieve = relieve
        self._ended: dict[model.VolumeId, asyncio.Event] = {}
        self._threads = Threads(self.threads, self.verb)
        self._bringing = 0

    async def stop(self, *, within_s: float) -> bool:
        """Have all of them end, and wait for that; tells whether they have. What has not is left to the next start."""
        self._jobs.stop()
        begun_s = time.monotonic()
        ends = [asyncio.create_task(ended.wait()) for ended in self._ended.values()]
        if ends:
            _, late = await asyncio.wait(ends, timeout=within_s)
            for each in late:
                each.cancel()
        return await self._threads.stop(within_s=max(0.0, within_s - (time.monotonic() - begun_s)))

    async def cancel(self, volume_id: model.VolumeId, *, wait_s: float | None = None) -> model.Volume:
        """End one: an existing volume rests as it was before, a new one is gone.

        What still takes longer than `wait_s` seconds (None: CANCEL_S) goes on to its end, and the volume is returned in
        the state that says so. Raises NotFound: none runs, or it was done before it could end.
        """
        volume, running = self._row(volume_id), self._running(volume_id)
        if running is None:
            raise NotFound(f"cannot cancel the {self.verb} of volume {volume.name}: none is running")
        job, ended = running
        job.cancel()
        with suppress(TimeoutError):  # it sleeps in the kernel: syncs what has come, or reads a share that is slow
            async with asyncio.timeout(CANCEL_S if wait_s is None else wait_s):
                await ended.wait()
        present = self._engine.store.volume(volume_id)
        if present is None:
            return replace(volume, state=VolumeState.PURGED, key=None, removed_at=self._engine.now())
        if present.state is VolumeState.INACTIVE and present.key == model.volume_key(volume.id, volume.content):
            raise NotFound(f"cannot cancel the {self.verb} of volume {volume.name}: it was done before that")
        return present

    def _row(self, volume_id: model.VolumeId) -> model.Volume:
        volume = self._engine.store.volume(volume_id)
        if volume is None:
            raise NotFound(f"there is no volume {shown(volume_id)}")
        return volume

    def _running(self, volume_id: model.VolumeId) -> tuple[Job, asyncio.Event] | None:
        """Return the job that brings a volume's data, and what tells of its end; None: none does."""
        job, ended = self._jobs.get(shown(volume_id)), self._ended.get(volume_id)
        return None if job is None or ended is None else (job, ended)

    @contextmanager
    def _going(self, volume_id: model.VolumeId, uses: frozenset[str] = frozenset()) -> Iterator[Job]:
        """List one for the block, and let go who waits for its end. Raises InUse: one is running."""
        with self._jobs.running(shown(volume_id), self.verb, uses=uses) as job:
            ended = self._ended[volume_id] = asyncio.Event()
            try:
                yield job
            finally:
                del self._ended[volume_id]
                ended.set()

    async def _in_turn(self, job: Job, bring: Callable[[], _T]) -> _T:
        """Bring data when others have left room for that."""
        job.waits_for = f"other {self.verb}s"
        while self._bringing >= AT_ONCE and not job.cancelled.is_set():  # noqa: ASYNC110 - any thread may set that event
            await asyncio.sleep(LOOK_S)
        job.waits_for = None
        self._bringing += 1
        try:
            return await self._threads.submit(as_cause, self.verb, bring)
        finally:
            self._bringing -= 1

    async def _relieved(self, volume_id: model.VolumeId, what: str, begin: Callable[[], _T]) -> _T:
        """Begin something under a volume's lock; once more if trash had to be destroyed for its space first."""
        try:
            return await self._locked(volume_id, what, begin)
        except space.Shortage as err:
            await self._relieve(err)
        return await self._locked(volume_id, what, begin)

    async def _locked(
        self, volume_id: model.VolumeId, what: str, work: Callable[[], _T], *, wait_s: float = WAIT_S
    ) -> _T:
        async with self._locks.hold(volume_id, self.verb, what=what, wait_s=wait_s):
            return await self._runner.run(self.verb, work)


def shown(volume_id: model.VolumeId) -> str:
    """Return a volume's id as the API shows it: jobs are listed under it."""
    return f"1v{volume_id}"
