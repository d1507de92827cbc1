"""Reads the copy of the catalogue that lies in a pool (`catalogue` says what it is and writes it)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from voldriverd import model
from voldriverd.driver import Key
from voldriverd.errors import Unusable
from voldriverd.kernel import fs

FILE_NAME: Final = ".voldriver-catalogue"
KEPT: Final = f"{FILE_NAME}.kept-"
"""How the names of copies begin that tell of trees which the database of their time did not know; a time follows."""
VERSION: Final = 1
LINE_MAX: Final = 1 << 20
"""A volume with 500 labels has 100 KiB."""


@dataclass(slots=True)
class Remembered:
    """What a copy tells of one pool; the rows carry the pool's number of then."""

    volumes: dict[model.VolumeId, model.Volume] = field(default_factory=dict)
    """With purged ones."""
    snapshots: dict[model.SnapshotId, model.Snapshot] = field(default_factory=dict)
    """With removed ones."""
    unreadable: int = 0
    """How many lines made no sense, but for a torn last one."""

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
    found = Remembered()
    for path in sorted(pool_path.glob(f"{KEPT}*")):
        _read(found, path)
    _read(found, pool_path / FILE_NAME)
    return found


def keep(pool_path: Path, orphans: frozenset[Key], now: datetime) -> None:
    """Put a pool's copy aside if it alone tells of trees that the database does not know. Raises OSError."""
    found, path = Remembered(), pool_path / FILE_NAME
    _read(found, path)
    if orphans & found.keys:
        newest = max((each.name for each in pool_path.glob(f"{KEPT}*")), default="")
        name = f"{KEPT}{now:%Y%m%dT%H%M%S%fZ}"
        if name <= newest:  # the clock went back, and `read` goes by the order of names
            name = f"{newest}+"
        fs.rename_durably(path, pool_path / name)


def _read(found: Remembered, path: Path) -> None:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n") and not _is_taken(found, line, path):
            found.unreadable += 1


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
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return False
    return bool(record)


def _volume(columns: Mapping[str, Any]) -> model.Volume:
    times = {name: _time(columns.get(name)) for name in ("removed_at", "destroy_at")}
    return model.Volume(
        **{
            **columns,
            **times,
            "id": model.VolumeId(int(columns["id"])),
            "key": _key(columns["key"]),
            "state": model.VolumeState(columns["state"]),
            "options": dict(columns["options"]),
            "labels": dict(columns["labels"]),
            "created_at": datetime.fromisoformat(columns["created_at"]),
        }
    )


def _snapshot(columns: Mapping[str, Any]) -> model.Snapshot:
    times = {name: _time(columns.get(name)) for name in ("expires_at", "removed_at")}
    return model.Snapshot(
        **{
            **columns,
            **times,
            "id": model.SnapshotId(int(columns["id"])),
            "key": _key(columns["key"]),
            "state": model.SnapshotState(columns["state"]),
            "created_at": datetime.fromisoformat(columns["created_at"]),
        }
    )


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _key(text: str | None) -> Key | None:
    return None if text is None else Key(text)
