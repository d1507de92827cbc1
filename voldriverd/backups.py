"""The async face of backups and their targets.

Bytes move in threads of their own, so that no backup keeps a verb or a plain copy waiting. A volume's lock is held only
while a backup is begun; then it is a job until it has ended. What waits or runs when the daemon stops ends at once, is
`creating` still, and is taken up at the next start.
"""

import asyncio
import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from voldriverd import jobs, model, verbs
from voldriverd.engine import backups, chains, keeping, snapshots, supplies, targets
from voldriverd.engine.context import Engine
from voldriverd.errors import Error, InUse, NotFound, Unusable
from voldriverd.locks import Locks
from voldriverd.logs import Facts
from voldriverd.model import BackupState, SnapshotState
from voldriverd.runner import Runner, as_cause
from voldriverd.threads import Threads

if TYPE_CHECKING:
    from voldriverd.backup.pruning import Pruned

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

BACKUPS_AT_ONCE: Final = 2
"""How many send at a time: each reads, compresses and seals as fast as it can, and two fill a network."""
CHECKS_AT_ONCE: Final = 2
"""The same for what reads a target through: verify, scan, prune."""
THREADS: Final = 10
"""Of those that wait for targets: backups, checks, and what is quick as long as a target answers."""
WAIT_S: Final = 5.0
"""How long a backup waits for a verb that works on its volume before it begins."""
LOOK_S: Final = 8.0
"""How long a new target may take to answer; the API's Go client gives up after 10 s."""
LOOK_EVERY_S: Final = 180.0
"""How old the health of a target that nobody uses may be."""
ANSWER_S: Final = 1.0
"""When the API answers although something goes on."""
CANCEL_S: Final = 8.0
"""How long the answer to a cancel waits for the end of what it ends."""
_RESULTS: Final = {BackupState.CREATED: verbs.OK, BackupState.ERROR: "failed", BackupState.CREATING: "stopped"}
"""What a backup that is not going on has come to; `stopped` by the end of the daemon, to be taken up again."""
_FOREVER_S: Final = 10 * 365 * 86_400.0
"""A backup waits for others however long they take."""


class Backups:
    """Runs backups and what is done with them; lives on one event loop."""

    def __init__(
        self,
        engine: Engine,
        runner: Runner,
        locks: Locks,
        running: jobs.Jobs,
        *,
        freeze: Callable[[model.VolumeId, snapshots.Wish], Awaitable[model.Snapshot]],
    ) -> None:
        """Run nothing yet; `freeze` makes a snapshot."""
        self._engine = engine
        self._store = engine.store
        self._runner = runner
        self._locks = locks
        self._jobs = running
        self._freeze = freeze
        self._threads = Threads(THREADS, "target")
        self._senders = asyncio.Semaphore(BACKUPS_AT_ONCE)
        self._checkers = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._sending: dict[model.BackupId, asyncio.Task[None]] = {}
        self._removing: set[model.BackupId] = set()
        self._looked_s: dict[model.TargetId, float] = {}
        self._looking: set[model.TargetId] = set()
        self._begins: Counter[model.VolumeId] = Counter()
        """How many begin of each volume just now: they have a row, and look as if they had been cut off."""
        self._readers = 0
        self._stopping = threading.Event()

    async def stop(self, *, within_s: float) -> bool:
        """Have all that waits for targets end, and wait for that; tells whether it has."""
        self._stopping.set()
        self._jobs.stop()
        begun_s = time.monotonic()
        if self._sending:
            await asyncio.wait(self._sending.values(), timeout=within_s)
        return await self._threads.stop(within_s=max(0.0, within_s - (time.monotonic() - begun_s)))

    async def resume(self) -> None:
        """Take up what was cut off, as far as its pool is there, and what could not be removed; repeatable."""
        for backup in self._store.removing_backups():
            self._runner.spawn(self._finish_remove(backup))
        going = self._cut_off()
        if self._stopping.is_set() or not going:
            return
        held = await self._runner.in_thread(backups.held, self._engine, going)
        present = {backup.id for backup in self._cut_off()}
        for backup in going:  # in the order in which they began
            if backup.id in present:
                self._start(backup, is_held=backup.id in held)

    # Targets.

    def targets(self) -> list[model.Target]:
        """Return the live targets, those of the configuration first."""
        return sorted(self._store.targets(), key=lambda target: (not target.is_configured, target.id))

    def target_row(self, target_id: model.TargetId) -> model.Target:
        """Return a live target. Raises NotFound."""
        return targets.row(self._engine, target_id)

    def default_target(self) -> model.Target:
        """Return the target of a backup that names none. Raises Invalid, naming the choices."""
        return targets.default(self._engine)

    def health(self, target_id: model.TargetId) -> tuple[model.Health, str | None]:
        """Return whether a target could be used when it was last, and why not."""
        return self._engine.targets.health(target_id)

    async def create_target(self, draft: model.TargetDraft) -> model.Target:
        """Make a target of a place that can be used now. Raises every kind, with the cause."""
        ended = threading.Event()
        work = functools.partial(targets.create, self._engine, draft, cancelled=ended)
        made: asyncio.Future[model.Target] = self._threads.submit(as_cause, "create", work)
        made.add_done_callback(_retrieve)
        await asyncio.wait([made], timeout=LOOK_S)
        if made.done():
            return await made
        ended.set()
        raise Unusable(f"cannot create target {draft.name}: {draft.url} does not answer within {LOOK_S:.0f} s")

    async def remove_target(self, target_id: model.TargetId) -> model.Target:
        """Forget a target and its backups; what lies there stays. Raises NotFound, InUse, Unsupported."""
        name = self.target_row(target_id).name
        user = self._jobs.using(_shown(target_id))
        if user is not None:
            raise InUse(f"cannot remove target {name}: {user} uses it")
        return await self._runner.run("remove", targets.remove, self._engine, target_id)

    async def look(self) -> None:
        """Have the health of targets looked at where it is old; nobody waits for that."""
        now_s = time.monotonic()
        for target in self._store.targets():
            is_old = now_s - self._looked_s.get(target.id, -LOOK_EVERY_S) >= LOOK_EVERY_S
            if is_old and target.id not in self._looking:
                self._looked_s[target.id] = now_s
                self._runner.spawn(self._look(target.id))

    async def scan(self, target_id: model.TargetId) -> list[model.Backup]:
        """Compare the rows of a target with what lies there; return the rows that were adopted."""
        found = await self._check(target_id, "scan", functools.partial(keeping.scan, self._engine, target_id))
        return found.adopted

    async def prune(self, target_id: model.TargetId) -> "Pruned":
        """Delete the chunks in a target that no backup names and that are old enough."""
        return await self._check(target_id, "prune", functools.partial(keeping.prune, self._engine, target_id))

    # Backups.

    async def backup_row(self, backup_id: model.BackupId) -> model.Backup:
        """Return a backup or its tombstone. Raises NotFound."""
        backup = await self._runner.in_thread(self._store.backup, backup_id)
        if backup is None:
            raise NotFound(f"there is no backup 1b{backup_id}")
        return backup

    async def create(
        self,
        snapshot_id: model.SnapshotId,
        *,
        target_id: model.TargetId | None = None,
        name: str | None = None,
        description: str | None = None,
    ) -> model.Backup:
        """Begin a backup of a snapshot, which goes on; one that is or was made there already is returned instead."""
        snapshot = await self._runner.in_thread(self._store.snapshot, snapshot_id)
        if snapshot is None:
            raise NotFound(f"there is no snapshot 1s{snapshot_id}")
        target = self.default_target() if target_id is None else self.target_row(target_id)
        wish = backups.Wish(name, description, is_of_snapshot=target_id is None)
        await self._ensure_usable(target, f"cannot back up snapshot {snapshot.shown_name}")
        return await asyncio.shield(self._runner.spawn(self._begin(snapshot, target, wish)))

    async def create_of_volume(
        self,
        volume_id: model.VolumeId,
        *,
        target_id: model.TargetId | None = None,
        name: str | None = None,
        description: str | None = None,
    ) -> model.Backup:
        """Begin a backup of what a volume holds now: of a snapshot that expires as what a revert displaces does."""
        target = self.default_target() if target_id is None else self.target_row(target_id)
        volume = self._store.volume(volume_id)
        if volume is None:
            raise NotFound(f"there is no volume 1v{volume_id}")
        what = f"cannot back up volume {volume.name}"
        await self._ensure_usable(target, what)
        async with self._locks.hold(("automatic", volume_id), "backup", what=what, wait_s=WAIT_S):  # one name for each
            snapshot = await self._freeze(volume_id, await self._runner.in_thread(self._automatic, volume_id))
        wish = backups.Wish(name, description)
        begin = self._begin if snapshot.state is SnapshotState.CREATED else self._begin_early
        return await asyncio.shield(self._runner.spawn(begin(snapshot, target, wish)))

    async def cancel(self, backup_id: model.BackupId) -> model.Backup:
        """End a backup that is being made; what still takes longer than CANCEL_S goes on to its end.

        Raises NotFound: it is not being made.
        """
        backup = next((each for each in self._store.creating_backups() if each.id == backup_id), None)
        if backup is None:
            backup = await self.backup_row(backup_id)
            raise NotFound(f"cannot cancel backup {backup.shown_name}: it is {backup.state.value}")
        what = f"cannot cancel backup {backup.shown_name}"
        self._start(backup, is_wanted=False)  # if nobody works on it: it may wait for its pool to come back
        task = self._sending.get(backup_id)
        if task is None:
            raise InUse(f"{what}: the daemon stops")
        await asyncio.sleep(0)  # it is a job from its first step on
        job = self._jobs.get(backup.shown_name)
        if job is not None:
            job.cancel()
            if self._is_waiting(backup_id):
                task.cancel()
        await asyncio.wait([task], timeout=CANCEL_S)
        ended = await self.backup_row(backup_id)
        if ended.state is BackupState.CREATED:
            raise NotFound(f"{what}: it was made before that")
        return ended

    async def remove(self, backup_id: model.BackupId, *, answer_s: float = ANSWER_S) -> model.Backup:
        """Remove a backup here and in its target; after `answer_s` seconds a begun removal is answered and goes on."""
        backup = await self.backup_row(backup_id)
        user = self._jobs.using(backup.shown_name)
        if user is not None:
            raise InUse(f"cannot remove backup {backup.shown_name}: {user} needs it")
        going = await self._runner.run("remove", keeping.begin_remove, self._engine, backup_id)
        if going.state is not BackupState.REMOVING:
            return going
        task = self._runner.spawn(self._finish_remove(going))
        await asyncio.wait([task], timeout=answer_s)
        return await self.backup_row(backup_id)

    async def verify(
        self, backup_id: model.BackupId, *, sample: float = 1.0, answer_s: float = ANSWER_S
    ) -> model.Backup:
        """Read a share of a backup and of what it builds on; what is wrong is its message then.

        After `answer_s` seconds it is answered and goes on; what fails later is a fault of the runner.
        """
        backup = await self.backup_row(backup_id)
        if backup.state is not BackupState.CREATED:
            raise NotFound(f"cannot verify backup {backup.shown_name}: it is {backup.state.value}")
        self._runner.forget_fault(backup.shown_name)
        return await self._runner.answered(
            lambda begun: self._verify(backup, sample, begun), lambda row: row.shown_name, answer_s=answer_s
        )

    async def drop_base(self, backup: model.Backup) -> None:
        """Give up the tree that the next increment would be made on, for its space."""
        if await self._runner.in_thread(backups.drop_base, self._engine, backup):
            message = "verb=relieve backup=%s volume=%s result=its base went for space, the next backup is a whole one"
            _log.warning(message, backup.shown_name, backup.volume_name)

    @asynccontextmanager
    async def archive(self, backup_id: model.BackupId, path: str) -> AsyncIterator[Iterator[bytes]]:
        """Give one file or folder of a backup as a tar stream; it blocks."""
        backup = await self.backup_row(backup_id)
        self._readers += 1
        uses = frozenset({backup.shown_name, _shown(backup.target_id)})
        with self._jobs.running(f"{backup.shown_name}/{self._readers}", "read", uses=uses) as job:
            chunks = supplies.archive(self._engine, backup, path, work=job)
            try:
                yield chunks
            finally:
                await self._threads.submit(chunks.close)

    # How they run.

    async def _begin(self, snapshot: model.Snapshot, target: model.Target, wish: backups.Wish) -> model.Backup:
        what = f"cannot back up snapshot {snapshot.shown_name}"
        async with self._locks.hold(snapshot.volume_id, "backup", what=what, wait_s=WAIT_S):
            present = await self._runner.in_thread(self._store.snapshot, snapshot.id) or snapshot
            return await self._begun(present, backups.begin, target, wish, is_held=True)

    async def _begin_early(self, snapshot: model.Snapshot, target: model.Target, wish: backups.Wish) -> model.Backup:
        """Begin a backup although its snapshot is created by a long copy, which has the volume's lock."""
        try:
            return await self._begun(snapshot, backups.begin_early, target, wish, is_held=False)
        except NotFound:
            reason = self._runner.fault(f"1s{snapshot.id}")
            if reason is None:
                raise
            raise Unusable(reason) from None

    async def _begun(
        self, snapshot: model.Snapshot, begin: Callable[..., model.Backup], *rest: object, is_held: bool
    ) -> model.Backup:
        self._begins[snapshot.volume_id] += 1
        try:
            backup = await self._runner.run("backup", begin, self._engine, snapshot, *rest)
        finally:
            self._begins.subtract({snapshot.volume_id: 1})
            self._begins += Counter()  # those of which none begins go
        if backup.state is BackupState.CREATING:
            self._start(backup, is_held=is_held)
        return backup

    def _start(self, backup: model.Backup, *, is_wanted: bool = True, is_held: bool = False) -> None:
        """Have a backup sent; `is_held` if what it sends is there and cannot go."""
        if backup.id in self._sending or self._stopping.is_set():
            return
        task = self._sending[backup.id] = self._runner.spawn(self._send(backup, is_wanted=is_wanted, is_held=is_held))
        task.add_done_callback(lambda _: self._sending.pop(backup.id))

    async def _send(self, backup: model.Backup, *, is_wanted: bool, is_held: bool) -> None:
        begun_s = time.monotonic()
        with self._jobs.running(backup.shown_name, "backup", uses=frozenset({_shown(backup.target_id)})) as job:
            if not is_wanted:
                job.cancel()
            try:
                ended = await self._in_turn(backup, job, is_held=is_held)
            except Error as err:  # it could not be written down: it is tried again
                _log.warning("verb=backup backup=%s result=%s", backup.shown_name, err)
                return
            except Exception:  # noqa: BLE001 - our own bug must not leave a backup that never ends
                _log.exception("verb=backup backup=%s result=internal error", backup.shown_name)
                ended = await self._in_thread("backup", backups.fail, backup, "internal error of voldriverd")
        self._log_end(ended, time.monotonic() - begun_s)
        if ended.state in {BackupState.REMOVED, BackupState.ERROR} and not self._stopping.is_set():
            self._runner.spawn(self._in_thread("backup", backups.withdraw, ended, self._stopping))

    async def _in_turn(self, backup: model.Backup, job: jobs.Job, *, is_held: bool) -> model.Backup:
        """Send a backup when no other one of its volume is sent to its target, and few others are."""
        name = ("backup", backup.volume_id, backup.target_id)
        job.waits_for = "another backup"
        try:
            fault = None if is_held or job.is_given_up else await self._await_snapshot(backup, job)
            if fault is not None:
                return await self._in_thread("backup", backups.fail, backup, fault)
            if job.is_given_up:
                return await self._in_thread("backup", backups.give_up, backup)
            async with AsyncExitStack() as stack:
                turn = self._locks.hold(name, "backup", what="cannot back up", wait_s=_FOREVER_S)
                await stack.enter_async_context(turn)
                await stack.enter_async_context(self._senders)
                job.waits_for = None
                if job.cancelled.is_set():  # the daemon stops, and so ended what this one waited for
                    return backup
                return await self._in_thread("backup", backups.finish, backup, job)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not job.is_given_up:  # such as by the end of the daemon, and is taken up again
                raise
            task.uncancel()  # `cancel` woke it from its wait
            return await self._in_thread("backup", backups.give_up, backup)

    async def _await_snapshot(self, backup: model.Backup, job: jobs.Job) -> str | None:
        """Wait for the verb that still creates the snapshot of a backup, then hold on to what it made.

        Returns why that came to nothing, if it did.
        """
        if backup.volume_id is None or backup.snapshot_id is None:
            return None
        async with AsyncExitStack() as stack:
            snapshot = await self._runner.in_thread(self._store.snapshot, backup.snapshot_id)
            if snapshot is not None and snapshot.state is SnapshotState.CREATING:
                job.waits_for = f"its snapshot {snapshot.shown_name}"
                turn = self._locks.hold(backup.volume_id, "backup", what="cannot back up", wait_s=_FOREVER_S)
                await stack.enter_async_context(turn)
                snapshot = await self._runner.in_thread(self._store.snapshot, backup.snapshot_id)
            if snapshot is None:
                return self._runner.fault(f"1s{backup.snapshot_id}")
            job.waits_for = None  # a cancel does not cut off the clone
            await self._runner.run("backup", backups.hold, self._engine, backup)
            job.waits_for = "another backup"
        return None

    def _is_waiting(self, backup_id: model.BackupId) -> bool:
        job = self._jobs.get(f"1b{backup_id}")
        return job is not None and job.waits_for is not None

    def _cut_off(self) -> list[model.Backup]:
        busy = self._begins.keys()
        creating = [each for each in self._store.creating_backups() if each.id not in self._sending]
        return [backup for backup in creating if backup.volume_id not in busy and self._is_ready(backup)]

    def _is_ready(self, backup: model.Backup) -> bool:
        """Tell whether a backup can be taken up now: it waits for a pool that is unavailable."""
        volume = None if backup.volume_id is None else self._store.volume(backup.volume_id)
        return volume is None or self._engine.pools.get(volume.pool_id).driver is not None

    def _log_end(self, backup: model.Backup, passed_s: float) -> None:
        target = self._store.target(backup.target_id)
        about = {
            "backup": backup.shown_name,
            "volume": backup.volume_name,
            "target": target.name if target else f"1bt{backup.target_id}",
            "driver": backup.driver,
            "format": backup.format.value if backup.format else None,
            "content_bytes": backup.content_bytes,
            "stored_bytes": backup.stored_bytes,
            "error": backup.message if backup.state is BackupState.ERROR else None,
        }
        self._runner.verbs.note("backup", about, passed_s, result=_RESULTS.get(backup.state, "cancelled"))

    async def _finish_remove(self, backup: model.Backup) -> None:
        if backup.id in self._removing or self._stopping.is_set():
            return
        self._removing.add(backup.id)
        about = {"backup": backup.shown_name, "volume": backup.volume_name, "driver": backup.driver}
        try:
            with self._jobs.running(backup.shown_name, "remove", uses=frozenset({_shown(backup.target_id)})) as job:
                work = self._in_thread("remove", keeping.finish_remove, backup, job)
                await self._runner.timed("remove-backup", lambda: about, work)
        except Error as err:
            if not verbs.is_told(err):
                _log.warning("verb=remove-backup backup=%s result=%s", backup.shown_name, err)
        finally:
            self._removing.discard(backup.id)

    async def _verify(self, backup: model.Backup, sample: float, begun: Callable[[model.Backup], None]) -> model.Backup:
        with self._jobs.running(backup.shown_name, "verify", uses=frozenset({_shown(backup.target_id)})) as job:
            begun(backup)
            work = functools.partial(keeping.verify, self._engine, backup, job, sample=sample)
            about = {"backup": backup.shown_name, "volume": backup.volume_name, "driver": backup.driver}
            return await self._as_check(job, "verify", about, work, judge=_judge)

    async def _check(self, target_id: model.TargetId, verb: str, work: Callable[[jobs.Job], _T]) -> _T:
        """Look through a target, as a job of it; it goes on when who asked for it hangs up."""
        name = self.target_row(target_id).name

        async def locked() -> _T:
            with self._jobs.running(_shown(target_id), verb) as job:
                return await self._as_check(job, verb, {"target": name}, functools.partial(work, job))

        return await asyncio.shield(self._runner.spawn(locked()))

    async def _as_check(
        self,
        job: jobs.Job,
        verb: str,
        about: Facts,
        work: Callable[[], _T],
        *,
        judge: Callable[[_T], str] = lambda _: verbs.OK,
    ) -> _T:
        async def in_turn() -> _T:
            job.waits_for = "another check"
            async with self._checkers:
                job.waits_for = None
                return await self._threads.submit(as_cause, verb, work)

        return await self._runner.timed(verb, lambda: about, in_turn(), judge=judge)

    async def _ensure_usable(self, target: model.Target, what: str) -> None:
        """Look at a target once more that could not be used when it was last. Raises Unusable with the cause."""
        if self.health(target.id)[0] is model.Health.AVAILABLE:
            return
        await asyncio.wait([self._runner.spawn(self._look(target.id))], timeout=LOOK_S)
        health, reason = self.health(target.id)
        if health is model.Health.UNAVAILABLE:
            raise Unusable(f"{what}: target {target.name} is unavailable: {reason}")

    async def _look(self, target_id: model.TargetId) -> None:
        self._looking.add(target_id)
        try:
            work = functools.partial(targets.look, self._engine, target_id, cancelled=self._stopping)
            await self._threads.submit(work)
        except (Error, OSError) as err:  # it is noted, and shown with the target
            _log.debug("verb=look target=1bt%d result=%s", target_id, err)
        finally:
            self._looking.discard(target_id)

    async def _in_thread(self, verb: str, work: Callable[..., _T], *arguments: object) -> _T:
        return await self._threads.submit(as_cause, verb, work, self._engine, *arguments)

    def _automatic(self, volume_id: model.VolumeId) -> snapshots.Wish:
        now = self._engine.now()
        base = name = f"backup-{now:%Y%m%dT%H%M%SZ}"
        count = 1
        while self._store.snapshot_named(volume_id, name) is not None:
            count += 1
            name = f"{base}.{count}"
        kept_s = self._engine.limits.trash_retention_s or snapshots.KEEP_S
        return snapshots.Wish(name, "made for a backup", now + timedelta(seconds=kept_s), is_automatic=True)


def _judge(backup: model.Backup) -> str:
    """Return what a verification has come to."""
    return "damaged" if chains.is_damage(backup.message) else verbs.OK


def _shown(target_id: model.TargetId) -> str:
    return f"1bt{target_id}"


def _retrieve(future: "asyncio.Future[model.Target]") -> None:
    """Look at what came of something that nobody waits for any more, so that it is not reported as forgotten."""
    if not future.cancelled():
        future.exception()
