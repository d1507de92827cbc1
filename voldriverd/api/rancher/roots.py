"""What there is above the types: the versions, the one version, and the schemas."""

from collections.abc import Mapping
from typing import Any, Final

from voldriverd.api.rancher import answers, kinds, listing, openapi, places, problems, schema, schemas
from voldriverd.api.rancher.answers import VERSION
from voldriverd.api.rancher.schema import Schema

_NAMES: Final[Mapping[str, Schema]] = {
    name.lower(): each for each in (schemas.SCHEMA, schemas.API_VERSION) for name in (each.id, each.plural)
}


def is_above(parts: list[str]) -> bool:
    """Tell whether a path below the version is described here."""
    return not parts or parts[0].lower() in _NAMES


def describe(base: str, version: str, parts: list[str]) -> dict[str, Any]:
    """Return the root, the version, the versions, the schemas, or one of them. Raises Problem (404)."""
    if not parts:
        return _version(base) if version else _versions(base, base.removesuffix(VERSION))
    kind, *wanted = _NAMES[parts[0].lower()], *parts[1:]
    if len(wanted) > 1:
        raise problems.not_found(f"there is nothing below {kind.id} {wanted[0][:60]!r}")
    if kind is schemas.API_VERSION:
        if wanted and wanted[0].lower() != VERSION:
            raise problems.not_found(f"there is no version {wanted[0][:60]!r} of this API, only {VERSION}")
        return _version(base) if wanted else _versions(base, f"{base}/{kind.plural.lower()}")
    if wanted:
        return schema.show(places.find_schema(wanted[0]), base)
    data = [schema.show(each, base) for each in schemas.ALL.values()]
    return listing.envelope(kind, answers.schemas_url(base), data)


def _version(base: str) -> dict[str, Any]:
    links = {kind.schema.plural: f"{base}/{kind.schema.plural.lower()}" for kind in kinds.ALL.values()}
    others = {name: f"{base}/{name}" for name in (schemas.EVENT.plural, openapi.NAME)}
    own = {"self": base, "schemas": answers.schemas_url(base), **others}
    return {"id": VERSION, "type": "apiVersion", "links": {**own, **links}, "actions": {}}


def _versions(base: str, url: str) -> dict[str, Any]:
    collection = listing.envelope(schemas.API_VERSION, url, [_version(base)])
    collection["links"]["latest"] = base
    return collection
