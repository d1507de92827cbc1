"""Restores through the service: what is answered, who waits, what ends them, and what a start takes up."""

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests import backing
from tests.engines import Bench, bench_on
from tests.serving import PATIENCE_S, Gate, serve, until
from voldriverd import arrivals, model, names
from voldriverd import restores as service_restores
from voldriverd.api import docker
from voldriverd.api.rancher import volumes
from voldriverd.driver import Driver, Key
from voldriverd.engine import backups, creation, restores, snapshots, space, supplies, trash
from voldriverd.engine.context import Engine
from voldriverd.errors import Exists, InUse, NotFound, Unusable
from voldriverd.jobs import Job
from voldriverd.model import VolumeState
from voldriverd.service import Service

if TYPE_CHECKING:
    from aiohttp import web

pytestmark = pytest.mark.root


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Hold every restore where its tree would be made."""
    gate = Gate()
    unpack = supplies.unpack

    def held(engine: Engine, order: supplies.Order, driver: Driver, key: Key, work: supplies.Work) -> tuple[str, ...]:
        gate.hold(key, work)
        return unpack(engine, order, driver, key, work)

    monkeypatch.setattr(supplies, "unpack", held)
    return gate


@pytest.fixture
def bench(memory_root: Path, tmp_path: Path) -> Iterator[Bench]:
    """Give a bench with a volume `db` that says `now`, and a target."""
    with bench_on(memory_root) as bench:
        backing.add_target(bench.engine, tmp_path / "shelf", "shelf")
        bench.create("db", size="1M")
        bench.write("db", "one")
        yield bench


@pytest.fixture
def backup(bench: Bench) -> model.Backup:
    """Return a backup of `db` when it said `one`."""
    (target,) = bench.store.targets()
    snapshot = backing.freeze(bench.engine, bench.volume("db"), "one")
    made = backups.finish(bench.engine, backing.begin(bench.engine, snapshot, target), Job("backup"))
    assert made.state is model.BackupState.CREATED, made.message
    bench.write("db", "now")
    return made


def lose_chunks(place: Path) -> None:
    """Lose all data in a target, but no manifest."""
    for chunk in place.glob("volumes/*/chunks/*/*"):
        chunk.unlink()


def request(name: str, backup: model.Backup | str, **options: str) -> creation.Request:
    shown = backup if isinstance(backup, str) else backup.shown_name
    given = {**options, "from": f"backup:{shown}"}
    return creation.Request(name, names.parse_options(given), given)


def begun(bench: Bench, name: str, backup: model.Backup) -> model.Volume:
    """Leave what a crash leaves of a new volume that was promised."""
    volume_id = model.VolumeId(bench.store.reserve_id("volumes"))
    with closing(supplies.look(bench.engine, backup, work=Job("restore"), what="cannot restore")) as supply:
        restores.begin_create(bench.engine, request(name, backup), volume_id, supply)
    bench.restart()
    return bench.volume(name)


# An existing volume.


def test_a_restore_is_answered_in_time_and_goes_on(bench: Bench, backup: model.Backup, gate: Gate) -> None:
    volume = bench.volume("db")

    async def use(service: Service) -> tuple[model.Volume, model.Snapshot, str | None]:
        going, kept = await service.restores.restore(volume.id, backup.id, answer_s=0)
        assert kept is not None
        await until(lambda: gate.reached)
        job = service.jobs.get(f"1v{volume.id}")
        assert job is not None
        assert (job.verb, job.percent) == ("restore", 42)
        used = service.jobs.using(backup.shown_name), service.jobs.using(f"1bt{backup.target_id}")
        assert used == (f"restore of 1v{volume.id}", f"restore of 1v{volume.id}")
        gate.opened.set()
        await service.restores.settled(bench.volume("db"), "mount", within_s=PATIENCE_S)
        assert service.jobs.get(f"1v{volume.id}") is None
        return going, kept, service.runner.fault(f"1v{volume.id}")

    going, kept, fault = serve(bench, use)
    assert going.state is VolumeState.RESTORING
    assert bench.volume("db").state is VolumeState.INACTIVE
    assert (bench.read("db"), bench.read_key(kept.tree)) == ("one", "now")
    assert fault is None


def test_a_restore_is_waited_for(bench: Bench, backup: model.Backup) -> None:
    async def use(service: Service) -> snapshots.Reverted:
        restored, kept = await service.restores.restore(bench.volume("db").id, backup.id)
        assert kept is not None
        return restored, kept

    moved, kept = serve(bench, use)
    assert moved == bench.volume("db")
    assert kept.shown_name.startswith("before-restore-")
    assert bench.read("db") == "one"


def test_no_other_verb_is_done_meanwhile_but_unmount(bench: Bench, backup: model.Backup, gate: Gate) -> None:
    volume = bench.volume("db")
    one = bench.snapshot("db", "one")

    async def use(service: Service) -> None:
        await service.restores.restore(volume.id, backup.id, answer_s=0)
        verbs: tuple[Awaitable[object], ...] = (
            service.snapshot(volume.id, snapshots.Wish("two")),
            service.revert(volume.id, one.id),
            service.resize(volume.id, 2 << 20),
            service.remove(volume.id),
            service.create(
                creation.Request("copy", names.parse_options({"from": "db"}), {"from": "db"}), answer_s=PATIENCE_S
            ),
            service.restores.restore(volume.id, backup.id),
        )
        for verb in verbs:
            with pytest.raises(InUse, match="restor"):
                await verb
        await service.unmount(volume.id, "nobody")
        await service.set_properties(volume.id, description="changed")
        await service.reconcile()
        gate.opened.set()

    serve(bench, use)
    assert bench.volume("db").description == "changed"
    assert bench.volume("db").state is VolumeState.INACTIVE


def test_mount_waits_for_the_end(bench: Bench, backup: model.Backup, gate: Gate) -> None:
    volume = bench.volume("db")

    async def use(service: Service) -> str:
        await service.restores.restore(volume.id, backup.id, answer_s=0)
        mounting = asyncio.create_task(service.mount(volume.id, "container"))
        await asyncio.sleep(0)
        gate.opened.set()
        text = (await mounting / "content").read_text()
        await service.unmount(volume.id, "container")
        return text

    assert serve(bench, use) == "one"


def test_mount_says_how_far_it_is_when_it_takes_too_long(
    bench: Bench, backup: model.Backup, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voldriverd.service.MOUNT_WAIT_S", 0.05)
    volume = bench.volume("db")

    async def use(service: Service) -> None:
        await service.restores.restore(volume.id, backup.id, answer_s=0)
        await until(lambda: gate.reached)
        with pytest.raises(InUse, match=r"cannot mount volume db: it is being restored: 42 % \(84 of 200 B"):
            await service.mount(volume.id, "container")
        gate.opened.set()

    serve(bench, use)


def test_a_restore_can_be_cancelled(bench: Bench, backup: model.Backup, gate: Gate) -> None:
    volume = bench.volume("db")

    async def use(service: Service) -> model.Volume:
        await service.restores.restore(volume.id, backup.id, answer_s=0)
        await until(lambda: gate.reached)
        after = await service.restores.cancel(volume.id)
        assert service.runner.fault(f"1v{volume.id}") == "cannot restore volume db: it was cancelled"
        with pytest.raises(NotFound, match="cannot cancel the restore of volume db: none is running"):
            await service.restores.cancel(volume.id)
        return after

    after = serve(bench, use)
    assert (after.state, after.message) == (VolumeState.INACTIVE, "cannot restore volume db: it was cancelled")
    assert bench.read("db") == "now"


def test_a_restore_is_answered_although_its_target_is_slow_to_say_what_it_has(
    bench: Bench, backup: model.Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_restores, "LOOK_ANSWER_S", 0.02)
    asked, answers, look = threading.Event(), threading.Event(), supplies.look
    volume = bench.volume("db")

    def look_late(engine: Engine, backup: model.Backup, *, work: supplies.Work, what: str) -> supplies.Supply:
        asked.set()
        assert answers.wait(PATIENCE_S)
        return look(engine, backup, work=work, what=what)

    monkeypatch.setattr(supplies, "look", look_late)

    async def use(service: Service) -> tuple[model.Volume, model.Snapshot | None]:
        async with asyncio.timeout(PATIENCE_S / 4):
            begun = await service.restores.restore(volume.id, backup.id, answer_s=0)
        shown = volumes.KIND.show(service, bench.volume("db"))
        assert (shown["state"], shown["transitioning"]) == ("inactive", "yes")
        assert shown["transitioningMessage"] == "waits for its target"
        answers.set()
        await until(lambda: service.jobs.get(f"1v{volume.id}") is None)
        return begun

    assert serve(bench, use) == (volume, None)
    assert bench.read("db") == "one"


@pytest.mark.parametrize("name", ["db", "new"])
def test_a_cancel_is_answered_although_what_it_ends_takes_long(
    bench: Bench, backup: model.Backup, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It may be in the kernel, with the sync of all that has come or on a share whose server is slow."""
    monkeypatch.setattr(arrivals, "CANCEL_S", 0.02)
    reached, opened, unpack = threading.Event(), threading.Event(), supplies.unpack

    def held(engine: Engine, order: supplies.Order, driver: Driver, key: Key, work: supplies.Work) -> tuple[str, ...]:
        reached.set()
        assert opened.wait(PATIENCE_S)
        return unpack(engine, order, driver, key, work)

    monkeypatch.setattr(supplies, "unpack", held)

    async def use(service: Service) -> None:
        if name == "new":
            volume = await service.create(request("new", backup), answer_s=0)
        else:
            volume, _ = await service.restores.restore(bench.volume("db").id, backup.id, answer_s=0)
        await until(reached.is_set)
        async with asyncio.timeout(PATIENCE_S / 4):
            assert (await service.restores.cancel(volume.id)).state is VolumeState.RESTORING
            if name == "new":
                with pytest.raises(InUse, match="cannot remove volume new: its restore is still being ended"):
                    await service.remove(volume.id, wait_s=0.02)
        opened.set()
        await until(lambda: service.runner.fault(f"1v{volume.id}"))

    serve(bench, use)
    assert bench.read("db") == "now"
    assert bench.volume("db").state is VolumeState.INACTIVE
    assert bench.store.volume_named("new") is None


@pytest.mark.parametrize("name", ["db", "new"])
def test_a_restore_that_was_done_before_it_could_be_cancelled_says_so(
    bench: Bench, backup: model.Backup, gate: Gate, name: str
) -> None:
    async def use(service: Service) -> None:
        if name == "new":
            volume = await service.create(request("new", backup), answer_s=0)
        else:
            volume, _ = await service.restores.restore(bench.volume("db").id, backup.id, answer_s=0)
        async with service._locks.hold(volume.id, "set", what="cannot set", wait_s=1):
            gate.opened.set()
            await until(lambda: service._locks._entries[volume.id].users == 2)
            cancel = asyncio.create_task(service.restores.cancel(volume.id))
            await until(lambda: (job := service.jobs.get(f"1v{volume.id}")) and job.is_given_up)
        with pytest.raises(NotFound, match=f"cannot cancel the restore of volume {name}: it was done before that"):
            await cancel

    serve(bench, use)
    assert bench.read(name) == "one"


def test_what_fails_after_the_answer_is_kept(bench: Bench, backup: model.Backup, gate: Gate, tmp_path: Path) -> None:
    volume = bench.volume("db")

    async def use(service: Service) -> str | None:
        await service.restores.restore(volume.id, backup.id, answer_s=0)
        lose_chunks(tmp_path / "shelf")
        gate.opened.set()
        await service.restores.settled(bench.volume("db"), "mount", within_s=PATIENCE_S)
        await until(lambda: service.runner.fault(f"1v{volume.id}"))
        return service.runner.fault(f"1v{volume.id}")

    assert "it is missing" in (serve(bench, use) or "")
    assert (bench.volume("db").message or "").startswith("cannot restore volume db: cannot read backup")
    assert bench.volume("db").state is VolumeState.INACTIVE
    assert bench.read("db") == "now"


def test_our_own_bug_leaves_no_volume_restoring(
    bench: Bench, backup: model.Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(supplies, "unpack", fail)

    async def use(service: Service) -> None:
        with pytest.raises(ZeroDivisionError):
            await service.restores.restore(bench.volume("db").id, backup.id)
        with pytest.raises(ZeroDivisionError):
            await service.create(request("new", backup), answer_s=PATIENCE_S)

    serve(bench, use)
    assert bench.volume("db").state is VolumeState.INACTIVE
    assert bench.volume("db").message == "cannot restore volume db: internal error of voldriverd"
    assert bench.store.volume_named("new") is None


def test_what_is_not_there_is_not_found(bench: Bench, backup: model.Backup) -> None:
    async def use(service: Service) -> None:
        with pytest.raises(NotFound, match="cannot restore volume db: there is no backup 1b77"):
            await service.restores.restore(bench.volume("db").id, model.BackupId(77))
        with pytest.raises(NotFound, match="there is no volume 1v77"):
            await service.restores.restore(model.VolumeId(77), backup.id)
        with pytest.raises(NotFound, match="there is no volume 1v77"):
            await service.restores.cancel(model.VolumeId(77))
        with pytest.raises(NotFound, match="cannot create volume new: there is no backup 1b77"):
            await service.create(request("new", "1b77"), answer_s=PATIENCE_S)

    serve(bench, use)
    assert bench.volume("db").state is VolumeState.INACTIVE


def test_trash_goes_for_a_restore_that_is_short_of_space(
    bench: Bench, backup: model.Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [True, True]
    relieved = []

    def ensure(_engine: Engine, _pool: object, what: str) -> None:
        if short and short.pop():
            raise space.Shortage(f"{what}: too little is free", bench.volume("db").pool_id)

    async def relieve(_: Service, pool_id: model.PoolId) -> None:
        relieved.append(pool_id)

    monkeypatch.setattr(space, "ensure_reserve", ensure)
    monkeypatch.setattr(Service, "relieve", relieve)

    async def use(service: Service) -> None:
        with pytest.raises(space.Shortage):
            await service.restores.restore(bench.volume("db").id, backup.id)
        short.append(True)
        await service.restores.restore(bench.volume("db").id, backup.id)
        short.append(True)
        await service.create(request("new", backup), answer_s=PATIENCE_S)

    serve(bench, use)
    assert relieved == 3 * [bench.volume("db").pool_id]
    assert (bench.read("db"), bench.read("new")) == ("one", "one")


def test_only_so_many_bring_data_at_a_time_and_who_waits_can_be_cancelled(
    bench: Bench, backup: model.Backup, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "AT_ONCE", 1)
    volume = bench.volume("db")

    async def use(service: Service) -> None:
        await service.create(request("first", backup), answer_s=0)
        await until(lambda: gate.reached)
        await service.create(request("second", backup), answer_s=0)
        await service.restores.restore(volume.id, backup.id, answer_s=0)
        job = service.jobs.get(f"1v{volume.id}")
        assert job is not None
        assert job.message() == "waits for other restores"
        assert (await service.restores.cancel(volume.id)).state is VolumeState.INACTIVE
        gate.opened.set()
        await service.restores.settled(bench.volume("second"), "mount", within_s=PATIENCE_S)

    serve(bench, use)
    assert (bench.read("first"), bench.read("second"), bench.read("db")) == ("one", "one", "now")


# A new volume.


def test_a_new_volume_is_answered_in_time_exists_at_once_and_is_what_it_was(
    bench: Bench, backup: model.Backup, gate: Gate
) -> None:
    async def use(service: Service) -> None:
        going = await service.create(request("new", backup), answer_s=0)
        assert going.state is VolumeState.RESTORING
        assert bench.volume("new") == going
        assert service.restores.is_new(going)
        again = await service.create(request("new", backup), answer_s=PATIENCE_S)
        assert again == going
        with pytest.raises(Exists, match="it exists with from = backup:1b1, not backup:1b9"):
            await service.create(request("new", "1b9"), answer_s=PATIENCE_S)
        mounting = asyncio.create_task(service.mount(going.id, "container"))
        await asyncio.sleep(0)
        gate.opened.set()
        assert (await mounting / "content").read_text() == "one"
        await service.unmount(going.id, "container")

    serve(bench, use)
    assert bench.volume("new").state is VolumeState.INACTIVE
    assert not any(row.id == bench.volume("new").id for row in restores.resumable(bench.engine))


def test_to_remove_a_new_volume_is_to_cancel_it(bench: Bench, backup: model.Backup, gate: Gate) -> None:
    async def use(service: Service) -> model.Volume:
        going = await service.create(request("new", backup), answer_s=0)
        await until(lambda: gate.reached)
        return await service.remove(going.id)

    gone = serve(bench, use)
    assert (gone.state, gone.key) == (VolumeState.PURGED, None)
    assert bench.store.volume_named("new") is None
    bench.upkeep()
    (pool,) = bench.engine.pools
    assert bench.driver.trees() == bench.store.pointed_keys(pool.row.id)


def test_a_new_volume_that_was_made_before_its_removal_could_cancel_it_is_removed(
    bench: Bench, backup: model.Backup, gate: Gate
) -> None:
    async def use(service: Service) -> model.Volume:
        going = await service.create(request("new", backup), answer_s=0)
        async with service._locks.hold(going.id, "set", what="cannot set", wait_s=1):
            gate.opened.set()
            await until(lambda: service._locks._entries[going.id].users == 2)
            removal = asyncio.create_task(service.remove(going.id))
            await until(lambda: (job := service.jobs.get(f"1v{going.id}")) and job.is_given_up)
        return await removal

    assert serve(bench, use).state is VolumeState.REMOVED
    assert bench.store.volume_named("new") is None
    assert trash.restore(bench.engine, bench.trashed("new")).state is VolumeState.INACTIVE
    assert bench.read("new") == "one"


def test_a_new_volume_that_cannot_be_is_gone_and_the_reason_is_kept(
    bench: Bench, backup: model.Backup, gate: Gate, tmp_path: Path
) -> None:
    async def use(service: Service) -> str | None:
        going = await service.create(request("new", backup), answer_s=0)
        lose_chunks(tmp_path / "shelf")
        gate.opened.set()
        await until(lambda: service.runner.fault(f"1v{going.id}"))
        return service.runner.fault(f"1v{going.id}")

    assert "it is missing" in (serve(bench, use) or "")
    assert bench.store.volume_named("new") is None


def test_a_new_volume_that_fails_before_the_answer_was_never_there(
    bench: Bench, backup: model.Backup, tmp_path: Path
) -> None:
    (tmp_path / "shelf").rename(tmp_path / "aside")

    async def use(service: Service) -> None:
        with pytest.raises(Unusable, match="no such directory"):
            await service.create(request("new", backup), answer_s=0)

    serve(bench, use)
    assert bench.store.volume_named("new") is None


def test_a_target_that_does_not_answer_is_not_waited_for_without_end(
    bench: Bench, backup: model.Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_restores, "ANSWER_S", 0.05)
    look = supplies.look

    def look_late(engine: Engine, backup: model.Backup, *, work: supplies.Work, what: str) -> supplies.Supply:
        work.cancelled.wait()
        return look(engine, backup, work=work, what=what)

    monkeypatch.setattr(supplies, "look", look_late)

    async def use(service: Service) -> None:
        with pytest.raises(Unusable, match="cannot create volume new: its target does not answer within 0 s"):
            await service.create(request("new", backup), answer_s=0)
        with pytest.raises(Unusable, match="cannot restore volume db: its target does not answer"):
            await service.restores.restore(bench.volume("db").id, backup.id)

    serve(bench, use)
    assert bench.store.volume_named("new") is None
    assert bench.volume("db").state is VolumeState.INACTIVE


def test_a_target_that_hears_nothing_keeps_neither_who_asked_nor_the_name(
    bench: Bench, backup: model.Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a share whose server is gone: whoever looks at it sleeps in the kernel."""
    monkeypatch.setattr(service_restores, "ANSWER_S", 0.05)
    answers = threading.Event()
    look = supplies.look
    closed: list[supplies.Supply] = []

    def look_long(engine: Engine, backup: model.Backup, *, work: supplies.Work, what: str) -> supplies.Supply:
        assert answers.wait(PATIENCE_S)
        work.cancelled.clear()  # it had looked before that
        found = look(engine, backup, work=work, what=what)

        def close() -> None:
            found.close()
            closed.append(found)

        return replace(found, close=close)

    monkeypatch.setattr(supplies, "look", look_long)

    async def use(service: Service) -> None:
        try:
            async with asyncio.timeout(5):
                with pytest.raises(Unusable, match="cannot create volume new: its target does not answer within 0 s"):
                    await service.create(request("new", backup), answer_s=PATIENCE_S)
            wish = creation.Request("new", names.parse_options({}), {})
            assert (await service.create(wish, answer_s=PATIENCE_S, wait_s=1)).name == "new"
        finally:
            answers.set()
        await until(lambda: closed)

    serve(bench, use)


# The end of the daemon, and the next one.


def test_a_stop_ends_restores_and_the_next_start_takes_up_a_new_volume(
    bench: Bench, backup: model.Backup, gate: Gate
) -> None:
    async def use(service: Service) -> None:
        await service.create(request("new", backup), answer_s=0)
        await service.restores.restore(bench.volume("db").id, backup.id, answer_s=0)

    serve(bench, use)
    assert bench.volume("db").state is VolumeState.INACTIVE
    assert bench.volume("db").message == "cannot restore volume db: it was interrupted"
    assert bench.read("db") == "now"
    assert bench.volume("new").state is VolumeState.RESTORING
    gate.opened.set()
    bench.restart()

    async def resume(service: Service) -> None:
        await service.resume()
        await until(lambda: bench.volume("new").state is VolumeState.INACTIVE)

    serve(bench, resume)
    assert (bench.read("new"), bench.volume("new").message) == ("one", None)


def test_what_cannot_be_taken_up_says_why_and_is_tried_again(
    bench: Bench, backup: model.Backup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_restores, "RETRY_S", 0.01)
    volume = begun(bench, "new", backup)
    aside = (tmp_path / "shelf").rename(tmp_path / "aside")

    async def resume(service: Service) -> str:
        await service.resume()
        await until(lambda: bench.volume("new").message)
        said = bench.volume("new").message or ""
        aside.rename(tmp_path / "shelf")
        await service.restores.settled(volume, "mount", within_s=PATIENCE_S)
        return said

    said = serve(bench, resume)
    assert said.startswith("cannot restore volume new: ")
    assert "no such directory" in said
    assert (bench.volume("new").state, bench.volume("new").message) == (VolumeState.INACTIVE, None)
    assert bench.read("new") == "one"


def test_what_cannot_be_taken_up_is_tried_again_although_that_cannot_be_written_down(
    bench: Bench, backup: model.Backup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_restores, "RETRY_S", 0.01)
    volume = begun(bench, "new", backup)
    aside = (tmp_path / "shelf").rename(tmp_path / "aside")
    tries: list[model.VolumeId] = []

    def fail(_: Engine, volume_id: model.VolumeId, _reason: str) -> None:
        tries.append(volume_id)
        raise Unusable("cannot write database: database or disk is full")

    monkeypatch.setattr(restores, "postpone", fail)

    async def resume(service: Service) -> None:
        await service.resume()
        await until(lambda: len(tries) > 1)
        aside.rename(tmp_path / "shelf")
        await service.restores.settled(volume, "mount", within_s=PATIENCE_S)

    serve(bench, resume)
    assert bench.read("new") == "one"


def test_what_waits_for_another_try_says_so_and_can_be_removed(
    bench: Bench, backup: model.Backup, tmp_path: Path
) -> None:
    volume = begun(bench, "new", backup)
    (tmp_path / "shelf").rename(tmp_path / "aside")

    async def resume(service: Service) -> str:
        await service.resume()
        await until(lambda: bench.volume("new").message)
        job = service.jobs.get(f"1v{volume.id}")
        assert job is not None
        await until(lambda: job.waits_for)
        with pytest.raises(InUse, match="waits for another try in 1m"):
            await service.restores.settled(volume, "mount", within_s=0.01)
        await service.remove(volume.id)
        return job.message()

    serve(bench, resume)
    assert bench.store.volume_named("new") is None


def test_the_plugin_does_not_tell_that_a_volume_is_gone_whose_restore_nobody_has_taken_up_yet(
    bench: Bench, backup: model.Backup
) -> None:
    begun(bench, "new", backup)

    async def remove(service: Service) -> None:
        answer = await docker.Plugin(service)._remove(cast("web.BaseRequest", None), {"Name": "new"})
        assert bench.store.volume_named("new") is None, answer

    with pytest.raises(NotFound, match="cannot cancel the restore of volume new: none is running"):
        serve(bench, remove)


def test_a_stop_does_not_wait_for_another_try(bench: Bench, backup: model.Backup, tmp_path: Path) -> None:
    begun(bench, "new", backup)
    (tmp_path / "shelf").rename(tmp_path / "aside")

    async def resume(service: Service) -> None:
        await service.resume()
        await until(lambda: bench.volume("new").message)

    serve(bench, resume)
    assert bench.volume("new").state is VolumeState.RESTORING


def test_a_volume_whose_backup_is_forgotten_stays_and_says_so(bench: Bench, backup: model.Backup) -> None:
    begun(bench, "new", backup)
    bench.store.commit(lambda write: write.delete_backup(backup))

    async def resume(service: Service) -> None:
        await service.resume()
        await until(lambda: bench.volume("new").message)

    serve(bench, resume)
    assert bench.volume("new").message == f"cannot restore volume new: there is no backup {backup.shown_name}"
    assert bench.volume("new").state is VolumeState.RESTORING
