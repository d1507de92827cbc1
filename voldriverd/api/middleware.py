"""What aiohttp would answer by itself, and as plain text, said in the words of the site that it happens on."""

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

_log = logging.getLogger(__name__)

LINE_MAX: Final = 32 << 10
"""The longest request line: clients of Rancher's API sent queries of 15,872 letters (rancher-api 1.2)."""


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

    def __init__(self, site: Site, **options: Any) -> None:
        """Take the options of web.Server."""
        super().__init__(site.handle, **options)
        self._site = site

    def __call__(self) -> RequestHandler:
        """Return the handler of a new connection."""
        return _Connection(self._site.refuse, self, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    """One connection; aiohttp calls `handle_error` for what its parser refuses (web_protocol.py, aiohttp 3.14)."""

    __slots__ = ("_refuse",)

    def __init__(self, refuse: Callable[[int, str], web.Response], server: Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._refuse = refuse

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
