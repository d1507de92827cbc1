"""The async face of imports: what runs while a volume is IMPORTING, and what ends it.

Unlike a restore an import is never taken up again: recovery ends what a crash cut off.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from voldriverd import model
from voldriverd.arrivals import END_WAIT_S, WAIT_S, Arrivals, shown
from voldriverd.engine import adoption, creation
from voldriverd.jobs import Job

Bring = Callable[[adoption.Begun, Job], adoption.Arrived]


class Imports(Arrivals):
    """Runs imports; lives on one event loop."""

    verb = "import"

    def close(self) -> None:
        """Have all imports end: requests that bring an archive would keep the daemon from its end."""
        for volume_id in self._ended:
            job = self._jobs.get(shown(volume_id))
            if job is not None:
                job.stop()

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
            return await self._locked(begun.volume.id, begun.what, finish, wait_s=END_WAIT_S)
        except Exception:  # whatever it was: half a volume must not stay
            give_up = functools.partial(adoption.give_up, self._engine, begun)
            await self._locked(begun.volume.id, begun.what, give_up, wait_s=END_WAIT_S)
            raise


def _until(content: Iterator[bytes], job: Job) -> Iterator[bytes]:
    """Read what comes; nothing comes (an empty piece) as long as there is only to be looked whether it is wanted."""
    for piece in content:
        if job.cancelled.is_set():
            return
        if piece:
            yield piece


def _shown_row(volume: model.Volume) -> str:
    return shown(volume.id)
