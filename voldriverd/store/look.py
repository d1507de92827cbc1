"""What a database holds, read while no daemon has it: nothing is written into it or beside it, whatever its state.

It is read from a copy, with its journal: a connection to the original, even one that cannot write, leaves an index of
the journal beside it (SQLite 3.40).
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from voldriverd import model
from voldriverd.driver import Key
from voldriverd.errors import Unusable
from voldriverd.store import check, connection, schema

_OTHER_PLACES: Final = ("/run", "/dev/shm")  # noqa: S108 - what is made there is a directory for us alone
_INDEX_BYTES: Final = 1 << 20
"""What SQLite makes beside it while it reads."""
_WITH_BACKUPS: Final = 2
"""The first version that has them."""
_TIMES: Final = {
    "volumes": ("created_at", "removed_at"),
    "snapshots": ("created_at", "removed_at"),
    "mounts": ("created_at",),
    "backups": ("created_at", "removed_at"),
}


class Damaged(Unusable):
    """The file is not what it was written as."""


class Newer(Unusable):
    """A later version of the daemon has written it."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A live or trashed volume, as far as who only looks needs it."""

    id: model.VolumeId
    name: str
    pool_id: model.PoolId
    key: Key | None
    is_live: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup of a volume here."""

    volume_id: model.VolumeId
    state: model.BackupState
    created_at: datetime
    verified_at: datetime | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that was asked for, as of one instant."""

    version: int
    pools: tuple[model.Pool, ...]
    volumes: tuple[Volume, ...]
    trees: Mapping[Key, model.PoolId]
    settled: frozenset[Key]
    """The trees that are known to survive power loss."""
    snapshots: Mapping[Key, str]
    """The trees of live snapshots, each with the names of volume and snapshot as `volume@snapshot`."""
    backups: tuple[Backup, ...]
    """Without tombstones, in the order of ids."""
    targets: tuple[tuple[str, str], ...]
    """Name and URL of each that is live."""
    newest_at: datetime | None
    """The latest time that any row tells of; None: there are no rows."""


def look(path: Path) -> Contents:
    """Return what a database holds. Nobody may write to it meanwhile. Raises Damaged, Newer, Unusable and OSError."""
    parts = [part for part in (path, path.with_name(f"{path.name}-wal")) if part.exists()]
    needed_bytes = sum(part.stat().st_size for part in parts)
    with tempfile.TemporaryDirectory(prefix="voldriver-look-", dir=_roomy(needed_bytes)) as place:
        copy = Path(place) / path.name
        for part in parts:
            shutil.copyfile(part, copy.with_name(part.name))
        try:
            damage = check.fault(copy)
            if damage is not None:
                raise Damaged(f"cannot read database {path}: it is damaged ({damage})")
            with closing(connection.connect_to_read(copy)) as database:
                return _read(database, path)
        except (sqlite3.Error, ValueError, TypeError) as err:  # the latter two: a value that no version wrote
            raise Unusable(f"cannot read database {path}: {err}") from err


def _roomy(needed_bytes: int) -> str | None:
    """Return a directory with so much free, for on a bad day the usual one may be full; None: the usual one."""
    for place in (tempfile.gettempdir(), *_OTHER_PLACES):
        if os.access(place, os.W_OK) and shutil.disk_usage(place).free > needed_bytes + _INDEX_BYTES:
            return place
    return None


def _read(database: sqlite3.Connection, path: Path) -> Contents:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > schema.VERSION:
        raise Newer(f"cannot read database {path}: it has version {version}, this program knows {schema.VERSION}")
    pools = database.execute("SELECT id, uuid, name, driver, path FROM pools ORDER BY id").fetchall() if version else ()
    has_backups = version >= _WITH_BACKUPS
    live_targets = "SELECT name, url FROM targets WHERE removed_at IS NULL ORDER BY id"
    return Contents(
        version=version,
        pools=tuple(model.Pool(model.PoolId(row[0]), *row[1:]) for row in pools),
        volumes=tuple(_volumes(database)) if version else (),
        trees=dict(database.execute("SELECT key, pool_id FROM trees")) if version else {},
        settled=frozenset(row[0] for row in database.execute("SELECT key FROM trees WHERE is_settled = 1"))
        if version
        else frozenset(),
        snapshots=dict(_snapshots(database)) if version else {},
        backups=tuple(_backups(database)) if has_backups else (),
        targets=tuple(database.execute(live_targets)) if has_backups else (),
        newest_at=_newest(database, has_backups=has_backups) if version else None,
    )


def _volumes(database: sqlite3.Connection) -> Iterator[Volume]:
    query = "SELECT id, name, pool_id, key, state, created_at FROM volumes WHERE state != 'purged' ORDER BY id"
    for row in database.execute(query):
        is_live = row[4] != model.VolumeState.REMOVED.value
        yield Volume(model.VolumeId(row[0]), row[1], row[2], row[3], is_live, datetime.fromisoformat(row[5]))


def _snapshots(database: sqlite3.Connection) -> Iterator[tuple[Key, str]]:
    query = (
        "SELECT s.key, v.name, coalesce(s.name, '1s' || s.id) FROM snapshots s JOIN volumes v ON v.id = s.volume_id "
        "WHERE s.state = 'created' AND s.key IS NOT NULL"
    )
    for key, volume, name in database.execute(query):
        yield Key(key), f"{volume}@{name}"


def _backups(database: sqlite3.Connection) -> Iterator[Backup]:
    query = (
        "SELECT volume_id, state, created_at, verified_at, message FROM backups "
        "WHERE volume_id IS NOT NULL AND state != 'removed' ORDER BY id"
    )
    for row in database.execute(query):
        yield Backup(row[0], model.BackupState(row[1]), datetime.fromisoformat(row[2]), _time(row[3]), row[4])


def _newest(database: sqlite3.Connection, *, has_backups: bool) -> datetime | None:
    tables = [table for table in _TIMES if table != "backups" or has_backups]
    queries = (f"SELECT max({column}) FROM {table}" for table in tables for column in _TIMES[table])
    found = [_time(database.execute(query).fetchone()[0]) for query in queries]
    return max((time for time in found if time is not None), default=None)


def _time(text: Any) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
