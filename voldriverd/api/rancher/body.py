"""Request bodies parsed by the schema that they should follow. Content types are ignored (rancher-api 1.2, 1.5).

What a schema does not know, or does not let one create or update, is dropped, as Rancher did.
"""

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn

from voldriverd.api.rancher import ids, problems, schemas, times
from voldriverd.api.rancher.problems import Problem
from voldriverd.api.rancher.schema import Field, Schema

Body = Mapping[str, Any]
"""The fields that were given: texts, whole numbers, booleans, datetimes, maps of texts, the numbers of references."""


def decode(raw: bytes) -> Body:
    """Return the JSON object of a body; an empty one is an empty object. Raises Problem (400)."""
    if not raw.strip():
        return {}
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as err:
        raise _unreadable(f"cannot read the body: it is not JSON: {err}") from err
    if not isinstance(found, dict):
        raise _unreadable(f"cannot read the body: it is not a JSON object but {type(found).__name__}")
    return found


def parse_creation(schema: Schema, given: Body) -> dict[str, Any]:
    """Return the creatable fields that were given, and the defaults of the others. Raises Problem (422)."""
    found = {name: each.default for name, each in schema.fields.items() if each.create and each.default is not None}
    for name, each in schema.fields.items():
        if each.create and name in given:
            found[name] = _parse(name, each, given[name])
        elif each.create and each.required:
            raise problems.invalid("MissingRequired", f"{name} is required and missing", field=name)
    return found


def parse_update(schema: Schema, given: Body) -> dict[str, Any]:
    """Return the updatable fields that were given. Raises Problem (422)."""
    return {
        name: _parse(name, each, given[name]) for name, each in schema.fields.items() if each.update and name in given
    }


def _parse(name: str, field: Field, value: object) -> object:
    if value is None:
        if not field.nullable:
            raise problems.invalid("NotNullable", f"{name} cannot be null", field=name)
        return None
    return _PARSERS[field.kind](name, field, value)


def _text(name: str, field: Field, value: object) -> str:
    if isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str):
        _refuse_format(name, field, value)
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise problems.invalid("InvalidCharacters", f"{name} is not valid text", field=name)
    if field.max_length is not None and len(value) > field.max_length:
        message = f"{name} has {len(value)} characters, and at most {field.max_length} are allowed"
        raise problems.invalid("MaxLengthExceeded", message, field=name)
    return value


def _option(name: str, field: Field, value: object) -> str:
    text = _text(name, field, value)
    if text not in field.options:
        message = f"{name} is {text[:60]!r}, and valid are {', '.join(field.options)}"
        raise problems.invalid("InvalidOption", message, field=name)
    return text


def _boolean(name: str, field: Field, value: object) -> bool:
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if not isinstance(value, bool):
        _refuse_format(name, field, value)
    return value


def _date(name: str, _field: Field, value: object) -> object:
    time = times.parse(value)
    if time is None:
        message = f"{name} is neither an ISO 8601 date nor milliseconds since 1970"
        raise problems.invalid("InvalidDateFormat", message, field=name)
    return time


def _map(name: str, field: Field, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        _refuse_format(name, field, value)
    inner = Field("string")
    for key in value:
        _text(name, inner, key)
    return {key: _text(f"{name}.{key}" if key.isprintable() else name, inner, each) for key, each in value.items()}


def _reference(name: str, field: Field, value: object) -> int:
    target = schemas.ALL[field.inner]
    number = ids.parse(target, str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if number is None:
        message = f"{name} is not the id of a {target.id}, as in {ids.show(target, 5)}"
        raise problems.invalid("InvalidReference", message, field=name)
    return number


def _refuse_format(name: str, field: Field, value: object) -> NoReturn:
    kinds = {bool: "a boolean", list: "a list", dict: "an object", str: "a text", int: "a number", float: "a number"}
    message = f"{name} is {kinds.get(type(value), 'null')}, and a {field.type} is needed"
    raise problems.invalid("InvalidFormat", message, field=name)


def _unreadable(message: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, message, code="InvalidBodyContent")


_PARSERS: Final[Mapping[str, Callable[[str, Field, object], object]]] = {
    "string": _text,
    "enum": _option,
    "boolean": _boolean,
    "date": _date,
    "map": _map,
    "reference": _reference,
}
"""By the type of a field; no field that can be created or updated has another type yet."""
