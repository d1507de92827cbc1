"""Lists of snapshots and of backups as SQL: filtered, sorted and cut where the rows are: a page costs what it shows.

Each page reads the rows that it skips: by `m<offset>` a client can ask for no other thing.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from voldriverd.model import Condition, Search


@dataclass(frozen=True, slots=True)
class Table:
    """What can be searched."""

    name: str
    columns: Mapping[str, str]
    """What a condition may be on; times are texts of whole seconds, as in `2026-11-21T19:44:03`."""
    is_live: str
    """The condition that leaves out what is in the trash, and tombstones."""
    volume: str = ""
    """How the volume `v` is joined where a column needs it."""


def _time(text: str) -> str:
    return f"substr({text}, 1, 19)"


_IS_BACKING_UP: Final = (
    "s.id IN (SELECT snapshot_id FROM backups INDEXED BY backups_going "
    "WHERE state IN ('creating', 'removing') AND state = 'creating' AND is_of_snapshot)"
)
"""In the words of the index of the few that are on their way, or all would be read."""
SNAPSHOTS: Final = Table(
    "snapshots",
    {
        "id": "s.id",
        "name": "s.name",
        "description": "s.description",
        "uuid": "s.uuid",
        "volume_id": "s.volume_id",
        "volume_uuid": "v.uuid",
        "size_bytes": "s.size_bytes",
        "is_automatic": "s.is_automatic",
        "is_creating": f"((s.state = 'creating' OR {_IS_BACKING_UP}) AND v.state NOT IN ('removed', 'purged'))",
        "state": "CASE WHEN v.state IN ('removed', 'purged') THEN 'removed' "
        f"WHEN s.state = 'created' AND {_IS_BACKING_UP} THEN 'backing-up' ELSE s.state END",
        "created_at": _time("s.created_at"),
        "expires_at": _time("s.expires_at"),
        "removed_at": _time("CASE WHEN s.state = 'removed' THEN s.removed_at ELSE v.removed_at END"),
        "destroy_at": _time("CASE WHEN s.state != 'removed' THEN v.destroy_at END"),
    },
    is_live=(
        "s.state != 'removed' "
        "AND NOT EXISTS (SELECT 1 FROM volumes WHERE id = s.volume_id AND state IN ('removed', 'purged'))"
    ),
    volume="CROSS JOIN volumes v ON v.id = s.volume_id",
)
_BACKUP_COLUMNS: Final = (
    *("id", "uuid", "target_id", "volume_id", "volume_uuid", "volume_name", "snapshot_id", "snapshot_uuid"),
    *("snapshot_name", "name", "description", "driver", "format", "host", "state", "parent_uuid"),
    *("size_bytes", "content_bytes", "stored_bytes", "message"),
)
_BACKUP_TIMES: Final = ("created_at", "taken_at", "verified_at", "removed_at")
BACKUPS: Final = Table(
    "backups",
    {
        **{name: f"s.{name}" for name in _BACKUP_COLUMNS},
        **{name: _time(f"s.{name}") for name in _BACKUP_TIMES},
        "uri": "((SELECT url FROM targets WHERE id = s.target_id) "
        "|| '/volumes/' || s.volume_uuid || '/backups/' || s.uuid)",
        "is_going": "(s.state IN ('creating', 'removing'))",
    },
    is_live="s.state != 'removed'",
)
_OPERATORS: Final = {
    "eq": "= ?",
    "ne": "IS NOT ?",
    "lt": "< ?",
    "lte": "<= ?",
    "gt": "> ?",
    "gte": ">= ?",
    "prefix": "GLOB ?",
    "like": "GLOB ?",
    "notlike": "NOT GLOB ?",
    "null": "IS NULL",
    "notnull": "IS NOT NULL",
}


def found(select: Callable[..., Iterator[tuple[Any, ...]]], table: Table, search: Search) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a part of a list, in its order."""
    query, values = _statement(table, search)
    ids = [row[0] for row in select(query, *values)]
    rows = select(f"SELECT * FROM {table.name} WHERE id IN (SELECT value FROM json_each(?))", json.dumps(ids))
    by_id = {row[0]: row for row in rows}
    yield from (by_id[each] for each in ids if each in by_id)  # one may have gone between the two


def _statement(table: Table, search: Search) -> tuple[str, list[Any]]:
    """Return a query for ids, and its values.

    The table is the outer loop always: a page in the order of ids reads no more rows than it skips and shows. Ids
    alone are sorted, for whole rows take four times as long.
    """
    where = [f"{table.columns[each.field]} {_OPERATORS[each.comparison]}" for each in search.conditions]
    values = [_value(each) for each in search.conditions if "?" in _OPERATORS[each.comparison]]
    if not search.has_removed:
        where.append(table.is_live)
    sort = "" if search.sort is None else table.columns[search.sort]
    needs_volume = any("v." in text for text in (*where, sort))
    order = f"{sort} {'DESC' if search.is_descending else 'ASC'}, " if sort else ""
    query = (
        f"SELECT s.id FROM {table.name} s {table.volume if needs_volume else ''} "
        f"WHERE {' AND '.join(where) or 'TRUE'} ORDER BY {order}s.id LIMIT ? OFFSET ?"
    )
    return query, [*values, search.limit, search.offset]


def _value(condition: Condition) -> Any:
    if condition.comparison == "prefix":
        return _literal(str(condition.value)) + "*"
    if condition.comparison in {"like", "notlike"}:
        return _literal(str(condition.value)).replace("%", "*").replace("_", "?")
    return condition.value


def _literal(text: str) -> str:
    """Write a text so that GLOB takes it as it is: in brackets its own signs mean themselves."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
