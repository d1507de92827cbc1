"""`GET /v1/openapi.json`: the API in the words of OpenAPI 3.1, made from the schemas.

What OpenAPI cannot say: the actions of a type are one operation, since they differ in the query only, and its body is
that of any of them. Bodies are described as they should be; what else is taken (numbers for texts, forms, fields that
there are not) is said in `api.rancher.body`.
"""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

import voldriverd
from voldriverd.api.rancher import imports, kinds, schemas
from voldriverd.api.rancher.kind import Kind
from voldriverd.api.rancher.openapi import shapes
from voldriverd.api.rancher.schema import Link, Schema

NAME: Final = "openapi.json"
_Json = dict[str, Any]

_READING: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_CHANGING: Final = (
    *_READING,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)
_ID: Final[_Json] = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_PAGE: Final[Mapping[str, _Json]] = {
    "limit": {"name": "limit", "in": "query", "schema": {"type": "integer"}},
    "marker": {"name": "marker", "in": "query", "schema": {"type": "string"}},
    "order": {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
}
"""What every list takes."""


def document(base: str) -> _Json:
    """Return the document; `base` is the absolute URL of the version."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "voldriverd",
            "version": voldriverd.__version__,
            "description": "Volumes, snapshots and backups in the dialect of the Rancher v1 API. "
            "Over TCP an API key is needed, as HTTP basic; on the unix socket nothing.",
        },
        "servers": [{"url": base}],
        "security": [{"basic": []}],
        "paths": dict(_paths()),
        "components": {
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
            "parameters": _PAGE,
            "responses": {each.name: _answer(shapes.named("error"), about=each.phrase) for each in _CHANGING},
            "schemas": shapes.all_named(),
        },
    }


def _paths() -> Iterable[tuple[str, _Json]]:
    for kind in kinds.ALL.values():
        path = f"/{kind.schema.plural.lower()}"
        yield path, _collection(kind.schema, kind.schema.id, can_create="POST" in kind.schema.collection_methods)
        yield f"{path}/{{id}}", {"parameters": [_ID], **_operations(kind.schema)}
        for name, link in kind.schema.links.items():
            yield f"{path}/{{id}}/{name}", {"parameters": [_ID], **_link(kind.schema, name, link)}
        for name, stream in kind.streams.items():
            yield f"{path}/{{id}}/{name}", {"parameters": [_ID], "get": _stream(kind, name, stream)}
    yield f"/{'/'.join(imports.PATH)}", {"post": _import()}
    for schema in (schemas.SCHEMA, schemas.API_VERSION):
        yield f"/{schema.plural.lower()}", _collection(schema, schema.id, can_create=False)
        yield f"/{schema.plural.lower()}/{{id}}", {"parameters": [_ID], "get": _read(f"get{_title(schema.id)}", schema)}
    events = _operation("listEvents", {"200": _answer({"type": "string"}, "text/event-stream")}, _READING)
    yield f"/{schemas.EVENT.plural}", {"get": events}
    yield f"/{NAME}", {"get": _operation("getOpenapi", {"200": _answer({"type": "object"})}, _READING)}


def _collection(schema: Schema, name: str, *, can_create: bool) -> _Json:
    operation = _operation(f"list{_title(name)}", {"200": _answer(shapes.list_of(schema))}, _READING)
    operations = {"get": operation | {"parameters": list(_list_parameters(schema))}}
    if can_create:
        operations["post"] = _change(f"create{_title(name)}", (shapes.named(f"{schema.id}Create"),), schema, ("201",))
    return operations


def _operations(schema: Schema) -> _Json:
    name = _title(schema.id)
    operations = {"get": _read(f"get{name}", schema)}
    if "PUT" in schema.resource_methods:
        operations["put"] = _change(f"update{name}", (shapes.named(f"{schema.id}Update"),), schema, ("200",))
    if "DELETE" in schema.resource_methods:
        operations["delete"] = _change(f"remove{name}", (), schema, ("200",))
    if schema.actions:
        operations["post"] = _act(schema)
    return operations


def _act(schema: Schema) -> _Json:
    inputs = tuple(shapes.named(action.input) for action in schema.actions.values() if action.input is not None)
    given = [each for action in schema.actions.values() for each in (action.output, action.other_output)]
    outputs = sorted({output for output in given if output is not None})
    answer = _answer({"anyOf": [shapes.named(output) for output in outputs]})
    name = {"name": "action", "in": "query", "required": True, "schema": {"enum": list(schema.actions)}}
    operation = _change(f"actOn{_title(schema.id)}", inputs, schema, ())
    operation["parameters"] = [name]
    operation["responses"] |= dict.fromkeys(("200", "201", "202"), answer)
    return operation


def _import() -> _Json:
    """Describe the import: of an archive in the body, with the volume in the query, or of a directory."""
    operation = _change("importVolume", (shapes.named(imports.INPUT),), schemas.VOLUME, ("201", "202"))
    operation["requestBody"]["content"][imports.TYPE] = {"schema": {}}
    about = {"name": "of the new volume", "driver": "of it", "description": "of it"}
    operation["parameters"] = [_query(name, f"{text}, with an archive") for name, text in about.items()]
    maps = {"driverOpts": "as in driverOpts.size=1G", "labels": "as in labels.tier=db"}
    operation["parameters"] += [_query(f"{name}.*", f"{text}, with an archive") for name, text in maps.items()]
    return operation


def _link(schema: Schema, name: str, link: Link) -> _Json:
    target, operation = kinds.ALL[link.type].schema, f"{_title(schema.id)}{_title(name)}"
    if link.is_single:
        return {"get": _read(f"get{operation}", target)}
    can_create = "POST" in target.collection_methods and target.fields[link.there].create
    return _collection(target, operation, can_create=can_create)


def _stream(kind: Kind[Any], name: str, stream: Any) -> _Json:
    answer = _answer({}, stream.content_type)
    statuses = (*_READING, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)
    operation = _operation(f"get{_title(kind.schema.id)}{_title(name)}", {"200": answer}, statuses)
    return operation | {"parameters": [_query(each, about) for each, about in stream.parameters.items()]}


def _read(name: str, schema: Schema) -> _Json:
    return _operation(name, {"200": _answer(shapes.named(schema.id))}, _READING)


def _change(name: str, bodies: tuple[_Json, ...], schema: Schema, statuses: tuple[str, ...]) -> _Json:
    operation = _operation(name, dict.fromkeys(statuses, _answer(shapes.named(schema.id))), _CHANGING)
    if bodies:
        wanted = bodies[0] if len(bodies) == 1 else {"anyOf": list(bodies)}
        operation["requestBody"] = {"content": {"application/json": {"schema": wanted}}}
    return operation


def _operation(name: str, responses: _Json, refusals: tuple[HTTPStatus, ...]) -> _Json:
    errors = {str(int(status)): {"$ref": f"#/components/responses/{status.name}"} for status in sorted(refusals)}
    return {"operationId": name, "responses": responses | errors}


def _answer(schema: _Json, content_type: str = "application/json", about: str = "OK") -> _Json:
    return {"description": about, "content": {content_type: {"schema": schema}}}


def _list_parameters(schema: Schema) -> Iterable[_Json]:
    yield from ({"$ref": f"#/components/parameters/{name}"} for name in _PAGE)
    if schema.filters():
        yield {"name": "sort", "in": "query", "schema": {"enum": list(schema.filters())}}
        yield {"name": "filter", "in": "query", "explode": True, "schema": shapes.named(f"{schema.id}Filter")}
    if schema.links:
        links = {"type": "array", "items": {"enum": list(schema.links)}}
        yield {"name": "include", "in": "query", "explode": True, "schema": links}


def _query(name: str, about: str) -> _Json:
    return {"name": name, "in": "query", "description": about, "schema": {"type": "string"}}


def _title(name: str) -> str:
    return name[0].upper() + name[1:]
