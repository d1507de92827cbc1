"""The only truth about pools, volumes, snapshots, mounts, trees and API keys: SQLite in the root directory.

WAL with synchronous=FULL: a commit survives power loss when it returns. Beside it stands a copy in
memory of what must be answered at any time (volumes, mounts, snapshot summaries, API keys), replaced
after each commit. Trees and snapshots are read from the database.

A commit takes a function, so that a vital one (unmount, remove, purge) can be tried again after some
of the ballast was given up on a full disk.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from voldriverd import model
from voldriverd.driver import Key
from voldriverd.errors import Exists, Unusable
from voldriverd.store import connection, rows, schema
from voldriverd.store.ballast import Ballast
from voldriverd.store.search import statement
from voldriverd.store.write import Write, summary

_T = TypeVar("_T")

FILE_NAME: Final = "voldriver.db"
_TABLES: Final = {"pools": "-", "volumes": "v", "snapshots": "s", "mounts": "-", "apikeys": "-"}
"""Whose rows have numbers of their own, and with which letter keys are made from them; no key begins with `-`."""

_SEAL_BYTES: Final = 32


class Store:
    """The database and its copy in memory; any thread may use it."""

    def __init__(self, root: Path) -> None:
        """Open or make the database in a directory. Raises Unusable: damaged, newer, or no room."""
        self._path = root / FILE_NAME
        self._ballast = Ballast(root / "ballast")
        self._lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._records: list[model.Volume | model.Snapshot] = []
        self._listeners: list[Callable[[model.Commit], None]] = []
        self._open()
        self._ballast.keep()

    def close(self) -> None:
        """Close both connections; a clean end leaves no journal."""
        with self._lock, self._read_lock:
            self._reader.close()
            self._connection.close()

    def commit(self, change: Callable[[Write], _T], *, is_vital: bool = False) -> _T:
        """Run a change in one transaction; when this returns it survives power loss.

        A change may run twice and must do nothing but write rows. Raises Exists (a name is taken)
        and Unusable (the disk is full or failing); then nothing has changed.
        """
        with self._lock:
            while True:
                try:
                    return self._attempt(change)
                except sqlite3.IntegrityError as err:
                    raise Exists(f"cannot write: {err}") from err
                except sqlite3.Error as err:
                    if not (is_vital and connection.is_full(err) and self._ballast.give_up()):
                        raise Unusable(f"cannot write database {self._path}: {err}") from err

    def take_changes(self) -> list[model.Volume | model.Snapshot]:
        """Return the rows that were committed since the last call, oldest first, and forget them."""
        with self._lock:
            taken, self._records = self._records, []
            return taken

    def watch(self, listener: Callable[[model.Commit], None]) -> None:
        """Have a function called after each commit that changed volumes, snapshots or mounts, in their order.

        It is called by the thread that commits, and nobody else can commit meanwhile: it is quick and does not raise.
        """
        with self._lock:
            self._listeners.append(listener)

    def make_room(self) -> None:
        """Give up some of the ballast for what must be possible beside the database on a full disk."""
        with self._lock:
            self._ballast.give_up()

    def keep_ballast(self) -> bool:
        """Reserve the room for vital commits again; tells whether it is there."""
        return self._ballast.keep()

    def reserve_id(self, table: str) -> int:
        """Return a number that no row of a table ever had."""
        with self._lock:
            self._last_ids[table] += 1
            return self._last_ids[table]

    def raise_id(self, table: str, number: int) -> None:
        """Make sure that ids to come are above a number (a key found on disk has it)."""
        with self._lock:
            self._last_ids[table] = max(self._last_ids[table], number)

    # What is in memory: quick, never fails, for any thread.

    def volume(self, volume_id: model.VolumeId) -> model.Volume | None:
        """Return a live or trashed volume."""
        return self._volumes.get(volume_id)

    def volume_named(self, name: str) -> model.Volume | None:
        """Return the live volume of a name."""
        volume_id = self._names.get(name)
        return None if volume_id is None else self._volumes.get(volume_id)

    def volumes(self) -> list[model.Volume]:
        """Return all live and trashed volumes in the order of their ids."""
        return list(self._volumes.values())

    def mounts(self, volume_id: model.VolumeId) -> tuple[model.Mount, ...]:
        """Return who holds a volume."""
        return self._mounts.get(volume_id, ())

    def all_mounts(self) -> list[model.Mount]:
        """Return all mounts of all volumes."""
        return [mount for mounts in list(self._mounts.values()) for mount in mounts]

    def snapshot_summary(self, volume_id: model.VolumeId) -> model.SnapshotSummary:
        """Return how many snapshots a volume has, and the newest names."""
        return self._summaries.get(volume_id, model.NO_SNAPSHOTS)

    def api_keys(self) -> list[model.ApiKey]:
        """Return the keys that are not revoked in the order of their ids."""
        return list(self._api_keys.values())

    def api_key_of(self, public: str) -> model.ApiKey | None:
        """Return the key of a public value, unless it is revoked."""
        return self._api_keys.get(public)

    def pools(self) -> list[model.Pool]:
        """Return every pool that ever was used, configured or not."""
        return [rows.pool(row) for row in self._select("SELECT * FROM pools ORDER BY id")]

    # What is read from the database.

    def ended_volume(self, volume_id: model.VolumeId) -> model.Volume | None:
        """Return the tombstone of a purged volume."""
        found = self._select("SELECT * FROM volumes WHERE id = ? AND state = 'purged'", volume_id)
        return next((rows.volume(row) for row in found), None)

    def snapshot(self, snapshot_id: model.SnapshotId) -> model.Snapshot | None:
        """Return a snapshot or its tombstone."""
        found = self._select("SELECT * FROM snapshots WHERE id = ?", snapshot_id)
        return next(map(rows.snapshot, found), None)

    def snapshot_named(self, volume_id: model.VolumeId, name: str) -> model.Snapshot | None:
        """Return a volume's live snapshot of a name."""
        found = self._select(
            "SELECT * FROM snapshots WHERE volume_id = ? AND name = ? AND state != 'removed'", volume_id, name
        )
        return next((rows.snapshot(row) for row in found), None)

    def snapshots(self, volume_id: model.VolumeId | None = None) -> list[model.Snapshot]:
        """Return the snapshots of a volume (all volumes: None), oldest first, without tombstones."""
        where, values = ("", ()) if volume_id is None else (" AND volume_id = ?", (volume_id,))
        found = self._select(f"SELECT * FROM snapshots WHERE state != 'removed'{where} ORDER BY id", *values)
        return [rows.snapshot(row) for row in found]

    def search_snapshots(self, search: model.Search) -> list[model.Snapshot]:
        """Return a part of the list of all snapshots."""
        query, values = statement(search)
        ids = [row[0] for row in self._select(query, *values)]
        found = self._select("SELECT * FROM snapshots WHERE id IN (SELECT value FROM json_each(?))", json.dumps(ids))
        snapshots = {row[0]: rows.snapshot(row) for row in found}
        return [snapshots[each] for each in ids if each in snapshots]  # one may have gone between the two

    def expired_snapshots(self, now: datetime) -> list[model.Snapshot]:
        """Return the snapshots whose time has come."""
        found = self._select("SELECT * FROM snapshots WHERE state != 'removed' AND expires_at <= ?", now.isoformat())
        return [rows.snapshot(row) for row in found]

    def creating_snapshots(self) -> list[model.Snapshot]:
        """Return the snapshots that a crash left unfinished."""
        return [rows.snapshot(row) for row in self._select("SELECT * FROM snapshots WHERE state = 'creating'")]

    def api_key(self, key_id: model.ApiKeyId) -> model.ApiKey | None:
        """Return an API key or its tombstone."""
        return next((rows.api_key(row) for row in self._select("SELECT * FROM apikeys WHERE id = ?", key_id)), None)

    def has_tombstones(self, before: datetime) -> bool:
        """Tell whether anything ended before a time."""
        time = before.isoformat()
        found = self._select(
            "SELECT EXISTS (SELECT 1 FROM snapshots WHERE state = 'removed' AND removed_at < ?1) "
            "OR EXISTS (SELECT 1 FROM volumes WHERE state = 'purged' AND removed_at < ?1) "
            "OR EXISTS (SELECT 1 FROM apikeys WHERE removed_at < ?1)",
            time,
        )
        return bool(next(found)[0])

    def tree(self, key: Key) -> model.Tree | None:
        """Return a tree's row."""
        return next((rows.tree(row) for row in self._select("SELECT * FROM trees WHERE key = ?", key)), None)

    def trees(self, pool_id: model.PoolId) -> list[model.Tree]:
        """Return all trees of a pool that the database knows."""
        return [rows.tree(row) for row in self._select("SELECT * FROM trees WHERE pool_id = ?", pool_id)]

    def unsettled_trees(self, pool_id: model.PoolId) -> list[Key]:
        """Return the trees of a pool that power loss may still take."""
        found = self._select("SELECT key FROM trees WHERE pool_id = ? AND is_settled = 0", pool_id)
        return [Key(row[0]) for row in found]

    def pointed_keys(self, pool_id: model.PoolId) -> set[Key]:
        """Return the trees of a pool that a volume or snapshot points to, begun ones included."""
        found = self._select(
            "SELECT key FROM volumes WHERE pool_id = ?1 AND key IS NOT NULL UNION ALL "
            "SELECT s.key FROM snapshots s JOIN volumes v ON v.id = s.volume_id "
            "WHERE v.pool_id = ?1 AND s.key IS NOT NULL",
            pool_id,
        )
        return {Key(row[0]) for row in found}

    def _open(self) -> None:
        """Open both connections and read; on a full disk the journal, a new file, may take some of the ballast."""
        while True:
            with ExitStack() as opened:
                try:
                    os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # and so the journal
                    self._connection = opened.enter_context(closing(connection.connect(self._path)))
                    self._prepare()
                    self._reader = opened.enter_context(closing(connection.connect(self._path)))
                    self._load()
                except (sqlite3.Error, OSError) as err:
                    if not (connection.is_full(err) and self._ballast.give_up()):
                        raise Unusable(f"cannot open database {self._path}: {err}") from err
                else:
                    opened.pop_all()
                    return

    def _prepare(self) -> None:
        found = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found > schema.VERSION:
            raise Unusable(
                f"cannot open database {self._path}: it has version {found}, this daemon knows up to {schema.VERSION}"
            )
        if found == 0:
            seal = f"INSERT INTO seals VALUES (X'{os.urandom(_SEAL_BYTES).hex()}');"
            version = f"PRAGMA user_version = {schema.VERSION};"
            self._connection.executescript(f"BEGIN; {schema.SCHEMA} {seal} {version} COMMIT;")

    def _load(self) -> None:
        self._volumes = {
            volume.id: volume
            for volume in map(
                rows.volume, self._connection.execute("SELECT * FROM volumes WHERE state != 'purged' ORDER BY id")
            )
        }
        self._names = {volume.name: volume.id for volume in self._volumes.values() if volume.is_live}
        self._mounts: dict[model.VolumeId, tuple[model.Mount, ...]] = {}
        for mount in map(rows.mount, self._connection.execute("SELECT * FROM mounts ORDER BY id")):
            self._mounts[mount.volume_id] = (*self._mounts.get(mount.volume_id, ()), mount)
        with_snapshots = self._connection.execute(
            "SELECT DISTINCT volume_id FROM snapshots WHERE state = 'created'"
        ).fetchall()
        self._summaries = {model.VolumeId(row[0]): summary(self._connection, row[0]) for row in with_snapshots}
        live_keys = self._connection.execute("SELECT * FROM apikeys WHERE removed_at IS NULL ORDER BY id")
        self._api_keys = {key.public: key for key in map(rows.api_key, live_keys)}
        self.seal = bytes(self._connection.execute("SELECT seal FROM seals").fetchone()[0])
        """Random bytes of this database alone, by which `engine.apikeys` tells its secrets from guesses."""
        self._last_ids = {table: self._last_id(table) for table in _TABLES}

    def _last_id(self, table: str) -> int:
        """Return the last number of a table; a verb that was cut off may have left a tree's row of a higher one."""
        found = self._connection.execute(
            "SELECT max((SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?1), "
            "(SELECT coalesce(max(CAST(substr(key, 2) AS INTEGER)), 0) FROM trees WHERE key GLOB ?2))",
            (table, f"{_TABLES[table]}*"),
        )
        return int(found.fetchone()[0])

    def _attempt(self, change: Callable[[Write], _T]) -> _T:
        write = Write(self._connection)
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = change(write)
            mounts = {volume_id: write.mounts(volume_id) for volume_id in write.mounted}
            summaries = {volume_id: write.summary(volume_id) for volume_id in write.snapshotted}
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._learn(write, mounts, summaries)
        return result

    def _learn(
        self,
        write: Write,
        mounts: dict[model.VolumeId, tuple[model.Mount, ...]],
        summaries: dict[model.VolumeId, model.SnapshotSummary],
    ) -> None:
        for volume_id, volume in write.volumes.items():
            before = self._volumes.get(volume_id)
            if volume is None:
                self._volumes.pop(volume_id, None)
            else:
                self._volumes[volume_id] = volume
            if volume is not None and volume.is_live:  # first the new name, then the old one: a look-up never misses
                self._names[volume.name] = volume_id
                if before is None or before.name == volume.name:
                    continue
            if before is not None and self._names.get(before.name) == volume_id:
                del self._names[before.name]
        self._records.extend(write.records)
        for key in write.api_keys:
            if key.removed_at is None:
                self._api_keys[key.public] = key
            else:
                self._api_keys.pop(key.public, None)
        commit = self._commit(write, mounts)
        _replace(self._mounts, mounts, ())
        _replace(self._summaries, summaries, model.NO_SNAPSHOTS)
        if commit.rows or commit.held or commit.released:
            for listener in self._listeners:
                listener(commit)

    def _commit(self, write: Write, mounts: dict[model.VolumeId, tuple[model.Mount, ...]]) -> model.Commit:
        """Return what a transaction changed, before the memory learns its mounts."""
        before = {mount.id: mount for volume_id in mounts for mount in self._mounts.get(volume_id, ())}
        after = {mount.id: mount for each in mounts.values() for mount in each}
        held = tuple(mount for mount_id, mount in after.items() if mount_id not in before)
        released = tuple(mount for mount_id, mount in before.items() if mount_id not in after)
        return model.Commit(tuple(write.records), held, released)

    def _select(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        with self._read_lock, closing(self._reader.execute(query, values)) as cursor:
            found: list[tuple[Any, ...]] = cursor.fetchall()
        return iter(found)


def _replace(memory: dict[model.VolumeId, _T], changes: dict[model.VolumeId, _T], nothing: _T) -> None:
    for volume_id, value in changes.items():
        if value == nothing:
            memory.pop(volume_id, None)
        else:
            memory[volume_id] = value
