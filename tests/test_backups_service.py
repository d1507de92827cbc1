"""Backups through the service: what goes on beside what, what waits, what ends it, and what a start takes up."""

import asyncio
import errno
import logging
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests import backing
from tests.backing import freeze, objects
from tests.engines import Bench, bench_on
from tests.serving import PATIENCE_S, Gate, serve, until
from voldriverd import backups as service_backups
from voldriverd import model
from voldriverd.backup.repository import Repository
from voldriverd.driver import Capability, Key
from voldriverd.engine import backups, keeping, scratch, snapshots, space, targets
from voldriverd.engine.context import Engine
from voldriverd.errors import InUse, Invalid, NotFound, Unsupported, Unusable
from voldriverd.jobs import Job
from voldriverd.model import BackupState, Health
from voldriverd.service import Service

pytestmark = pytest.mark.root


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Hold every backup where its bytes would be sent."""
    gate = Gate()
    finish = backups.finish

    def held(engine: Engine, backup: model.Backup, work: Job) -> model.Backup:
        gate.hold(backup.shown_name, work)
        return finish(engine, backup, work)

    monkeypatch.setattr(backups, "finish", held)
    return gate


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for backups."""
    return tmp_path / "target"


@pytest.fixture
def bench(memory_root: Path, place: Path) -> Iterator[Bench]:
    """Give a bench with the volumes `db`, `web` and `mail`, and a target."""
    with bench_on(memory_root) as bench:
        for name in ("db", "web", "mail"):
            bench.create(name)
            bench.write(name, name)
        backing.add_target(bench.engine, place)
        yield bench
        for path in sorted(place.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        place.rmdir()


async def ended(service: Service, *made: model.Backup) -> list[model.Backup]:
    """Wait for the ends of backups and return their rows."""
    await until(lambda: not any(service.jobs.get(each.shown_name) for each in made))
    return [await service.backups.backup_row(each.id) for each in made]


def snapshot_of(bench: Bench, name: str = "db") -> model.Snapshot:
    return freeze(bench.engine, bench.volume(name))


def target_of(bench: Bench) -> model.Target:
    return bench.store.targets()[0]


def back_up(bench: Bench, name: str = "db") -> model.Backup:
    """Make a backup without the service."""
    return backing.back_up(bench.engine, bench.volume(name), target_of(bench))


@contextmanager
def gone(place: Path) -> Iterator[None]:
    """Take the target away for the block."""
    away = place.with_name("away")
    place.rename(away)
    yield
    away.rename(place)


# Backups.


def test_a_backup_is_answered_when_it_has_begun_and_goes_on(
    bench: Bench, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def work(service: Service) -> model.Backup:
        begun = await service.backups.create(snapshot_of(bench).id, name="nightly")
        assert (begun.state, begun.name) == (BackupState.CREATING, "nightly")
        await until(lambda: gate.reached)
        job = service.jobs.get("1b1")
        assert job is not None
        assert (job.percent, job.verb) == (42, "backup")
        gate.opened.set()
        return (await ended(service, begun))[0]

    made = serve(bench, work)
    assert (made.state, backing.read(bench.engine, made)) == (BackupState.CREATED, b"db")
    (line,) = [each.getMessage() for each in caplog.records if each.getMessage().startswith("verb=backup ")]
    told = "verb=backup backup=1b1 volume=db target=near driver=memory format=btrfs "
    told += f"content_bytes={made.content_bytes} stored_bytes={made.stored_bytes} result=ok duration_ms="
    assert line.startswith(told)
    assert line.endswith(" by=voldriverd")


def test_no_verb_waits_for_a_backup_of_its_volume(bench: Bench, gate: Gate) -> None:
    async def work(service: Service) -> None:
        snapshot = snapshot_of(bench)
        await service.backups.create(snapshot.id)
        await until(lambda: gate.reached)
        await service.snapshot(bench.volume("db").id, snapshots.Wish("meanwhile"))
        await service.remove_snapshot(snapshot.id)
        await service.remove(bench.volume("db").id)
        with pytest.raises(InUse, match="backup 1b1 is being made of it"):
            await service.purge(bench.trashed("db").id)

    serve(bench, work)


def test_only_a_few_are_sent_at_once_and_the_others_say_what_they_wait_for(bench: Bench, gate: Gate) -> None:
    async def work(service: Service) -> list[model.Backup]:
        made = [await service.backups.create(snapshot_of(bench, name).id) for name in ("db", "web", "mail")]
        await until(lambda: len(gate.reached) == service_backups.BACKUPS_AT_ONCE)
        waiting = service.jobs.get("1b3")
        assert waiting is not None
        assert waiting.message() == "waits for another backup"
        assert gate.reached == {"1b1", "1b2"}
        gate.opened.set()
        return await ended(service, *made)

    assert {each.state for each in serve(bench, work)} == {BackupState.CREATED}


def test_backups_of_a_volume_to_one_target_follow_each_other(bench: Bench, gate: Gate) -> None:
    async def work(service: Service) -> list[model.Backup]:
        made = [await service.backups.create(snapshot_of(bench).id) for _ in range(3)]
        await until(lambda: gate.reached)
        waiting = [service.jobs.get(each.shown_name) for each in made]
        assert [job is not None and job.waits_for for job in waiting] == [None, "another backup", "another backup"]
        assert gate.reached == {"1b1"}
        gate.opened.set()
        return await ended(service, *made)

    first, second, third = serve(bench, work)
    assert [each.parent_uuid for each in (first, second, third)] == [None, first.uuid, second.uuid]


def test_the_same_snapshot_again_is_the_same_backup(bench: Bench, gate: Gate) -> None:
    async def work(service: Service) -> None:
        snapshot = snapshot_of(bench)
        first = await service.backups.create(snapshot.id)
        assert (await service.backups.create(snapshot.id)).id == first.id
        gate.opened.set()
        (made,) = await ended(service, first)
        assert await service.backups.create(snapshot.id, target_id=target_of(bench).id) == made

    serve(bench, work)


def test_only_a_backup_without_a_target_shows_on_its_snapshot(bench: Bench, gate: Gate) -> None:
    async def work(service: Service) -> None:
        first, second = snapshot_of(bench), snapshot_of(bench)
        made = await service.backups.create(first.id)
        await service.backups.create(second.id, target_id=target_of(bench).id)
        assert bench.store.is_backing_up(first.id)
        assert not bench.store.is_backing_up(second.id)
        gate.opened.set()
        await ended(service, made)
        assert not bench.store.is_backing_up(first.id)

    serve(bench, work)


def test_a_backup_of_a_volume_is_one_of_an_automatic_snapshot_that_expires(bench: Bench) -> None:
    async def work(service: Service) -> list[model.Backup]:
        volume_id = bench.volume("db").id
        made = [await service.backups.create_of_volume(volume_id, description="why") for _ in range(2)]
        return await ended(service, *made)

    made = serve(bench, work)
    assert [(each.state, each.description, each.is_of_snapshot) for each in made] == [
        (BackupState.CREATED, "why", False)
    ] * 2
    rows = bench.store.snapshots(bench.volume("db").id)
    assert [row.name for row in rows if row.name and row.name.startswith("backup-2")] == [
        each.snapshot_name for each in made
    ]
    assert all(row.is_automatic and row.expires_at is not None for row in rows)
    assert backing.read(bench.engine, made[1]) == b"db"


class Copies:
    """A snapshot of a driver without clones: it takes until it is let through, and may fail then."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.opened = threading.Event()
        self._inner, self._fails = bench.driver.clone, fails
        monkeypatch.setattr("voldriverd.service.API_ANSWER_S", 0.02)
        monkeypatch.setattr(bench.driver, "capabilities", Capability.NONE)
        monkeypatch.setattr(bench.driver, "clone", self._clone)

    def _clone(self, source: Key, target: Key, *, read_only: bool) -> None:
        assert self.opened.wait(PATIENCE_S)
        if self._fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._inner(source, target, read_only=read_only)


@pytest.mark.parametrize("has_clones", [False, True])
def test_a_backup_of_a_volume_is_answered_while_its_snapshot_is_copied(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, has_clones: bool
) -> None:
    copies = Copies(bench, monkeypatch)
    if has_clones:  # they take long as well where gigabytes are to be written first
        monkeypatch.setattr(bench.driver, "capabilities", Capability.COW)

    async def work(service: Service) -> model.Backup:
        begun = await service.backups.create_of_volume(bench.volume("db").id, name="nightly")
        assert (begun.state, begun.name, begun.key) == (BackupState.CREATING, "nightly", "b1" if has_clones else None)
        await until(lambda: (job := service.jobs.get("1b1")) and "snapshot" in job.message())
        job = service.jobs.get("1b1")
        assert job is not None
        assert job.message() == f"waits for its snapshot {begun.snapshot_name}"
        copies.opened.set()
        return (await ended(service, begun))[0]

    made = serve(bench, work)
    assert (made.state, backing.read(bench.engine, made)) == (BackupState.CREATED, b"db")


def test_a_backup_whose_snapshot_comes_to_nothing_says_why(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = Copies(bench, monkeypatch, fails=True)

    async def work(service: Service) -> model.Backup:
        begun = await service.backups.create_of_volume(bench.volume("db").id)
        await until(lambda: (job := service.jobs.get("1b1")) and "snapshot" in job.message())
        copies.opened.set()
        return (await ended(service, begun))[0]

    made = serve(bench, work)
    assert (made.state, made.message) == (BackupState.ERROR, "cannot snapshot volume db: no space is left in the pool")
    assert not bench.store.snapshots(bench.volume("db").id)


def test_a_backup_that_waits_for_its_snapshot_is_cancelled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = Copies(bench, monkeypatch)

    async def work(service: Service) -> None:
        begun = await service.backups.create_of_volume(bench.volume("db").id)
        await until(lambda: (job := service.jobs.get("1b1")) and "snapshot" in job.message())
        assert (await service.backups.cancel(begun.id)).state is BackupState.REMOVED
        copies.opened.set()

    serve(bench, work)
    (snapshot,) = bench.store.snapshots(bench.volume("db").id)
    assert snapshot.state is model.SnapshotState.CREATED


def test_a_backup_that_waits_for_its_turn_has_what_its_snapshot_held(
    bench: Bench, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(service: Service) -> model.Backup:
        await service.backups.create(snapshot_of(bench).id)
        await until(lambda: gate.reached)
        copies = Copies(bench, monkeypatch)
        monkeypatch.setattr(bench.driver, "capabilities", Capability.COW)
        begun = await service.backups.create_of_volume(bench.volume("db").id)
        copies.opened.set()
        assert begun.key is not None
        await until(lambda: begun.key in bench.driver.trees())
        assert begun.snapshot_id is not None
        await service.remove_snapshot(begun.snapshot_id)
        gate.opened.set()
        return (await ended(service, begun))[0]

    made = serve(bench, work)
    assert (made.state, made.message) == (BackupState.CREATED, None)
    assert backing.read(bench.engine, made) == b"db"


def test_a_backup_that_is_cancelled_while_its_tree_is_cloned_leaves_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = snapshots.begin_create(bench.engine, bench.volume("db"), snapshots.Wish("one"))
    begun = backups.begin_early(bench.engine, snapshot, target_of(bench), backups.Wish())
    snapshots.finish_create(bench.engine, bench.volume("db"), snapshot)
    copies = Copies(bench, monkeypatch)

    async def work(service: Service) -> None:
        await service.backups.resume()
        await until(lambda: (job := service.jobs.get("1b1")) and job.waits_for is None)
        cancelling = asyncio.create_task(service.backups.cancel(begun.id))
        await until(lambda: (job := service.jobs.get("1b1")) and job.is_given_up)
        copies.opened.set()
        assert (await cancelling).state is BackupState.REMOVED

    serve(bench, work)
    bench.upkeep()
    assert bench.driver.trees() == bench.tree_rows()
    assert begun.key not in bench.driver.trees()


def test_a_backup_whose_snapshot_outlasts_the_daemon_is_taken_up_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copies = Copies(bench, monkeypatch)

    async def stopped() -> None:
        service = Service(bench.engine)
        await service.backups.create_of_volume(bench.volume("db").id)
        await until(lambda: (job := service.jobs.get("1b1")) and "snapshot" in job.message())
        assert not await service.stop(within_s=0.05)

    asyncio.run(stopped())  # and so it ends what still waits
    copies.opened.set()
    for thread in threading.enumerate():
        if thread.name.startswith("copy_"):
            thread.join(PATIENCE_S)
    assert [backup.state for backup in bench.store.creating_backups()] == [BackupState.CREATING]
    assert "internal error" not in caplog.text


@pytest.mark.parametrize("capability", [Capability.NONE, Capability.COW])
def test_a_backup_of_a_snapshot_that_a_crash_cut_off_ends_at_the_next_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capability: Capability
) -> None:
    monkeypatch.setattr(bench.driver, "capabilities", capability)
    snapshot = snapshots.begin_create(bench.engine, bench.volume("db"), snapshots.Wish("one"))
    begun = backups.begin_early(bench.engine, snapshot, target_of(bench), backups.Wish())
    bench.restart()

    async def work(service: Service) -> model.Backup:
        await service.backups.resume()
        await until(lambda: not bench.store.creating_backups())
        return await service.backups.backup_row(begun.id)

    made = serve(bench, work)
    assert (made.state, made.message) == (BackupState.ERROR, "its snapshot is gone")
    bench.upkeep()
    assert bench.driver.trees() == bench.tree_rows() == {bench.volume(name).tree for name in ("db", "web", "mail")}


def test_what_came_to_nothing_is_not_backed_up(bench: Bench) -> None:
    snapshot = snapshots.begin_create(bench.engine, bench.volume("db"), snapshots.Wish("one"))
    bench.store.commit(lambda write: write.delete_snapshot(snapshot))
    with pytest.raises(NotFound, match="cannot back up snapshot one: it is gone"):
        backups.begin_early(bench.engine, snapshot, target_of(bench), backups.Wish())
    assert not bench.store.creating_backups()


def test_what_does_not_exist_is_not_backed_up(bench: Bench) -> None:
    async def work(service: Service) -> None:
        with pytest.raises(NotFound, match="there is no snapshot 1s99"):
            await service.backups.create(model.SnapshotId(99))
        with pytest.raises(NotFound, match="there is no volume 1v99"):
            await service.backups.create_of_volume(model.VolumeId(99))
        with pytest.raises(NotFound, match="there is no target 1bt99"):
            await service.backups.create(snapshot_of(bench).id, target_id=model.TargetId(99))
        with pytest.raises(NotFound, match="there is no backup 1b99"):
            await service.backups.backup_row(model.BackupId(99))

    serve(bench, work)


def test_an_unavailable_target_is_refused_until_it_is_back(bench: Bench, place: Path) -> None:
    async def work(service: Service) -> None:
        snapshot = snapshot_of(bench)
        with gone(place):
            (failed,) = await ended(service, await service.backups.create(snapshot.id))
            assert failed.state is BackupState.ERROR
            with pytest.raises(Unusable, match="target near is unavailable: "):
                await service.backups.create(snapshot.id)
            with pytest.raises(Unusable, match="cannot back up volume db: target near is unavailable: "):
                await service.backups.create_of_volume(bench.volume("db").id)
            assert len(bench.store.snapshots(bench.volume("db").id)) == 1
        (made,) = await ended(service, await service.backups.create(snapshot.id))
        assert made.state is BackupState.CREATED

    serve(bench, work)


def test_our_own_bug_ends_a_backup_with_an_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> model.Backup:
        raise ZeroDivisionError

    monkeypatch.setattr(backups, "finish", fail)

    async def work(service: Service) -> model.Backup:
        return (await ended(service, await service.backups.create(snapshot_of(bench).id)))[0]

    made = serve(bench, work)
    assert (made.state, made.message) == (BackupState.ERROR, "internal error of voldriverd")
    assert "ZeroDivisionError" in caplog.text


def test_what_cannot_be_written_down_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = backups.finish

    def full(*_: object) -> model.Backup:
        raise Unusable("cannot write database")

    async def work(service: Service) -> None:
        monkeypatch.setattr(backups, "finish", full)
        (made,) = await ended(service, await service.backups.create(snapshot_of(bench).id))
        assert made.state is BackupState.CREATING
        monkeypatch.setattr(backups, "finish", finish)
        await service.backups.resume()
        await until(lambda: not bench.store.creating_backups())

    serve(bench, work)
    (made,) = bench.store.backups_in(target_of(bench).id)
    assert made.state is BackupState.CREATED


# Their ends.


def test_a_running_backup_is_cancelled(bench: Bench, gate: Gate, place: Path) -> None:
    async def work(service: Service) -> None:
        made = await service.backups.create(snapshot_of(bench).id)
        await until(lambda: gate.reached)
        cancelled = await service.backups.cancel(made.id)
        assert (cancelled.state, cancelled.message) == (BackupState.REMOVED, "cancelled")
        with pytest.raises(NotFound, match="cannot cancel backup 1b1: it is removed"):
            await service.backups.cancel(made.id)

    serve(bench, work)
    assert (objects(place, "backups"), objects(place, "writing")) == ([], [])


def test_a_waiting_backup_is_cancelled_without_its_turn(bench: Bench, gate: Gate) -> None:
    async def work(service: Service) -> None:
        made = [await service.backups.create(snapshot_of(bench).id) for _ in range(2)]
        await until(lambda: gate.reached)
        assert (await service.backups.cancel(made[1].id)).state is BackupState.REMOVED
        assert gate.reached == {"1b1"}
        gate.opened.set()
        assert (await ended(service, made[0]))[0].state is BackupState.CREATED
        third = await service.backups.create(snapshot_of(bench).id)
        assert (await ended(service, third))[0].state is BackupState.CREATED

    serve(bench, work)


def test_a_backup_that_nobody_works_on_is_cancelled_too(bench: Bench) -> None:
    backup = backing.begin(bench.engine, snapshot_of(bench), target_of(bench))
    next(iter(bench.engine.pools)).driver = None

    async def work(service: Service) -> model.Backup:
        await service.backups.resume()
        assert service.jobs.get("1b1") is None, "its pool is not there"
        return await service.backups.cancel(backup.id)

    assert serve(bench, work).state is BackupState.REMOVED


def test_a_backup_that_was_made_cannot_be_cancelled(bench: Bench) -> None:
    made = back_up(bench)

    async def work(service: Service) -> None:
        with pytest.raises(NotFound, match="cannot cancel backup 1b1: it is created"):
            await service.backups.cancel(made.id)

    serve(bench, work)


def test_what_ran_or_waited_at_the_stop_is_taken_up_at_the_next_start(
    bench: Bench, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def begin(service: Service) -> None:
        for _ in range(2):
            await service.backups.create(snapshot_of(bench).id)
        await until(lambda: gate.reached)

    async def resume(service: Service) -> None:
        await service.backups.resume()
        await service.backups.resume()
        await until(lambda: not bench.store.creating_backups())

    serve(bench, begin)
    assert [each.state for each in bench.store.creating_backups()] == [BackupState.CREATING] * 2
    assert [" result=stopped " in each.getMessage() for each in caplog.records if "1b" in each.getMessage()] == [
        True
    ] * 2
    bench.restart()
    gate.opened.set()
    serve(bench, resume)
    first, second = bench.store.backups_in(target_of(bench).id)
    assert (first.state, second.state, second.parent_uuid) == (BackupState.CREATED, BackupState.CREATED, first.uuid)


def test_a_backup_that_begins_just_now_is_not_taken_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = snapshot_of(bench)
    copies = Copies(bench, monkeypatch)
    monkeypatch.setattr(bench.driver, "capabilities", Capability.COW)

    async def work(service: Service) -> model.Backup:
        beginning = asyncio.create_task(service.backups.create(snapshot.id))
        await until(bench.store.creating_backups)
        await service.backups.resume()
        assert service.jobs.get("1b1") is None
        copies.opened.set()
        return (await ended(service, await beginning))[0]

    assert serve(bench, work).state is BackupState.CREATED


def test_nothing_begins_once_the_daemon_stops(bench: Bench) -> None:
    async def main() -> None:
        service = Service(bench.engine)
        snapshot = snapshot_of(bench)
        backup = backing.begin(bench.engine, snapshot, target_of(bench))
        assert await service.stop(within_s=5)
        await service.backups.resume()
        assert service.jobs.get(backup.shown_name) is None
        with pytest.raises(InUse, match="cannot cancel backup 1b1: the daemon stops"):
            await service.backups.cancel(backup.id)

    asyncio.run(main())


# Removal.


def test_a_removal_is_answered_and_goes_on(bench: Bench, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = back_up(bench)
    opened = threading.Event()
    finish_remove = keeping.finish_remove

    def slow(*arguments: Any) -> model.Backup:
        opened.wait(PATIENCE_S)
        return finish_remove(*arguments)

    monkeypatch.setattr(keeping, "finish_remove", slow)

    async def work(service: Service) -> None:
        assert (await service.backups.remove(made.id, answer_s=0.01)).state is BackupState.REMOVING
        opened.set()
        await until(lambda: not bench.store.removing_backups())

    serve(bench, work)
    assert objects(place, "backups") == []


def test_a_quick_removal_is_answered_at_its_end(bench: Bench) -> None:
    made = back_up(bench)
    assert serve(bench, lambda service: service.backups.remove(made.id)).state is BackupState.REMOVED


def test_a_removal_that_failed_is_tried_again_by_resume(bench: Bench, place: Path) -> None:
    made = back_up(bench)

    async def work(service: Service) -> None:
        with gone(place):
            assert (await service.backups.remove(made.id)).state is BackupState.REMOVING
        await service.backups.resume()
        await until(lambda: not bench.store.removing_backups())

    serve(bench, work)


def test_what_a_job_needs_is_not_removed(bench: Bench) -> None:
    made = back_up(bench)

    async def work(service: Service) -> None:
        with service.jobs.running("1v7", "restore", uses=frozenset({"1b1", "1bt1"})):
            with pytest.raises(InUse, match="cannot remove backup 1b1: restore of 1v7 needs it"):
                await service.backups.remove(made.id)
            with pytest.raises(InUse, match="cannot remove target near: restore of 1v7 uses it"):
                await service.backups.remove_target(model.TargetId(1))

    serve(bench, work)


# Verify, read, scan, prune.


def test_a_backup_is_verified(bench: Bench) -> None:
    made = back_up(bench)
    assert serve(bench, lambda service: service.backups.verify(made.id)).verified_at is not None


def test_a_verification_is_answered_and_goes_on_and_what_fails_then_is_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = back_up(bench)
    opened = threading.Event()

    def slow(*_: object, **__: object) -> model.Backup:
        opened.wait(PATIENCE_S)
        raise Unusable("cannot verify backup 1b1: nobody answers")

    monkeypatch.setattr(keeping, "verify", slow)

    async def work(service: Service) -> None:
        assert await service.backups.verify(made.id, answer_s=0.01) == made
        job = service.jobs.get("1b1")
        assert job is not None
        with pytest.raises(InUse, match="cannot verify 1b1: verify of it is running"):
            await service.backups.verify(made.id)
        opened.set()
        await until(lambda: service.runner.fault("1b1"))

    serve(bench, work)


def test_what_is_no_backup_is_not_verified(bench: Bench) -> None:
    backup = backing.begin(bench.engine, snapshot_of(bench), target_of(bench))

    async def work(service: Service) -> None:
        with pytest.raises(NotFound, match="cannot verify backup 1b1: it is creating"):
            await service.backups.verify(backup.id)

    serve(bench, work)


def test_one_file_comes_out_of_a_backup(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "SLACK_BYTES", 0)  # the pool is small
    made = back_up(bench)

    async def work(service: Service) -> bytes:
        async with service.backups.archive(made.id, "content") as chunks:
            with pytest.raises(InUse, match="read of 1b1"):
                await service.backups.remove(made.id)
            return await service.runner.in_thread(b"".join, chunks)

    with tarfile.open(fileobj=BytesIO(serve(bench, work))) as archive:
        member = archive.extractfile("content")
        assert member is not None
        assert member.read() == b"db"


def test_a_target_is_scanned_and_pruned_as_a_job_of_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = back_up(bench)
    bench.store.commit(lambda write: write.delete_backup(made))
    opened = threading.Event()
    scan = keeping.scan

    def slow(*arguments: Any) -> keeping.Found:
        opened.wait(PATIENCE_S)
        return scan(*arguments)

    monkeypatch.setattr(keeping, "scan", slow)

    async def work(service: Service) -> list[model.Backup]:
        target_id = target_of(bench).id
        asked = asyncio.ensure_future(service.backups.scan(target_id))
        await until(lambda: service.jobs.get("1bt1"))
        with pytest.raises(InUse, match="cannot prune 1bt1: scan of it is running"):
            await service.backups.prune(target_id)
        with pytest.raises(InUse, match="cannot remove target near: scan of 1bt1 uses it"):
            await service.backups.remove_target(target_id)
        opened.set()
        adopted = await asked
        assert (await service.backups.prune(target_id)).chunks == 0
        return adopted

    (adopted,) = serve(bench, work)
    assert adopted.uuid == made.uuid


# Targets.


def test_a_target_is_made_and_removed(bench: Bench, place: Path) -> None:
    async def work(service: Service) -> None:
        place.with_name("other").mkdir()
        made = await service.backups.create_target(model.TargetDraft("other", f"file://{place.with_name('other')}"))
        assert service.backups.health(made.id) == (Health.AVAILABLE, None)
        assert [each.name for each in service.backups.targets()] == ["near", "other"]
        with pytest.raises(Invalid, match="valid: near, other"):
            service.backups.default_target()
        assert (await service.backups.remove_target(made.id)).removed_at is not None
        assert service.backups.default_target() == target_of(bench)
        with pytest.raises(NotFound, match="there is no target 1bt2"):
            service.backups.target_row(made.id)

    serve(bench, work)


def test_configured_targets_come_first(bench: Bench, place: Path) -> None:
    bench.engine.targets.__init__([targets.Spec("nightly", f"file://{place}")])  # type: ignore[misc]
    targets.configure(bench.engine)

    async def work(service: Service) -> None:
        first, second = service.backups.targets()
        assert (first.name, first.is_configured, second.name) == ("nightly", True, "near")
        with pytest.raises(Unsupported, match="it is configured"):
            await service.backups.remove_target(first.id)

    serve(bench, work)


def test_a_target_that_does_not_answer_is_refused_and_not_made_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()
    open_repository = Repository.open

    def slow(*arguments: Any, cancelled: threading.Event | None = None, **options: Any) -> Repository:
        opened.wait(PATIENCE_S)
        del cancelled
        return open_repository(*arguments, **options)

    monkeypatch.setattr(Repository, "open", slow)
    monkeypatch.setattr(service_backups, "LOOK_S", 0.05)

    async def work(service: Service) -> None:
        draft = model.TargetDraft("other", target_of(bench).url)
        with pytest.raises(Unusable, match=r"cannot create target other: file:///.* does not answer within 0 s"):
            await service.backups.create_target(draft)
        opened.set()

    serve(bench, work)
    assert [each.name for each in bench.store.targets()] == ["near"]


def test_the_health_of_targets_is_looked_at_when_it_is_old(
    bench: Bench, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    look = targets.look

    def note(*arguments: Any, **options: Any) -> None:
        looks.append(arguments)
        look(*arguments, **options)

    monkeypatch.setattr(targets, "look", note)

    async def work(service: Service) -> None:
        target_id = target_of(bench).id
        with gone(place):
            await service.backups.look()
            await until(lambda: service.backups.health(target_id)[0] is Health.UNAVAILABLE)
        await service.backups.look()

    serve(bench, work)
    assert len(looks) == 1


# Space.


def test_a_shortage_takes_bases_when_the_trash_is_empty(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = back_up(bench)
    looks = iter([True, True, False])
    monkeypatch.setattr(space, "lacks_space", lambda *_: next(looks))

    async def work(service: Service) -> None:
        await service.remove(bench.volume("web").id)
        await service.relieve(bench.volume("db").pool_id)

    serve(bench, work)
    assert [each.name for each in bench.store.volumes()] == ["db", "mail"]
    assert backing.present(bench.engine, made).key is None


def test_backups_of_a_volume_that_are_asked_for_at_once_have_snapshots_of_their_own(bench: Bench) -> None:
    async def use(service: Service) -> list[model.Backup]:
        volume_id = bench.volume("db").id
        made = await asyncio.gather(*(service.backups.create_of_volume(volume_id) for _ in range(5)))
        return await ended(service, *made)

    made = serve(bench, use)
    assert [each.state for each in made] == 5 * [BackupState.CREATED]
    assert len({each.snapshot_id for each in made}) == 5
