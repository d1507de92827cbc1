"""The threads of the runner: how many there are, which one works, and what becomes of what they do."""

import asyncio
import threading
import time

import pytest

from voldriverd.threads import Threads


async def started(threads: Threads, begun: threading.Event, may_end: threading.Event) -> "asyncio.Future[int]":
    """Have a thread wait; it has begun when this returns."""

    def work() -> int:
        begun.set()
        may_end.wait(10)
        return threading.get_ident()

    future = threads.submit(work)
    await asyncio.to_thread(begun.wait, 10)
    return future


def test_what_a_function_returns_or_raises_is_told() -> None:
    async def main() -> None:
        threads = Threads(2, "t")
        assert await threads.submit(divmod, 7, 3) == (2, 1)
        with pytest.raises(ZeroDivisionError):
            await threads.submit(divmod, 7, 0)
        assert await threads.stop(within_s=10)

    asyncio.run(main())


def test_a_function_that_raises_what_no_future_takes_is_told_all_the_same() -> None:
    async def main() -> None:
        threads = Threads(1, "t")
        async with asyncio.timeout(5):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await threads.submit(next, iter(()))
        assert await threads.stop(within_s=10)

    asyncio.run(main())


def test_a_thread_that_is_free_works_again_and_the_last_one_first() -> None:
    async def main() -> None:
        threads = Threads(3, "t")
        may_end = threading.Event()
        both = [await started(threads, threading.Event(), may_end) for _ in range(2)]
        may_end.set()
        idents = await asyncio.gather(*both)
        last = await threads.submit(threading.get_ident)
        assert last in idents
        assert [await threads.submit(threading.get_ident) for _ in range(5)] == [last] * 5
        assert await threads.stop(within_s=10)

    asyncio.run(main())


def test_what_comes_when_all_work_waits_for_the_first_that_is_free() -> None:
    async def main() -> None:
        threads = Threads(2, "t")
        may_end, others = threading.Event(), threading.Event()
        first = await started(threads, threading.Event(), may_end)
        second = await started(threads, threading.Event(), others)
        later = [threads.submit(threading.get_ident) for _ in range(3)]
        may_end.set()
        assert await asyncio.gather(*later) == [await first] * 3
        others.set()
        assert await second != await first
        assert await threads.stop(within_s=10)

    asyncio.run(main())


def test_what_nobody_waits_for_any_more_runs_to_its_end_if_it_has_begun() -> None:
    async def main() -> None:
        threads = Threads(1, "t")
        may_end, has_run = threading.Event(), threading.Event()
        running = await started(threads, threading.Event(), may_end)
        waiting = threads.submit(has_run.set)
        running.cancel()
        waiting.cancel()
        last = threads.submit(divmod, 7, 3)
        may_end.set()
        assert await last == (2, 1)
        assert not has_run.is_set()
        assert await threads.stop(within_s=10)

    asyncio.run(main())


def test_a_stop_waits_no_longer_than_it_is_told_and_drops_what_has_not_begun() -> None:
    async def main() -> tuple[threading.Event, threading.Event]:
        threads = Threads(1, "stuck")
        may_end, has_run = threading.Event(), threading.Event()
        await started(threads, threading.Event(), may_end)
        threads.submit(has_run.set)
        begun_s = time.monotonic()
        assert not await threads.stop(within_s=0.05)
        assert time.monotonic() - begun_s < 5
        with pytest.raises(RuntimeError):
            threads.submit(has_run.set)
        return may_end, has_run

    may_end, has_run = asyncio.run(main())
    (stuck,) = [thread for thread in threading.enumerate() if thread.name.startswith("stuck")]
    may_end.set()  # after the loop was closed
    stuck.join(10)
    assert not stuck.is_alive()
    assert not has_run.is_set()
