"""The copy of the catalogue that lies with the data: one file of JSON lines in each pool's root (D12).

    {"catalogue": 1, "pool": {"uuid": …, "name": …, "driver": …}}
    {"volume": {…}}            the row as it is now; the last line of an id wins
    {"snapshot": {…}}
    {"backup": {…}}            one whose base tree lies here; one without a key has none any more

It is made anew when the pool is opened (atomically) and then appended to, at most a second behind the
database; a torn last line is one that was never acknowledged here. A volume in state `purged` and a
snapshot in state `removed` are gone, a purged volume's snapshots with it. `voldriverd rebuild` reads it.
If the pool has trees that the database does not know, the copy that was there is kept beside the new one.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Final

from voldriverd import model
from voldriverd.driver import Driver
from voldriverd.engine import links, pools, remembered
from voldriverd.engine.context import Engine
from voldriverd.engine.remembered import FILE_NAME
from voldriverd.errors import Error, Unusable
from voldriverd.kernel import fs

_log = logging.getLogger(__name__)

_GROWTH_MAX: Final = 4
"""The file is made anew when the appended lines are this many times the rows: bounded, and rare."""


class Catalogue:
    """Keeps the copies of one engine up to date; one thread at a time calls it."""

    def __init__(self, engine: Engine) -> None:
        """Write nothing yet; the first `save` makes every file anew."""
        self._engine = engine
        self._drivers: dict[model.PoolId, Driver] = {}
        """With which each pool was open when its copy was made; what changes while it is away is not appended."""
        self._lines: dict[model.PoolId, int] = {}
        self._limits: dict[model.PoolId, int] = {}

    def save(self) -> None:
        """Bring every available pool's copy and the links by name up to date, and the database with what was foreseen.

        What fails is logged and made anew the next time.
        """
        try:
            self._engine.store.write_foreseen()
        except Unusable as err:
            _log.warning("verb=catalogue result=%s", err)
        changes = self._engine.store.take_changes()
        links.follow(self._engine, changes)
        for pool in self._engine.pools.available():
            mine = [row for row in changes if self._pool_of(row) == pool.row.id]
            try:
                self._save_pool(pool, mine)
            except (Error, OSError) as err:
                self._limits.pop(pool.row.id, None)
                _log.warning("verb=catalogue pool=%s result=%s", pool.row.name, err)

    def _save_pool(self, pool: pools.Pool, changes: list[model.Row]) -> None:
        pool_id = pool.row.id
        path = Path(pool.row.path) / FILE_NAME
        driver = self._engine.pools.driver(pool_id)
        is_opened_anew = self._drivers.get(pool_id) is not driver
        limit = -1 if is_opened_anew else self._limits.get(pool_id, -1)
        if self._lines.get(pool_id, 0) + len(changes) <= limit:
            if changes:
                _append(path, map(_line, changes))
                self._lines[pool_id] += len(changes)
            return
        if pool.orphans and is_opened_anew:
            remembered.keep(Path(pool.row.path), pool.orphans, self._engine.now())
        lines = [_header(pool.row), *map(_line, self._rows(pool_id))]
        fs.write_durably(path, b"".join(lines))
        self._drivers[pool_id] = driver
        self._lines[pool_id] = len(lines)
        self._limits[pool_id] = _GROWTH_MAX * max(len(lines), 1_000)

    def _rows(self, pool_id: model.PoolId) -> Iterator[model.Row]:
        mine = {volume.id: volume for volume in self._engine.store.volumes() if volume.pool_id == pool_id}
        yield from mine.values()
        yield from (snapshot for snapshot in self._engine.store.snapshots() if snapshot.volume_id in mine)
        yield from (backup for backup in self._engine.store.backups_with_trees() if backup.volume_id in mine)

    def _pool_of(self, row: model.Row) -> model.PoolId | None:
        if isinstance(row, model.Volume):
            return row.pool_id
        if row.volume_id is None:
            return None
        volume = self._engine.store.volume(row.volume_id)
        return None if volume is None else volume.pool_id


def _append(path: Path, lines: Iterable[bytes]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        with open(fd, "ab", closefd=False) as file:
            file.writelines(lines)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _header(row: model.Pool) -> bytes:
    return _encode({"catalogue": 1, "pool": {"uuid": row.uuid, "name": row.name, "driver": row.driver}})


def _line(row: model.Row) -> bytes:
    columns = {each.name: getattr(row, each.name) for each in fields(row)}  # asdict copies all it finds, in 0.1 ms
    return _encode({type(row).__name__.lower(): columns})


def _encode(value: dict[str, object]) -> bytes:
    return json.dumps(value, default=_plain, separators=(",", ":")).encode() + b"\n"


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value).__name__)
