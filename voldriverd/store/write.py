"""What one transaction may change; the only SQL that writes."""

import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Final

from voldriverd import model
from voldriverd.driver import Key
from voldriverd.store import rows


class Write:
    """The inside of a transaction: rows are put whole; what the memory must learn is noted."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Work on a connection inside `BEGIN IMMEDIATE`."""
        self._connection = connection
        self.volumes: dict[model.VolumeId, model.Volume | None] = {}
        self.mounted: set[model.VolumeId] = set()
        self.snapshotted: set[model.VolumeId] = set()
        self.api_keys: list[model.ApiKey] = []
        self.targets: list[model.Target] = []
        self.backups: dict[model.BackupId, model.Backup | None] = {}
        self.records: list[model.Row] = []

    def add_pool(self, pool: model.Pool) -> None:
        """Insert a pool."""
        self._connection.execute(
            "INSERT INTO pools VALUES (?, ?, ?, ?, ?)", (pool.id, pool.uuid, pool.name, pool.driver, pool.path)
        )

    def put_pool_path(self, pool_id: model.PoolId, path: str) -> None:
        """Note that a pool lies elsewhere now."""
        self._connection.execute("UPDATE pools SET path = ? WHERE id = ?", (path, pool_id))

    def add_tree(self, tree: model.Tree) -> None:
        """Insert a tree's row: step 1 of every verb that makes something."""
        self._connection.execute("INSERT INTO trees VALUES (?, ?, ?, ?, ?)", rows.tree_values(tree))

    def add_clone(self, key: Key, source: Key) -> None:
        """Insert the row of a tree that will be a clone of another that something points to, committed when made."""
        self._connection.execute(
            "INSERT INTO trees SELECT ?, pool_id, options, key, 1 FROM trees WHERE key = ?", (key, source)
        )

    def settle_trees(self, keys: Iterable[Key]) -> None:
        """Note that trees are known to survive power loss."""
        self._connection.executemany("UPDATE trees SET is_settled = 1 WHERE key = ?", [(key,) for key in keys])

    def drop_trees(self, keys: Iterable[Key]) -> None:
        """Delete the rows of trees whose removal is durable."""
        self._connection.executemany("DELETE FROM trees WHERE key = ?", [(key,) for key in keys])

    def put_state(self, row: model.Volume | model.Snapshot) -> None:
        """Write the state of a row that is there."""
        table = "volumes" if isinstance(row, model.Volume) else "snapshots"
        self._connection.execute(f"UPDATE {table} SET state = ? WHERE id = ?", (row.state.value, row.id))

    def note(self, row: model.Volume | model.Snapshot) -> None:
        """Note what the memory must learn of a row that was put, or will be."""
        if isinstance(row, model.Volume):
            self.volumes[row.id] = None if row.state is model.VolumeState.PURGED else row
        elif row.state is not model.SnapshotState.CREATING:  # a new one, which no summary counts yet
            self.snapshotted.add(row.volume_id)
        self.records.append(row)

    def put_volume(self, volume: model.Volume) -> None:
        """Insert or replace a volume's row."""
        self._connection.execute(
            f"INSERT INTO volumes VALUES ({_marks(17)}) ON CONFLICT (id) DO UPDATE SET {_VOLUME_CHANGES}",
            rows.volume_values(volume),
        )
        self.note(volume)

    def delete_volume(self, volume: model.Volume) -> None:
        """Delete the row of a volume that never came to be."""
        self._connection.execute("DELETE FROM volumes WHERE id = ?", (volume.id,))
        self.volumes[volume.id] = None
        self.records.append(replace(volume, state=model.VolumeState.PURGED, key=None))

    def put_snapshot(self, snapshot: model.Snapshot) -> None:
        """Insert or replace a snapshot's row."""
        self._connection.execute(
            f"INSERT INTO snapshots VALUES ({_marks(12)}) ON CONFLICT (id) DO UPDATE SET {_SNAPSHOT_CHANGES}",
            rows.snapshot_values(snapshot),
        )
        self.note(snapshot)

    def delete_snapshot(self, snapshot: model.Snapshot) -> None:
        """Delete the row of a snapshot that never came to be."""
        self._connection.execute("DELETE FROM snapshots WHERE id = ?", (snapshot.id,))
        self.snapshotted.add(snapshot.volume_id)
        self.records.append(replace(snapshot, state=model.SnapshotState.REMOVED, key=None))

    def end_snapshots(self, volume_id: model.VolumeId, removed_at: datetime) -> None:
        """Make tombstones of all snapshots of a volume."""
        self._connection.execute(
            "UPDATE snapshots SET state = 'removed', key = NULL, removed_at = ? "
            "WHERE volume_id = ? AND state != 'removed'",
            (removed_at.isoformat(), volume_id),
        )
        self.snapshotted.add(volume_id)

    def put_mount(self, mount: model.Mount) -> None:
        """Insert or replace a holder's mount."""
        self._connection.execute(
            f"INSERT INTO mounts VALUES ({_marks(6)}) ON CONFLICT (id) DO UPDATE SET count = excluded.count, "
            "boot_id = excluded.boot_id, created_at = excluded.created_at",
            rows.mount_values(mount),
        )
        self.mounted.add(mount.volume_id)

    def drop_mounts(self, mounts: Iterable[model.Mount]) -> None:
        """Delete holders' mounts."""
        for mount in mounts:
            self._connection.execute("DELETE FROM mounts WHERE id = ?", (mount.id,))
            self.mounted.add(mount.volume_id)

    def put_api_key(self, key: model.ApiKey) -> None:
        """Insert or replace an API key's row."""
        self._connection.execute(
            f"INSERT INTO apikeys VALUES ({_marks(9)}) ON CONFLICT (id) DO UPDATE SET {_API_KEY_CHANGES}",
            rows.api_key_values(key),
        )
        self.api_keys.append(key)

    def put_target(self, target: model.Target) -> None:
        """Insert or replace a target's row."""
        self._connection.execute(
            f"INSERT INTO targets VALUES ({_marks(15)}) ON CONFLICT (id) DO UPDATE SET {_TARGET_CHANGES}",
            rows.target_values(target),
        )
        self.targets.append(target)

    def put_backup(self, backup: model.Backup) -> None:
        """Insert or replace a backup's row."""
        self._connection.execute(
            f"INSERT INTO backups VALUES ({_marks(26)}) ON CONFLICT (id) DO UPDATE SET {_BACKUP_CHANGES}",
            rows.backup_values(backup),
        )
        self.backups[backup.id] = backup
        self.records.append(backup)

    def snapshot(self, snapshot_id: model.SnapshotId) -> model.Snapshot | None:
        """Return a snapshot as it stands inside this transaction: what was foreseen of it may not be there yet."""
        found = self._connection.execute("SELECT * FROM snapshots WHERE id = ?", (snapshot_id,))
        return next(map(rows.snapshot, found), None)

    def backup(self, backup_id: model.BackupId) -> model.Backup | None:
        """Return a backup as it stands inside this transaction."""
        found = self._connection.execute("SELECT * FROM backups WHERE id = ?", (backup_id,))
        return next(map(rows.backup, found), None)

    def backup_of_uuid(self, target_id: model.TargetId, uuid: str) -> model.Backup | None:
        """Return a target's backup, unless it is removed, as it stands inside this transaction."""
        query = "SELECT * FROM backups WHERE uuid = ? AND target_id = ? AND state != 'removed'"
        return next(map(rows.backup, self._connection.execute(query, (uuid, target_id))), None)

    def drop_bases(self, volume_id: model.VolumeId, target_id: model.TargetId | None = None) -> list[model.Backup]:
        """Have the finished backups of a volume in a target (all targets: None) point to no tree; return them.

        As they were before, for the caller to discard their trees.
        """
        where, values = ("", ()) if target_id is None else (" AND target_id = ?", (target_id,))
        found = self._connection.execute(
            "SELECT * FROM backups INDEXED BY backups_key "
            f"WHERE key IS NOT NULL AND volume_id = ?{where} AND state != 'creating'",
            (volume_id, *values),
        )
        bases = [rows.backup(row) for row in found.fetchall()]
        for base in bases:
            self.put_backup(replace(base, key=None))
        return bases

    def end_backups(self, target_id: model.TargetId, removed_at: datetime, message: str) -> list[model.Backup]:
        """Make tombstones of all backups in a target; return, as they were, those that a watcher or a tree knows."""
        found = self._connection.execute(
            "SELECT * FROM backups WHERE target_id = ? AND (key IS NOT NULL OR state IN ('creating', 'removing'))",
            (target_id,),
        )
        concerned = [rows.backup(row) for row in found.fetchall()]
        self._connection.execute(
            "UPDATE backups SET state = 'removed', key = NULL, removed_at = ?, message = ? "
            "WHERE target_id = ? AND state != 'removed'",
            (removed_at.isoformat(), message, target_id),
        )
        for backup in concerned:
            ended = self.backup(backup.id)
            assert ended is not None, f"backup {backup.id} went inside its transaction"
            self.backups[backup.id] = ended
            self.records.append(ended)
        return concerned

    def delete_backup(self, backup: model.Backup) -> None:
        """Delete the row of a backup that never came to be."""
        self._connection.execute("DELETE FROM backups WHERE id = ?", (backup.id,))
        self.backups[backup.id] = None
        self.records.append(replace(backup, state=model.BackupState.REMOVED, key=None))

    def drop_tombstones(self, before: datetime) -> int:
        """Delete what ended before a time; returns how many rows. Backups of what goes do not point to it any more."""
        time = before.isoformat()
        backups = self._connection.execute("DELETE FROM backups WHERE state = 'removed' AND removed_at < ?", (time,))
        snapshots = self._connection.execute(
            "DELETE FROM snapshots WHERE state = 'removed' AND removed_at < ?", (time,)
        )
        volumes = self._connection.execute(
            "DELETE FROM volumes WHERE state = 'purged' AND removed_at < ? "
            "AND NOT EXISTS (SELECT 1 FROM snapshots WHERE volume_id = volumes.id)",
            (time,),
        )
        keys = self._connection.execute("DELETE FROM apikeys WHERE removed_at < ?", (time,))
        targets = self._connection.execute(
            "DELETE FROM targets WHERE removed_at < ? "
            "AND NOT EXISTS (SELECT 1 FROM backups WHERE target_id = targets.id)",
            (time,),
        )
        return sum(each.rowcount for each in (backups, snapshots, volumes, keys, targets))

    def summary(self, volume_id: model.VolumeId) -> model.SnapshotSummary:
        """Count the snapshots of a volume as they stand inside this transaction."""
        return summary(self._connection, volume_id)

    def mounts(self, volume_id: model.VolumeId) -> tuple[model.Mount, ...]:
        """Return the mounts of a volume as they stand inside this transaction."""
        found = self._connection.execute("SELECT * FROM mounts WHERE volume_id = ? ORDER BY id", (volume_id,))
        return tuple(rows.mount(row) for row in found)


def summary(connection: sqlite3.Connection, volume_id: model.VolumeId) -> model.SnapshotSummary:
    """Count the snapshots of a volume and name the newest."""
    count = connection.execute(
        "SELECT count(*) FROM snapshots WHERE volume_id = ? AND state = 'created'", (volume_id,)
    ).fetchone()[0]
    newest = connection.execute(
        "SELECT coalesce(name, 's' || id) FROM snapshots WHERE volume_id = ? AND state = 'created' "
        "ORDER BY id DESC LIMIT ?",
        (volume_id, model.SUMMARY_NAMES),
    )
    return model.SnapshotSummary(count, tuple(row[0] for row in newest)) if count else model.NO_SNAPSHOTS


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _changes(columns: str) -> str:
    return ", ".join(f"{column} = excluded.{column}" for column in columns.split())


_VOLUME_CHANGES: Final = _changes(
    "name description key content state size_bytes options labels is_protected removed_at destroy_at message"
)
_SNAPSHOT_CHANGES: Final = _changes("name description key state size_bytes expires_at removed_at")
_API_KEY_CHANGES: Final = _changes("name description secret_hash removed_at")
_TARGET_CHANGES: Final = _changes(
    "name description is_configured url endpoint region access_key secret_key passphrase mount_options "
    "repository_uuid removed_at"
)
_BACKUP_CHANGES: Final = _changes(
    "name description format state parent_uuid key content_bytes stored_bytes message verified_at removed_at"
)
