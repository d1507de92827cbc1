"""The Rancher v1 API: resources, actions and errors in the shapes that its clients know.

`schemas` describes every type once; the dispatch, the parsing of bodies and the filters come from there. What a type
can do stands in its own module as a `Kind`. Deviations from Rancher are listed in the documentation.
"""

import json
import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from voldriverd.api.rancher import (
    apikeys,
    body,
    events,
    filters,
    listing,
    places,
    pools,
    problems,
    schema,
    schemas,
    snapshots,
    volumes,
)
from voldriverd.api.rancher.filters import Condition, Wish
from voldriverd.api.rancher.kind import Kind, Made
from voldriverd.api.rancher.problems import Problem
from voldriverd.errors import Error
from voldriverd.service import Service

_log = logging.getLogger(__name__)

VERSION: Final = "v1"
_KINDS: Final[Mapping[str, Kind[Any]]] = {
    kind.schema.id: kind
    for kind in (volumes.KIND, snapshots.KIND, pools.KIND, apikeys.KIND, places.MOUNTS, places.HOSTS)
}
_NAMES: Final[Mapping[str, Kind[Any]]] = {
    name.lower(): kind for kind in _KINDS.values() for name in (kind.schema.id, kind.schema.plural)
}
_HOST: Final = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}", re.ASCII)
_READING: Final = frozenset({"GET", "HEAD"})
_EVENTS: Final = schemas.EVENT.plural


class Api:
    """Answers the API's requests; `handle` is what a site serves."""

    def __init__(self, service: Service) -> None:
        """Serve the rows of a service."""
        self._service = service
        self._events = events.Feed(service)

    def close(self) -> None:
        """End the answers that would go on for ever."""
        self._events.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; whatever happens, in JSON and with the URL of the schemas."""
        base = _base(request)
        try:
            return await self._answer(request, base)
        except Problem as err:
            problem = err
        except Error as err:
            problem = problems.of(err)
        except web.HTTPRequestEntityTooLarge:
            problem = Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is larger than any resource needs")
        except ConnectionError:  # the client has gone while it sent its body
            raise
        except Exception:  # noqa: BLE001 - our own bug: the client gets what it can read, the log the traceback
            _log.exception("verb=%s path=%s result=internal error", request.method, request.path)
            message = "internal error of voldriverd; its log has the details"
            problem = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, message)
        return _respond(base, problem.status, problem.show())

    def answer(self, request: web.BaseRequest, problem: Problem) -> web.Response:
        """Return the answer to a request that met a problem before it came here."""
        return _respond(_base(request), problem.status, problem.show())

    def refuse(self, status: int, text: str) -> web.Response:
        """Return the answer to what cannot even be read as a request, and so says no name for us."""
        problem = Problem(HTTPStatus(status), text)
        return _respond(f"http://localhost/{VERSION}", problem.status, problem.show())

    async def _answer(self, request: web.BaseRequest, base: str) -> web.StreamResponse:
        version, *parts = [part for part in request.path.split("/") if part] or [""]
        if version.lower() not in {"", VERSION}:
            raise problems.not_found(f"there is no version {version[:60]!r} of this API, only {VERSION}")
        if not parts or parts[0].lower() in {"schema", "schemas"}:
            _allow(request, _READING)
            return _respond(base, HTTPStatus.OK, _describe(base, version, parts[1:], is_schema=bool(parts)))
        if [part.lower() for part in parts] == [_EVENTS]:
            _allow(request, {"GET"})
            return await self._events.stream(request, _schemas(base))
        kind = _NAMES.get(parts[0].lower())
        if kind is None:
            raise problems.not_found(f"there is no type {parts[0][:60]!r}; valid are {', '.join(sorted(_KINDS))}")
        if len(parts) == 1:
            return await self._collection(request, base, kind)
        row = await kind.find(self._service, parts[1])
        if len(parts) == 2:
            return await self._resource(request, base, kind, row)
        if len(parts) == 3:
            return await self._below(request, base, kind, row, parts[2])
        raise problems.not_found(f"there is nothing at {request.path[:200]!r}")

    async def _collection(self, request: web.BaseRequest, base: str, kind: Kind[Any]) -> web.Response:
        allowed = {"POST", *_READING} if kind.create is not None else _READING
        _allow(request, allowed, why=kind.why_fixed)
        if request.method != "POST":
            wish = filters.parse(kind.schema, request.query.items())
            return await self._list(request, base, kind, wish, f"{base}/{kind.schema.plural.lower()}")
        assert kind.create is not None, "POST was allowed"
        return await self._show_made(base, await kind.create(self._service, body.decode(await request.read())))

    async def _resource(self, request: web.BaseRequest, base: str, kind: Kind[Any], row: Any) -> web.Response:
        action = request.query.get("action")
        if request.method == "POST" and action is not None:
            return await self._act(request, base, kind, row, action)
        allowed = _READING | ({"PUT"} if kind.update else set()) | ({"DELETE"} if kind.remove else set())
        _allow(request, allowed, why=kind.why_fixed)
        made = Made(kind.schema.id, row)
        if request.method == "PUT" and kind.update is not None:
            made = await kind.update(self._service, row, body.decode(await request.read()))
        elif request.method == "DELETE" and kind.remove is not None:
            made = await kind.remove(self._service, row)
        return await self._show_made(base, made)

    async def _act(self, request: web.BaseRequest, base: str, kind: Kind[Any], row: Any, action: str) -> web.Response:
        run = kind.actions.get(action.lower())
        if run is None:
            valid = ", ".join(kind.actions) or "none"
            message = f"there is no action {action[:60]!r} of a {kind.schema.id}; there is {valid}"
            raise problems.invalid("InvalidAction", message, field="action")
        if action.lower() not in kind.offered(self._service, row):
            message = await kind.refusal(self._service, row, action.lower())
            raise problems.invalid("ActionNotAvailable", message, field="action")
        return await self._show_made(base, await run(self._service, row, body.decode(await request.read())))

    async def _below(
        self, request: web.BaseRequest, base: str, kind: Kind[Any], row: Any, name: str
    ) -> web.StreamResponse:
        stream, link = kind.streams.get(name.lower()), kind.schema.links.get(name.lower())
        if stream is not None:
            _allow(request, {"GET"})
            return await stream(self._service, row, request, _schemas(base))
        if link is None:
            raise problems.not_found(f"there is no link {name[:60]!r} of a {kind.schema.id}")
        _allow(request, _READING)
        fields = {"id": kind.identify(row), **kind.show(self._service, row)}
        target = _KINDS[link.type]
        if link.is_single:
            made = Made(link.type, await target.find(self._service, fields[link.here]))
            return await self._show_made(base, made)
        wish = filters.parse(target.schema, request.query.items())
        condition = Condition(link.there, "eq", fields[link.here])
        wish = Wish((condition, *wish.conditions), wish.sort, wish.is_descending)
        return await self._list(request, base, target, wish, f"{self._url(base, kind, row)}/{name.lower()}")

    async def _list(self, request: web.BaseRequest, base: str, kind: Kind[Any], wish: Wish, url: str) -> web.Response:
        query = list(request.query.items())
        rows, page = await listing.select(self._service, kind, wish, listing.parse_page(query))
        if kind.refresh is not None:
            await kind.refresh(self._service, rows)
        data = [self._show(base, kind, row) for row in rows]
        return _respond(base, HTTPStatus.OK, listing.paged(kind.schema, url, data, page, query))

    async def _show_made(self, base: str, made: Made) -> web.Response:
        kind = _KINDS[made.type]
        if kind.refresh is not None:
            await kind.refresh(self._service, [made.row])
        return _respond(base, made.status, {**self._show(base, kind, made.row), **made.extra})

    def _show(self, base: str, kind: Kind[Any], row: Any) -> dict[str, Any]:
        url = self._url(base, kind, row)
        return {
            "id": kind.identify(row),
            "type": kind.schema.id,
            "links": {"self": url, **{name: f"{url}/{name}" for name in kind.schema.links}},
            "actions": {name: f"{url}/?action={name}" for name in sorted(kind.offered(self._service, row))},
            **kind.show(self._service, row),
        }

    def _url(self, base: str, kind: Kind[Any], row: Any) -> str:
        return f"{base}/{kind.schema.plural.lower()}/{kind.identify(row)}"


def _describe(base: str, version: str, parts: list[str], *, is_schema: bool) -> dict[str, Any]:
    """Return the root, the version, the schemas or one of them."""
    if len(parts) > 1:
        raise problems.not_found(f"there is nothing below schema {parts[0][:60]!r}")
    if parts:
        return schema.show(places.find_schema(parts[0]), base)
    if is_schema:
        data = [schema.show(each, base) for each in schemas.ALL.values()]
        return listing.envelope(schemas.SCHEMA, _schemas(base), data)
    links = {kind.schema.plural: f"{base}/{kind.schema.plural.lower()}" for kind in _KINDS.values()}
    shown = {
        "id": VERSION,
        "type": "apiVersion",
        "links": {"self": base, "schemas": _schemas(base), _EVENTS: f"{base}/{_EVENTS}", **links},
        "actions": {},
    }
    if version:
        return shown
    root = base.removesuffix(VERSION)
    collection = listing.envelope(schemas.API_VERSION, root, [shown])
    collection["links"]["latest"] = base
    return collection


def _allow(request: web.BaseRequest, methods: frozenset[str] | set[str], *, why: str | None = None) -> None:
    if request.method not in methods:
        reason = f": {why}" if why else f"; there is {', '.join(sorted(methods))}"
        message = f"cannot {request.method} {request.path[:200]}{reason}"
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, message)


def _base(request: web.BaseRequest) -> str:
    """Return the absolute URL of the version, by the name that the client has for us."""
    host = request.headers.get("Host", "")
    return f"{request.scheme}://{host if _HOST.fullmatch(host) else 'localhost'}/{VERSION}"


def _schemas(base: str) -> str:
    return f"{base}/schemas"


def _respond(base: str, status: HTTPStatus, shown: Mapping[str, Any]) -> web.Response:
    headers = {"Content-Type": "application/json; charset=utf-8", "X-API-Schemas": _schemas(base)}
    return web.Response(status=status, body=json.dumps(shown, default=dict).encode(), headers=headers)
