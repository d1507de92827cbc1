"""A service on a bench: what is done with it ends in time, and its long work waits where a test wants to look."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tests.engines import Bench
from voldriverd.engine.supplies import Work
from voldriverd.service import Service

_T = TypeVar("_T")

PATIENCE_S: Final = 20.0
"""No test lasts so long; what does not end fails here."""


class Gate:
    """Holds work that comes to it, with 42 % done, until it is opened or the work is ended."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached: set[str] = set()

    def hold(self, name: str, work: Work) -> None:
        work.expect(200)
        work.advance(84)
        self.reached.add(name)
        while not (work.cancelled.is_set() or self.opened.wait(0.01)):
            pass


def serve(bench: Bench, use: Callable[[Service], Awaitable[_T]]) -> _T:
    """Do something with a service, which ends in time, whatever still goes on."""

    async def run() -> _T:
        service = Service(bench.engine)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await use(service)
        finally:
            assert await service.stop(within_s=5)

    return asyncio.run(run())


async def until(is_so: Callable[[], object]) -> None:
    """Wait until something is so."""
    while not is_so():  # noqa: ASYNC110 - whatever it is, there is no event for it
        await asyncio.sleep(0.005)
