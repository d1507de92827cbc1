"""An answer on a page: once to be read, with links, and once as it is, for scripts of whoever opens the page."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from voldriverd.api.rancher import schemas
from voldriverd.api.rancher.schema import Field

_INDENT = "  "


def readable(value: object, base: str) -> str:
    """Return JSON with line ends, in which URLs of ours and references to resources are links."""
    return "".join(_written(value, base, "\n"))


def embedded(value: object) -> str:
    """Return JSON for inside a script element: nothing in it can end that (rancher-api 1.1: `/` is escaped)."""
    return json.dumps(value).replace("/", "\\/").replace("<", "\\u003c")


def _written(value: object, base: str, line: str, field: Field | None = None) -> Iterator[str]:
    inner = line + _INDENT
    if isinstance(value, dict) and value:
        fields = _fields(value)
        for count, (key, each) in enumerate(value.items()):
            yield f"{',' if count else '{'}{inner}<b>{_quoted(key)}</b>: "
            yield from _written(each, "" if key in {"actions", "actionLinks"} else base, inner, fields.get(key))
        yield f"{line}}}"
    elif isinstance(value, list) and value:
        for count, each in enumerate(value):
            yield f"{',' if count else '['}{inner}"
            yield from _written(each, base, inner)
        yield f"{line}]"
    else:
        url = _url(value, base, field)
        yield _quoted(value) if url is None else f'<a href="{escape(url)}">{_quoted(value)}</a>'


def _fields(value: Mapping[str, Any]) -> Mapping[str, Field]:
    """Return the fields of a resource; none of what is no resource."""
    kind = value.get("type")
    return schemas.ALL[kind].fields if isinstance(kind, str) and kind in schemas.ALL and "links" in value else {}


def _url(value: object, base: str, field: Field | None) -> str | None:
    """Return where a value leads; nowhere below a base that is empty."""
    if not isinstance(value, str) or not base:
        return None
    if value == base or value.startswith((f"{base}/", f"{base}?")):
        return value
    target = None if field is None or field.kind != "reference" else schemas.ALL.get(field.inner)
    return None if target is None else f"{base}/{target.plural.lower()}/{value}"


def _quoted(value: object) -> str:
    return escape(json.dumps(value, ensure_ascii=False), quote=False)
