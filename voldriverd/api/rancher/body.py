"""Request bodies parsed by the schema that they should follow. Content types are ignored (rancher-api 1.2, 1.5).

What a schema does not know, or does not let one create or update, is dropped, as Rancher did.
"""

import email
import email.policy
import json
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl

from voldriverd.api.rancher import ids, problems, schemas, times
from voldriverd.api.rancher.problems import Problem
from voldriverd.api.rancher.schema import Field, Schema

FORM_FIELDS_MAX: Final = 1_000
MULTIPART_MAX_BYTES: Final = 100 << 10
"""As in Rancher (rancher-api 1.2)."""

Body = dict[str, Any]
"""The fields that were given: texts, whole numbers, booleans, datetimes, maps of texts, the numbers of references."""


def decode(raw: bytes, content_type: str = "", *, keeps_blank: bool = False) -> Body:
    """Return the object of a body; an empty one is an empty object. Raises Problem (400).

    It is JSON unless it is called a form and does not begin with `{`: curl calls everything a form. In a form a blank
    field is one that was not given, unless `keeps_blank` (in an update it empties what is there), and `labels.tier=db`
    is a map's key. Lines end with a line feed, as they do elsewhere. Of a multipart one files are taken for texts.
    """
    if not raw.strip():
        return {}
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _FORMS and not raw.lstrip().startswith(b"{"):
        fields = [(name, value.replace("\r\n", "\n")) for name, value in _FORMS[kind](raw, content_type)]
        return _nested([each for each in fields if each[1] or keeps_blank])
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as err:
        raise _unreadable(f"cannot read the body: it is not JSON: {err}") from err
    if not isinstance(found, dict):
        raise _unreadable(f"cannot read the body: it is not a JSON object but {type(found).__name__}")
    return found


def _plain_form(raw: bytes, _content_type: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS_MAX)
    except ValueError as err:
        raise _unreadable(f"cannot read the body: it is not a form: {err}") from err


def _multipart_form(raw: bytes, content_type: str) -> list[tuple[str, str]]:
    if len(raw) > MULTIPART_MAX_BYTES:
        cause = f"a multipart form may have {MULTIPART_MAX_BYTES} bytes"
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"cannot read the body: {cause}")
    head = f"Content-Type: {content_type}\r\n\r\n".encode(errors="replace")
    message = email.message_from_bytes(head + raw, policy=email.policy.HTTP)
    fields = []
    for part in message.iter_parts() if message.is_multipart() else ():
        name, value = part.get_param("name", header="Content-Disposition"), part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(value, bytes):
            fields.append((name, value.decode(errors="replace")))
    return fields


def _nested(fields: list[tuple[str, str]]) -> Body:
    found: dict[str, Any] = {}
    for name, value in fields:
        field, dot, key = name.partition(".")
        if not dot:
            found[field] = value
        elif isinstance(found.setdefault(field, {}), dict):
            found[field][key] = value
    return found


_FORMS: Final[Mapping[str, Callable[[bytes, str], list[tuple[str, str]]]]] = {
    "application/x-www-form-urlencoded": _plain_form,
    "multipart/form-data": _multipart_form,
}


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
    if field.min_length is not None and len(value) < field.min_length:
        raise problems.invalid("MinLengthExceeded", f"{name} is shorter than {field.min_length}", field=name)
    if field.valid_chars is not None and re.fullmatch(f"[{field.valid_chars}]*", value) is None:
        raise problems.invalid("InvalidCharacters", f"{name} may have {field.valid_chars} only", field=name)
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
    """Read an object, or a text with a line `key=value` for each key, as text areas of forms send it."""
    if isinstance(value, str) and all("=" in line for line in value.split("\n") if line):
        value = dict(line.split("=", 1) for line in value.split("\n") if line)
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


def _config(name: str, field: Field, value: object) -> dict[str, Any]:
    """Parse a value that has a schema of its own."""
    if not isinstance(value, dict):
        _refuse_format(name, field, value)
    return parse_creation(schemas.ALL[field.type], value)


_PARSERS: Final[Mapping[str, Callable[[str, Field, object], object]]] = {
    "string": _text,
    "password": _text,
    "nfsConfig": _config,
    "enum": _option,
    "boolean": _boolean,
    "date": _date,
    "map": _map,
    "reference": _reference,
}
"""By the type of a field; no field that can be created or updated has another type yet."""
