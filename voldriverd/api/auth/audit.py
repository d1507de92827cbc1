"""One line of the logger `audit` for each change that is asked for: who, from where, what, and what came of it.

    audit by=key:5XG0…:ci from=10.0.0.7:40112 method=POST path=/v1/volumes name=db id=1v3 status=201
        verb=create volume=db pool=fast driver=btrfs result=ok duration_ms=4.2
    audit by=uid:0 from=pid:812 method=POST path=/VolumeDriver.Mount Name=db ID=3f2c… status=500
        verb=mount volume=db pool=fast driver=btrfs result=unusable duration_ms=9.8 error="cannot mount volume db: …"

It is the line, too, of the verb that has ended last before the answer (`verbs`); one that was begun and not waited for
has a line of its own at its end. Of the request and of the answer only the fields that are named here are written down:
no secret is among them. The line comes right after the answer: it is there before the answer to whatever the client
asks next.
"""

import asyncio
import functools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, NamedTuple

from aiohttp import web

from voldriverd import logs, verbs
from voldriverd.api import middleware, peers
from voldriverd.logs import Facts
from voldriverd.model import Role

LOGGER: Final = "audit"
_log: Final = logging.getLogger(LOGGER)

_ASKED: Final = (
    *("name", "driver", "size", "role", "volumeId", "snapshotId", "backupId", "backupTargetId"),
    *("Name", "ID"),  # of the plugin
)
_ANSWERED: Final = ("id", "name", "volumeId", "message", "Err")
"""Of an error resource the message alone: its id is made up."""
_ERRORS: Final = ("message", "Err")
"""What an answer calls its error."""
_SHOWN_MAX: Final = 512
_REFUSED: Final = 400
"""The status from which on an answer says that something was not done."""


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
    asker = verbs.Asker(caller.who, caller.origin)
    token = verbs.ASKER.set(asker)
    answer, failure = None, None
    try:
        answer = await work
    except BaseException as err:
        failure = "cut off" if isinstance(err, asyncio.CancelledError) else type(err).__name__
        raise
    finally:
        verbs.ASKER.reset(token)
        asker.is_answered = True
        bodies = await _asked(request), _body(answer)
        end = _End(None if answer is None else answer.status, failure, (time.monotonic() - begun_s) * 1e3)
        line = functools.partial(_write, request, asker, bodies, end)
        asyncio.get_running_loop().call_soon(line)  # it takes 70 µs, for which nobody needs to wait
    return answer


def failed(origin: str, *, count: int) -> None:
    """Note a try with a wrong key; what was tried may be a secret in the wrong place, and is not written down."""
    told = {"by": "unknown", "from": origin, "status": HTTPStatus.UNAUTHORIZED.value, "failed": count}
    _log.warning(logs.Line(told, word=LOGGER))


class _End(NamedTuple):
    """What a request has come to."""

    status: int | None
    """None: there was no answer."""
    failure: str | None
    """Why there was none."""
    took_ms: float


def _write(request: web.BaseRequest, asker: verbs.Asker, bodies: tuple[bytes | None, bytes | None], end: _End) -> None:
    asked, answered = map(_read, bodies)
    if isinstance(answered, dict) and answered.get("type") == "error":
        answered = {"message": answered["message"]}
    query = request.query if request.query_string else {}  # to parse an empty one costs 10 µs
    is_done = end.status is not None and end.status < _REFUSED
    told = dict(_chosen(answered, _ANSWERED))
    error = None if is_done else next((told.pop(key) for key in _ERRORS if key in told), None)
    facts: Facts = {
        "by": asker.by,
        "from": asker.origin,
        "method": query.get("_method", request.method).upper(),
        "path": f"{request.path}?action={query['action']}" if "action" in query else request.path,
        **dict(_chosen(asked, _ASKED)),
        **told,
        "status": end.status,
        **(asker.told or {"result": verbs.OK if is_done else "refused", "duration_ms": end.took_ms}),
        "error": asker.told.get("error", error),
    }
    if end.failure is not None:
        facts = {**facts, "result": end.failure}
    _log.info(logs.Line({key: _cut(value) for key, value in facts.items()}, word=LOGGER))


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


def _chosen(fields: object, wanted: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    if not isinstance(fields, dict):
        return
    for name in wanted:
        value = fields.get(name)
        if isinstance(value, str | int) and value != "":
            yield name, value


def _cut(value: object) -> object:
    return value[:_SHOWN_MAX] if isinstance(value, str) else value
