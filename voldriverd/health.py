"""A thread that looks after pools and mounted volumes: when the kernel tells of their devices, and every few seconds.

Events of devices come by netlink (`kernel.uevent`); of what happens inside a file system (an error counted, a remount,
a shutdown) there are none, so that is looked for. A look that costs much is followed by a longer rest. Each look is at
everything, so that an event which was lost costs nothing but a look; where there are no events, as in some containers,
the looks go on without.

The thread stands beside those of the verbs: a look may wait for ever for a disk that does not answer, and takes
nobody's place there.
"""

import logging
import os
import select
import threading
import time
from typing import Final

from voldriverd import model, runner
from voldriverd.engine import health
from voldriverd.engine.context import Engine
from voldriverd.kernel import uevent

_log = logging.getLogger(__name__)

LOOK_S: Final = 2.0
"""Between two looks, where nothing happens."""
SHARE: Final = 50
"""How much longer than a look the rest after it is: 2 % of one core at most, with thousands of volumes."""
REST_MAX_S: Final = 60.0
SETTLE_S: Final = 0.2
"""How long a burst of events is waited out: one look serves all, five a second at most."""
STOP_S: Final = 2.0
"""How long the end of a look is waited for."""


class Watcher:
    """Looks until it is stopped."""

    def __init__(self, engine: Engine, *, look_s: float = LOOK_S) -> None:
        """Do nothing until `start`."""
        self._engine = engine
        self._looks = health.Looks(engine)
        self._look_s = look_s
        self._devices: set[str] = set()
        self._is_stopped = False
        self._fault: str | None = None
        """Why the last look failed; None if it did not."""
        self._wake_fd = -1
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for that; a look that does not end is left to the end of the process. Blocks."""
        if self._thread is None:
            return
        self._is_stopped = True
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join(STOP_S)
        if not self._thread.is_alive():
            os.close(self._wake_fd)
        self._thread = None

    def _run(self) -> None:
        listener = _listener()
        try:
            while not self._is_stopped:
                begun_s = time.thread_time()
                self._look()
                took_s = time.thread_time() - begun_s
                self._rest(listener, min(REST_MAX_S, max(self._look_s, SHARE * took_s)))
        finally:
            if listener is not None:
                listener.close()

    def _look(self) -> None:
        try:
            found = runner.as_cause("health", self._looks.look)
        except Exception as err:  # noqa: BLE001 - whatever befalls one look, the next one may find more
            if str(err) != self._fault:
                self._fault = str(err)
                _log.warning("verb=health result=%s", err, exc_info=not isinstance(err, OSError))
            return
        self._fault = None
        self._devices = found.devices | found.volumes
        for turn in found.turns:
            level = logging.INFO if turn.health is model.Health.AVAILABLE else logging.WARNING
            line = f"verb=health {turn.kind}=%s health=%s result=%s"
            _log.log(level, line, turn.name, turn.health.value, turn.text or "ok")
        for pool, text in found.resized:
            _log.info("verb=health pool=%s health=%s result=%s", pool.row.name, pool.health.value, text)
            runner.as_cause("resize", self._engine.pools.tell, pool)

    def _rest(self, listener: uevent.Listener | None, rest_s: float) -> None:
        """Wait for the time of the next look, for an event of a device of ours, or for the end."""
        end_s = time.monotonic() + rest_s
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        if listener is not None:
            poll.register(listener, select.POLLIN)
        while not self._is_stopped and (left_s := end_s - time.monotonic()) > 0:
            if not poll.poll(left_s * 1e3) or listener is None:
                continue
            _wait(self._wake_fd, SETTLE_S)
            events, is_lossy = listener.take()
            if is_lossy or any(event.numbers in self._devices for event in events):
                return


def _listener() -> uevent.Listener | None:
    try:
        return uevent.Listener()
    except OSError as err:
        _log.warning(
            "verb=health result=%s",
            f"no events of devices can be had here ({err.strerror}): looking every {LOOK_S:.0f} s",
        )
        return None


def _wait(fd: int, timeout_s: float) -> None:
    """Wait, but not beyond the time when a descriptor can be read."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(timeout_s * 1e3)
