"""All types that have resources, by their id, and by every name that a path may have for them."""

from collections.abc import Mapping
from typing import Any, Final

from voldriverd.api.rancher import apikeys, backups, places, pools, snapshots, targets, volumes
from voldriverd.api.rancher.kind import Kind

ALL: Final[Mapping[str, Kind[Any]]] = {
    kind.schema.id: kind
    for kind in (
        *(volumes.KIND, snapshots.KIND, backups.KIND, targets.KIND, pools.KIND, apikeys.KIND),
        *(places.MOUNTS, places.HOSTS),
    )
}
_NAMES: Final[Mapping[str, Kind[Any]]] = {
    name.lower(): kind for kind in ALL.values() for name in (kind.schema.id, kind.schema.plural)
}


def named(text: str) -> Kind[Any] | None:
    """Return the type of a name, singular or plural, in any case."""
    return _NAMES.get(text.lower())
