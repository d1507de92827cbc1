"""Lists: one page of a type's rows, and the envelope of a collection (rancher-api 1.2, 1.6)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from voldriverd.api.rancher import filters
from voldriverd.api.rancher.filters import Wish
from voldriverd.api.rancher.kind import Kind
from voldriverd.api.rancher.schema import Schema
from voldriverd.service import Service

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 3_000
"""Those of Rancher; a limit of 0 or less asks for the most."""

BESIDE: Final = 200
"""More rows are filtered, sorted and written down beside the event loop: each takes tens of microseconds."""

Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Page:
    """Where a page begins, how long it is, and whether others follow."""

    offset: int
    limit: int
    is_last: bool = True


def parse_page(query: Query) -> Page:
    """Read limit and marker; what is no number is taken for not given."""
    given = dict(query)
    limit, marker = given.get("limit", ""), given.get("marker", "").removeprefix("m")
    wanted = int(limit) if _is_number(limit.removeprefix("-")) else LIMIT_DEFAULT
    offset = int(marker) if _is_number(marker) else 0
    return Page(offset, min(wanted, LIMIT_MAX) if wanted > 0 else LIMIT_MAX)


async def select(service: Service, kind: Kind[Any], wish: Wish, page: Page) -> tuple[list[Any], Page]:
    """Return the rows of a page."""
    if kind.select is not None:
        found = await kind.select(service, wish, page.offset, page.limit + 1)
        return found[: page.limit], Page(page.offset, page.limit, is_last=len(found) <= page.limit)
    assert kind.rows is not None, f"{kind.schema.id} has no list"
    rows = await kind.rows(service, wish)
    if len(rows) > BESIDE or any(kind.reads(service, row) for row in rows):
        rows = await service.runner.in_thread(_filtered, service, kind, wish, rows)
    else:
        rows = _filtered(service, kind, wish, rows)
    end = page.offset + page.limit
    return rows[page.offset : end], Page(page.offset, page.limit, is_last=len(rows) <= end)


def envelope(schema: Schema, url: str, data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a collection that has neither pages nor filters."""
    return {
        "type": "collection",
        "resourceType": schema.id,
        "links": {"self": url},
        "createTypes": {},
        "actions": {},
        "data": data,
        "sortLinks": {},
        "pagination": None,
        "sort": None,
        "filters": {},
        "createDefaults": {},
    }


def paged(schema: Schema, url: str, data: Sequence[Mapping[str, Any]], page: Page, query: Query) -> dict[str, Any]:
    """Return the collection of one page; links in it repeat the other parameters of the query."""
    wish = filters.parse(schema, query)
    others = [(key, value) for key, value in query if key != "marker"]
    known = schema.filters()
    return envelope(schema, url, data) | {
        "sortLinks": {name: f"{url}?sort={name}" for name in known},
        "pagination": _pagination(url, page, others),
        "sort": _sort(url, wish, others),
        "filters": {name: _filter(wish, name) for name in known},
    }


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(2**62))


def _filtered(service: Service, kind: Kind[Any], wish: Wish, rows: list[Any]) -> list[Any]:
    if not wish.conditions and wish.sort is None:
        return rows
    schema = kind.schema
    shown = [({"id": kind.identify(row), **kind.show(service, row)}, row) for row in rows]
    for condition in wish.conditions:
        shown = [each for each in shown if filters.holds(schema, condition, each[0])]
    if wish.sort is not None:
        key = filters.sort_key(schema, wish.sort)
        shown.sort(key=lambda each: key(each[0]), reverse=wish.is_descending)
    return [row for _, row in shown]


def _pagination(url: str, page: Page, others: Query) -> dict[str, Any]:
    def at(offset: int) -> str:
        marker = [("marker", f"m{offset}")] if offset > 0 else []
        return f"{url}?{urlencode([*others, *marker])}"

    return {
        "first": at(0) if page.offset else None,
        "previous": at(page.offset - page.limit) if page.offset else None,
        "next": None if page.is_last else at(page.offset + page.limit),
        "limit": page.limit,
        "total": None,
        "partial": not page.is_last,
    }


def _sort(url: str, wish: Wish, others: Query) -> dict[str, str] | None:
    if wish.sort is None:
        return None
    order, opposite = ("desc", "asc") if wish.is_descending else ("asc", "desc")
    query = [(key, value) for key, value in others if key != "order"]
    return {"name": wish.sort, "order": order, "reverse": f"{url}?{urlencode([*query, ('order', opposite)])}"}


def _filter(wish: Wish, name: str) -> list[dict[str, str]] | None:
    found: Iterable[filters.Condition] = (each for each in wish.conditions if each.field == name)
    return [{"modifier": each.modifier, "value": each.value} for each in found] or None
