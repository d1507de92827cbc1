"""What the dispatch knows of a type of resource: its schema, and functions over its rows."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Generic, Protocol, TypeVar

from aiohttp import web

from voldriverd.api.rancher import ids, problems
from voldriverd.api.rancher.body import Body
from voldriverd.api.rancher.filters import Wish
from voldriverd.api.rancher.schema import Schema
from voldriverd.service import Service

R = TypeVar("R")

ACCOUNT: str = "1a1"
"""The account that everything belongs to; there is one."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a request came to: a row of a type, and fields that only this answer has."""

    type: str
    row: Any
    status: HTTPStatus = HTTPStatus.OK
    extra: Mapping[str, object] = field(default_factory=dict)


def _offers_nothing(_service: Service, _row: Any) -> frozenset[str]:
    return frozenset()


def _never(_service: Service, _row: object) -> bool:
    return False


async def _plain_refusal(_service: Service, _row: Any, action: str) -> str:
    return f"{action} is not offered in this state"


@dataclass(frozen=True, slots=True)
class Stream(Generic[R]):
    """What is read below a resource and is no resource."""

    send: Callable[[Service, R, web.BaseRequest, str], Awaitable[web.StreamResponse]]
    """Takes the schemas' URL last."""
    content_type: str
    parameters: Mapping[str, str]
    """What may stand in the query, and what it means."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[R]):
    """One type; what is None is not allowed for it."""

    schema: Schema
    find: Callable[[Service, str], Awaitable[R]]
    """Returns the row of an id, removed ones too. Raises NotFound."""
    show: Callable[[Service, R], dict[str, Any]]
    """Returns all fields but id, type, links and actions."""
    identify: Callable[[R], str]
    rows: Callable[[Service, Wish], Awaitable[list[R]]] | None = None
    """Returns the rows of a list in the order of their ids; may leave out what the wish leaves out anyway."""
    select: Callable[[Service, Wish, int, int], Awaitable[list[R]]] | None = None
    """Returns the rows of a wish from an offset on, at most so many: in place of `rows` where there are very many."""
    offered: Callable[[Service, R], frozenset[str]] = _offers_nothing
    refusal: Callable[[Service, R, str], Awaitable[str]] = _plain_refusal
    """Says why an action is not offered."""
    refresh: Callable[[Service, list[R]], Awaitable[None]] | None = None
    """Brings what is shown of these rows up to date."""
    create: Callable[[Service, Body], Awaitable[Made]] | None = None
    update: Callable[[Service, R, Body], Awaitable[Made]] | None = None
    remove: Callable[[Service, R], Awaitable[Made]] | None = None
    reads: Callable[[Service, R], bool] = _never
    """Tells whether `show` reads more of a row than is in memory, and so blocks."""
    why_fixed: str | None = None
    """Why it cannot be created, changed or removed here."""
    actions: Mapping[str, Callable[[Service, R, Body], Awaitable[Made]]] = field(default_factory=dict)
    streams: Mapping[str, Stream[R]] = field(default_factory=dict)
    """What is read below a resource and is no resource, by the last part of the path."""


def number(schema: Schema, text: str) -> int:
    """Return the number of an id in a path. Raises Problem (404)."""
    found = ids.parse(schema, text)
    if found is None:
        message = f"there is no {schema.id} {text[:60]!r}: an id is written as in {ids.show(schema, 5)}"
        raise problems.not_found(message)
    return found


class Job(Protocol):
    """What tells how far something is."""

    @property
    def percent(self) -> int | None:
        """How much is done; None if that cannot be told."""
        ...

    def message(self) -> str:
        """Return that for people."""
        ...


def transition(
    *, is_going: bool, fault: str | None, job: Job | None = None, note: str | None = None
) -> dict[str, object]:
    """Return the three fields that say whether something goes on, or what went wrong (rancher-api 3).

    `note` is what else is to be known.
    """
    if not is_going:
        state = "no" if fault is None else "error"
        return {"transitioning": state, "transitioningMessage": fault or note, "transitioningProgress": None}
    message, percent = (note or "In Progress", None) if job is None else (job.message(), job.percent)
    return {"transitioning": "yes", "transitioningMessage": message, "transitioningProgress": percent}
