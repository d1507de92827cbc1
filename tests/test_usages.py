"""Usages that are asked of a pool which does not answer, and of one which does."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tests.engines import Bench
from tests.memory import Memory
from tests.serving import serve, until
from voldriverd import model, runner, usages
from voldriverd.driver import Key, Usage
from voldriverd.service import Service

pytestmark = pytest.mark.root


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Have no tree say what it uses before this is set."""
    answered = threading.Event()

    def wait(_driver: Memory, key: Key) -> Usage:
        assert answered.wait(20)
        return Usage(int(key.removeprefix("v").partition(".")[0]), None, None)

    monkeypatch.setattr(Memory, "usage", wait)
    monkeypatch.setattr(usages, "SPACE_TIMEOUT_S", 0.01)
    monkeypatch.setattr(usages, "USAGE_AGE_S", 0.0)
    yield answered
    answered.set()


def test_a_pool_that_does_not_answer_takes_one_thread_however_often_it_is_asked(
    bench: Bench, hung: threading.Event
) -> None:
    rows = [bench.create(f"v{number}") for number in range(3)]

    async def ask(service: Service) -> model.Volume:
        for _ in range(runner.LOOK_THREADS):
            await service.usages.refresh(rows)
            for row in rows:
                assert service.usages.of(row) == Usage(None, None, None)
        async with asyncio.timeout(5):
            changed = await service.set_properties(rows[0].id, description="other verbs have threads")
            assert await service.runner.in_thread(service.store.snapshot, 1) is None, "and so have other looks"
        hung.set()
        await until(lambda: all(service.usages.of(row).used_bytes == row.id for row in rows))
        return changed

    assert serve(bench, ask).description == "other verbs have threads"


def test_what_is_asked_while_others_are_waited_for_is_told_as_soon_as_it_is_known(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = bench.create("first"), bench.create("second")
    begun, may_end = threading.Event(), threading.Event()

    def slow(_driver: Memory, key: Key) -> Usage:
        if key == first.key:
            begun.set()
            assert may_end.wait(20)
        return Usage(7, None, None)

    monkeypatch.setattr(Memory, "usage", slow)

    async def ask(service: Service) -> tuple[Usage | None, ...]:
        one = asyncio.create_task(service.usages.refresh([first]))
        await until(begun.is_set)
        other = asyncio.create_task(service.usages.refresh([second]))
        await asyncio.sleep(0)
        may_end.set()
        await asyncio.gather(one, other)
        return service.usages.known(first.id), service.usages.known(second.id)

    assert serve(bench, ask) == 2 * (Usage(7, None, None),)
