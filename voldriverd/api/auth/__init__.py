"""Who may use the API, and the doors through which it is used.

On a unix socket the file's mode decides. On TCP every request needs an API key as HTTP basic, public value and secret,
but for `GET /`, which lists the versions of the API and nothing else, as the specification wants. A key of the role
read-only may GET and HEAD. The Docker plugin is never served here.
"""

import asyncio
import logging
import time
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

from aiohttp import HttpVersion11, web

from voldriverd.api import rancher
from voldriverd.api.auth import audit, browsers
from voldriverd.api.auth.audit import Caller
from voldriverd.api.auth.brake import Brake, source
from voldriverd.api.auth.keyring import Keyring
from voldriverd.api.rancher import answers, html, imports
from voldriverd.api.rancher.problems import Problem
from voldriverd.model import Role, Secret
from voldriverd.service import Service

_log: Final = logging.getLogger(__name__)

BODY_S: Final = 30.0
"""How long a body of at most 1 MiB may take to come."""
STRANGER_S: Final = 0.002
"""Between two answers to requests without a right key, of whomever: 500 a second take a quarter of the event loop."""
REALM: Final = "Enter API access key and secret key as username and password"
_LOOKER: Final = Caller("anyone", "unix", Role.READ_ONLY)
_READING: Final = frozenset({"GET", "HEAD"})


class Door:
    """The API for those who may: identifies, checks, and has every change written down."""

    def __init__(
        self,
        api: rancher.Api,
        identify: Callable[[web.BaseRequest], Awaitable[Caller]],
        *,
        is_loopback: bool = False,
    ) -> None:
        """Serve the API to whom `identify` knows; it raises Problem (401) for others."""
        self._api = api
        self._identify = identify
        self._is_loopback = is_loopback

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; whatever happens, in the words of the API, for a browser as a page."""
        response = await self._handle(request)
        self._api.count(request, response)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("call=%s path=%.300s status=%d", request.method, request.path, response.status)
        if (
            isinstance(response, web.Response)
            and html.is_wanted(request)
            and response.content_type == "application/json"
        ):
            await html.turn(request, response, base=answers.base(request), token=browsers.token(request))
        return response

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            caller = await self._identify(request)
        except Problem as err:
            return self._refuse_unknown(request, err)
        work = self._answer(request, caller)
        return await audit.written(request, caller, work) if is_change(request) else await work

    def refuse(self, status: int, text: str) -> web.Response:
        """Return the answer to what is not even a request."""
        return self._api.refuse(status, text)

    async def _answer(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        is_browser = browsers.is_browser(request)
        try:
            _check_role(request, caller)
            if is_browser:
                browsers.check_origin(request, is_change=is_change(request), is_loopback=self._is_loopback)
            if imports.is_upload(request):
                _welcome(request, is_browser=is_browser)
                return await self._take(request)
            await _receive(request)
            if is_browser and is_change(request):
                await browsers.check_token(request)
        except Problem as err:
            response: web.StreamResponse = self._api.answer(request, err)
            if not request.content.is_eof():
                response.force_close()
        else:
            response = await self._api.handle(request)
        if is_browser:
            browsers.hand_token(request, response)
        return response

    async def _take(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer to an archive; what is not read of one ends the connection."""
        response = await self._api.handle(request)
        if not request.content.is_eof():
            response.force_close()
        return response

    def _refuse_unknown(self, request: web.BaseRequest, problem: Problem) -> web.Response:
        response = self._api.answer(request, problem)
        is_quiet = request.headers.get("X-API-No-Challenge", "").lower() == "true"
        if not is_quiet and request.headers.get("Upgrade", "").lower() != "websocket":
            response.headers["WWW-Authenticate"] = f'Basic realm="{REALM}"'
        return response


class Basic:
    """Knows who asks on TCP by HTTP basic; `identify` is for a Door."""

    def __init__(self, service: Service, *, trust: Callable[[web.BaseRequest, str], None]) -> None:
        """Look keys up in a service; `trust` is told of requests with a right key, and its public value."""
        self._keyring = Keyring(service)
        self._brake = Brake(time.monotonic)
        self._trust = trust
        self._closing = asyncio.Event()
        self._strangers = asyncio.Lock()

    def close(self) -> None:
        """Answer at once what is held back, and from now on."""
        self._closing.set()

    async def identify(self, request: web.BaseRequest) -> Caller:
        """Return who asks. Raises Problem (401)."""
        address, port = _address(request)
        origin = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        header = request.headers.get("Authorization")
        given = None if header is None else _decode(header)
        key = None if given is None else await self._keyring.find(*given)
        if key is not None:
            self._trust(request, key.public)
            return Caller(f"key:{key.public}:{key.name or ''}", origin, key.role)
        async with self._strangers:
            await asyncio.sleep(STRANGER_S)
        if header is not None:
            await self._hold_back(address, origin)
            raise _unauthorized(request, "there is no such API key, or its secret is another")
        if request.path.strip("/") or is_change(request):
            raise _unauthorized(request, "no API key was given; one is made by `voldriver apikey create`")
        return Caller("anyone", origin, Role.READ_ONLY)

    async def _hold_back(self, address: str, origin: str) -> None:
        failure = self._brake.fail(source(address))
        if failure.count & (failure.count - 1) == 0:  # the 1st, 2nd, 4th, 8th …: a flood does not fill the log
            audit.failed(origin, count=failure.count)
        try:
            async with asyncio.timeout(failure.delay_s):
                await self._closing.wait()
        except TimeoutError:
            return


async def by_peer(request: web.BaseRequest) -> Caller:
    """Return who asks on a unix socket; for a Door. Who only looks is not asked for: no line will name him."""
    return audit.by_peer(request) if is_change(request) else _LOOKER


def is_change(request: web.BaseRequest) -> bool:
    """Tell whether a request may change anything: by its method, or by the one that `_method` puts in its place."""
    return not _READING.issuperset({request.method, request.query.get("_method", "GET").upper()})


def _address(request: web.BaseRequest) -> tuple[str, int]:
    """Return where a request comes from; `::` if the client went as soon as it came."""
    peer = None if request.transport is None else request.transport.get_extra_info("peername")
    return ("::", 0) if peer is None else (peer[0], peer[1])


def _check_role(request: web.BaseRequest, caller: Caller) -> None:
    if caller.role is not Role.FULL and is_change(request):
        message = f"cannot {request.method} {request.path[:200]}: this API key is read-only"
        raise Problem(HTTPStatus.FORBIDDEN, message)


async def _receive(request: web.BaseRequest) -> None:
    """Read the whole body, so that nobody waits for it later. Raises Problem (400, 408, 413)."""
    if request.content.is_eof() and not request.body_exists:
        return
    _go_on(request)
    try:
        async with asyncio.timeout(BODY_S):
            await request.read()
    except TimeoutError as err:
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, f"cannot wait for the body any longer than {BODY_S:.0f} s") from err
    except web.HTTPRequestEntityTooLarge as err:
        message = "the body is larger than any resource needs"
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message) from err
    except web.RequestPayloadError as err:
        raise Problem(HTTPStatus.BAD_REQUEST, f"cannot read the body: {err}", code="InvalidBodyContent") from err


def _welcome(request: web.BaseRequest, *, is_browser: bool) -> None:
    """Let an archive come, which is read in its turn. Raises Problem (403): no form of ours sends one."""
    if is_browser:
        raise Problem(HTTPStatus.FORBIDDEN, "cannot import an archive from a browser; use voldriver, or curl")
    _go_on(request)


def _go_on(request: web.BaseRequest) -> None:
    """Tell who waits for that that its body is wanted."""
    does_wait = request.version >= HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue"
    if does_wait and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _decode(header: str) -> tuple[str, Secret] | None:
    """Return public value and secret of an Authorization header; None if it is none of HTTP basic (RFC 7617)."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        public, colon, secret = b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (Base64Error, ValueError):
        return None
    return (public, Secret(secret)) if colon else None


def _unauthorized(request: web.BaseRequest, cause: str) -> Problem:
    return Problem(HTTPStatus.UNAUTHORIZED, f"cannot {request.method} {request.path[:200]}: {cause}")
