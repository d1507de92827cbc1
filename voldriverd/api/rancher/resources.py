"""Resources as they are shown: fields, links, actions, and other resources that `include` puts into them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from voldriverd.api.rancher import kinds, listing
from voldriverd.api.rancher.filters import Condition, Wish
from voldriverd.api.rancher.kind import Kind
from voldriverd.api.rancher.listing import Page, Query
from voldriverd.api.rancher.problems import Problem
from voldriverd.api.rancher.schema import Link
from voldriverd.errors import NotFound
from voldriverd.service import Service

INCLUDED_MAX: Final = listing.LIMIT_MAX
"""How many resources are put into others in one answer: as many as the longest list has."""


@dataclass(frozen=True, slots=True)
class View:
    """What a request wants to be shown, and how."""

    base: str
    """The absolute URL of the version."""
    actions: str = "actions"
    """Under which name: `actionLinks` for clients that ask so."""
    includes: tuple[str, ...] = ()
    """Links that are followed for the client, in lower case."""


def view(base: str, query: Query, *, has_action_links: bool) -> View:
    """Read what a query says of how resources are shown."""
    if not query and not has_action_links:
        return View(base)
    includes = dict.fromkeys(value.lower() for key, value in query if key == "include")
    has_action_links = has_action_links or any(key == "_actionLinks" for key, _ in query)
    return View(base, "actionLinks" if has_action_links else "actions", tuple(includes))


def url(base: str, kind: Kind[Any], row: Any) -> str:
    """Return where a resource is."""
    return f"{base}/{kind.schema.plural.lower()}/{kind.identify(row)}"


async def show(service: Service, view: View, kind: Kind[Any], rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Write rows down as they are now, with what is to be included.

    At most INCLUDED_MAX are included; where those of one do not fit, its link stays a link.
    """
    if kind.refresh is not None:
        await kind.refresh(service, list(rows))
    if len(rows) > listing.BESIDE or any(kind.reads(service, row) for row in rows):
        shown = await service.runner.in_thread(_show_all, service, view, kind, rows)
    else:
        shown = _show_all(service, view, kind, rows)
    if view.includes:
        await _include(service, view, kind, shown)
    return shown


async def _include(service: Service, view: View, kind: Kind[Any], shown: list[dict[str, Any]]) -> None:
    links = {name: kind.schema.links[name] for name in view.includes if name in kind.schema.links}
    room = INCLUDED_MAX
    found: dict[tuple[str, object], list[dict[str, Any]] | None] = {}
    plain = View(view.base, view.actions)
    for name, link in links.items():
        for each in shown:
            value = each[link.here]
            if value is None:
                continue
            if (name, value) not in found:
                found[name, value] = await _follow(service, plain, link, value, room)
            included = found[name, value]
            if included is not None and len(included) <= room:
                room -= len(included)
                del each["links"][name]
                each[name] = (included[0] if included else None) if link.is_single else included


async def _follow(service: Service, view: View, link: Link, value: Any, room: int) -> list[dict[str, Any]] | None:
    """Return the resources that a link leads to; None if there are more than there is room for."""
    target = kinds.ALL[link.type]
    if link.is_single:
        try:
            return await show(service, view, target, [await target.find(service, value)])
        except (Problem, NotFound):  # it has just gone
            return None
    rows, page = await listing.select(service, target, below(link, value), Page(0, room))
    return await show(service, view, target, rows) if page.is_last else None


def below(link: Link, value: Any, wish: Wish | None = None) -> Wish:
    """Return the wish for what a link leads to, narrowed by another one."""
    condition = Condition(link.there, "eq", value)
    if wish is None:
        return Wish((condition,))
    return Wish((condition, *wish.conditions), wish.sort, wish.is_descending, shows_removed=wish.shows_removed)


def _show_all(service: Service, view: View, kind: Kind[Any], rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [_show(service, view, kind, row) for row in rows]


def _show(service: Service, view: View, kind: Kind[Any], row: Any) -> dict[str, Any]:
    here = url(view.base, kind, row)
    fields = kind.show(service, row)
    links = {
        name: f"{here}/{name}"
        for name, link in kind.schema.links.items()
        if not link.is_single or fields[link.here] is not None
    }
    return {
        "id": kind.identify(row),
        "type": kind.schema.id,
        "links": {"self": here, **links},
        view.actions: {name: f"{here}/?action={name}" for name in sorted(kind.offered(service, row))},
        **fields,
    }
