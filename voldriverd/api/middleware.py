"""What aiohttp leaves to who serves: its own refusals in the words of the site, and an end to clients that do nothing.

- Who takes nothing of an answer for STALL_S is cut off; so is who has left one unread longest once more than
  UNREAD_MAX_BYTES of answers wait in memory.
- On a unix socket there is a bounded number of connections. When all are taken a new one gets the place of the oldest
  that waits for nothing, of the process that has most; if that has none, the new one is closed.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from voldriverd.api import peers

_log = logging.getLogger(__name__)

LINE_MAX: Final = 32 << 10
"""The longest request line: clients of Rancher's API sent queries of 15,872 letters (rancher-api 1.2)."""
STALL_S: Final = 300.0
"""How long a client may take nothing of an answer: somebody may be paging in a pipe."""
UNREAD_MAX_BYTES: Final = 128 << 20
"""Of a site, and so of 17 of the longest lists that there are."""
CONNECTIONS_MAX: Final = 16_384
"""Of a unix socket, some 6 KB each: dockerd keeps one for each volume that it has asked for, without end."""


class Site(Protocol):
    """One dialect that is served."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever happens."""
        ...

    def refuse(self, status: int, text: str) -> web.Response:
        """Return the answer to what is not even a request."""
        ...


class Server(web.Server):
    """Serves a site; what cannot be parsed as HTTP is refused in the site's words."""

    def __init__(
        self,
        site: Site,
        *,
        stall_s: float = STALL_S,
        unread_max_bytes: int = UNREAD_MAX_BYTES,
        connections_max: int = CONNECTIONS_MAX,
        **options: Any,
    ) -> None:
        """Take the options of web.Server too."""
        super().__init__(site.handle, **options)
        self._site = site
        self._unread = Unread(stall_s=stall_s, max_bytes=unread_max_bytes)
        self._places = Places(connections_max)

    def __call__(self) -> RequestHandler:
        """Return the handler of a new connection."""
        return _Connection(self._site.refuse, self._unread, self._places, self, loop=self._loop, **self._kwargs)


class Unread:
    """The connections whose answers wait to be taken, those that wait longest first."""

    def __init__(self, *, stall_s: float, max_bytes: int) -> None:
        """Let answers wait for so many seconds, and of all so many bytes."""
        self._stall_s = stall_s
        self._max_bytes = max_bytes
        self._sizes: dict[asyncio.Transport, int] = {}
        self._timers: dict[asyncio.Transport, asyncio.TimerHandle] = {}
        self._total_bytes = 0

    def add(self, transport: asyncio.Transport) -> None:
        """Note that the buffer of a connection is full."""
        size_bytes = transport.get_write_buffer_size()
        self._sizes[transport] = size_bytes
        self._total_bytes += size_bytes
        self._wait(transport, size_bytes)
        while self._total_bytes > self._max_bytes and len(self._sizes) > 1:
            self._end(next(iter(self._sizes)), "others need the memory")

    def drop(self, transport: asyncio.Transport) -> None:
        """Note that it is not full any more, or has gone."""
        self._total_bytes -= self._sizes.pop(transport, 0)
        timer = self._timers.pop(transport, None)
        if timer is not None:
            timer.cancel()

    def _wait(self, transport: asyncio.Transport, size_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        self._timers[transport] = loop.call_later(self._stall_s, self._look, transport, size_bytes)

    def _look(self, transport: asyncio.Transport, before_bytes: int) -> None:
        """End who has taken nothing since the look before."""
        now_bytes = transport.get_write_buffer_size()
        if now_bytes < before_bytes:
            self._wait(transport, now_bytes)
        else:
            self._end(transport, f"it took nothing for {self._stall_s:.0f} s")

    def _end(self, transport: asyncio.Transport, why: str) -> None:
        self.drop(transport)
        if not transport.is_closing():
            _log.info("verb=serve result=cut off a client that does not read its answer: %s", why)
            transport.abort()


class Places:
    """The connections of a unix socket by the process that made them; those of TCP have places of their own."""

    def __init__(self, places: int) -> None:
        """Have so many."""
        self._places = places
        self._taken: dict[int, dict[_Connection, None]] = {}
        self._count = 0

    def take(self, pid: int, connection: "_Connection") -> None:
        """Give a new connection a place, ending another one or itself if there is none."""
        self._taken.setdefault(pid, {})[connection] = None
        self._count += 1
        if self._count <= self._places:
            return
        most = max(self._taken, key=lambda each: len(self._taken[each]))
        victim = next((each for each in self._taken[most] if each.is_idle), None)
        ended, whose = (connection, pid) if victim is None else (victim, most)
        self.leave(whose, ended)
        _log.debug("verb=accept result=all places are taken: a connection of pid %d is closed", whose)
        ended.force_close()

    def leave(self, pid: int, connection: "_Connection") -> None:
        """Note that a connection has ended; it may be said twice."""
        of_pid = self._taken.get(pid, {})
        if connection not in of_pid:
            return
        del of_pid[connection]
        self._count -= 1
        if not of_pid:
            del self._taken[pid]


class _Connection(RequestHandler):
    """One connection; aiohttp calls `handle_error` for what its parser refuses (web_protocol.py, aiohttp 3.14)."""

    __slots__ = ("_pid", "_places", "_refuse", "_unread", "_wire")

    def __init__(
        self,
        refuse: Callable[[int, str], web.Response],
        unread: Unread,
        places: Places,
        server: Server,
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self._refuse = refuse
        self._unread = unread
        self._places = places
        self._pid: int | None = None
        self._wire: asyncio.Transport | None = None
        """`transport` until the end; aiohttp forgets that when it closes."""

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request."""
        return self._waiter is not None and not self._request_in_progress

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, if there is a place."""
        super().connection_made(transport)
        assert self.transport is not None, "it has just been made"
        self._wire = self.transport
        self._pid = peers.pid_behind(self._wire)
        if self._pid is not None:
            self._places.take(self._pid, self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        if self._pid is not None:
            self._places.leave(self._pid, self)
        if self._wire is not None:
            self._unread.drop(self._wire)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        if self._wire is not None:
            self._unread.add(self._wire)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        if self._wire is not None:
            self._unread.drop(self._wire)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer, and close the connection: nobody knows where the next request begins."""
        if request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        if isinstance(exc, ConnectionError):
            text = "the client has gone while it sent its request"
            _log.info("verb=serve path=%s result=%s", request.path, text)
        elif status >= 500:
            _log.error("verb=serve path=%s result=internal error", request.path, exc_info=exc)
            text = "internal error of voldriverd; its log has the details"
        else:
            text = " ".join((message or "the request cannot be read").split())
            _log.info("verb=serve result=%d %s", status, text)
        response = self._refuse(status, text)
        response.force_close()
        return response
