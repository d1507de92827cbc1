"""A few threads that do the same to many chunks: hash, compress, seal and send, or the other way round."""

import concurrent.futures
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Final, TypeVar

from voldriverd.backup import retries
from voldriverd.backup.retries import Retries

THREADS: Final = 4
"""Most of them wait for the target: `sealing.AT_ONCE` limits those that compute."""
NICE: Final = 10
"""Who is answered while a backup runs comes first: with this and `sealing.AT_ONCE` an event loop in the same process
was 14 to 18 ms late at the 99th percentile, without both 30 to 39 (in turns, on two cores that others kept busy; 5 to 7
with no backup); the backup took as long."""
WINDOW: Final = 8
"""Chunks that are under way at once. Each takes at most four times PART_MAX (its content, frame, sealed frame, and the
copy that is sent) in a thread, and once while it waits: 80 MiB in all."""

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


class Transfer:
    """The threads of one repository."""

    def __init__(self, tries: Retries) -> None:
        """Start no thread yet."""
        self._retries = tries
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="backup", initializer=_step_back)

    def close(self) -> None:
        """End the threads; what runs is waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def in_order(self, items: Iterable[_Item], work: Callable[[_Item], _Done]) -> Generator[_Done, None, None]:
        """Yield what `work` returns for each item, in the order of the items, which are taken in the caller's thread.

        At most WINDOW of them are under way. What `work` or `items` raises is raised in its turn, and ends the rest;
        whenever this ends, nothing runs any more. Raises Cancelled.
        """
        abandoned = threading.Event()
        under_way: deque[concurrent.futures.Future[_Done]] = deque()
        try:
            for item in items:
                self._retries.check()
                under_way.append(self._submit(abandoned, work, item))
                if len(under_way) == WINDOW:
                    yield under_way.popleft().result()
            while under_way:
                self._retries.check()
                yield under_way.popleft().result()
        finally:
            abandoned.set()
            for future in under_way:
                future.cancel()
            concurrent.futures.wait(under_way)

    def _submit(
        self, abandoned: threading.Event, work: Callable[[_Item], _Done], item: _Item
    ) -> concurrent.futures.Future[_Done]:
        return self._pool.submit(retries.run_for, abandoned, lambda: work(item))


def _step_back() -> None:
    """Make this thread, and no other, a nice one (setpriority(2), on Linux)."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
