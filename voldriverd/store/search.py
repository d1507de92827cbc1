"""Lists of snapshots as SQL: filtered, sorted and cut where the rows are, so that a page costs what it shows.

Each page reads the rows that it skips: by `m<offset>` a client can ask for no other thing.
"""

from typing import Any, Final

from voldriverd.model import Condition, Search

_IS_LIVE: Final = (
    "s.state != 'removed' AND s.volume_id NOT IN (SELECT id FROM volumes WHERE state IN ('removed', 'purged'))"
)
_VOLUME: Final = "CROSS JOIN volumes v ON v.id = s.volume_id"
_COLUMNS: Final = {
    "id": "s.id",
    "name": "s.name",
    "description": "s.description",
    "uuid": "s.uuid",
    "volume_id": "s.volume_id",
    "volume_uuid": "v.uuid",
    "size_bytes": "s.size_bytes",
    "is_automatic": "s.is_automatic",
    "is_creating": "(s.state = 'creating' AND v.state NOT IN ('removed', 'purged'))",
    "state": "CASE WHEN v.state IN ('removed', 'purged') THEN 'removed' ELSE s.state END",
    "created_at": "substr(s.created_at, 1, 19)",
    "expires_at": "substr(s.expires_at, 1, 19)",
    "removed_at": "substr(CASE WHEN s.state = 'removed' THEN s.removed_at ELSE v.removed_at END, 1, 19)",
    "destroy_at": "substr(CASE WHEN s.state != 'removed' THEN v.destroy_at END, 1, 19)",
}
"""What a condition may be on; times are texts of whole seconds, as in `2026-11-21T19:44:03`."""
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


def statement(search: Search) -> tuple[str, list[Any]]:
    """Return a query for the ids of snapshots, and its values.

    The snapshots are the outer loop always: a page in the order of ids reads no more rows than it skips and shows. Ids
    alone are sorted, for whole rows take four times as long.
    """
    where = [f"{_COLUMNS[each.field]} {_OPERATORS[each.comparison]}" for each in search.conditions]
    values = [_value(each) for each in search.conditions if "?" in _OPERATORS[each.comparison]]
    if not search.has_removed:
        where.append(_IS_LIVE)
    needs_volume = any("v." in text for text in (*where, "" if search.sort is None else _COLUMNS[search.sort]))
    order = "" if search.sort is None else f"{_COLUMNS[search.sort]} {'DESC' if search.is_descending else 'ASC'}, "
    query = (
        f"SELECT s.id FROM snapshots s {_VOLUME if needs_volume else ''} "
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
