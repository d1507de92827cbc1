"""TCP connections: a bounded number at a bounded pace, so that nobody out there keeps the plugin from its turn.

When all places are taken, a new connection gets that of the oldest one that has not shown a right key yet, of the
address that has most of these. Who floods us so drives out himself. A connection with a right key keeps its place.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from voldriverd.api import middleware
from voldriverd.api.auth.brake import source

_log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 256
"""A quarter of the descriptors that systemd gives a service; requests of 50 clients at once, and room."""
ACCEPT_PAUSE_S: Final = 0.005
"""Between two connections: a TLS handshake takes the event loop 1 to 2 ms, and 200 a second leave it the rest."""
HANDSHAKE_S: Final = 10.0
IDLE_S: Final = 60.0
"""How long a request's head may take, from the connection or the answer before it."""
WATCH_S: Final = 1.0
"""Between two looks for connections whose key is revoked; a new request of theirs is refused at once anyway."""
LINGER_S: Final = 2.0
"""How long a body that nobody wants is read, so that the client sees its answer."""
HEADERS_MAX: Final = 64
_SHORTAGE_S: Final = 1.0
"""After an accept that failed: for want of descriptors, mostly."""

_Address = tuple[Any, ...]


@dataclass(slots=True, eq=False)
class Connection:
    """One connection; its socket is closed when it has ended."""

    socket: socket.socket
    handshake: asyncio.Task[None] | None = None
    transport: asyncio.Transport | None = None
    """None before the handshake has ended."""
    key: str | None = None
    """The public value of the key that it has shown; None before it has shown one."""
    is_late: bool = False
    """Its key was found revoked a round ago."""

    def end(self) -> None:
        """End it at once."""
        if self.transport is None:
            if self.handshake is not None:
                self.handshake.cancel()
            return
        try:
            self.transport.abort()
        except AttributeError:  # Python 3.11.2: a TLS transport that was closed twice has forgotten its protocol
            with contextlib.suppress(OSError):  # it has just ended by itself
                self.socket.shutdown(socket.SHUT_RDWR)


class Connections:
    """Who is connected, in the order of coming, by the address of the other end."""

    def __init__(self, places: int = CONNECTIONS_MAX) -> None:
        """Have so many places."""
        self._places = places
        self._open: dict[_Address, Connection] = {}

    def make_room(self) -> bool:
        """Tell whether there is a place for one more, ending another connection if need be."""
        self._open = {address: each for address, each in self._open.items() if each.socket.fileno() >= 0}
        if len(self._open) < self._places:
            return True
        strangers = [address for address, each in self._open.items() if each.key is None]
        if not strangers:
            return False
        most, _ = Counter(source(address[0]) for address in strangers).most_common(1)[0]
        oldest = next(address for address in strangers if source(address[0]) == most)
        self._open.pop(oldest).end()
        return True

    def add(self, address: _Address, connection: Connection) -> None:
        """Give a new connection its place."""
        self._open[address] = connection

    def trust(self, request: web.BaseRequest, key: str) -> None:
        """Note the public value of the right key that a request had."""
        address = None if request.transport is None else request.transport.get_extra_info("peername")
        if address in self._open:
            self._open[address].key = key

    def end_revoked(self, is_live: Callable[[str], bool]) -> None:
        """End those whose key is revoked, at the second call: the answer to the revocation may be on its way."""
        for each in self._open.values():
            if each.key is not None and not is_live(each.key):
                if each.is_late:
                    each.end()
                each.is_late = True

    def end_strangers(self) -> None:
        """End those that have not shown a right key."""
        for each in self._open.values():
            if each.key is None:
                each.end()


class Gate:
    """Accepts connections from listening sockets for a server."""

    def __init__(
        self,
        site: middleware.Site,
        listeners: list[socket.socket],
        connections: Connections,
        *,
        tls: ssl.SSLContext | None,
        is_live: Callable[[str], bool],
        stop_s: float,
    ) -> None:
        """Serve a site over HTTPS, or HTTP if there is no certificate.

        `is_live` knows whether the key of a public value is not revoked; requests get `stop_s` seconds at the end.
        """
        self._server = middleware.Server(
            site,
            access_log=None,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            max_line_size=middleware.LINE_MAX,
            max_headers=HEADERS_MAX,
        )
        self._runner = web.ServerRunner(self._server, shutdown_timeout=stop_s)
        self._listeners = listeners
        self._connections = connections
        self._tls = tls
        self._is_live = is_live
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to accept."""
        await self._runner.setup()
        for listener in self._listeners:
            self._spawn(self._accept(listener))
        self._spawn(self._watch())

    async def stop(self) -> None:
        """Accept no more, end who has shown no key, and wait for the requests of the others."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):  # it is what we asked for
                await task
        for listener in self._listeners:
            listener.close()
        self._connections.end_strangers()
        await self._runner.cleanup()

    async def _watch(self) -> None:
        """Cut off what goes on although its key is revoked: events, archives, and whoever does nothing."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._connections.end_revoked(self._is_live)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as err:
                _log.warning("verb=accept result=%s", err)
                await asyncio.sleep(_SHORTAGE_S)
                continue
            if self._connections.make_room():
                self._welcome(address, Connection(accepted))
            else:
                accepted.close()
            await asyncio.sleep(ACCEPT_PAUSE_S)

    def _welcome(self, address: _Address, connection: Connection) -> None:
        def close(_: asyncio.Task[None]) -> None:
            if connection.transport is None:
                connection.socket.close()

        self._connections.add(address, connection)
        connection.handshake = self._spawn(self._shake_hands(connection))
        connection.handshake.add_done_callback(close)

    async def _shake_hands(self, connection: Connection) -> None:
        limits = {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": LINGER_S} if self._tls else {}
        try:
            connection.transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                self._server, connection.socket, ssl=self._tls, **limits
            )
        except OSError as err:  # no TLS, too slow, or gone
            _log.debug("verb=accept result=%s", err)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
