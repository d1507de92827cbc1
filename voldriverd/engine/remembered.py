"""Reads the copy of the catalogue that lies in a pool (`catalogue` says what it is and writes it)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Any, Final

from voldriverd import model, names
from voldriverd.driver import Key
from voldriverd.errors import Invalid, Unusable
from voldriverd.kernel import fs

FILE_NAME: Final = ".voldriver-catalogue"
KEPT: Final = f"{FILE_NAME}.kept-"
"""How the names of copies begin that tell of trees which the database of their time did not know; a time follows."""
VERSION: Final = 1
LINE_MAX: Final = 1 << 20
"""A volume with 500 labels has 100 KiB."""
_NUMBER_END: Final = 1 << 63
"""Of what SQLite takes."""
_ROW: Final[Mapping[str, type | UnionType]] = {
    "id": int,
    "uuid": str,
    "description": str | None,
    "size_bytes": int | None,
    "created_at": str,
}
_VOLUME: Final[Mapping[str, type | UnionType]] = {
    **_ROW,
    "name": str,
    "driver": str,
    "content": int,
    "options": dict,
    "labels": dict,
    "is_protected": bool,
    "message": str | None,
}
_SNAPSHOT: Final[Mapping[str, type | UnionType]] = {
    **_ROW,
    "volume_id": int,
    "name": str | None,
    "is_automatic": bool,
}


@dataclass(slots=True)
class Remembered:
    """What a copy tells of one pool; the rows carry the pool's number of then."""

    volumes: dict[model.VolumeId, model.Volume] = field(default_factory=dict)
    """With purged ones."""
    snapshots: dict[model.SnapshotId, model.Snapshot] = field(default_factory=dict)
    """With removed ones."""
    kept: frozenset[model.VolumeId] = frozenset()
    """The volumes that only copies which were kept tell of."""
    unreadable: int = 0
    """How many lines made no sense, but for a torn last one; a copy without a line that makes sense counts as one."""

    @property
    def volume_count(self) -> int:
        """How many volumes there were, those in the trash with them."""
        return sum(volume.state is not model.VolumeState.PURGED for volume in self.volumes.values())

    @property
    def keys(self) -> set[Key | None]:
        """Return the trees that it tells of."""
        return {row.key for rows in (self.volumes, self.snapshots) for row in rows.values()}


def read(pool_path: Path) -> Remembered:
    """Read a pool's copies, those that were kept first: what is newer goes before what is older.

    Where there is none, nothing is told. Raises OSError, and Unusable: of a newer version.
    """
    found, present = Remembered(), Remembered()
    for path in sorted(pool_path.glob(f"{KEPT}*")):
        _read(found, path)
    _read(present, pool_path / FILE_NAME)
    return Remembered(
        found.volumes | present.volumes,
        found.snapshots | present.snapshots,
        frozenset(found.volumes.keys() - present.volumes.keys()),
        found.unreadable + present.unreadable,
    )


def keep(pool_path: Path, orphans: frozenset[Key], now: datetime) -> None:
    """Put a pool's copy aside if it alone tells, or may tell, of trees that the database does not know.

    Raises OSError, and Unusable as `read`.
    """
    found, path = Remembered(), pool_path / FILE_NAME
    _read(found, path)
    if orphans & found.keys or (orphans and found.unreadable):
        newest = max((each.name for each in pool_path.glob(f"{KEPT}*")), default="")
        name = f"{KEPT}{now:%Y%m%dT%H%M%S%fZ}"
        if name <= newest:  # the clock went back, and `read` goes by the order of names
            name = f"{newest}+"
        fs.rename_durably(path, pool_path / name)


def _read(found: Remembered, path: Path) -> None:
    if not path.exists():
        return
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    taken = sum(_is_taken(found, line, path) for line in lines)
    found.unreadable += len(lines) - taken if taken else 1


def _is_taken(found: Remembered, line: bytes, path: Path) -> bool:
    try:
        record: Mapping[str, Any] = json.loads(line) if len(line) <= LINE_MAX else {}
        version = record.get("catalogue", VERSION)
        if isinstance(version, int) and version > VERSION:
            raise Unusable(f"cannot read {path}: it has version {version}, this release knows up to {VERSION}")
        if "volume" in record:
            volume = _volume(record["volume"])
            found.volumes[volume.id] = volume
        elif "snapshot" in record:
            snapshot = _snapshot(record["snapshot"])
            found.snapshots[snapshot.id] = snapshot
    except (Invalid, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return False
    return bool(record)


def _volume(columns: Mapping[str, Any]) -> model.Volume:
    _check(columns, _VOLUME)
    names.volume_name(columns["name"])
    names.parse_options(columns["options"])
    _check(columns["labels"], dict.fromkeys(columns["labels"], str))
    times = {name: _time(columns.get(name)) for name in ("removed_at", "destroy_at")}
    state = model.VolumeState(columns["state"])
    return model.Volume(
        **{
            **columns,
            **times,
            "id": model.VolumeId(columns["id"]),
            "key": _key(columns["key"], is_gone=state is model.VolumeState.PURGED),
            "state": state,
            "created_at": _time(columns["created_at"]),
        }
    )


def _snapshot(columns: Mapping[str, Any]) -> model.Snapshot:
    _check(columns, _SNAPSHOT)
    if columns["name"] is not None:
        names.snapshot_name(columns["name"])
    times = {name: _time(columns.get(name)) for name in ("expires_at", "removed_at")}
    state = model.SnapshotState(columns["state"])
    return model.Snapshot(
        **{
            **columns,
            **times,
            "id": model.SnapshotId(columns["id"]),
            "key": _key(columns["key"], is_gone=state is model.SnapshotState.REMOVED),
            "state": state,
            "created_at": _time(columns["created_at"]),
        }
    )


def _check(columns: Mapping[str, Any], kinds: Mapping[str, type | UnionType]) -> None:
    """Refuse what no database would take. Raises TypeError, ValueError, KeyError."""
    for name, kind in kinds.items():
        if not isinstance(columns[name], kind):
            raise TypeError(name)
        if isinstance(columns[name], int) and not 0 <= columns[name] < _NUMBER_END:
            raise ValueError(name)


def _time(text: str | None) -> datetime | None:
    time = None if text is None else datetime.fromisoformat(text)
    if time is not None and time.tzinfo is None:
        raise ValueError(text)
    return time


def _key(text: str | None, *, is_gone: bool) -> Key | None:
    """Return the key of a row; only what is gone has none."""
    if (text is None) is not is_gone or not (text is None or model.is_key(text)):
        raise ValueError(text)
    return None if text is None else Key(text)
