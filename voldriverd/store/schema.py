"""The tables, and the steps from each released version of them to the next."""

from typing import Final

VERSION: Final = 1
"""Kept in `PRAGMA user_version`; a newer one in the file is refused."""

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

MIGRATIONS: Final[dict[int, str]] = {}
"""From version N to N + 1; empty as long as one version has been released."""
