BEGIN TRANSACTION;
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
INSERT INTO "apikeys" VALUES(1,'f8f3ad29-49f5-44f5-989f-6af84bd24a91','robot','of the build','QP3QMSQ68UYWVPJ3I7O6','scrypt$16384$8$1$EQ4TyvnXBerq5/rOVZRiYg==$EHBJSW2UaFGQCiyiZu+IZyDd63S6sIZLVM+oRDLtJaE=','full','2026-03-04T05:36:07+00:00',NULL);
INSERT INTO "apikeys" VALUES(2,'67e10b1c-e616-48a1-bf81-bab0533dce2e',NULL,NULL,'A78T309XR7R5GFIAO7J8','scrypt$16384$8$1$Yw+LxTtyUxRDGkcOFb/Dew==$97xryjnI8CgPgg62tcKGJJ0DP+fTc+TbdbEFsxKD6qk=','read-only','2026-03-04T05:37:07+00:00',NULL);
INSERT INTO "apikeys" VALUES(3,'f08bf025-36c2-4ce8-8d7b-7227810e9085','lost',NULL,'N6XSY3621H9VI07M8EFN',NULL,'full','2026-03-04T05:38:07+00:00','2026-03-04T05:39:07+00:00');
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
INSERT INTO "backups" VALUES(1,'e542c423-c99e-48ae-94d2-1a00d50f7345',1,3,'bd8e0873-a454-4d28-9319-8e4f62c5ccde','kept',6,'b84bc383-3aec-4b3b-9fcf-4d67ea30c25a',NULL,NULL,NULL,'memory','btrfs','vm','created','2026-03-04T05:42:07+00:00','2026-03-04T05:41:07+00:00',NULL,NULL,NULL,2609,297,'all well','2026-03-04T05:50:07+00:00',NULL,0);
INSERT INTO "backups" VALUES(2,'9801310b-ccb6-4f32-9af0-08834af462fb',1,3,'bd8e0873-a454-4d28-9319-8e4f62c5ccde','kept',7,'c1631265-3b51-4855-8817-6548e9aea439',NULL,NULL,NULL,'memory','btrfs','vm','created','2026-03-04T05:46:07+00:00','2026-03-04T05:45:07+00:00','e542c423-c99e-48ae-94d2-1a00d50f7345','b2',NULL,2199,309,NULL,NULL,NULL,0);
INSERT INTO "backups" VALUES(3,'aced786b-cd04-40a0-97e5-cbdd5086d436',1,3,'bd8e0873-a454-4d28-9319-8e4f62c5ccde','kept',8,'3ac22a0e-cdd1-4f05-bdd2-a2119f65ab17','late','nightly',NULL,'memory',NULL,'vm','error','2026-03-04T05:48:07+00:00','2026-03-04T05:47:07+00:00',NULL,NULL,NULL,0,0,'the target is full',NULL,NULL,0);
INSERT INTO "backups" VALUES(4,'ba93e35a-d975-4621-9923-3a10f0270f71',1,3,'bd8e0873-a454-4d28-9319-8e4f62c5ccde','kept',8,'3ac22a0e-cdd1-4f05-bdd2-a2119f65ab17','late',NULL,'cut off','memory',NULL,'vm','creating','2026-03-04T05:49:07+00:00','2026-03-04T05:47:07+00:00',NULL,'b4',NULL,0,0,NULL,NULL,NULL,0);
CREATE TABLE mounts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    volume_id INTEGER NOT NULL REFERENCES volumes (id),
    holder TEXT NOT NULL,
    count INTEGER NOT NULL CHECK (count > 0),
    boot_id TEXT NOT NULL,
    created_at TEXT NOT NULL,
    UNIQUE (volume_id, holder)
);
INSERT INTO "mounts" VALUES(3,1,'container-1',2,'boot-1','2026-03-04T05:31:07+00:00');
INSERT INTO "mounts" VALUES(4,1,'container-2',1,'boot-1','2026-03-04T05:33:07+00:00');
INSERT INTO "mounts" VALUES(5,2,'host',1,'boot-1','2026-03-04T05:35:07+00:00');
CREATE TABLE pools (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    driver TEXT NOT NULL,
    path TEXT NOT NULL
);
INSERT INTO "pools" VALUES(1,'4d40265b-2515-4623-b4a1-d0342e09c5a5','memory','memory','/srv/pool');
CREATE TABLE seals (seal BLOB NOT NULL);
INSERT INTO "seals" VALUES(X'6F0436CF6192AA5FC0818FB6ABEEF6FBF78DF84F08D564D3804E89A13E27CB25');
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
INSERT INTO "snapshots" VALUES(1,'344d70a4-4498-4721-b1bf-db77d544136a',1,'one','before the change','s1','created',0,67108864,'2026-03-04T05:10:07+00:00',NULL,NULL);
INSERT INTO "snapshots" VALUES(2,'1dbad779-ba07-4f58-b390-51ffada94420',1,NULL,NULL,'s2','created',0,67108864,'2026-03-04T05:11:07+00:00','2026-12-29T05:06:07+00:00',NULL);
INSERT INTO "snapshots" VALUES(3,'a7b3b809-1aad-4fde-aeaf-ac87cb3447f8',1,'gone',NULL,NULL,'removed',0,67108864,'2026-03-04T05:12:07+00:00',NULL,'2026-03-04T05:13:07+00:00');
INSERT INTO "snapshots" VALUES(4,'d0529a5c-f6bc-44d7-8daa-5fe925820822',1,'before-revert-20260304T051607Z','what the revert displaced','s4','created',1,67108864,'2026-03-04T05:18:07+00:00','2026-03-11T05:19:07+00:00',NULL);
INSERT INTO "snapshots" VALUES(5,'07e41b8c-cdef-48b3-a690-91637728001a',4,'last',NULL,'s5','created',0,NULL,'2026-03-04T05:23:07+00:00',NULL,NULL);
INSERT INTO "snapshots" VALUES(6,'b84bc383-3aec-4b3b-9fcf-4d67ea30c25a',3,NULL,NULL,'s6','created',0,NULL,'2026-03-04T05:41:07+00:00',NULL,NULL);
INSERT INTO "snapshots" VALUES(7,'c1631265-3b51-4855-8817-6548e9aea439',3,NULL,NULL,'s7','created',0,NULL,'2026-03-04T05:45:07+00:00',NULL,NULL);
INSERT INTO "snapshots" VALUES(8,'3ac22a0e-cdd1-4f05-bdd2-a2119f65ab17',3,'late',NULL,'s8','created',0,NULL,'2026-03-04T05:47:07+00:00',NULL,NULL);
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
INSERT INTO "targets" VALUES(1,'2575794e-00f9-4475-a01b-42e4893cc16b','near',NULL,0,'file:///srv/target',NULL,NULL,NULL,NULL,NULL,NULL,'0cf47748-6c8c-4c85-9f15-87209e6eef37','2026-03-04T05:40:07+00:00',NULL);
INSERT INTO "targets" VALUES(2,'c6a825bc-6318-47ab-9a21-3f7992a6ba2e','old',NULL,0,'file:///srv/old',NULL,NULL,NULL,NULL,NULL,NULL,'7cfe25d8-b84a-45b9-9a22-fe50ee9cec31','2026-03-04T05:51:07+00:00','2026-03-04T05:52:07+00:00');
CREATE TABLE trees (
    key TEXT PRIMARY KEY,
    pool_id INTEGER NOT NULL REFERENCES pools (id),
    options TEXT NOT NULL,
    source TEXT,
    is_settled INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "trees" VALUES('b1',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','s6',1);
INSERT INTO "trees" VALUES('b2',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','s7',1);
INSERT INTO "trees" VALUES('b3',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','s8',1);
INSERT INTO "trees" VALUES('b4',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','s8',1);
INSERT INTO "trees" VALUES('s1',1,'{"size_bytes": 67108864, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','v1.1',1);
INSERT INTO "trees" VALUES('s2',1,'{"size_bytes": 67108864, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','v1.1',1);
INSERT INTO "trees" VALUES('s4',1,'{"size_bytes": 67108864, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','v1.1',1);
INSERT INTO "trees" VALUES('s5',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": 488, "nocow": false, "compression": null}','v4.1',1);
INSERT INTO "trees" VALUES('s6',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','v3.1',1);
INSERT INTO "trees" VALUES('s7',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','v3.1',1);
INSERT INTO "trees" VALUES('s8',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','v3.1',1);
INSERT INTO "trees" VALUES('v1.2',1,'{"size_bytes": 67108864, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','s1',1);
INSERT INTO "trees" VALUES('v2.1',1,'{"size_bytes": 67108864, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','s1',1);
INSERT INTO "trees" VALUES('v3.1',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}',NULL,1);
INSERT INTO "trees" VALUES('v4.1',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": 488, "nocow": false, "compression": null}',NULL,0);
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
INSERT INTO "volumes" VALUES(1,'b9762a7e-d712-4874-af19-f9e06b0f267d','db',NULL,1,'memory','v1.2',2,'inactive',67108864,'{"size": "64M", "label.team": "red"}','{"team": "red"}',0,'2026-03-04T05:07:07+00:00',NULL,NULL,NULL);
INSERT INTO "volumes" VALUES(2,'f5fc1414-d108-4413-8700-8cdc03016feb','copy',NULL,1,'memory','v2.1',1,'inactive',67108864,'{"from": "db@one"}','{}',0,'2026-03-04T05:20:07+00:00',NULL,NULL,NULL);
INSERT INTO "volumes" VALUES(3,'bd8e0873-a454-4d28-9319-8e4f62c5ccde','kept','the ledger',1,'memory','v3.1',1,'inactive',NULL,'{}','{}',1,'2026-03-04T05:21:07+00:00',NULL,NULL,NULL);
INSERT INTO "volumes" VALUES(4,'2c7b0525-5808-4c7b-9e98-5c7aaebc088e','trashed',NULL,1,'memory','v4.1',1,'removed',NULL,'{"mode": "0750"}','{}',0,'2026-03-04T05:22:07+00:00','2026-03-04T05:24:07+00:00','2026-03-11T05:24:07+00:00',NULL);
INSERT INTO "volumes" VALUES(5,'fb4f41da-66c8-4768-ab57-c7bc03044bc8','purged',NULL,1,'memory',NULL,1,'purged',NULL,'{}','{}',0,'2026-03-04T05:25:07+00:00','2026-03-04T05:27:07+00:00',NULL,NULL);
CREATE UNIQUE INDEX volumes_live_name ON volumes (name) WHERE state NOT IN ('removed', 'purged');
CREATE INDEX volumes_ended ON volumes (removed_at) WHERE state = 'purged';
CREATE UNIQUE INDEX snapshots_live_name ON snapshots (volume_id, name) WHERE state != 'removed';
CREATE INDEX snapshots_volume ON snapshots (volume_id, id);
CREATE INDEX snapshots_expiry ON snapshots (expires_at) WHERE state != 'removed' AND expires_at IS NOT NULL;
CREATE INDEX snapshots_ended ON snapshots (removed_at) WHERE state = 'removed';
CREATE INDEX snapshots_creating ON snapshots (id) WHERE state = 'creating';
CREATE UNIQUE INDEX apikeys_live_name ON apikeys (name) WHERE removed_at IS NULL;
CREATE INDEX apikeys_ended ON apikeys (removed_at) WHERE removed_at IS NOT NULL;
CREATE INDEX trees_unsettled ON trees (pool_id) WHERE is_settled = 0;
CREATE UNIQUE INDEX targets_live_name ON targets (name) WHERE removed_at IS NULL;
CREATE INDEX backups_volume ON backups (volume_id, target_id);
CREATE INDEX backups_snapshot ON backups (snapshot_id);
CREATE INDEX backups_target ON backups (target_id);
CREATE INDEX backups_uuid ON backups (uuid);
CREATE INDEX backups_key ON backups (key) WHERE key IS NOT NULL;
CREATE INDEX backups_ended ON backups (removed_at) WHERE state = 'removed';
CREATE INDEX backups_going ON backups (id) WHERE state IN ('creating', 'removing');
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('pools',1);
INSERT INTO "sqlite_sequence" VALUES('volumes',5);
INSERT INTO "sqlite_sequence" VALUES('mounts',6);
INSERT INTO "sqlite_sequence" VALUES('snapshots',8);
INSERT INTO "sqlite_sequence" VALUES('apikeys',3);
INSERT INTO "sqlite_sequence" VALUES('targets',2);
INSERT INTO "sqlite_sequence" VALUES('backups',4);
COMMIT;
PRAGMA user_version = 2;
