"""Trees that lost their pointer, and trees that power loss may still take: both end after one sync per pool."""

import logging
import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from voldriverd import model
from voldriverd.driver import Driver, Key
from voldriverd.errors import Error

if TYPE_CHECKING:
    from voldriverd.engine.context import Engine

_log = logging.getLogger(__name__)

COLLECT_WAIT_S: Final = 5.0
"""A directory of millions of files takes minutes to remove; nobody else's verb shall wait for it."""


class Garbage:
    """Keys whose rows are to go: `waiting` still have a tree, `removed` have none but await a sync.

    In memory only: after a crash recovery finds the same keys as a set difference.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._lock = threading.Lock()
        self._waiting: dict[model.PoolId, set[Key]] = defaultdict(set)
        self._removed: dict[model.PoolId, set[Key]] = defaultdict(set)
        self._collecting: dict[model.PoolId, threading.Lock] = {}
        self.wake: threading.Event = threading.Event()
        """Set when there is something new for the worker."""

    def add(self, pool_id: model.PoolId, keys: Iterable[Key]) -> None:
        """Note trees that nothing points to any more."""
        with self._lock:
            self._waiting[pool_id].update(keys)
        self.wake.set()

    def waiting(self, pool_id: model.PoolId) -> set[Key]:
        """Return the trees of a pool that are still to be removed."""
        with self._lock:
            return set(self._waiting[pool_id])

    def collecting(self, pool_id: model.PoolId) -> threading.Lock:
        """Return what is held while the trees of a pool are removed: no driver is asked twice at once for one key."""
        with self._lock:
            return self._collecting.setdefault(pool_id, threading.Lock())

    def note_removed(self, pool_id: model.PoolId, key: Key) -> None:
        """Move a key on: its tree is gone, unless power is lost before the next sync."""
        with self._lock:
            self._waiting[pool_id].discard(key)
            self._removed[pool_id].add(key)

    def forget(self, pool_id: model.PoolId, keys: Iterable[Key]) -> None:
        """Leave trees alone that were noted by mistake."""
        with self._lock:
            self._waiting[pool_id].difference_update(keys)

    def take_removed(self, pool_id: model.PoolId) -> set[Key]:
        """Return and forget the keys that await a sync."""
        with self._lock:
            return self._removed.pop(pool_id, set())


def discard(engine: "Engine", pool_id: model.PoolId, *keys: Key) -> None:
    """Hand trees that nothing points to any more to the worker."""
    engine.garbage.add(pool_id, keys)


def collect(engine: "Engine", pool_id: model.PoolId, *, wait_s: float | None = None) -> int | None:
    """Remove the waiting trees of a pool, then drop their rows after one sync; return how many rows went.

    A tree that is still mounted somewhere, or whose removal fails, waits for the next time; so do all of them if
    another thread removes trees of the pool for more than `wait_s` (None: COLLECT_WAIT_S): None.
    """
    collecting = engine.garbage.collecting(pool_id)
    if not collecting.acquire(timeout=COLLECT_WAIT_S if wait_s is None else wait_s):
        return None
    try:
        return _collect(engine, pool_id)
    finally:
        collecting.release()


def _collect(engine: "Engine", pool_id: model.PoolId) -> int:
    driver = engine.pools.driver(pool_id)
    waiting = engine.garbage.waiting(pool_id)
    pointed = engine.store.pointed_among(waiting) if waiting else set()
    if pointed:  # our own bug, and the last moment at which it costs nothing
        _log.error("verb=collect keys=%s result=they are pointed to, and stay", ",".join(sorted(pointed)))
        engine.garbage.forget(pool_id, pointed)
    gone = [key for key in sorted(waiting - pointed) if _is_removed(driver, key)]
    engine.pools.driver(pool_id)  # in a pool that is not there any more nothing was removed
    for key in gone:
        engine.garbage.note_removed(pool_id, key)
    removed = engine.garbage.take_removed(pool_id)
    if not removed:
        return 0
    try:
        driver.sync()
        engine.store.drop_trees(removed)
    except (OSError, Error):
        for key in removed:
            engine.garbage.note_removed(pool_id, key)
        raise
    return len(removed)


def settle(engine: "Engine", pool_id: model.PoolId) -> int:
    """Sync the pool and note that all its trees survive power loss now; return how many did not before."""
    unsettled = engine.store.unsettled_trees(pool_id)
    if not unsettled:
        return 0
    driver = engine.pools.driver(pool_id)
    present = driver.trees()
    made = [key for key in unsettled if key in present]
    driver.sync()
    engine.store.commit(lambda write: write.settle_trees(made))
    return len(made)


def _is_removed(driver: Driver, key: Key) -> bool:
    try:
        driver.detach(key)
        driver.remove(key)
    except (Error, OSError) as err:  # mounted elsewhere, or the device fails: it stays in the list and is tried again
        _log.warning("verb=collect key=%s result=%s", key, err)
        return False
    return True
