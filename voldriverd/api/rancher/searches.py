"""Wishes for snapshots in the words of the store, so that it filters, sorts and cuts."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from voldriverd import model
from voldriverd.api.rancher import filters, schemas
from voldriverd.api.rancher.filters import Condition, Wish
from voldriverd.api.rancher.kind import ACCOUNT, transition

_COLUMNS: Final = {
    "id": "id",
    "name": "name",
    "description": "description",
    "uuid": "uuid",
    "volumeId": "volume_id",
    "managedVolumeUUID": "volume_uuid",
    "sizeBytes": "size_bytes",
    "automatic": "is_automatic",
    "state": "state",
    "created": "created_at",
    "expires": "expires_at",
    "removed": "removed_at",
    "removeTime": "destroy_at",
}
_CREATING: Final = "is_creating"
"""What all other fields follow from: they are constants but for this."""
_SORTS: Final = _COLUMNS | {"transitioning": _CREATING, "transitioningMessage": _CREATING}
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
"""Letters that no stored text has."""
_NEVER: Final = model.Condition("id", "null", None)


def search(wish: Wish, offset: int, limit: int) -> model.Search:
    """Return the search of a part of a list."""
    return model.Search(
        conditions=tuple(each for condition in wish.conditions for each in _translate(condition)),
        sort=None if wish.sort is None else _SORTS.get(wish.sort),
        is_descending=wish.is_descending,
        has_removed=wish.has_removed,
        offset=offset,
        limit=limit,
    )


def _translate(condition: Condition) -> Iterator[model.Condition]:
    column, modifier = _COLUMNS.get(condition.field), condition.modifier
    if column is None:
        yield from _on_transition(condition)
        return
    value = None
    if modifier not in {"null", "notnull"}:
        value = _value(condition)
        if value is None and modifier != "ne":
            yield _NEVER
            return
    yield model.Condition(column, modifier, value)


def _on_transition(condition: Condition) -> Iterator[model.Condition]:
    """Translate a condition on what is one thing for snapshots that are being made, and another for all others."""
    holds = {
        is_going: filters.holds(
            schemas.SNAPSHOT,
            condition,
            {"accountId": ACCOUNT, "kind": "snapshot", **transition(is_going=is_going, fault=None)},
        )
        for is_going in (True, False)
    }
    if holds[True] != holds[False]:
        yield model.Condition(_CREATING, "eq", int(holds[True]))
    elif not holds[True]:
        yield _NEVER


def _value(condition: Condition) -> str | int | None:
    found = filters.wanted(schemas.SNAPSHOT, condition.field, condition.value)
    if found is None:
        return None
    if schemas.SNAPSHOT.fields[condition.field].kind == "date":
        return datetime.fromtimestamp(found // 1_000, UTC).isoformat()[:19]
    return int(found) if isinstance(found, int) else _NO_TEXT.sub("\uffff", found)
