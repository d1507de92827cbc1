"""Who reads which snapshot: attached once for all, detached after the last."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from voldriverd.driver import Driver, Key
from voldriverd.errors import Error

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Reading:
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the tree is attached or detached: a driver bears one call for a key at a time."""
    users: int = 0
    """Who reads or is about to."""


class Readers:
    """Counts readers, so that the first to end does not detach a tree under the others; any thread may use it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._readings: dict[Key, _Reading] = {}

    @contextmanager
    def attached(self, driver: Driver, key: Key) -> Iterator[Path]:
        """Attach a tree read-only for as long as somebody reads it. Raises what `Driver.attach` raises."""
        with self._lock:
            reading = self._readings.setdefault(key, _Reading())
            reading.users += 1
        try:
            with reading.lock:
                path = driver.attach(key, read_only=True)
            yield path
        finally:
            self._leave(driver, key, reading)

    def _leave(self, driver: Driver, key: Key, reading: _Reading) -> None:
        with reading.lock:  # who comes meanwhile waits here, and attaches again what is detached now
            with self._lock:
                reading.users -= 1
                is_last = reading.users == 0
            if is_last:
                _detach(driver, key)
            with self._lock:
                if reading.users == 0:
                    self._readings.pop(key, None)


def _detach(driver: Driver, key: Key) -> None:
    try:
        driver.detach(key)
    except (Error, OSError) as err:  # somebody stands in it: it goes at the next start, or with the snapshot
        _log.warning("verb=detach key=%s result=%s", key, err)
