"""Which resources of a type a list shows, in which order (rancher-api 1.1 to 1.3).

    ?name=db&created_gt=2024-01-01T00:00:00Z&sort=name&order=desc

All conditions hold together, also two on one field; names and modifiers that there are not are ignored. Removed
resources are shown only to a condition on `removed`, or to `_removed`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from voldriverd.api.rancher import ids, schemas, times
from voldriverd.api.rancher.schema import Schema

Fields = Mapping[str, Any]
"""A resource's fields as they are shown."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One field, compared; `value` is as it was given."""

    field: str
    modifier: str
    value: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What a list was asked for."""

    conditions: tuple[Condition, ...] = ()
    sort: str | None = None
    is_descending: bool = False
    shows_removed: bool = False

    @property
    def has_removed(self) -> bool:
        """Whether removed resources may be in the list."""
        return self.shows_removed or any(each.field == "removed" for each in self.conditions)

    def equal(self, field: str) -> str | None:
        """Return what a field must be; None if that is open."""
        return next((each.value for each in self.conditions if (each.field, each.modifier) == (field, "eq")), None)


def parse(schema: Schema, query: Iterable[tuple[str, str]]) -> Wish:
    """Read the conditions and the order from a query."""
    known = schema.filters()
    conditions: list[Condition] = []
    sort, is_descending, shows_removed = None, False, False
    for key, value in query:
        name, _, modifier = key.rpartition("_")
        if key in known:
            conditions.append(Condition(key, "eq", value))
        elif modifier in known.get(name, ()):
            conditions.append(Condition(name, modifier, value))
        elif key == "sort" and value in known:
            sort = value
        elif key == "order":
            is_descending = value.lower() == "desc"
        elif key == "_removed":
            shows_removed = True
    return Wish(tuple(conditions), sort, is_descending, shows_removed)


def holds(schema: Schema, condition: Condition, fields: Fields) -> bool:
    """Tell whether a resource meets a condition; a value that no such field can have is met by none."""
    shown = _comparable(schema, condition.field, fields)
    if condition.modifier in {"null", "notnull"}:
        return (shown is None) == (condition.modifier == "null")
    value = wanted(schema, condition.field, condition.value)
    if condition.modifier == "ne":
        return bool(shown != value)
    if shown is None or value is None:
        return False
    return _COMPARISONS[condition.modifier](shown, value)


def sort_key(schema: Schema, name: str) -> Callable[[Fields], tuple[bool, Any]]:
    """Return what to sort by; what has no value comes first."""

    def key(fields: Fields) -> tuple[bool, Any]:
        shown = _comparable(schema, name, fields)
        return shown is not None, shown

    return key


def wanted(schema: Schema, name: str, value: str) -> Any:
    """Return a value as it is compared: ids as numbers, dates in milliseconds; None for what can never be."""
    target = _target(schema, name)
    if target is not None:
        return ids.parse(target, value)
    parse_value = _PARSERS.get(schema.fields[name].kind)
    return value if parse_value is None else parse_value(value)


def _comparable(schema: Schema, name: str, fields: Fields) -> Any:
    if schema.fields[name].kind == "date":
        return fields.get(f"{name}TS")
    target = _target(schema, name)
    return fields[name] if target is None or fields[name] is None else ids.parse(target, fields[name])


def _target(schema: Schema, name: str) -> Schema | None:
    """Return the type whose ids a field has; None if it has no ids."""
    target = schema if name == "id" else schemas.ALL.get(schema.fields[name].inner)
    return None if target is None or target.letters is None else target


def _date(value: str) -> int | None:
    time = times.parse(value)
    return None if time is None else int(time.timestamp()) * 1_000


def _int(value: str) -> int | None:
    return int(value) if re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII) else None


def _boolean(value: str) -> bool | None:
    return {"true": True, "false": False}.get(value.lower())


def _is_like(shown: str, wanted: str) -> bool:
    """Compare as LIKE of SQL does: % is any text, _ any letter. Takes linear time, whatever is wanted."""
    first, *others = [re.escape(part).replace("_", ".") for part in wanted.split("%")]
    inner = "".join(f"(?>.*?{part})" for part in others[:-1])
    pattern = f"{first}{inner}.*{others[-1]}" if others else first
    return re.fullmatch(pattern, shown, re.DOTALL) is not None


_PARSERS: Final[Mapping[str, Callable[[str], Any]]] = {"int": _int, "date": _date, "boolean": _boolean}
_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "eq": lambda shown, wanted: shown == wanted,
    "lt": lambda shown, wanted: shown < wanted,
    "lte": lambda shown, wanted: shown <= wanted,
    "gt": lambda shown, wanted: shown > wanted,
    "gte": lambda shown, wanted: shown >= wanted,
    "prefix": lambda shown, wanted: shown.startswith(wanted),
    "like": _is_like,
    "notlike": lambda shown, wanted: not _is_like(shown, wanted),
}
