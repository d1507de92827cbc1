"""What there is above the types: the versions, the one version, and the schemas."""

from typing import Any

from voldriverd.api.rancher import answers, kinds, listing, places, problems, schema, schemas
from voldriverd.api.rancher.answers import VERSION


def describe(base: str, version: str, parts: list[str], *, is_schema: bool) -> dict[str, Any]:
    """Return the root, the version, the schemas or one of them."""
    if len(parts) > 1:
        raise problems.not_found(f"there is nothing below schema {parts[0][:60]!r}")
    if parts:
        return schema.show(places.find_schema(parts[0]), base)
    if is_schema:
        data = [schema.show(each, base) for each in schemas.ALL.values()]
        return listing.envelope(schemas.SCHEMA, answers.schemas_url(base), data)
    links = {kind.schema.plural: f"{base}/{kind.schema.plural.lower()}" for kind in kinds.ALL.values()}
    own = {"self": base, "schemas": answers.schemas_url(base), schemas.EVENT.plural: f"{base}/{schemas.EVENT.plural}"}
    shown = {"id": VERSION, "type": "apiVersion", "links": {**own, **links}, "actions": {}}
    if version:
        return shown
    root = base.removesuffix(VERSION)
    collection = listing.envelope(schemas.API_VERSION, root, [shown])
    collection["links"]["latest"] = base
    return collection
