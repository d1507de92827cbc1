"""Locks of the event loop: whoever waits is told in time what for, and nobody is passed over for ever."""

import asyncio
from collections.abc import Coroutine

import pytest

from voldriverd.errors import InUse
from voldriverd.locks import Locks

PATIENCE_S = 5.0


def run(work: Coroutine[object, object, None]) -> None:
    """Do something that must end in time."""

    async def timed() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await work

    asyncio.run(timed())


def test_who_comes_between_the_end_of_a_verb_and_the_next_one_does_not_wait_for_long() -> None:
    async def work() -> None:
        locks = Locks()
        ended = asyncio.Event()

        async def copy() -> None:
            async with locks.hold("db", "copy", what="cannot copy", wait_s=PATIENCE_S):
                await ended.wait()

        async with locks.hold("db", "first", what="cannot begin", wait_s=PATIENCE_S):
            task = asyncio.create_task(copy())
            await asyncio.sleep(0)
        # The lock is free for the one that waits, which has not had its turn yet.
        with pytest.raises(InUse, match="cannot mount: copy has been running on it for 0 s"):
            async with locks.hold("db", "mount", what="cannot mount", wait_s=0.05):
                pass
        ended.set()
        await task
        assert not locks.is_held("db")

    run(work())


def test_a_free_lock_is_had_without_waiting() -> None:
    async def work() -> None:
        locks = Locks()
        for _ in range(2):
            async with locks.hold("db", "mount", what="cannot mount", wait_s=0):
                assert locks.is_held("db")
        assert not locks.is_held("db")

    run(work())
