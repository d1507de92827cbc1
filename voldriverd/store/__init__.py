"""The only truth about pools, volumes, snapshots, backups, mounts, trees and API keys: SQLite in the root directory.

WAL with synchronous=FULL: a commit survives power loss when it returns. What recovery comes to by itself needs none of
its own (`foresee`) and is written with the next. Beside it stands a copy in memory of what must be answered at any time
(volumes, mounts, snapshot summaries, targets, API keys), replaced after each commit. Trees, snapshots and backups are
read from the database.

A commit takes a function, so that a vital one (unmount, remove, purge) can be tried again after some
of the ballast was given up on a full disk.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from voldriverd import model
from voldriverd.driver import Key
from voldriverd.errors import Exists, Unusable
from voldriverd.store import check, connection, rows, schema, search
from voldriverd.store.ballast import Ballast
from voldriverd.store.check import fault as fault
from voldriverd.store.write import Write, summary

_T = TypeVar("_T")

FILE_NAME: Final = "voldriver.db"
_TABLES: Final = {
    "pools": "-",
    "volumes": "v",
    "snapshots": "s",
    "mounts": "-",
    "apikeys": "-",
    "targets": "-",
    "backups": "b",
}
"""Whose rows have numbers of their own, and with which letter keys are made from them; no key begins with `-`."""
_GOING: Final = {model.BackupState.CREATING, model.BackupState.REMOVING}
"""The backups that are kept in memory: few, and asked for by every removal."""


class Store:
    """The database and its copy in memory; any thread may use it."""

    def __init__(self, root: Path) -> None:
        """Open, make or upgrade the database in a directory. Raises Unusable: damaged, newer, or no room."""
        self._path = root / FILE_NAME
        self._ballast = Ballast(root / "ballast")
        self._lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._ids_lock = threading.Lock()
        self._records: list[model.Row] = []
        self._foreseen: dict[tuple[type[model.Row], int], model.Volume | model.Snapshot] = {}
        self._listeners: list[Callable[[model.Commit], None]] = []
        self._open()
        if self._ballast.keep():
            connection.lengthen_journal(self._path)

    def close(self) -> None:
        """Close both connections; a clean end leaves no journal."""
        with self._lock, self._read_lock:
            self._reader.close()
            self._connection.close()

    def commit(self, change: Callable[[Write], _T], *, is_vital: bool = False, is_implied: bool = False) -> _T:
        """Run a change in one transaction, after what was foreseen; when this returns both survive power loss.

        `is_implied`: recovery would come to the same from what is committed already, and so the disk is not waited for.
        The change survives the end of the process; power loss may take it, alone or with the implied ones before it,
        until the next commit that is not implied (sqlite.org/wal.html, one journal for all).

        A change may run twice and must do nothing but write rows. Raises Exists (a name is taken)
        and Unusable (the disk is full or failing); then nothing has changed.
        """
        with self._lock:
            if not is_vital:
                self._refuse_full()
            while True:
                try:
                    return self._attempt(change, is_synced=not is_implied)
                except sqlite3.IntegrityError as err:
                    raise Exists(f"cannot write: {err}") from err
                except sqlite3.Error as err:
                    if not (is_vital and connection.is_full(err) and self._ballast.give_up()):
                        raise Unusable(f"cannot write database {self._path}: {err}") from err

    def foresee(self, row: model.Volume | model.Snapshot) -> None:
        """Have everybody see a row in the state that recovery would give it, and write that with the next commit.

        Of what is committed it differs in the state alone, and a snapshot is `created` now. The end of the process may
        take it as well as power loss may: then recovery makes it. Who writes nothing else calls `write_foreseen` soon.
        A transaction less is a tenth of a `Create` (2 cores, 6.18).
        """
        with self._lock:
            write = Write(self._connection)
            write.note(row)
            summaries = {}
            if isinstance(row, model.Snapshot):
                summaries[row.volume_id] = self.snapshot_summary(row.volume_id).and_newer(row)
            self._foreseen[type(row), row.id] = row
            self._learn(write, {}, summaries)

    def write_foreseen(self, *, is_vital: bool = True) -> None:
        """Write what was foreseen, if anything was; the disk is not waited for. Raises Unusable."""
        if self._foreseen:
            self.commit(lambda _: None, is_vital=is_vital, is_implied=True)

    def drop_trees(self, keys: Iterable[Key]) -> None:
        """Delete the rows of trees that nothing points to and whose removal is durable. Raises Unusable.

        SQLite would look through all volumes and snapshots for a pointer to each, as there is no index of their keys:
        15 ms beside 100,000 snapshots (6.18), in which nobody else can commit.
        """
        with self._lock, connection.unchecked(self._connection):
            self.commit(lambda write: write.drop_trees(keys), is_vital=True)

    def take_changes(self) -> list[model.Row]:
        """Return the rows that were committed or foreseen since the last call, oldest first, and forget them."""
        with self._lock:
            taken, self._records = self._records, []
            return taken

    def watch(self, listener: Callable[[model.Commit], None]) -> None:
        """Have a function called after each commit that changed volumes, snapshots, backups or mounts, in their order.

        What is foreseen counts as committed.

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
        with self._ids_lock:  # never waits for the disk: the event loop reserves, too
            self._last_ids[table] += 1
            return self._last_ids[table]

    def raise_id(self, table: str, number: int) -> None:
        """Make sure that ids to come are above a number (a key found on disk has it)."""
        with self._ids_lock:
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

    def targets(self) -> list[model.Target]:
        """Return the live targets in the order of their ids."""
        return list(self._targets.values())

    def target(self, target_id: model.TargetId) -> model.Target | None:
        """Return a live target."""
        return self._targets.get(target_id)

    def target_named(self, name: str) -> model.Target | None:
        """Return the live target of a name."""
        return next((target for target in self.targets() if target.name == name), None)

    def creating_backups(self) -> list[model.Backup]:
        """Return the backups whose bytes are on their way."""
        return [each for each in list(self._going.values()) if each.state is model.BackupState.CREATING]

    def removing_backups(self) -> list[model.Backup]:
        """Return the backups that are to go from their targets."""
        return [each for each in list(self._going.values()) if each.state is model.BackupState.REMOVING]

    def is_backing_up(self, snapshot_id: model.SnapshotId) -> bool:
        """Tell whether a snapshot is shown as `backing-up` (D7)."""
        return any(each.is_of_snapshot and each.snapshot_id == snapshot_id for each in self.creating_backups())

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

    def search_snapshots(self, wanted: model.Search) -> list[model.Snapshot]:
        """Return a part of the list of all snapshots."""
        return [rows.snapshot(row) for row in search.found(self._select, search.SNAPSHOTS, wanted)]

    def expired_snapshots(self, now: datetime) -> list[model.Snapshot]:
        """Return the snapshots whose time has come."""
        found = self._select("SELECT * FROM snapshots WHERE state != 'removed' AND expires_at <= ?", now.isoformat())
        return [rows.snapshot(row) for row in found]

    def creating_snapshots(self) -> list[model.Snapshot]:
        """Return the snapshots that a crash left unfinished."""
        return [rows.snapshot(row) for row in self._select("SELECT * FROM snapshots WHERE state = 'creating'")]

    def ended_target(self, target_id: model.TargetId) -> model.Target | None:
        """Return the tombstone of a removed target."""
        found = self._select("SELECT * FROM targets WHERE id = ? AND removed_at IS NOT NULL", target_id)
        return next(map(rows.target, found), None)

    def backup(self, backup_id: model.BackupId) -> model.Backup | None:
        """Return a backup or its tombstone."""
        return next(map(rows.backup, self._select("SELECT * FROM backups WHERE id = ?", backup_id)), None)

    def backup_of_uuid(self, target_id: model.TargetId, uuid: str) -> model.Backup | None:
        """Return a target's backup, unless it is removed."""
        query = "SELECT * FROM backups INDEXED BY backups_uuid WHERE uuid = ? AND target_id = ? AND state != 'removed'"
        return next(map(rows.backup, self._select(query, uuid, target_id)), None)

    def backups_of(self, volume_id: model.VolumeId, target_id: model.TargetId | None = None) -> list[model.Backup]:
        """Return the backups of a volume in a target (all targets: None) without tombstones, in the order of ids."""
        where, values = ("", ()) if target_id is None else (" AND target_id = ?", (target_id,))
        query = f"SELECT * FROM backups WHERE volume_id = ?{where} AND state != 'removed' ORDER BY id"
        return [rows.backup(row) for row in self._select(query, volume_id, *values)]

    def backups_of_snapshot(self, snapshot_id: model.SnapshotId) -> list[model.Backup]:
        """Return the backups of a snapshot without tombstones, in the order of ids."""
        found = self._select(
            "SELECT * FROM backups WHERE snapshot_id = ? AND state != 'removed' ORDER BY id", snapshot_id
        )
        return [rows.backup(row) for row in found]

    def backups_in(self, target_id: model.TargetId) -> list[model.Backup]:
        """Return the backups of a target without tombstones, in the order of ids."""
        found = self._select("SELECT * FROM backups WHERE target_id = ? AND state != 'removed' ORDER BY id", target_id)
        return [rows.backup(row) for row in found]

    def backups_with_trees(self, volume_id: model.VolumeId | None = None) -> list[model.Backup]:
        """Return the backups that have a tree here, of one volume or of all (None), in the order of ids."""
        where, values = ("", ()) if volume_id is None else (" AND volume_id = ?", (volume_id,))
        query = f"SELECT * FROM backups INDEXED BY backups_key WHERE key IS NOT NULL{where} ORDER BY id"
        return [rows.backup(row) for row in self._select(query, *values)]

    def backup_count(self) -> int:
        """Return how many backups there are that are not removed."""
        query = "SELECT (SELECT count(*) FROM backups) - (SELECT count(*) FROM backups WHERE state = 'removed')"
        return int(next(self._select(query))[0])  # two indexes are counted, where all rows would be read otherwise

    def backup_times(self, wanted: Iterable[model.VolumeId] | None = None) -> dict[model.VolumeId, model.BackupTimes]:
        """Return when volumes (None: all) were backed up and verified last; those that have no complete backup lack."""
        where, values = (
            ("", ()) if wanted is None else ("volume_id IN (SELECT value FROM json_each(?)) AND ", (wanted,))
        )
        query = f"SELECT volume_id, max(taken_at), max(verified_at) FROM backups WHERE {where}state = 'created' "
        found = self._select(
            f"{query}AND volume_id IS NOT NULL GROUP BY volume_id", *(json.dumps([*each]) for each in values)
        )
        return {model.VolumeId(row[0]): rows.backup_times(row) for row in found}

    def parents(self, backups: Iterable[model.Backup]) -> dict[model.BackupId, model.BackupId]:
        """Return which backups others build on, as far as they have rows."""
        ids = json.dumps([backup.id for backup in backups if backup.parent_uuid is not None])
        found = self._select(
            "SELECT b.id, p.id FROM backups b CROSS JOIN backups p INDEXED BY backups_uuid ON p.uuid = b.parent_uuid "
            "WHERE b.id IN (SELECT value FROM json_each(?)) AND p.target_id = b.target_id AND p.state != 'removed'",
            ids,
        )
        return {model.BackupId(row[0]): model.BackupId(row[1]) for row in found}

    def search_backups(self, wanted: model.Search) -> list[model.Backup]:
        """Return a part of the list of all backups."""
        return [rows.backup(row) for row in search.found(self._select, search.BACKUPS, wanted)]

    def api_key(self, key_id: model.ApiKeyId) -> model.ApiKey | None:
        """Return an API key or its tombstone."""
        return next((rows.api_key(row) for row in self._select("SELECT * FROM apikeys WHERE id = ?", key_id)), None)

    def has_tombstones(self, before: datetime) -> bool:
        """Tell whether anything ended before a time."""
        time = before.isoformat()
        found = self._select(
            "SELECT EXISTS (SELECT 1 FROM snapshots WHERE state = 'removed' AND removed_at < ?1) "
            "OR EXISTS (SELECT 1 FROM volumes WHERE state = 'purged' AND removed_at < ?1) "
            "OR EXISTS (SELECT 1 FROM apikeys WHERE removed_at < ?1) "
            "OR EXISTS (SELECT 1 FROM backups WHERE state = 'removed' AND removed_at < ?1)",
            time,
        )
        return bool(next(found)[0])

    def tree(self, key: Key) -> model.Tree | None:
        """Return a tree's row."""
        return next((rows.tree(row) for row in self._select("SELECT * FROM trees WHERE key = ?", key)), None)

    def tree_keys(self, pool_id: model.PoolId) -> set[Key]:
        """Return all trees of a pool that the database knows."""
        return {Key(row[0]) for row in self._select("SELECT key FROM trees WHERE pool_id = ?", pool_id)}

    def unsettled_trees(self, pool_id: model.PoolId) -> list[Key]:
        """Return the trees of a pool that power loss may still take."""
        found = self._select("SELECT key FROM trees WHERE pool_id = ? AND is_settled = 0", pool_id)
        return [Key(row[0]) for row in found]

    def pointed_keys(self, pool_id: model.PoolId) -> set[Key]:
        """Return the trees of a pool that a volume, snapshot or backup points to, begun ones included."""
        found = self._select(
            "SELECT key FROM volumes WHERE pool_id = ?1 AND key IS NOT NULL UNION ALL "
            "SELECT s.key FROM snapshots s JOIN volumes v ON v.id = s.volume_id "
            "WHERE v.pool_id = ?1 AND s.key IS NOT NULL UNION ALL "
            "SELECT b.key FROM backups b CROSS JOIN trees t ON t.key = b.key "
            "WHERE t.pool_id = ?1 AND b.key IS NOT NULL",
            pool_id,
        )
        return {Key(row[0]) for row in found}

    def pointed_among(self, keys: Iterable[Key]) -> set[Key]:
        """Return those of some trees that a volume, snapshot or backup points to, by the numbers in their keys."""
        asked = set(keys)
        numbers = json.dumps([model.key_number(key)[1] for key in asked if not key.startswith("v")])
        found = self._select(
            "SELECT key FROM snapshots WHERE id IN (SELECT value FROM json_each(?1)) UNION ALL "
            "SELECT key FROM backups WHERE id IN (SELECT value FROM json_each(?1))",
            numbers,
        )
        return asked & {*(volume.key for volume in self.volumes()), *(Key(row[0]) for row in found if row[0])}

    def _open(self) -> None:
        """Open both connections and read; on a full disk the journal, a new file, may take some of the ballast."""
        while True:
            with ExitStack() as opened:
                try:
                    os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # and so the journal
                    self._refuse_damage()
                    self._connection = opened.enter_context(closing(connection.connect(self._path)))
                    self._is_synced = True
                    self.put_aside = schema.prepare(self._connection, self._path, datetime.now(UTC))
                    """The copy of what the database was before it was upgraded, made now; None if none was."""
                    self._reader = opened.enter_context(closing(connection.connect(self._path)))
                    self._load()
                except (sqlite3.Error, OSError) as err:
                    if not (connection.is_full(err) and self._ballast.give_up()):
                        raise Unusable(f"cannot open database {self._path}: {err}") from err
                else:
                    opened.pop_all()
                    return

    def _refuse_damage(self) -> None:
        damage = check.fault(self._path)
        if damage is not None:
            raise Unusable(
                f"cannot open database {self._path}: it is damaged ({damage}) and left as it is; "
                "voldriverd rebuild makes a new one from what lies in the pools"
            )

    def _refuse_full(self) -> None:
        """Refuse what is not vital on a full disk: the room that the journal has is for what is."""
        if not self._ballast.is_disk_roomy():
            raise Unusable(f"cannot write database {self._path}: database or disk is full")

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
        live = self._connection.execute("SELECT * FROM targets WHERE removed_at IS NULL ORDER BY id")
        self._targets = {target.id: target for target in map(rows.target, live)}
        going = self._connection.execute("SELECT * FROM backups WHERE state IN ('creating', 'removing') ORDER BY id")
        self._going = {backup.id: backup for backup in map(rows.backup, going)}

    def _last_id(self, table: str) -> int:
        """Return the last number of a table; a verb that was cut off may have left a tree's row of a higher one."""
        found = self._connection.execute(
            "SELECT max((SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?1), "
            "(SELECT coalesce(max(CAST(substr(key, 2) AS INTEGER)), 0) FROM trees WHERE key GLOB ?2))",
            (table, f"{_TABLES[table]}*"),
        )
        return int(found.fetchone()[0])

    def _attempt(self, change: Callable[[Write], _T], *, is_synced: bool) -> _T:
        if is_synced is not self._is_synced:
            connection.set_synced(self._connection, is_synced=is_synced)
            self._is_synced = is_synced
        write = Write(self._connection)
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for row in self._foreseen.values():
                write.put_state(row)
            result = change(write)
            mounts = {volume_id: write.mounts(volume_id) for volume_id in write.mounted}
            summaries = {volume_id: write.summary(volume_id) for volume_id in write.snapshotted}
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._foreseen.clear()
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
        self._learn_backups(write)
        commit = self._commit(write, mounts)
        _replace(self._mounts, mounts, ())
        _replace(self._summaries, summaries, model.NO_SNAPSHOTS)
        if commit.rows or commit.held or commit.released:
            for listener in self._listeners:
                listener(commit)

    def _learn_backups(self, write: Write) -> None:
        for target in write.targets:
            if target.removed_at is None:
                self._targets[target.id] = target
            else:
                self._targets.pop(target.id, None)
        for backup_id, backup in write.backups.items():
            if backup is not None and backup.state in _GOING:
                self._going[backup_id] = backup
            else:
                self._going.pop(backup_id, None)

    def _commit(self, write: Write, mounts: dict[model.VolumeId, tuple[model.Mount, ...]]) -> model.Commit:
        """Return what a transaction changed, before the memory learns its mounts."""
        if not mounts:
            return model.Commit(tuple(write.records), (), ())
        before = {mount.id: mount for volume_id in mounts for mount in self._mounts.get(volume_id, ())}
        after = {mount.id: mount for each in mounts.values() for mount in each}
        held = tuple(mount for mount_id, mount in after.items() if mount_id not in before)
        released = tuple(mount for mount_id, mount in before.items() if mount_id not in after)
        return model.Commit(tuple(write.records), held, released)

    def _select(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        if self._foreseen and "snapshots" in query:
            with suppress(Unusable):  # a disk that is full or failing: the rows say `creating` as long as it is
                self.write_foreseen(is_vital=False)
        with self._read_lock, closing(self._reader.execute(query, values)) as cursor:
            found: list[tuple[Any, ...]] = cursor.fetchall()
        return iter(found)


def _replace(memory: dict[model.VolumeId, _T], changes: dict[model.VolumeId, _T], nothing: _T) -> None:
    for volume_id, value in changes.items():
        if value == nothing:
            memory.pop(volume_id, None)
        else:
            memory[volume_id] = value
