"""The async face of the engine.

For each verb the same three things: take the volume's lock, run the verb in a worker thread, shield
it from a client that hangs up. Reads of what is in memory go straight to the store.
"""

import asyncio
import functools
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

from voldriverd import backups, imports, jobs, model, names, restores, runner, stalls, usages, verbs
from voldriverd.driver import Capability, Change, Key
from voldriverd.engine import (
    apikeys,
    askers,
    creation,
    inspection,
    mounts,
    recovery,
    snapshots,
    space,
    trash,
    trees,
    volumes,
)
from voldriverd.engine.context import Engine
from voldriverd.errors import Error, InUse, NotFound, Unusable
from voldriverd.locks import Locks
from voldriverd.logs import Facts

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Begun = TypeVar("_Begun")
_VolumeBegun = Callable[[model.Volume], None]
_SnapshotBegun = Callable[[model.Snapshot], None]
_RevertBegun = Callable[[snapshots.Reverted], None]

WAIT_S: Final = 50.0
"""How long a call waits for a busy volume; dockerd gives up after 60 s."""
MOUNT_WAIT_S: Final = 100.0
"""The same for `Mount`, where dockerd gives up after 120 s."""
UNMOUNT_ANSWER_S: Final = 10.0
"""When `Unmount` is answered although it goes on: it may flush gigabytes, and dockerd waits for it 60 s."""
PURGE_ANSWER_S: Final = 2.0
"""When a purge is answered although trees of the volume are still there; mostly the space shows before."""
API_WAIT_S: Final = 5.0
"""The same for the API, whose Go client gives up after 10 s; then it answers 409."""
CREATE_ANSWER_S: Final = 3.0
"""When `Create` is answered although it goes on; podman gives up after 5 s."""
API_ANSWER_S: Final = 1.0
"""When the API answers although a verb goes on, in its transitioning state; most verbs have ended by then."""

_PASSING: Final = frozenset({"expire", "freeze", "reconcile", "unmount"})
"""What nobody waits for who asked for something else: why that failed after its answer is still to be told."""


class Service:
    """Runs verbs for the sites; lives on one event loop."""

    def __init__(self, engine: Engine) -> None:
        """Take an engine that has recovered."""
        self.engine = engine
        self.store = engine.store
        self._locks = Locks()
        self.runner = runner.Runner()
        self.usages = usages.Usages(engine, self.runner)
        self.stalls = stalls.Stalls()
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """What the sites have answered, by door (`plugin`, `api`), method and status, each of a closed set."""
        self._pins: Counter[Key] = Counter()
        self._askers = askers.Askers()
        self._relieving = asyncio.Lock()
        self.jobs = jobs.Jobs()
        freeze = functools.partial(self.snapshot, answer_s=API_ANSWER_S)
        self.backups = backups.Backups(engine, self.runner, self._locks, self.jobs, freeze=freeze)
        self.restores = restores.Restores(engine, self.runner, self._locks, self.jobs, relieve=self._relieve_soon)
        self.imports = imports.Imports(engine, self.runner, self._locks, self.jobs, relieve=self._relieve_soon)
        self._reconciling: asyncio.Task[None] | None = None

    async def resume(self) -> None:
        """Take up the long jobs that were cut off; once, at the start."""
        await self.restores.resume()

    async def stop(self, *, within_s: float) -> bool:
        """End long jobs, wait for verbs that run; tells whether all have ended. What has not is ended by recovery."""
        self.jobs.stop()
        parts = (self.backups, self.restores, self.imports, self.runner)
        return all(await asyncio.gather(*(part.stop(within_s=within_s) for part in parts)))

    def row(self, volume_id: model.VolumeId) -> model.Volume:
        """Return a live or trashed volume. Raises NotFound."""
        volume = self.store.volume(volume_id)
        if volume is None:
            raise NotFound(f"there is no volume 1v{volume_id}")
        return volume

    async def create(self, request: creation.Request, *, answer_s: float, wait_s: float = WAIT_S) -> model.Volume:
        """Make a volume; after `answer_s` seconds a begun one is returned in its transitioning state and goes on."""
        return await self._answered(
            lambda begun: self._create(request, begun, wait_s),
            lambda volume: f"1v{volume.id}",
            answer_s=answer_s,
            relieve_s=wait_s,
        )

    async def remove(self, volume_id: model.VolumeId, *, wait_s: float = WAIT_S) -> model.Volume:
        """Put a volume in the trash, or destroy it if it is anonymous; one whose data is on its way yet never was."""
        volume = self.row(volume_id)
        if self.restores.is_new(volume) or volume.state is model.VolumeState.IMPORTING:
            bringing = self.imports if volume.state is model.VolumeState.IMPORTING else self.restores
            try:
                left = await bringing.cancel(volume_id, wait_s=wait_s)
            except NotFound:
                if self.row(volume_id).state is not model.VolumeState.INACTIVE:
                    raise
            else:
                if left.is_live:
                    what = f"cannot remove volume {volume.name}"
                    raise InUse(f"{what}: its {bringing.verb} is still being ended, and then it goes; try again")
                return left
        return await self._verb("remove", volume_id, lambda volume: self._unpinned(volume, trash.remove), wait_s=wait_s)

    async def restore(self, volume_id: model.VolumeId, *, name: str | None) -> model.Volume:
        """Bring a volume back from the trash."""
        wanted = name or self.row(volume_id).name
        work = functools.partial(trash.restore, self.engine, name=name)
        what = f"cannot restore a volume as {wanted}"
        async with self._locks.hold(("name", wanted), "restore", what=what, wait_s=API_WAIT_S):
            return await self._verb("restore", volume_id, work, wait_s=API_WAIT_S)

    async def purge(self, volume_id: model.VolumeId) -> model.Volume:
        """Destroy a volume in the trash; after PURGE_ANSWER_S the removal of its trees goes on.

        A loop volume of 2,000 snapshots took a busy host a minute.
        """
        gone = await self._verb(
            "purge", volume_id, lambda volume: self._unpinned(volume, trash.destroy), wait_s=API_WAIT_S
        )
        remove = functools.partial(
            space.collect_now, self.engine, self.engine.pools.get(gone.pool_id), wait_s=PURGE_ANSWER_S
        )
        await asyncio.wait([self.runner.spawn(self.runner.in_thread(remove, is_long=True))], timeout=PURGE_ANSWER_S)
        return gone

    async def resize(
        self, volume_id: model.VolumeId, size_bytes: int, *, answer_s: float | None = None
    ) -> model.Volume:
        """Set a volume's size; `answer_s` as for `create`."""

        def attempt(begun: _VolumeBegun) -> Awaitable[model.Volume]:
            def work(volume: model.Volume) -> model.Volume:
                return volumes.resize(self.engine, volume, size_bytes, begun=begun)

            run = functools.partial(self.runner.run, "resize", work)
            return self._locked("resize", volume_id, run, wait_s=API_WAIT_S)

        return await self._answered(attempt, lambda volume: f"1v{volume.id}", answer_s=answer_s)

    async def set_properties(self, volume_id: model.VolumeId, **changes: object) -> model.Volume:
        """Change description, protection or labels of a volume."""
        work = functools.partial(volumes.set_properties, self.engine, **changes)  # type: ignore[arg-type]
        return await self._verb("set", volume_id, work, wait_s=API_WAIT_S)

    async def mount(
        self, volume_id: model.VolumeId, holder: str, *, peer_pid: int | None = None, wait_s: float | None = None
    ) -> Path:
        """Mount a volume for a holder. Raises Unusable if the asking process cannot see the mount.

        `wait_s`: how long it waits for a busy volume; None: MOUNT_WAIT_S.
        """

        def work(volume: model.Volume) -> Path:
            path = mounts.mount(self.engine, volume, holder)
            if peer_pid is not None and not _sees(peer_pid, path):
                mounts.unmount(self.engine, volume, holder)
                raise Unusable(
                    f"cannot mount volume {volume.name}: the asking process (pid {peer_pid}) lives in another mount "
                    "namespace and does not see it; remove PrivateMounts and the like from its unit and from ours"
                )
            return path

        within_s = MOUNT_WAIT_S if wait_s is None else wait_s
        left_s = await self.restores.settled(self.row(volume_id), "mount", within_s=within_s)
        path = await self._verb("mount", volume_id, work, wait_s=left_s)
        if peer_pid is not None:
            self._askers.note(volume_id, holder, peer_pid)
        return path

    async def unmount(
        self, volume_id: model.VolumeId, holder: str, *, peer_pid: int | None = None, answer_s: float | None = None
    ) -> None:
        """Let a holder go once, at once, and unmount after the last one.

        A busy volume is no error: dockerd would use the holder's name again for ever. What cannot be unmounted within
        `answer_s` seconds (None: UNMOUNT_ANSWER_S) goes on, and what cannot be at all is left to reconciliation.
        """
        let_go = self.runner.in_thread(runner.as_cause, "unmount", mounts.let_go, self.engine, volume_id, holder)
        await self.runner.shielded(let_go)  # among those that only look: it waits for no other verb
        self._askers.drop(volume_id, holder, peer_pid)
        if all(mount.holder != holder for mount in self.store.mounts(volume_id)):
            self._askers.forget(volume_id, holder)
        work = functools.partial(mounts.detach_unheld, self.engine)
        task = self.runner.spawn(self._quietly("unmount", volume_id, work, wait_s=WAIT_S, unmounts=True))
        await asyncio.wait([task], timeout=UNMOUNT_ANSWER_S if answer_s is None else answer_s)

    async def snapshot(
        self, volume_id: model.VolumeId, wish: snapshots.Wish, *, answer_s: float | None = None
    ) -> model.Snapshot:
        """Freeze a volume's present content; `answer_s` as for `create`."""

        def attempt(begun: _SnapshotBegun) -> Awaitable[model.Snapshot]:
            def begin(volume: model.Volume) -> tuple[model.Volume, model.Snapshot]:
                snapshot = snapshots.begin_create(self.engine, volume, wish)
                begun(snapshot)
                return volume, snapshot

            def finish(going: tuple[model.Volume, model.Snapshot]) -> model.Snapshot:
                return snapshots.finish_create(self.engine, *going)

            return self._copied("snapshot", volume_id, begin, finish)

        return await self._answered(attempt, lambda snapshot: f"1s{snapshot.id}", answer_s=answer_s)

    async def remove_snapshot(self, snapshot_id: model.SnapshotId, *, verb: str = "remove-snapshot") -> model.Snapshot:
        """Destroy a snapshot."""

        def work(volume: model.Volume) -> model.Snapshot:
            snapshot = self.snapshot_row(snapshot_id)
            if snapshot.key is not None and self._pins[snapshot.key]:
                raise InUse(f"cannot remove snapshot {snapshot.shown_name} of volume {volume.name}: it is being read")
            return snapshots.remove(self.engine, volume, snapshot)

        volume_id = (await self.read_snapshot(snapshot_id)).volume_id
        return await self._verb(verb, volume_id, work, wait_s=API_WAIT_S)

    async def revert(
        self, volume_id: model.VolumeId, snapshot_id: model.SnapshotId, *, answer_s: float | None = None
    ) -> snapshots.Reverted:
        """Give a volume the content of a snapshot; `answer_s` as for `create`."""

        def attempt(begun: _RevertBegun) -> Awaitable[snapshots.Reverted]:
            def begin(volume: model.Volume) -> snapshots.Reverting:
                reverting = snapshots.begin_revert(self.engine, volume, self.snapshot_row(snapshot_id))
                begun((reverting.going.volume, reverting.going.kept))
                return reverting

            return self._copied("revert", volume_id, begin, functools.partial(snapshots.finish_revert, self.engine))

        return await self._answered(attempt, lambda reverted: f"1v{reverted[0].id}", answer_s=answer_s)

    @asynccontextmanager
    async def difference(
        self, snapshot: model.Snapshot, other: model.Snapshot | None
    ) -> AsyncIterator[Iterator[Change]]:
        """Give what differs between a snapshot and another of its volume (None: its present content); it blocks."""
        async with AsyncExitStack() as stack:
            volume = await stack.enter_async_context(self._pinned([each for each in (snapshot, other) if each]))
            key = await stack.enter_async_context(self._frozen(volume)) if other is None else other.tree
            changes = inspection.difference(self.engine, volume, snapshot, key)
            stack.push_async_callback(self.runner.in_thread, changes.close)
            yield changes

    @asynccontextmanager
    async def archive(self, snapshot: model.Snapshot, path: str) -> AsyncIterator[Iterator[bytes]]:
        """Give one file or folder of a snapshot as a tar stream; it blocks."""
        async with self._pinned([snapshot]) as volume:
            chunks = inspection.archive(self.engine, volume, snapshot, path)
            try:
                yield chunks
            finally:
                await self.runner.in_thread(chunks.close)

    @asynccontextmanager
    async def export(self, source: model.Volume | model.Snapshot) -> AsyncIterator[Iterator[bytes]]:
        """Give all of a snapshot, or of a volume at one instant, as a tar stream; it blocks."""
        async with AsyncExitStack() as stack:
            if isinstance(source, model.Snapshot):
                volume, key = await stack.enter_async_context(self._pinned([source])), source.tree
            else:
                volume, key = source, await stack.enter_async_context(self._frozen(source))
            chunks = inspection.export(self.engine, volume, key)
            stack.push_async_callback(self.runner.in_thread, chunks.close)
            yield chunks

    @asynccontextmanager
    async def _pinned(self, wanted: list[model.Snapshot]) -> AsyncIterator[model.Volume]:
        """Keep snapshots of one volume from being destroyed. Raises NotFound, InUse (a verb works on the volume)."""
        volume_id, what = wanted[0].volume_id, f"cannot read snapshot {wanted[0].shown_name}"
        async with self._locks.hold(volume_id, "read", what=what, wait_s=API_WAIT_S):
            rows = [await self.read_snapshot(snapshot.id) for snapshot in wanted]
            for row in rows:
                if row.state is not model.SnapshotState.CREATED:
                    raise NotFound(f"cannot read snapshot {row.shown_name}: it is {row.state.value}")
            keys = [row.tree for row in rows]
            self._pins.update(keys)
        try:
            yield self.row(volume_id)
        finally:
            self._pins.subtract(keys)
            self._pins = +self._pins  # those that nobody holds go

    @asynccontextmanager
    async def _frozen(self, volume: model.Volume) -> AsyncIterator[Key]:
        """Hold the present content of a volume still for a moment, in a tree that nothing ever points to."""
        finish = functools.partial(inspection.freeze, self.engine)
        copied = functools.partial(self._copied, "freeze", volume.id, lambda volume: volume, finish)
        key = await self._relieved(lambda: self.runner.shielded(copied()))
        try:
            yield key
        finally:
            trees.discard(self.engine, volume.pool_id, key)

    async def grow(self, pool_id: model.PoolId, size_bytes: int) -> None:
        """Grow the file system of a pool; two pools may share one."""
        pool = self.engine.pools.get(pool_id).row

        async def locked() -> None:
            async with self._locks.hold("grow", "grow", what=f"cannot grow pool {pool.name}", wait_s=API_WAIT_S):
                work = self.runner.in_thread(self.engine.pools.grow, pool_id, size_bytes)
                await self.runner.timed("grow", lambda: {"pool": pool.name, "driver": pool.driver}, work)

        await asyncio.shield(self.runner.spawn(locked()))

    async def set_snapshot(
        self, snapshot_id: model.SnapshotId, *, name: str | None, description: str | None
    ) -> model.Snapshot:
        """Change the name or description of a snapshot."""

        def work(volume: model.Volume) -> model.Snapshot:
            snapshot = self.snapshot_row(snapshot_id)
            return snapshots.set_properties(self.engine, volume, snapshot, name=name, description=description)

        volume_id = (await self.read_snapshot(snapshot_id)).volume_id
        return await self._verb("set-snapshot", volume_id, work, wait_s=API_WAIT_S)

    async def create_api_key(
        self, *, name: str | None, description: str | None, role: model.Role
    ) -> tuple[model.ApiKey, model.Secret]:
        """Make an API key."""
        work = functools.partial(apikeys.create, self.engine, name=name, description=description, role=role)
        return await self._with_api_keys("create", work)

    async def set_api_key(self, key_id: model.ApiKeyId, changes: Mapping[str, str | None]) -> model.ApiKey:
        """Change the name or description of an API key."""
        return await self._with_api_keys(
            "change", functools.partial(apikeys.set_properties, self.engine, key_id, changes)
        )

    async def revoke_api_key(self, key_id: model.ApiKeyId) -> model.ApiKey:
        """End an API key, at once."""
        return await self._with_api_keys("remove", functools.partial(apikeys.revoke, self.engine, key_id))

    async def _with_api_keys(self, verb: str, work: Callable[[], _T]) -> _T:
        async def locked() -> _T:
            async with self._locks.hold("apikeys", verb, what=f"cannot {verb} API key", wait_s=API_WAIT_S):
                return await self.runner.in_thread(work)

        return await self.runner.shielded(locked())

    async def read_snapshot(self, snapshot_id: model.SnapshotId) -> model.Snapshot:
        """Return a snapshot or its tombstone. Raises NotFound."""
        return await self.runner.in_thread(self.snapshot_row, snapshot_id)

    def snapshot_row(self, snapshot_id: model.SnapshotId) -> model.Snapshot:
        """Return a snapshot or its tombstone. Raises NotFound. For verbs: it reads the database."""
        snapshot = self.store.snapshot(snapshot_id)
        if snapshot is None:
            raise NotFound(f"there is no snapshot 1s{snapshot_id}")
        return snapshot

    async def reconcile(self) -> None:
        """Compare holders with the kernel's mount tables, one look for all and then a volume at a time.

        A volume that a verb works on is passed over: the next round comes.
        """
        looked_s = self.engine.uptime()
        used = await self.runner.in_thread(mounts.used_keys, self.engine)
        asked = self._askers.processes()
        users = self._askers.users(asked, await self.runner.in_thread(askers.living, asked))
        used |= {row.key for row in self.store.volumes() if row.key and row.id in users}
        attached = await self.runner.in_thread(mounts.attached_keys, self.engine)
        concerned = {mount.volume_id for mount in self.store.all_mounts()}
        concerned |= {volume.id for volume in self.store.volumes() if volume.key in attached}
        for volume_id in sorted(concerned):
            if not self._locks.is_held(volume_id):
                await self._quietly("reconcile", volume_id, lambda volume: self._reconcile_one(volume, used, looked_s))

    def reconcile_soon(self) -> None:
        """Reconcile now, unless it is being done; what fails is logged."""
        if self._reconciling is None or self._reconciling.done():
            self._reconciling = self.runner.spawn(self._reconcile_all())

    async def _reconcile_all(self) -> None:
        try:
            await self.reconcile()
        except (Error, OSError) as err:
            _log.warning("verb=reconcile result=%s", err)

    async def open_pools(self) -> None:
        """Try the pools that are unavailable again."""
        if any(pool.driver is None and pool.spec is not None for pool in self.engine.pools):
            await self.runner.run("recover", recovery.open_pools, self.engine)

    async def _create(self, request: creation.Request, begun: _VolumeBegun, wait_s: float) -> model.Volume:
        what = f"cannot create volume {request.name}"
        about = functools.partial(self._about_new, request)
        source = request.options.source
        volume_id = model.VolumeId(self.store.reserve_id("volumes"))
        if isinstance(source, names.BackupSource):
            return await self.restores.create(request, volume_id, begun, wait_s=wait_s)
        async with (
            self._locks.hold(("name", request.name), "create", what=what, wait_s=wait_s),
            self._locks.hold(volume_id, "create", what=what, wait_s=wait_s),
        ):
            origin = self.store.volume_named(source.volume) if isinstance(source, names.Source) else None
            if origin is None:
                work = functools.partial(volumes.create, self.engine, request, volume_id, begun=begun)
                return await self.runner.timed("create", about, self.runner.run("create", work))
            return await self.runner.timed("clone", about, self._clone(request, begun, volume_id, origin, wait_s))

    def _about(self, volume: model.Volume) -> Facts:
        """Return what the line of a verb tells of the volume that it worked on."""
        pool = self.engine.pools.get(volume.pool_id).row
        return {"volume": volume.name, "pool": pool.name, "driver": volume.driver}

    def _about_new(self, request: creation.Request) -> Facts:
        made = self.store.volume_named(request.name)
        if made is not None:
            return self._about(made)
        return {"volume": request.name, "pool": request.options.pool, "driver": request.options.driver}

    async def _clone(
        self,
        request: creation.Request,
        begun: _VolumeBegun,
        volume_id: model.VolumeId,
        origin: model.Volume,
        wait_s: float,
    ) -> model.Volume:
        """Clone under the source's lock where that is quick, else under a pin if the source cannot change."""
        what = f"cannot clone volume {origin.name}"
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._locks.hold(origin.id, "clone", what=what, wait_s=wait_s))
            named = self.store.volume_named(origin.name)
            if named is not None and named.id != origin.id:  # it would be copied while anybody may mount it
                raise InUse(f"{what}: another volume has taken its name meanwhile; try again")
            plan = await self.runner.run("clone", volumes.begin_create, self.engine, request, volume_id)
            if isinstance(plan, model.Volume):
                return plan
            begun(plan.volume)
            copies = self._copies(origin)
            assert plan.tree.source is not None, "a clone has a source"
            self._pins[plan.tree.source] += 1
            try:
                if copies and plan.tree.source != origin.key:
                    await stack.aclose()
                finish = functools.partial(volumes.finish_begun, self.engine, plan)
                return await self.runner.run("clone", finish, copies=copies)
            finally:
                self._pins.subtract({plan.tree.source: 1})
                self._pins += Counter()  # drops what is not pinned any more

    async def _verb(
        self,
        verb: str,
        volume_id: model.VolumeId,
        work: Callable[[model.Volume], _T],
        *,
        wait_s: float,
        unmounts: bool = False,
    ) -> _T:
        """Run a verb under its volume's lock; it goes on when who asked for it hangs up."""
        run = functools.partial(self.runner.run, verb, work, unmounts=unmounts)
        return await self.runner.shielded(self._locked(verb, volume_id, run, wait_s=wait_s))

    async def _copied(
        self,
        verb: str,
        volume_id: model.VolumeId,
        begin: Callable[[model.Volume], _Begun],
        finish: Callable[[_Begun], _T],
    ) -> _T:
        """Run a verb under its volume's lock; only what may be a plain copy waits for other copies."""

        async def run(volume: model.Volume) -> _T:
            if not self._copies(volume):
                return await self.runner.run(verb, lambda: finish(begin(volume)))
            return await self.runner.run(verb, finish, await self.runner.run(verb, begin, volume), copies=True)

        return await self._locked(verb, volume_id, run, wait_s=API_WAIT_S)

    async def _locked(
        self, verb: str, volume_id: model.VolumeId, run: Callable[[model.Volume], Awaitable[_T]], *, wait_s: float
    ) -> _T:
        name = self.row(volume_id).name
        what = f"cannot {verb} volume {name}"
        async with self._locks.hold(volume_id, verb, what=what, wait_s=wait_s):
            volume = self.row(volume_id)
            if verb not in _PASSING:
                self.runner.forget_fault(f"1v{volume_id}")
            return await self.runner.timed(verb, functools.partial(self._about, volume), run(volume))

    async def _quietly(
        self,
        verb: str,
        volume_id: model.VolumeId,
        work: Callable[[model.Volume], object],
        *,
        wait_s: float = 0,
        unmounts: bool = False,
    ) -> None:
        try:
            await self._verb(verb, volume_id, work, wait_s=wait_s, unmounts=unmounts)
        except (Error, OSError) as err:
            if not verbs.is_told(err):
                _log.warning("verb=%s volume=1v%d result=%s", verb, volume_id, err)

    def _reconcile_one(self, volume: model.Volume, used: frozenset[str], looked_s: float) -> None:
        mounts.reconcile(self.engine, [volume], used, age_s=self.engine.uptime() - looked_s)

    async def expire(self, seen: model.Volume) -> None:
        """Destroy a volume that was seen in the trash, its time come or its space wanted; what fails is tried again.

        Not one that came back meanwhile, though it was removed again: its time has begun anew.
        """

        def work(volume: model.Volume) -> model.Volume:
            if volume.removed_at != seen.removed_at:
                raise NotFound(f"cannot expire volume {volume.name}: it came back from the trash meanwhile")
            return self._unpinned(volume, trash.destroy)

        await self._quietly("expire", seen.id, work)

    async def expire_snapshot(self, snapshot: model.Snapshot) -> None:
        """Destroy a snapshot whose time has come."""
        try:
            await self.remove_snapshot(snapshot.id, verb="expire")
        except Error as err:
            if not verbs.is_told(err):
                _log.warning("verb=expire snapshot=1s%d result=%s", snapshot.id, err)

    async def relieve(self, pool_id: model.PoolId) -> None:
        """Destroy trashed volumes of a pool's file system in order until the reserve is free again (D4), then bases.

        One shortage at a time: two that look at once would both destroy a volume where one is enough.
        """
        pool = self.engine.pools.get(pool_id)
        async with self._relieving:
            victims: list[model.Volume | model.Backup] = []
            for look in (space.trash_in_order, space.bases_in_order):
                victims += await self.runner.in_thread(look, self.engine, pool)
            while await self.runner.in_thread(space.lacks_space, self.engine, pool, is_long=True) and victims:
                victim = victims.pop(0)
                if isinstance(victim, model.Backup):
                    await self.backups.drop_base(victim)
                    continue
                _log.warning("verb=relieve pool=%s volume=%s result=destroyed for space", pool.row.name, victim.name)
                await self.expire(victim)

    async def _answered(
        self,
        attempt: Callable[[Callable[[_T], None]], Awaitable[_T]],
        identify: Callable[[_T], str],
        *,
        answer_s: float | None,
        relieve_s: float | None = None,
    ) -> _T:
        """Do it once more after a shortage was relieved, if need be; the rest is `Runner.answered`."""
        return await self.runner.answered(
            lambda note: self._relieved(lambda: attempt(note), wait_s=relieve_s), identify, answer_s=answer_s
        )

    async def _relieved(self, attempt: Callable[[], Awaitable[_T]], *, wait_s: float | None = None) -> _T:
        try:
            return await attempt()
        except space.Shortage as err:
            await self._relieve_soon(err, wait_s=wait_s)
        return await attempt()

    async def _relieve_soon(self, shortage: space.Shortage, *, wait_s: float | None = None) -> None:
        """Relieve a pool; after `wait_s` seconds (None: API_WAIT_S) that goes on, and the shortage is raised.

        A directory of millions of files takes minutes to remove.
        """
        try:
            async with asyncio.timeout(API_WAIT_S if wait_s is None else wait_s):
                await self.runner.shielded(self.relieve(shortage.pool_id))
        except TimeoutError as err:
            message = f"{shortage}; the space of removed volumes is still being given back; try again"
            raise space.Shortage(message, shortage.pool_id) from err

    def _unpinned(self, volume: model.Volume, work: Callable[[Engine, model.Volume], model.Volume]) -> model.Volume:
        keys = {volume.key, *(snapshot.key for snapshot in self.store.snapshots(volume.id))}
        if any(self._pins[key] for key in keys if key is not None):
            raise InUse(f"cannot remove volume {volume.name}: it is being read")
        return work(self.engine, volume)

    def _copies(self, volume: model.Volume) -> bool:
        """Tell whether a clone of a volume's trees is a plain copy."""
        driver = self.engine.pools.get(volume.pool_id).driver
        return driver is not None and Capability.COW not in driver.capabilities


def _sees(pid: int, path: Path) -> bool:
    """Tell whether a process sees the same directory at a path as we do, or a copy of our mount; yes if it has gone.

    dockerd has copies, at paths of its own, of what a managed plugin mounts.
    """
    here = os.stat(path)
    try:
        there = os.stat(f"/proc/{pid}/root{path}")
    except FileNotFoundError:
        return not os.path.exists(f"/proc/{pid}/ns/mnt") or mounts.is_seen(pid, path)
    except (PermissionError, ProcessLookupError):
        return True
    return os.path.samestat(here, there) or mounts.is_seen(pid, path)
