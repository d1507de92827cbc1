"""Threads that run what blocks for one event loop, which keeps all accounts: there are no locks.

Each sleeps at a mailbox of its own, and the one that worked last is woken first. The threads of a ThreadPoolExecutor
share a queue, and whoever takes from it wakes the next who waits there (Modules/_queuemodule.c, CPython 3.11), which
wants the GIL only to sleep again: with them `Create` took 10 % longer, and eight clients made 12 % fewer a second
(2 cores, 6.18, both daemons in turn).
"""

import asyncio
import functools
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")


class Threads:
    """At most `size` threads, made when they are needed; all methods are called on the loop."""

    def __init__(self, size: int, name: str) -> None:
        """Start no thread yet."""
        self._size = size
        self._name = name
        self._threads: dict[threading.Thread, _Mailbox] = {}
        self._idle: list[_Mailbox] = []
        self._waiting: deque[tuple[asyncio.Future[Any], _Work]] = deque()
        self._rest = asyncio.Event()
        """Set whenever the last thread that worked has ended its work."""
        self._has_stopped = False

    def submit(self, function: Callable[..., _T], *arguments: object) -> "asyncio.Future[_T]":
        """Run a function as soon as a thread is free; once begun it runs to its end, whoever waits for it."""
        if self._has_stopped:
            raise RuntimeError(f"the threads {self._name} have stopped")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        work = functools.partial(self._run, loop, future, function, arguments)
        if self._idle:
            self._idle.pop().put(work)
        elif len(self._threads) < self._size:
            self._start(work)
        else:
            self._waiting.append((future, work))
        return future

    async def stop(self, *, within_s: float) -> bool:
        """Wait until nothing runs or waits, then end the threads; tells whether all have ended.

        If not, what waits is dropped, and the threads end with what they do.
        """
        try:
            async with asyncio.timeout(within_s):
                while len(self._idle) < len(self._threads):
                    self._rest.clear()
                    await self._rest.wait()
        except TimeoutError:
            self._waiting.clear()
        self._has_stopped = True
        has_ended = len(self._idle) == len(self._threads)
        for thread, mailbox in self._threads.items():
            mailbox.put(None)
            if has_ended:
                thread.join()
        return has_ended

    def _start(self, work: "_Work") -> None:
        mailbox: _Mailbox = SimpleQueue()
        mailbox.put(work)
        name = f"{self._name}_{len(self._threads)}"
        thread = threading.Thread(target=_serve, args=(mailbox,), name=name, daemon=True)
        thread.start()
        self._threads[thread] = mailbox

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        future: "asyncio.Future[_T]",
        function: Callable[..., _T],
        arguments: tuple[object, ...],
        mailbox: "_Mailbox",
    ) -> None:
        """Do one piece of work, in the thread of a mailbox."""
        end = functools.partial(self._end, mailbox, future, *_outcome(function, arguments))
        try:
            loop.call_soon_threadsafe(end)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits
            return

    def _end(
        self, mailbox: "_Mailbox", future: "asyncio.Future[_T]", result: _T | None, err: BaseException | None
    ) -> None:
        next_work = self._next()
        if next_work is not None:
            mailbox.put(next_work)
        else:
            self._idle.append(mailbox)
            self._rest.set()
        if future.cancelled():
            return
        if err is not None:
            future.set_exception(err)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # it is a _T where nothing was raised

    def _next(self) -> "_Work | None":
        while self._waiting:
            future, work = self._waiting.popleft()
            if not future.cancelled():
                return work
        return None


_Work = Callable[["_Mailbox"], None]
_Mailbox = SimpleQueue[_Work | None]


def _serve(mailbox: _Mailbox) -> None:
    while (work := mailbox.get()) is not None:
        work(mailbox)
        del work  # and with it what it was given and has returned


def _outcome(function: Callable[..., _T], arguments: tuple[object, ...]) -> tuple[_T | None, BaseException | None]:
    try:
        return function(*arguments), None
    except StopIteration as err:  # our own bug; no future takes it, and who waits would wait for ever
        told = RuntimeError(f"{function} raised StopIteration")
        told.__cause__ = err
        return None, told
    except BaseException as err:  # noqa: BLE001 - who waits for it is told whatever it is
        return None, err
