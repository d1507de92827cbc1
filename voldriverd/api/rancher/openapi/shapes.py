"""The shapes of resources, lists and bodies as JSON Schema (2020-12), made from the schemas of the API."""

from collections.abc import Mapping
from typing import Any, Final

from voldriverd.api.rancher import schemas
from voldriverd.api.rancher.schema import Field, Schema

Shape = dict[str, Any]

_TYPES: Final[Mapping[str, Shape]] = {
    "string": {"type": "string"},
    "multiline": {"type": "string"},
    "password": {"type": "string"},
    "enum": {"type": "string"},
    "date": {"type": "string", "format": "date-time"},
    "int": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "json": {},
    "reference": {"type": "string"},
}
_URLS: Final[Shape] = {"type": "object", "additionalProperties": {"type": "string", "format": "uri"}}
_COLLECTION: Final[Mapping[str, Shape]] = {
    "type": {"const": "collection"},
    "links": _URLS,
    "createTypes": {"type": "object"},
    "actions": _URLS,
    "sortLinks": _URLS,
    "pagination": {"type": ["object", "null"]},
    "sort": {"type": ["object", "null"]},
    "filters": {"type": "object"},
    "createDefaults": {"type": "object"},
}


def all_named() -> dict[str, Shape]:
    """Return the shapes that others name: of each schema, and of what it is created, updated and filtered with."""
    shapes: dict[str, Shape] = {}
    for name, schema in schemas.ALL.items():
        shapes[name] = _body(schema, "create") if is_value(schema) else _resource(schema)
        if "POST" in schema.collection_methods:
            shapes[f"{name}Create"] = _body(schema, "create")
        if "PUT" in schema.resource_methods:
            shapes[f"{name}Update"] = _body(schema, "update")
        if schema.filters():
            shapes[f"{name}Filter"] = _filter(schema)
    return shapes


def is_value(schema: Schema) -> bool:
    """Tell whether there is no resource of it: it is an action's input, or a part of a resource."""
    return schema.letters is None and any(field.create for field in schema.fields.values())


def named(name: str) -> Shape:
    """Return a reference to a shape."""
    return {"$ref": f"#/components/schemas/{name}"}


def list_of(schema: Schema) -> Shape:
    """Return the shape of a collection."""
    own = {"resourceType": {"const": schema.id}, "data": {"type": "array", "items": named(schema.id)}}
    properties = {**_COLLECTION, **own}
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}


def _resource(schema: Schema) -> Shape:
    """Return the shape of what is answered: every field is there, and no other."""
    fields = {name: _field(field) for name, field in schema.fields.items()}
    own: dict[str, Shape] = {"id": {"type": "string"}, "type": {"const": schema.id}}
    if schema.id != schemas.EVENT.id:
        own |= {"links": _URLS, "actions": _URLS}
    optional: dict[str, Shape] = {
        f"{name}TS": {"type": "integer", "description": "the same in milliseconds since 1970"}
        for name, field in schema.fields.items()
        if field.kind == "date"
    }
    optional |= {name: {"description": "what the link leads to, if it was included"} for name in schema.links}
    required = sorted({*own, *fields} - ({"fieldName"} if schema.id == schemas.ERROR.id else set()))
    return {
        "type": "object",
        "properties": optional | fields | own,
        "required": required,
        "additionalProperties": False,
    }


def _body(schema: Schema, mark: str) -> Shape:
    """Return the shape of a body that creates or updates; other fields are dropped."""
    fields = {name: field for name, field in schema.fields.items() if getattr(field, mark)}
    required = sorted(name for name, field in fields.items() if field.required and mark == "create")
    shape = {"type": "object", "properties": {name: _field(field) for name, field in fields.items()}}
    return shape | ({"required": required} if required else {})


def _filter(schema: Schema) -> Shape:
    """Return the shape of what lists can be narrowed by, each as a parameter of the query."""
    names = [
        name if modifier == "eq" else f"{name}_{modifier}"
        for name, found in schema.filters().items()
        for modifier in found
    ]
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}}


def _field(field: Field) -> Shape:
    shape = _type(field.type)
    facts = {
        "maxLength": field.max_length,
        "minLength": field.min_length,
        "pattern": f"^[{field.valid_chars}]*$" if field.valid_chars else None,
        "enum": list(field.options) or None,
    }
    shape |= {name: value for name, value in facts.items() if value is not None}
    if field.nullable and "$ref" in shape:
        shape = {"anyOf": [shape, {"type": "null"}]}
    elif field.nullable and "type" in shape:
        shape |= {"type": [shape["type"], "null"]} | ({"enum": [*field.options, None]} if field.options else {})
    notes = {"description": field.description, "default": field.default}
    return shape | {name: value for name, value in notes.items() if value is not None}


def _type(text: str) -> Shape:
    kind, _, inner = text.removesuffix("]").partition("[")
    if kind == "map":
        return {"type": "object", "additionalProperties": _type(inner)}
    if kind == "array":
        return {"type": "array", "items": _type(inner)}
    return dict(_TYPES[kind]) if kind in _TYPES else named(text)
