"""One line of the logger `audit` for each change that is asked for: who, from where, what, result.

    audit by=key:5XG0…:ci from=10.0.0.7:40112 verb=POST path=/v1/volumes name=db id=1v3 result=201 ms=4.2
    audit by=uid:0 from=pid:812 verb=POST path=/VolumeDriver.Mount Name=db ID=3f2c… result=200 ms=9.8

Of the request and of the answer only the fields that are named here are written down: no secret is among them. A verb
that was begun and not waited for is a line with the status of its answer. The line comes right after the answer: it is
there before the answer to whatever the client asks next.
"""

import asyncio
import functools
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from voldriverd.api import middleware, peers
from voldriverd.model import Role

LOGGER: Final = "audit"
_log: Final = logging.getLogger(LOGGER)

_ASKED: Final = (
    *("name", "driver", "size", "role", "volumeId", "snapshotId", "backupId", "backupTargetId"),
    *("Name", "ID"),  # of the plugin
)
_ANSWERED: Final = ("id", "name", "volumeId", "message", "Err")
"""Of an error resource the message alone: its id is made up."""
_PLAIN: Final = re.compile(r"[\w.,:;@/+=?&{}()\[\]-]{1,512}", re.ASCII)
_SHOWN_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what that one may do."""

    who: str
    """`key:<public value>:<name>`, `uid:<uid>`, or `anyone`."""
    origin: str
    """`<address>:<port>` or `pid:<pid>`."""
    role: Role = Role.FULL


class Audited:
    """A site on a unix socket whose changes are written down."""

    def __init__(self, site: middleware.Site, *, is_change: Callable[[web.BaseRequest], bool]) -> None:
        """Serve a site; `is_change` knows which requests may change anything."""
        self._site = site
        self._is_change = is_change

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        work = self._site.handle(request)
        return await written(request, by_peer(request), work) if self._is_change(request) else await work

    def refuse(self, status: int, text: str) -> web.Response:
        """Return the answer to what is not even a request."""
        return self._site.refuse(status, text)


def by_peer(request: web.BaseRequest) -> Caller:
    """Return who asks on a unix socket; the file's mode lets nobody else in."""
    found = peers.credentials(request)
    if found is None:  # the client has gone
        return Caller("unknown", "unknown")
    return Caller(f"uid:{found[1]}", f"pid:{found[0]}")


async def written(request: web.BaseRequest, caller: Caller, work: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    """Await the answer to a change, and write the line whatever happens: as soon as the answer is sent."""
    begun_s = time.monotonic()
    answer, result = None, "unknown"
    try:
        response = await work
        answer, result = response, str(response.status)
    except asyncio.CancelledError:
        result = "cut off"
        raise
    except BaseException as err:
        result = type(err).__name__
        raise
    finally:
        bodies = await _asked(request), _body(answer)
        line = functools.partial(_write, request, caller, bodies, result, (time.monotonic() - begun_s) * 1e3)
        asyncio.get_running_loop().call_soon(line)  # it takes 70 µs, for which nobody needs to wait
    return response


def failed(origin: str, *, count: int) -> None:
    """Note a try with a wrong key; what was tried may be a secret in the wrong place, and is not written down."""
    _log.warning("audit by=unknown from=%s result=401 failed=%d", origin, count)


def _write(
    request: web.BaseRequest, caller: Caller, bodies: tuple[bytes | None, bytes | None], result: str, took_ms: float
) -> None:
    asked, answered = map(_read, bodies)
    if isinstance(answered, dict) and answered.get("type") == "error":
        answered = {"message": answered["message"]}
    query = request.query if request.query_string else {}  # to parse an empty one costs 10 µs
    facts = {
        "by": caller.who,
        "from": caller.origin,
        "verb": query.get("_method", request.method).upper(),
        "path": f"{request.path}?action={query['action']}" if "action" in query else request.path,
        **_chosen(asked, _ASKED),
        **_chosen(answered, _ANSWERED),
        "result": result,
    }
    line = " ".join(f"{name}={_shown(value)}" for name, value in facts.items())
    _log.info("audit %s ms=%.1f", line, took_ms)


async def _asked(request: web.BaseRequest) -> bytes | None:
    """Return the body if all of it has come; nothing waits for it here."""
    if not request.content.is_eof():
        return None
    try:
        return await request.read()
    except (web.HTTPException, web.RequestPayloadError):
        return None


def _body(response: web.StreamResponse | None) -> bytes | None:
    """Return the body of an answer as it is now: for a browser it is made a page of."""
    body = response.body if isinstance(response, web.Response) else None
    return body if isinstance(body, bytes) else None


def _read(body: bytes | None) -> object:
    if body is None:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _chosen(fields: object, wanted: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(fields, dict):
        return {}
    return {name: fields[name] for name in wanted if isinstance(fields.get(name), str | int) and fields[name] != ""}


def _shown(value: object) -> str:
    """Write a value so that it cannot be taken for another field or line."""
    text = str(value)[:_SHOWN_MAX]
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
