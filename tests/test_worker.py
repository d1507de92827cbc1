"""What the daemon does on its own: one thing that fails does not cost the others their turn."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.engines import Bench
from tests.memory import Memory
from tests.serving import serve, until
from voldriverd import model
from voldriverd.driver import Key, User
from voldriverd.engine import pools, snapshots, space, trash, trees, upkeep
from voldriverd.engine.context import Engine
from voldriverd.errors import Unusable
from voldriverd.service import Service
from voldriverd.worker import Worker

pytestmark = pytest.mark.root

START = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def worked(bench: Bench, is_done: Callable[[], object]) -> None:
    """Let the worker of a service do its first rounds until something is so."""

    async def work(service: Service) -> None:
        worker = Worker(service, reconcile_interval_s=60.0)
        worker.start()
        try:
            await until(is_done)
        finally:
            await worker.stop()

    serve(bench, work)


def test_a_database_that_cannot_be_tidied_keeps_no_trash(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = bench.create("db")
    trash.remove(bench.engine, volume)

    def fail(_: Engine) -> None:
        raise Unusable("cannot write database")

    monkeypatch.setattr(upkeep, "tidy", fail)
    object.__setattr__(bench.engine, "now", lambda: datetime.now(UTC) + timedelta(days=30))
    worked(bench, lambda: bench.store.volume(volume.id) is None)


def test_a_pool_whose_sync_does_not_end_keeps_no_trash(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = bench.create("db")
    trash.remove(bench.engine, volume)
    answers = threading.Event()
    monkeypatch.setattr(upkeep, "tidy", lambda _: answers.wait(20))
    object.__setattr__(bench.engine, "now", lambda: datetime.now(UTC) + timedelta(days=30))

    async def work(service: Service) -> None:
        worker = Worker(service, reconcile_interval_s=60.0)
        worker.start()
        try:
            async with asyncio.timeout(5):
                await until(lambda: bench.store.volume(volume.id) is None)
        finally:
            await worker.stop()
            answers.set()

    serve(bench, work)


def test_a_snapshot_that_cannot_be_looked_at_keeps_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = bench.create("db")
    bad, _ = (
        snapshots.create(bench.engine, volume, snapshots.Wish(name, expires_at=START)) for name in ("bad", "good")
    )
    users = Memory.users

    def fail(driver: Memory, key: Key) -> list[User]:
        if key == bad.key:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return users(driver, key)

    monkeypatch.setattr(Memory, "users", fail)
    worked(bench, lambda: bench.store.snapshot_named(volume.id, "good") is None)
    with pytest.raises(Unusable, match="cannot remove snapshot bad of volume db: the device of the pool is failing"):
        snapshots.remove(bench.engine, volume, bench.snapshot("db", "bad"))


def test_a_pool_that_cannot_be_relieved_keeps_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = next(iter(bench.engine.pools))
    relieved: list[pools.Pool] = []

    def look(_: Engine, asked: pools.Pool) -> bool:
        relieved.append(asked)
        if len(relieved) == 1:
            raise Unusable("cannot look for space in pool bad: the device of the pool is failing")
        return False

    monkeypatch.setattr(upkeep, "short_pools", lambda _: [pool, pool])
    monkeypatch.setattr(space, "lacks_space", look)
    worked(bench, lambda: len(relieved) == 2)


def test_what_came_back_while_others_expired_has_its_whole_time_when_it_is_removed_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    back, other = (trash.remove(bench.engine, bench.create(name)) for name in ("db", "other"))
    object.__setattr__(bench.engine, "now", lambda: datetime.now(UTC) + timedelta(days=30))
    look = upkeep.expired_volumes

    def look_long(engine: Engine) -> list[model.Volume]:
        found = look(engine)
        for volume in found:
            if volume == back:
                trash.remove(engine, trash.restore(engine, volume))
        return found

    monkeypatch.setattr(upkeep, "expired_volumes", look_long)
    worked(bench, lambda: bench.store.volume(other.id) is None)
    assert bench.trashed("db").id == back.id
    trash.restore(bench.engine, bench.trashed("db"))


def test_no_more_trash_goes_as_long_as_another_thread_removes_what_went(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of millions of files takes minutes, and its space may be enough."""
    first, second = (trash.remove(bench.engine, bench.create(name)) for name in ("first", "second"))
    monkeypatch.setattr(trees, "COLLECT_WAIT_S", 0.01)
    monkeypatch.setattr(space, "is_short", lambda *_: bench.driver.trees() > {second.key})
    (pool,) = bench.engine.pools

    async def work(service: Service) -> None:
        with bench.engine.garbage.collecting(pool.row.id):
            await service.relieve(pool.row.id)
            assert bench.store.volume(first.id) is not None, "nobody can tell yet whether there is too little"
        await service.relieve(pool.row.id)

    serve(bench, work)
    assert bench.store.volume(first.id) is None
    assert bench.store.volume(second.id) == second
