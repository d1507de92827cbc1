"""Forms, made from schemas: to create a resource, to update it, and for each action that it offers now."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from voldriverd.api.rancher import schemas
from voldriverd.api.rancher.schema import Field, Schema

_PLACEHOLDERS: Final = {"map": "key=value, one a line", "array": "one a line", "date": "2026-01-31T12:00:00Z"}
_LINES: Final = frozenset({"map", "array", "multiline"})


def of(answer: Mapping[str, Any], base: str, token: str) -> Iterator[str]:
    """Yield the forms of an answer's page."""
    schema = schemas.ALL.get(answer.get("resourceType", answer["type"]))
    if schema is None or answer["type"] == "error":
        return
    url = answer["links"].get("self", "")
    if answer["type"] == "collection":
        defaults = answer["createDefaults"]
        can_create = "POST" in schema.collection_methods and (defaults or url == f"{base}/{schema.plural.lower()}")
        if can_create:
            yield _form(f"create {schema.id}", url, _fields(schema, "create"), defaults, token)
        return
    if "PUT" in schema.resource_methods and not answer.get("removed"):
        yield _form("update", f"{url}?_method=PUT", _fields(schema, "update"), answer, token)
    for name, action_url in (answer.get("actions") or answer.get("actionLinks") or {}).items():
        wanted = schema.actions[name].input
        fields = {} if wanted is None else _fields(schemas.ALL[wanted], "create")
        yield _form(name, action_url, fields, {}, token)


def _fields(schema: Schema, mark: str) -> Mapping[str, Field]:
    """Return the fields that may be given at a creation or an update, those first that must be."""
    fields = {name: field for name, field in schema.fields.items() if getattr(field, mark)}
    return dict(sorted(fields.items(), key=lambda each: not each[1].required))


def _form(title: str, url: str, fields: Mapping[str, Field], values: Mapping[str, Any], token: str) -> str:
    given = {name: values.get(name, field.default) for name, field in fields.items()}
    labels = "".join(_label(name, fields[name], value) for name, value in given.items() if _is_writable(value))
    hidden = f'<input type="hidden" name="CSRF" value="{escape(token)}">'
    button = f"<button>{escape(title)}</button>"
    form = f'<form method="post" action="{escape(url)}">{hidden}\n{labels}{button}</form>'
    return f"<details><summary>{escape(title)}</summary>\n{form}\n</details>\n"


def _label(name: str, field: Field, value: object) -> str:
    nested = schemas.ALL.get(field.type)
    if nested is not None:
        inner = {f"{name}.{each}": part for each, part in _fields(nested, "create").items()}
        return "".join(_row(each, part, None, is_required=False) for each, part in inner.items())
    return _row(name, field, value, is_required=field.required)


def _row(name: str, field: Field, value: object, *, is_required: bool) -> str:
    star = " *" if is_required else ""
    about = escape(field.description or "")
    control = _control(field, f'name="{escape(name)}"{" required" if is_required else ""}', value)
    return f"<label>{escape(name)}{star} {control} <small>{about}</small></label>\n"


def _control(field: Field, attributes: str, value: object) -> str:
    """Return what is typed into or chosen from; `value` is what it has at the beginning."""
    options = ("true", "false") if field.kind == "boolean" else field.options
    if options:
        given = str(value).lower() if isinstance(value, bool) else value
        choices = [option for option in ("", *options) if option or given is None]
        shown = "".join(
            f"<option{' selected' if option == given else ''}>{escape(option)}</option>" for option in choices
        )
        return f"<select {attributes}>{shown}</select>"
    placeholder = _PLACEHOLDERS.get(field.kind) or (f"1{_letters(field)}5" if _letters(field) else "")
    attributes += f' placeholder="{escape(placeholder)}"' if placeholder else ""
    attributes += f' maxlength="{field.max_length}"' if field.max_length is not None else ""
    if field.kind in _LINES or (isinstance(value, str) and "\n" in value):
        return f'<textarea {attributes} rows="3">\n{escape(_lines(value))}</textarea>'
    kind = {"password": "password", "int": "number"}.get(field.kind, "text")
    attributes += ' autocomplete="new-password"' if kind == "password" else ""
    return f'<input type="{kind}" {attributes} value="{escape("" if value is None else str(value))}">'


def _letters(field: Field) -> str | None:
    """Return the letters in the ids that a reference may have."""
    target = schemas.ALL.get(field.inner) if field.kind == "reference" else None
    return None if target is None else target.letters


def _is_writable(value: object) -> bool:
    """Tell whether a value comes back as it was; what does not is left out, and so as it is."""
    if isinstance(value, Mapping):
        return all("=" not in key and not {"\n", "\r"} & {*key, *each} for key, each in value.items())
    return not isinstance(value, str) or "\r" not in value


def _lines(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}={each}" for key, each in value.items())
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")
