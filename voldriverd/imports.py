"""The async face of imports: what runs while a volume is IMPORTING, and what ends it.

An import holds its volume's lock only to begin and to end; meanwhile the volume's state keeps other verbs off it. It is
listed among the jobs, under the volume's id, until it has ended. Unlike a restore it is never taken up again.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeVar

from voldriverd import model
from voldriverd.engine import adoption, creation, space
from voldriverd.engine.context import Engine
from voldriverd.errors import NotFound
from voldriverd.jobs import Job, Jobs
from voldriverd.locks import Locks
from voldriverd.model import VolumeState
from voldriverd.runner import Runner, as_cause
from voldriverd.threads import Threads

_T = TypeVar("_T")

AT_ONCE: Final = 4
"""How many bring data at a time; others wait, and each volume says so."""
WAIT_S: Final = 5.0
"""How long an import waits for a verb that has its name."""
END_WAIT_S: Final = 3_600.0
"""The same for its end: what it has done is not thrown away for a verb that takes long."""

_LOOK_S: Final = 0.2
_VERB: Final = "import"

Bring = Callable[[adoption.Begun, Job], adoption.Arrived]


class Imports:
    """Runs imports; lives on one event loop."""

    def __init__(
        self,
        engine: Engine,
        runner: Runner,
        locks: Locks,
        jobs: Jobs,
        *,
        relieve: Callable[[model.PoolId], Awaitable[None]],
    ) -> None:
        """Run nothing yet; `relieve` destroys trash in a pool that is short of space."""
        self._engine = engine
        self._runner = runner
        self._locks = locks
        self._jobs = jobs
        self._relieve = relieve
        self._ended: dict[model.VolumeId, asyncio.Event] = {}
        self._threads = Threads(AT_ONCE, _VERB)
        self._bringing = 0

    def close(self) -> None:
        """Have all imports end: requests that bring an archive would keep the daemon from its end."""
        for volume_id in self._ended:
            job = self._jobs.get(_shown(volume_id))
            if job is not None:
                job.stop()

    async def stop(self, *, within_s: float) -> bool:
        """Have all imports end, and wait for that; tells whether they have. What has not is ended by recovery."""
        self._jobs.stop()
        begun_s = time.monotonic()
        ends = [asyncio.create_task(ended.wait()) for ended in self._ended.values()]
        if ends:
            _, late = await asyncio.wait(ends, timeout=within_s)
            for each in late:
                each.cancel()
        return await self._threads.stop(within_s=max(0.0, within_s - (time.monotonic() - begun_s)))

    async def directory(
        self,
        request: creation.Request,
        path: str,
        *,
        earlier: Sequence[adoption.Earlier] = (),
        is_instant: bool = False,
        answer_s: float,
    ) -> model.Volume:
        """Make a volume of a directory of this host, and of others its snapshots.

        `is_instant`: all must be taken over as they are at one instant. After `answer_s` seconds the volume is returned
        in its transitioning state, and it goes on. What fails leaves no volume.
        """

        def bring(begun: adoption.Begun, job: Job) -> adoption.Arrived:
            return adoption.bring_directory(self._engine, begun, path, job, is_instant=is_instant)

        return await self._runner.answered(
            lambda began: self._create(request, bring, path, began, earlier), _shown_row, answer_s=answer_s
        )

    async def archive(
        self, request: creation.Request, content: Iterator[bytes], content_bytes: int | None
    ) -> model.Volume:
        """Make a volume of a tar archive, whose pieces are read in a thread; it goes with who sends it."""

        def bring(begun: adoption.Begun, job: Job) -> adoption.Arrived:
            return adoption.bring_archive(self._engine, begun, _until(content, job), content_bytes, job)

        return await self._runner.shielded(self._create(request, bring, "an archive", lambda _: None))

    async def cancel(self, volume_id: model.VolumeId) -> model.Volume:
        """End an import; the volume is gone. Raises NotFound: none runs."""
        volume = self._engine.store.volume(volume_id)
        job, ended = self._jobs.get(_shown(volume_id)), self._ended.get(volume_id)
        if volume is None or job is None or ended is None:
            raise NotFound(f"cannot cancel the import of volume {_shown(volume_id)}: none is running")
        job.cancel()
        await ended.wait()
        gone = replace(volume, state=VolumeState.PURGED, key=None, removed_at=self._engine.now())
        return self._engine.store.volume(volume_id) or gone

    async def _create(
        self,
        request: creation.Request,
        bring: Bring,
        source: str,
        began: Callable[[model.Volume], None],
        earlier: Sequence[adoption.Earlier] = (),
    ) -> model.Volume:
        what = f"cannot import volume {request.name}"
        volume_id = model.VolumeId(self._engine.store.reserve_id("volumes"))
        begin = functools.partial(adoption.begin, self._engine, request, volume_id, earlier)
        with self._going(volume_id) as job:
            async with self._locks.hold(("name", request.name), "import", what=what, wait_s=WAIT_S):
                begun = await self._relieved(volume_id, what, begin)
            began(begun.volume)

            def facts() -> Mapping[str, object]:
                pool = self._engine.pools.get(begun.volume.pool_id).row.name
                known = {"volume": request.name, "pool": pool, "driver": begun.volume.driver, "source": source}
                return {**known, "content_bytes": job.done_bytes}

            return await self._runner.timed("import", facts, self._bring(begun, bring, source, job))

    async def _bring(self, begun: adoption.Begun, bring: Bring, source: str, job: Job) -> model.Volume:
        try:
            arrived = await self._in_turn(job, functools.partial(bring, begun, job))
            finish = functools.partial(adoption.finish, self._engine, begun, arrived, source)
            return await self._locked(begun.volume.id, begun.what, finish)
        except Exception:  # whatever it was: half a volume must not stay
            give_up = functools.partial(adoption.give_up, self._engine, begun)
            await self._locked(begun.volume.id, begun.what, give_up)
            raise

    @contextmanager
    def _going(self, volume_id: model.VolumeId) -> Iterator[Job]:
        """List an import for the block, and let go who waits for its end."""
        with self._jobs.running(_shown(volume_id), _VERB) as job:
            ended = self._ended[volume_id] = asyncio.Event()
            try:
                yield job
            finally:
                del self._ended[volume_id]
                ended.set()

    async def _in_turn(self, job: Job, bring: Callable[[], adoption.Arrived]) -> adoption.Arrived:
        """Bring data when others have left room for that."""
        job.waits_for = "other imports"
        while self._bringing >= AT_ONCE and not job.cancelled.is_set():  # noqa: ASYNC110 - any thread may set that event
            await asyncio.sleep(_LOOK_S)
        job.waits_for = None
        self._bringing += 1
        try:
            return await self._threads.submit(as_cause, _VERB, bring)
        finally:
            self._bringing -= 1

    async def _relieved(
        self, volume_id: model.VolumeId, what: str, begin: Callable[[], adoption.Begun]
    ) -> adoption.Begun:
        """Begin; once more if trash had to be destroyed for its space first."""
        try:
            return await self._locked(volume_id, what, begin)
        except space.Shortage as err:
            await self._relieve(err.pool_id)
        return await self._locked(volume_id, what, begin)

    async def _locked(self, volume_id: model.VolumeId, what: str, work: Callable[[], _T]) -> _T:
        async with self._locks.hold(volume_id, _VERB, what=what, wait_s=END_WAIT_S):
            return await self._runner.run(_VERB, work)


def _until(content: Iterator[bytes], job: Job) -> Iterator[bytes]:
    """Read what comes; nothing comes (an empty piece) as long as there is only to be looked whether it is wanted."""
    for piece in content:
        if job.cancelled.is_set():
            return
        if piece:
            yield piece


def _shown_row(volume: model.Volume) -> str:
    return _shown(volume.id)


def _shown(volume_id: model.VolumeId) -> str:
    return f"1v{volume_id}"
