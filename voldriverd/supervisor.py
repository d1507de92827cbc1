"""The service manager that may have started us (systemd): what it is told, and the sockets that it holds for us.

Such a socket is there before us and after us: who connects meanwhile waits for us, and is not refused.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from voldriverd import sockets
from voldriverd.errors import Unusable
from voldriverd.kernel import systemd

_log = logging.getLogger(__name__)

BEATS: Final = 3
"""In the time of the watchdog: sd_watchdog_enabled(3) asks for two, and one may come late."""


class Supervisor:
    """Who supervises us; with no manager there is nobody to tell, and each socket is ours to make."""

    def __init__(self, manager: systemd.Manager, places: Mapping[str, Path]) -> None:
        """Check the sockets that it holds against where they are wanted, by name. Raises Unusable."""
        self._manager = manager
        self._held: dict[str, socket.socket] = {}
        with ExitStack() as stack:
            try:
                for name, listener in manager.listeners():
                    self._held[name] = stack.enter_context(listener)
                    sockets.check(listener, name, places.get(name))
                    listener.setblocking(False)
            except OSError as err:
                raise Unusable(f"cannot use the sockets of the service manager: {err}") from err
            stack.pop_all()

    @classmethod
    def found(cls, places: Mapping[str, Path]) -> Self:
        """Return the one that the environment tells of, and clear that away. Raises Unusable."""
        try:
            return cls(systemd.manager(os.environ), places)
        except ValueError as err:
            raise Unusable(f"cannot understand the service manager: {err}") from err

    def holds(self, name: str) -> bool:
        """Tell whether it holds a socket under a name that nobody has taken yet."""
        return name in self._held

    def take(self, name: str) -> socket.socket | None:
        """Return the socket that it holds under a name; its file is not ours to remove. None: it holds none."""
        return self._held.pop(name, None)

    def tell(self, *lines: str) -> None:
        """Tell it something of sd_notify(3)."""
        try:
            self._manager.notify(*lines)
        except OSError as err:
            _log.warning("verb=notify told=%s result=%s", ",".join(lines), err)

    async def run(self, serving: Coroutine[object, object, bool]) -> bool:
        """Serve, and feed the watchdog from a timer on the same event loop: one that is blocked is killed."""
        feeding = asyncio.create_task(self._feed())
        try:
            return await serving
        finally:
            feeding.cancel()

    async def _feed(self) -> None:
        while self._manager.watchdog_s is not None:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self._manager.watchdog_s / BEATS)
