"""The tables of the first version, and the steps from each version to the next.

A new database takes all steps too: there is one account of what a table looks like. One that is older is copied aside
first (`aside`), and a newer one is refused.
"""

import os
import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Final

from voldriverd.errors import Unusable
from voldriverd.store import aside
from voldriverd.store import connection as connecting

VERSION: Final = 2
"""Kept in `PRAGMA user_version`; a newer one in the file is refused."""
_SEAL_BYTES: Final = 32

# Uniqueness of uuid and key holds by how they are made; an index for each would make every commit a third slower.
SCHEMA: Final = """
CREATE TABLE pools (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    driver TEXT NOT NULL,
    path TEXT NOT NULL
);
CREATE TABLE trees (
    key TEXT PRIMARY KEY,
    pool_id INTEGER NOT NULL REFERENCES pools (id),
    options TEXT NOT NULL,
    source TEXT,
    is_settled INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE volumes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    pool_id INTEGER NOT NULL REFERENCES pools (id),
    driver TEXT NOT NULL,
    key TEXT REFERENCES trees (key),
    content INTEGER NOT NULL,
    state TEXT NOT NULL,
    size_bytes INTEGER,
    options TEXT NOT NULL,
    labels TEXT NOT NULL,
    is_protected INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    removed_at TEXT,
    destroy_at TEXT,
    message TEXT
);
CREATE UNIQUE INDEX volumes_live_name ON volumes (name) WHERE state NOT IN ('removed', 'purged');
CREATE INDEX volumes_ended ON volumes (removed_at) WHERE state = 'purged';
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL,
    volume_id INTEGER NOT NULL REFERENCES volumes (id),
    name TEXT,
    description TEXT,
    key TEXT REFERENCES trees (key),
    state TEXT NOT NULL,
    is_automatic INTEGER NOT NULL,
    size_bytes INTEGER,
    created_at TEXT NOT NULL,
    expires_at TEXT,
    removed_at TEXT
);
CREATE UNIQUE INDEX snapshots_live_name ON snapshots (volume_id, name) WHERE state != 'removed';
CREATE INDEX snapshots_volume ON snapshots (volume_id, id);
CREATE INDEX snapshots_expiry ON snapshots (expires_at) WHERE state != 'removed' AND expires_at IS NOT NULL;
CREATE INDEX snapshots_ended ON snapshots (removed_at) WHERE state = 'removed';
CREATE INDEX snapshots_creating ON snapshots (id) WHERE state = 'creating';
CREATE TABLE mounts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    volume_id INTEGER NOT NULL REFERENCES volumes (id),
    holder TEXT NOT NULL,
    count INTEGER NOT NULL CHECK (count > 0),
    boot_id TEXT NOT NULL,
    created_at TEXT NOT NULL,
    UNIQUE (volume_id, holder)
);
CREATE TABLE apikeys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL,
    name TEXT,
    description TEXT,
    public TEXT NOT NULL UNIQUE,
    secret_hash TEXT,
    role TEXT NOT NULL,
    created_at TEXT NOT NULL,
    removed_at TEXT
);
CREATE UNIQUE INDEX apikeys_live_name ON apikeys (name) WHERE removed_at IS NULL;
CREATE INDEX apikeys_ended ON apikeys (removed_at) WHERE removed_at IS NOT NULL;
CREATE TABLE seals (seal BLOB NOT NULL);
CREATE INDEX trees_unsettled ON trees (pool_id) WHERE is_settled = 0;
"""

MIGRATIONS: Final[dict[int, str]] = {
    1: """
CREATE TABLE targets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    is_configured INTEGER NOT NULL,
    url TEXT NOT NULL,
    endpoint TEXT,
    region TEXT,
    access_key TEXT,
    secret_key TEXT,
    passphrase TEXT,
    mount_options TEXT,
    repository_uuid TEXT,
    created_at TEXT,
    removed_at TEXT
);
CREATE UNIQUE INDEX targets_live_name ON targets (name) WHERE removed_at IS NULL;
CREATE TABLE backups (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL,
    target_id INTEGER NOT NULL REFERENCES targets (id),
    volume_id INTEGER REFERENCES volumes (id) ON DELETE SET NULL,
    volume_uuid TEXT NOT NULL,
    volume_name TEXT NOT NULL,
    snapshot_id INTEGER REFERENCES snapshots (id) ON DELETE SET NULL,
    snapshot_uuid TEXT NOT NULL,
    snapshot_name TEXT,
    name TEXT,
    description TEXT,
    driver TEXT NOT NULL,
    format TEXT,
    host TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at TEXT NOT NULL,
    taken_at TEXT NOT NULL,
    parent_uuid TEXT,
    key TEXT REFERENCES trees (key),
    size_bytes INTEGER,
    content_bytes INTEGER NOT NULL,
    stored_bytes INTEGER NOT NULL,
    message TEXT,
    verified_at TEXT,
    removed_at TEXT,
    is_of_snapshot INTEGER NOT NULL
);
CREATE INDEX backups_volume ON backups (volume_id, target_id);
CREATE INDEX backups_snapshot ON backups (snapshot_id);
CREATE INDEX backups_target ON backups (target_id);
CREATE INDEX backups_uuid ON backups (uuid);
CREATE INDEX backups_key ON backups (key) WHERE key IS NOT NULL;
CREATE INDEX backups_ended ON backups (removed_at) WHERE state = 'removed';
CREATE INDEX backups_going ON backups (id) WHERE state IN ('creating', 'removing');
""",
}
"""From version N to N + 1."""


def prepare(connection: sqlite3.Connection, path: Path, now: datetime) -> Path | None:
    """Bring a database to the present version in one transaction; return the copy of what it was, None for none.

    A new database takes all steps and leaves no copy. What fails or is cut off leaves the version found: the connection
    is closed without a commit. Raises Unusable (it is newer, there is no room for a copy, a step fails) and, where a
    step found the disk full, sqlite3.Error.
    """
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > VERSION:
        raise Unusable(_refusal(path, found))
    steps = [MIGRATIONS[number] for number in range(max(found, 1), VERSION)]
    if found == 0:
        _run(connection, [SCHEMA, f"INSERT INTO seals VALUES (X'{os.urandom(_SEAL_BYTES).hex()}');", *steps])
        return None
    if not steps:
        return None
    copy = aside.keep(connection, path, found, now)
    try:
        _run(connection, steps)
    except sqlite3.Error as err:
        if connecting.is_full(err):
            raise
        what = f"cannot upgrade database {path} from version {found} to {VERSION}"
        raise Unusable(f"{what}: {err}; it is left as it was, and a copy of it is {copy}") from err
    aside.prune(path, copy)
    return copy


def _run(connection: sqlite3.Connection, steps: list[str]) -> None:
    connection.executescript(f"BEGIN IMMEDIATE; {' '.join(steps)} PRAGMA user_version = {VERSION}; COMMIT;")


def _refusal(path: Path, found: int) -> str:
    """Say what to do with a database of a newer version."""
    known = [copy for copy in aside.copies(path) if aside.version(path, copy) <= VERSION]
    back = f"or go back to what was put aside before the upgrade, {known[0]}" if known else "no copy of before is here"
    return (
        f"cannot open database {path}: it has version {found}, this daemon knows up to {VERSION}; "
        f"install a release that knows version {found}, {back} (docs/upgrade.md)"
    )
