"""The Rancher v1 API: resources, actions and errors in the shapes that its clients know.

`schemas` describes every type once; the dispatch, the parsing of bodies and the filters come from there. What a type
can do stands in its own module as a `Kind`. Deviations from Rancher are listed in docs/deviations.md.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from voldriverd import metrics
from voldriverd.api.rancher import (
    answers,
    body,
    events,
    filters,
    html,
    imports,
    kinds,
    listing,
    openapi,
    problems,
    resources,
    roots,
    schemas,
)
from voldriverd.api.rancher.answers import READING, VERSION
from voldriverd.api.rancher.filters import Wish
from voldriverd.api.rancher.kind import Kind, Made
from voldriverd.api.rancher.problems import Problem
from voldriverd.api.rancher.resources import View
from voldriverd.api.rancher.schema import Link
from voldriverd.errors import Error, NotFound
from voldriverd.service import Service

_log = logging.getLogger(__name__)

LONG_LISTS_MAX: Final = 2
"""How many lists of more than listing.BESIDE are written at once: each is a thread that wants the interpreter."""
_EVENTS: Final = schemas.EVENT.plural
_METRICS: Final = "metrics"
"""Beside the versions of the API, where Prometheus looks for it."""
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and what was read from it."""

    request: web.BaseRequest
    base: str
    """The absolute URL of the version."""
    method: str
    """The one that `_method` puts in the place of POST."""
    query: Sequence[tuple[str, str]]
    view: View

    def allow(self, methods: Collection[str], *, why: str | None = None, elsewhere: Collection[str] = ()) -> None:
        """Refuse other methods; those `elsewhere` are allowed with another query. Raises Problem (405)."""
        if self.method not in methods:
            reason = f": {why}" if why else f"; there is {', '.join(sorted(methods))}"
            message = f"cannot {self.method[:20]} {self.request.path[:200]}{reason}"
            raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, message, allowed={*methods, *elsewhere})

    async def fields(self) -> body.Body:
        """Return the fields of the body. Raises Problem (400)."""
        content_type = self.request.headers.get("Content-Type", "")
        return body.decode(await self.request.read(), content_type, keeps_blank=self.method == "PUT")


class Api:
    """Answers the API's requests; `handle` is what a site serves."""

    def __init__(self, service: Service) -> None:
        """Serve the rows of a service."""
        self._service = service
        self._events = events.Feed(service)
        self._written = answers.Written()
        self._metrics = metrics.Metrics(service)
        self._long_lists = asyncio.Semaphore(LONG_LISTS_MAX)

    def close(self) -> None:
        """End the answers that would go on for ever."""
        self._events.close()
        self._service.imports.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; whatever happens, in JSON and with the URL of the schemas."""
        base = answers.base(request)
        try:
            response = await self._answer(request, base)
            if isinstance(response, web.Response) and not html.is_wanted(request):
                return await answers.polish(request, response)
            return response  # noqa: TRY300 - the rest is what goes wrong
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
        return answers.respond(base, problem.status, problem.show(), problem.headers)

    def count(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Count an answer, whoever gave it."""
        method = request.method if request.method in _METHODS else "other"
        self._service.requests["api", method, response.status] += 1

    def answer(self, request: web.BaseRequest, problem: Problem) -> web.Response:
        """Return the answer to a request that met a problem before it came here."""
        return answers.respond(answers.base(request), problem.status, problem.show(), problem.headers)

    def refuse(self, status: int, text: str) -> web.Response:
        """Return the answer to what cannot even be read as a request, and so says no name for us."""
        problem = Problem(HTTPStatus(status), text)
        return answers.respond(f"http://localhost/{VERSION}", problem.status, problem.show())

    async def _answer(self, request: web.BaseRequest, base: str) -> web.StreamResponse:
        asked = _read(request, base)
        version, *parts = [part for part in request.path.split("/") if part] or [""]
        if version == _METRICS and not parts:
            asked.allow(READING)
            content, content_type = await self._metrics.write(request.headers.get("Accept", ""))
            headers = {"Content-Type": content_type, "X-API-Schemas": answers.schemas_url(base)}
            return web.Response(body=content, headers=headers)
        if version.lower() not in {"", VERSION}:
            raise problems.not_found(f"there is no version {version[:60]!r} of this API, only {VERSION}")
        if roots.is_above(parts):
            asked.allow(READING)
            return answers.respond(base, HTTPStatus.OK, roots.describe(base, version, parts))
        if parts == [openapi.NAME]:
            asked.allow(READING)
            return answers.respond(base, HTTPStatus.OK, openapi.document(base))
        if [part.lower() for part in parts] == [_EVENTS]:
            asked.allow({"GET"})
            return await self._events.stream(request, answers.schemas_url(base))
        if tuple(part.lower() for part in parts) == imports.PATH:
            asked.allow({"POST"})
            return await self._show_made(asked, await imports.create(self._service, request))
        return await self._dispatch(asked, parts)

    async def _dispatch(self, asked: _Asked, parts: Sequence[str]) -> web.StreamResponse:
        kind = kinds.named(parts[0])
        if kind is None:
            raise problems.not_found(f"there is no type {parts[0][:60]!r}; valid are {', '.join(sorted(kinds.ALL))}")
        if len(parts) == 1:
            return await self._collection(asked, kind)
        row = await kind.find(self._service, parts[1])
        if len(parts) == 2:
            return await self._resource(asked, kind, row)
        if len(parts) == 3:
            return await self._below(asked, kind, row, parts[2])
        raise problems.not_found(f"there is nothing at {asked.request.path[:200]!r}")

    async def _collection(self, asked: _Asked, kind: Kind[Any]) -> web.Response:
        asked.allow({"POST", *READING} if kind.create is not None else READING, why=kind.why_fixed)
        if asked.method == "POST" and kind.create is not None:
            return await self._show_made(asked, await kind.create(self._service, await asked.fields()))
        wish = filters.parse(kind.schema, asked.query)
        return await self._list(asked, kind, wish, f"{asked.base}/{kind.schema.plural.lower()}")

    async def _resource(self, asked: _Asked, kind: Kind[Any], row: Any) -> web.Response:
        action = _first(asked.query, "action")
        if asked.method == "POST" and action is not None:
            return await self._act(asked, kind, row, action)
        allowed = READING | ({"PUT"} if kind.update else set()) | ({"DELETE"} if kind.remove else set())
        asked.allow(allowed, why=kind.why_fixed, elsewhere=("POST",) if kind.schema.actions else ())
        made = Made(kind.schema.id, row)
        if asked.method == "PUT" and kind.update is not None:
            made = await kind.update(self._service, row, await asked.fields())
        elif asked.method == "DELETE" and kind.remove is not None:
            made = await kind.remove(self._service, row)
        return await self._show_made(asked, made)

    async def _act(self, asked: _Asked, kind: Kind[Any], row: Any, name: str) -> web.Response:
        action = name.lower()
        if action not in kind.schema.actions:
            valid = ", ".join(kind.schema.actions) or "none"
            message = f"there is no action {name[:60]!r} of a {kind.schema.id}; there is {valid}"
            raise problems.invalid("InvalidAction", message, field="action")
        if action not in kind.offered(self._service, row):
            message = await kind.refusal(self._service, row, action)
            raise problems.invalid("ActionNotAvailable", message, field="action")
        fields = await asked.fields()
        try:
            made = await kind.actions[action](self._service, row, fields)
        except NotFound as err:  # it was offered, and while we waited for its turn the resource went
            raise problems.invalid("ActionNotAvailable", str(err), field="action") from err
        return await self._show_made(asked, made)

    async def _below(self, asked: _Asked, kind: Kind[Any], row: Any, name: str) -> web.StreamResponse:
        stream, link = kind.streams.get(name.lower()), kind.schema.links.get(name.lower())
        if stream is not None:
            asked.allow({"GET"})
            return await stream.send(self._service, row, asked.request, answers.schemas_url(asked.base))
        if link is None:
            raise problems.not_found(f"there is no link {name[:60]!r} of a {kind.schema.id}")
        target = kinds.ALL[link.type]
        value = kind.identify(row) if link.here == "id" else (await self._fields(kind, row))[link.here]
        defaults = _defaults(target, link, value)
        asked.allow({"POST", *READING} if defaults else READING)
        if asked.method == "POST" and target.create is not None:
            return await self._show_made(asked, await target.create(self._service, await asked.fields() | defaults))
        if link.is_single:
            if value is None:
                raise problems.not_found(f"{kind.schema.id} {kind.identify(row)} has no {name[:60]}")
            return await self._show_made(asked, Made(link.type, await target.find(self._service, value)))
        wish = resources.below(link, value, filters.parse(target.schema, asked.query))
        url = f"{resources.url(asked.base, kind, row)}/{name.lower()}"
        return await self._list(asked, target, wish, url, defaults=defaults)

    async def _list(
        self, asked: _Asked, kind: Kind[Any], wish: Wish, url: str, *, defaults: Mapping[str, object] | None = None
    ) -> web.Response:
        page = listing.parse_page(asked.query)
        is_long = page.limit > listing.BESIDE
        async with self._long_lists if is_long else nullcontext():
            rows, page = await listing.select(self._service, kind, wish, page)
            data = await resources.show(self._service, asked.view, kind, rows)
            shown = {**listing.paged(kind.schema, url, data, page, asked.query), "createDefaults": defaults or {}}
            written = await self._service.runner.in_thread(answers.write_list, shown) if is_long else None
        return answers.respond(asked.base, HTTPStatus.OK, shown, written=written)

    async def _fields(self, kind: Kind[Any], row: Any) -> dict[str, Any]:
        if kind.reads(self._service, row):
            return await self._service.runner.in_thread(kind.show, self._service, row)
        return kind.show(self._service, row)

    async def _show_made(self, asked: _Asked, made: Made) -> web.Response:
        (shown,) = await resources.show(self._service, asked.view, kinds.ALL[made.type], [made.row])
        shown |= made.extra
        response = answers.respond(asked.base, made.status, shown, written=self._written.write(shown))
        if made.status is HTTPStatus.CREATED:
            response.headers["Location"] = shown["links"]["self"]
        return response


def _read(request: web.BaseRequest, base: str) -> _Asked:
    """Read what every request may say. Raises Problem (405): `_method` stands where it would be a trap."""
    query = tuple(request.query.items()) if request.query_string else ()
    method, wanted = request.method, _first(query, "_method")
    if wanted is not None and method == "POST":
        method = wanted.upper()
    elif wanted is not None and wanted.upper() != method:
        message = f"cannot {wanted[:20]} {request.path[:200]}: _method has a meaning in a POST only"
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, message)
    view = resources.view(base, query, has_action_links="X-API-Action-Links" in request.headers)
    return _Asked(request, base, method, query, view)


def _first(query: Sequence[tuple[str, str]], name: str) -> str | None:
    return next((value for key, value in query if key == name), None)


def _defaults(target: Kind[Any], link: Link, value: object) -> dict[str, object]:
    """Return what a resource is created with below another one; nothing if it cannot be."""
    is_given = link.there in target.schema.fields and target.schema.fields[link.there].create
    return {link.there: value} if target.create is not None and is_given and not link.is_single else {}
