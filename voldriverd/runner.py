"""Runs what blocks in threads, and answers for it in time.

Sets of threads with named sizes: what only looks, quick verbs, unmounts, what may wait for a disk for seconds, streams
to clients, and plain copies, so that six of these do not stop a `Mount` or the removal of what a full disk waits for,
and no verb keeps anybody from looking. What was answered before it ended goes on, and why it failed is kept.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from voldriverd import verbs
from voldriverd.errors import Error
from voldriverd.logs import Facts
from voldriverd.threads import Threads

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

QUICK_THREADS: Final = 32
"""Verbs that wait for the kernel for milliseconds; the threads sleep there, so more than cores."""
LOOK_THREADS: Final = 32
"""Reads of the database, and questions to pools: one that does not answer keeps a thread for each."""
UNMOUNTS_AT_ONCE: Final = 8
"""Each may flush gigabytes, and all of a host's containers may go at once."""
LONG_THREADS: Final = 4
"""Removals and syncs."""
STREAMS_AT_ONCE: Final = 8
"""Streams to clients, a piece at a time; the first may take long, for a backup is unpacked aside, or trees compared."""
COPIES_AT_ONCE: Final = 4
"""Plain copies: enough to use two disks, few enough that six of them do not starve a database."""
FAULTS_MAX: Final = 1_000
"""How many failures after an answer are remembered; each is a line of text."""

CAUSE: Final = ContextVar("cause", default="upkeep")
"""The verb that the present thread runs, for who watches the store."""


class Runner:
    """Threads, the tasks that wait for them, and the failures that nobody waited for; lives on one event loop."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._looks = Threads(LOOK_THREADS, "look")
        self._quick = Threads(QUICK_THREADS, "verb")
        self._unmounts = Threads(UNMOUNTS_AT_ONCE, "unmount")
        self._long = Threads(LONG_THREADS, "job")
        self._streams = Threads(STREAMS_AT_ONCE, "stream")
        self._copies = Threads(COPIES_AT_ONCE, "copy")
        self.verbs = verbs.Verbs()
        self._tasks: set[asyncio.Task[object]] = set()
        self._faults: dict[str, str] = {}

    async def stop(self, *, within_s: float) -> bool:
        """Wait for verbs that run; tells whether all have ended. What has not is ended by recovery."""
        deadline_s = time.monotonic() + within_s
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        pools = (self._looks, self._quick, self._unmounts, self._long, self._streams, self._copies)
        return all([await each.stop(within_s=max(0.0, deadline_s - time.monotonic())) for each in pools])

    async def in_thread(self, function: Callable[..., _T], *arguments: object, is_long: bool = False) -> _T:
        """Run something that blocks."""
        threads = self._long if is_long else self._looks
        return await threads.submit(function, *arguments)

    async def read(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Read the next piece of a stream; others that read may have their turn before."""
        return await self._streams.submit(function, *arguments)

    async def run(
        self, verb: str, function: Callable[..., _T], *arguments: object, copies: bool = False, unmounts: bool = False
    ) -> _T:
        """Run something that blocks as a verb: who watches the store is told its name.

        Plain copies wait for others, and so do unmounts.
        """
        threads = self._copies if copies else self._unmounts if unmounts else self._quick
        return await threads.submit(as_cause, verb, function, *arguments)

    async def timed(
        self,
        verb: str,
        about: Callable[[], Facts],
        work: Awaitable[_T],
        *,
        judge: Callable[[_T], str] = lambda _: verbs.OK,
    ) -> _T:
        """Await a verb and have it told, whatever it comes to; what it is about is asked for at its end.

        `judge` says in one word what came of a verb that has not failed.
        """
        begun_s = time.monotonic()
        try:
            result = await work
        except BaseException as err:
            self.verbs.note(verb, about(), time.monotonic() - begun_s, error=err)
            raise
        self.verbs.note(verb, about(), time.monotonic() - begun_s, result=judge(result))
        return result

    def spawn(self, work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Start something that goes on when who asked for it hangs up."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def fault(self, shown_id: str) -> str | None:
        """Return why the last verb on a volume (`1v7`) or snapshot failed after it was answered; None if it did not."""
        return self._faults.get(shown_id)

    def forget_fault(self, shown_id: str) -> None:
        """Begin anew: another verb works on it."""
        self._faults.pop(shown_id, None)

    async def answered(
        self,
        attempt: Callable[[Callable[[_T], None]], Awaitable[_T]],
        identify: Callable[[_T], str],
        *,
        answer_s: float | None,
    ) -> _T:
        """Return what a verb comes to or, if it still runs after `answer_s` seconds, what it began with.

        `attempt` is given what to call, from its thread, when it has begun. None: the end is waited for. What fails
        after the answer is kept for `fault`.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()
        rows: list[_T] = []
        is_late = False

        def keep() -> None:
            if not answer.done():  # it has ended, or it began before and was tried again after a shortage
                answer.set_result(rows[0])

        def note(row: _T) -> None:
            rows.append(row)
            if is_late:  # to wake the loop for nothing would cost every verb a tenth of a millisecond
                loop.call_soon_threadsafe(keep)

        def be_late() -> None:
            nonlocal is_late
            is_late = True
            if rows:
                keep()

        def fail(err: BaseException) -> None:
            if rows:
                self._note_fault(identify(rows[0]), err)

        timer = None if answer_s is None else loop.call_later(answer_s, be_late)
        self.spawn(_tell(attempt(note), answer, fail))
        try:
            return await answer
        finally:
            if timer is not None:
                timer.cancel()

    async def shielded(self, work: Awaitable[_T]) -> _T:
        """Await something that goes on when who asked for it hangs up."""
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self.spawn(_tell(work, answer, lambda _: None))
        return await answer

    def _note_fault(self, shown_id: str, err: BaseException) -> None:
        if not verbs.is_told(err):
            _log.warning("verb=answer id=%s result=%s", shown_id, err)
        self._faults[shown_id] = str(err) if isinstance(err, Error) else "internal error of voldriverd"
        if len(self._faults) > FAULTS_MAX:
            del self._faults[next(iter(self._faults))]


async def _tell(work: Awaitable[_T], answer: "asyncio.Future[_T]", fail: Callable[[BaseException], None]) -> None:
    """Await something, and tell what it comes to if that is still waited for; a later failure is told to `fail`.

    A task of its own that tells a future itself: `asyncio.shield` and `wait` would take one or two more turns of the
    loop, some 15 µs each.
    """
    try:
        result = await work
    except BaseException as err:  # noqa: BLE001 - whatever it is, it is for who waits
        if answer.done():
            fail(err)
        else:
            answer.set_exception(err)
    else:
        if not answer.done():
            answer.set_result(result)


def as_cause(verb: str, function: Callable[..., _T], *arguments: object) -> _T:
    """Call a function, in a thread, as a verb: who watches the store is told its name."""
    token = CAUSE.set(verb)
    try:
        return function(*arguments)
    finally:
        CAUSE.reset(token)  # the thread runs others later
