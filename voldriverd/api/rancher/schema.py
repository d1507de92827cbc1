"""What a schema of the API is made of (api-spec `specification.md`, rancher-api 1.6), and how it is written down."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MODIFIERS: Final[Mapping[str, tuple[str, ...]]] = {
    "string": ("eq", "ne", "prefix", "like", "notlike", "null", "notnull"),
    "int": ("eq", "ne", "lt", "lte", "gt", "gte", "null", "notnull"),
    "date": ("eq", "ne", "lt", "lte", "gt", "gte", "null", "notnull"),
    "enum": ("eq", "ne", "null", "notnull"),
    "boolean": ("eq", "ne", "null", "notnull"),
    "reference": ("eq", "ne", "null", "notnull"),
}
"""What may stand behind `_` in a filter, by the type of the field; other types have no filters."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a resource or of an action's input."""

    type: str
    create: bool = False
    update: bool = False
    required: bool = False
    nullable: bool = True
    unique: bool = False
    default: object = None
    max_length: int | None = None
    min_length: int | None = None
    valid_chars: str | None = None
    """What a text may consist of, as between the brackets of a regular expression."""
    options: tuple[str, ...] = ()
    description: str | None = None
    is_shown_once: bool = False
    """In the answer to its creation only."""
    is_addition: bool = False
    """Not in Rancher's schema of this type, but ours."""
    has_filter: bool = True
    """Whether lists can be filtered and sorted by it, if its type has modifiers."""

    @property
    def kind(self) -> str:
        """The type without what is in brackets: `reference`, `map`."""
        return self.type.partition("[")[0]

    @property
    def inner(self) -> str:
        """What is in the brackets: the schema that a reference is to."""
        return self.type.partition("[")[2].removesuffix("]")


@dataclass(frozen=True, slots=True)
class Action:
    """What a POST to `?action=` takes and answers with, by the ids of schemas; no input: None."""

    output: str
    input: str | None = None
    other_output: str | None = None
    """What it answers with where the input asks for more; a client's schema holds one of the two."""


@dataclass(frozen=True, slots=True)
class Link:
    """The resources of a type whose field `there` is what the field `here` of this resource is."""

    type: str
    here: str
    there: str
    is_single: bool = False


@dataclass(frozen=True, slots=True)
class Schema:
    """One type of resource or input."""

    id: str
    fields: Mapping[str, Field]
    letters: str | None = None
    """What stands between the 1 and the number of an id (`1v5`); None for what has no ids of that form."""
    collection_methods: tuple[str, ...] = ()
    resource_methods: tuple[str, ...] = ("GET",)
    actions: Mapping[str, Action] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)

    @property
    def plural(self) -> str:
        """The plural by Rancher's rule."""
        return self.id + ("es" if self.id.endswith(("s", "ch", "x")) else "s")

    @property
    def is_listable(self) -> bool:
        """Whether there is a collection of it."""
        return "GET" in self.collection_methods

    def filters(self) -> dict[str, tuple[str, ...]]:
        """Return the fields that lists can be filtered by, each with its modifiers."""
        if not self.is_listable:
            return {}
        return {
            name: MODIFIERS[each.kind]
            for name, each in self.fields.items()
            if each.kind in MODIFIERS and each.has_filter
        }


def show(schema: Schema, base: str) -> dict[str, Any]:
    """Write a schema down as a resource; `base` is the absolute URL of the version."""
    links = {"self": f"{base}/schemas/{schema.id.lower()}"}
    if schema.is_listable:
        links["collection"] = f"{base}/{schema.plural.lower()}"
    return {
        "id": schema.id,
        "type": "schema",
        "links": links,
        "actions": {},
        "pluralName": schema.plural,
        "includeableLinks": sorted(schema.links),
        "resourceActions": {
            name: {"input": action.input, "output": action.output} for name, action in schema.actions.items()
        },
        "collectionActions": {},
        "collectionFields": {},
        "collectionFilters": {name: {"modifiers": list(found)} for name, found in schema.filters().items()},
        "resourceFields": {name: _show_field(each) for name, each in schema.fields.items()},
        "resourceMethods": list(schema.resource_methods),
        "collectionMethods": list(schema.collection_methods),
    }


def _show_field(each: Field) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "type": each.type,
        "description": each.description,
        "create": each.create,
        "update": each.update,
        "readOnCreateOnly": each.is_shown_once,
    }
    optional = {
        "nullable": each.nullable,
        "unique": each.unique,
        "required": each.required,
        "maxLength": each.max_length,
        "minLength": each.min_length,
        "validChars": each.valid_chars,
        "options": list(each.options),
        "addition": each.is_addition,
    }
    shown |= {name: value for name, value in optional.items() if value}
    if each.default is not None:
        shown["default"] = each.default
    return shown
