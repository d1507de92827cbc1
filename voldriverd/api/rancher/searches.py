"""Wishes for snapshots and backups in the words of the store, so that it filters, sorts and cuts."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from voldriverd import model
from voldriverd.api.rancher import filters, schemas
from voldriverd.api.rancher.filters import Condition, Wish
from voldriverd.api.rancher.kind import ACCOUNT, transition
from voldriverd.api.rancher.schema import Schema


@dataclass(frozen=True, slots=True)
class _Table:
    """How a type's fields are called in the store."""

    schema: Schema
    columns: Mapping[str, str]
    going: str | None = None
    """What `transitioning` follows from; None: no list is filtered by that. All other fields are constants."""


_BOTH: Final = {
    **{name: name for name in ("id", "name", "description", "uuid", "state")},
    "volumeId": "volume_id",
    "sizeBytes": "size_bytes",
    "created": "created_at",
    "removed": "removed_at",
}
_SNAPSHOTS: Final = _Table(
    schemas.SNAPSHOT,
    _BOTH
    | {
        "managedVolumeUUID": "volume_uuid",
        "automatic": "is_automatic",
        "expires": "expires_at",
        "removeTime": "destroy_at",
    },
    going="is_creating",
)
_BACKUPS: Final = _Table(
    schemas.BACKUP,
    _BOTH
    | {
        **{name: name for name in ("driver", "format", "host", "uri")},
        "backupTargetId": "target_id",
        "contentBytes": "content_bytes",
        "snapshotId": "snapshot_id",
        "snapshotName": "snapshot_name",
        "storedBytes": "stored_bytes",
        "taken": "taken_at",
        "verified": "verified_at",
        "volumeName": "volume_name",
        "volumeUUID": "volume_uuid",
    },
)
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
"""Letters that no stored text has."""
_NEVER: Final = model.Condition("id", "null", None)


def snapshots(wish: Wish, offset: int, limit: int) -> model.Search:
    """Return the search of a part of a list of snapshots."""
    return _search(_SNAPSHOTS, wish, offset, limit)


def backups(wish: Wish, offset: int, limit: int) -> model.Search:
    """Return the search of a part of a list of backups."""
    return _search(_BACKUPS, wish, offset, limit)


def _search(table: _Table, wish: Wish, offset: int, limit: int) -> model.Search:
    sorts = table.columns if table.going is None else {**table.columns, "transitioning": table.going}
    return model.Search(
        conditions=tuple(each for condition in wish.conditions for each in _translate(table, condition)),
        sort=None if wish.sort is None else sorts.get(wish.sort),
        is_descending=wish.is_descending,
        has_removed=wish.has_removed,
        offset=offset,
        limit=limit,
    )


def _translate(table: _Table, condition: Condition) -> Iterator[model.Condition]:
    column, modifier = table.columns.get(condition.field), condition.modifier
    if column is None:
        yield from _on_transition(table, condition)
        return
    value = None
    if modifier not in {"null", "notnull"}:
        value = _value(table.schema, condition)
        if value is None and modifier != "ne":
            yield _NEVER
            return
    yield model.Condition(column, modifier, value)


def _on_transition(table: _Table, condition: Condition) -> Iterator[model.Condition]:
    """Translate a condition on what is one thing for those that are being made, and another for all others."""
    constants = {"accountId": ACCOUNT, "kind": table.schema.id}
    holds = {
        is_going: filters.holds(table.schema, condition, {**constants, **transition(is_going=is_going, fault=None)})
        for is_going in (True, False)
    }
    if table.going is not None and holds[True] != holds[False]:
        yield model.Condition(table.going, "eq", int(holds[True]))
    elif not holds[True]:
        yield _NEVER


def _value(schema: Schema, condition: Condition) -> str | int | None:
    found = filters.wanted(schema, condition.field, condition.value)
    if found is None:
        return None
    if schema.fields[condition.field].kind == "date":
        return datetime.fromtimestamp(found // 1_000, UTC).isoformat()[:19]
    return int(found) if isinstance(found, int) else _NO_TEXT.sub("\uffff", found)
