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
INSERT INTO "apikeys" VALUES(1,'b1564e8d-ad8c-48ac-b280-6d864a2a6d2a','robot','of the build','KUUNBB6YG03PK5QVLQIR','scrypt$16384$8$1$MiM571yY90FivwdSpweTPA==$V/AI+q6j9CUiOL7QIp/4Qw+yCXq7HZB9148xwjXgLH4=','full','2026-03-04T05:30:07+00:00',NULL);
INSERT INTO "apikeys" VALUES(2,'d58ae347-7df4-42b4-909e-067ef2613bd7',NULL,NULL,'FEPO6WL0QCHTDSY141CH','scrypt$16384$8$1$BHjN8SiEdMY9+2ihhkIVig==$M8EA3HySOypVPctAeCRpG4AuxF01EmhEgBrhFIIhMnY=','read-only','2026-03-04T05:31:07+00:00',NULL);
INSERT INTO "apikeys" VALUES(3,'2fa3a946-396a-4ca6-be93-2028465a0441','lost',NULL,'DGD06UJGSLGUT9I03M36',NULL,'full','2026-03-04T05:32:07+00:00','2026-03-04T05:33:07+00:00');
CREATE TABLE mounts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    volume_id INTEGER NOT NULL REFERENCES volumes (id),
    holder TEXT NOT NULL,
    count INTEGER NOT NULL CHECK (count > 0),
    boot_id TEXT NOT NULL,
    created_at TEXT NOT NULL,
    UNIQUE (volume_id, holder)
);
INSERT INTO "mounts" VALUES(3,1,'container-1',2,'boot-1','2026-03-04T05:27:07+00:00');
INSERT INTO "mounts" VALUES(4,1,'container-2',1,'boot-1','2026-03-04T05:28:07+00:00');
INSERT INTO "mounts" VALUES(5,2,'host',1,'boot-1','2026-03-04T05:29:07+00:00');
CREATE TABLE pools (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    driver TEXT NOT NULL,
    path TEXT NOT NULL
);
INSERT INTO "pools" VALUES(1,'1fee359e-26d3-4756-88ba-acaaa1c56cf6','memory','memory','/srv/pool');
CREATE TABLE seals (seal BLOB NOT NULL);
INSERT INTO "seals" VALUES(X'0061A810C35B7544AC9D36E915E6B163CE0D24EDAF64CB3A1C11E5B219252866');
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
INSERT INTO "snapshots" VALUES(1,'ae28e4ff-6a78-4941-826f-3701d807fb78',1,'one','before the change','s1','created',0,67108864,'2026-03-04T05:09:07+00:00',NULL,NULL);
INSERT INTO "snapshots" VALUES(2,'d5a08658-0580-4e32-886d-05bdc8db2eb2',1,NULL,NULL,'s2','created',0,67108864,'2026-03-04T05:10:07+00:00','2026-12-29T05:06:07+00:00',NULL);
INSERT INTO "snapshots" VALUES(3,'86cbb025-cc6f-4988-9fe0-26f998a648eb',1,'gone',NULL,NULL,'removed',0,67108864,'2026-03-04T05:11:07+00:00',NULL,'2026-03-04T05:12:07+00:00');
INSERT INTO "snapshots" VALUES(4,'33f3e543-17bc-43b3-ab49-b3ab75e4a8be',1,'before-revert-20260304T051407Z','what the revert displaced','s4','created',1,67108864,'2026-03-04T05:16:07+00:00','2026-03-11T05:17:07+00:00',NULL);
INSERT INTO "snapshots" VALUES(5,'4b9d49f9-a195-423a-8015-bd067a602aaf',4,'last',NULL,'s5','created',0,NULL,'2026-03-04T05:21:07+00:00',NULL,NULL);
CREATE TABLE trees (
    key TEXT PRIMARY KEY,
    pool_id INTEGER NOT NULL REFERENCES pools (id),
    options TEXT NOT NULL,
    source TEXT,
    is_settled INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "trees" VALUES('s1',1,'{"size_bytes": 67108864, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','v1.1',1);
INSERT INTO "trees" VALUES('s2',1,'{"size_bytes": 67108864, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','v1.1',1);
INSERT INTO "trees" VALUES('s4',1,'{"size_bytes": 67108864, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','v1.1',1);
INSERT INTO "trees" VALUES('s5',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": 488, "nocow": false, "compression": null}','v4.1',1);
INSERT INTO "trees" VALUES('v1.2',1,'{"size_bytes": 67108864, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','s1',1);
INSERT INTO "trees" VALUES('v2.1',1,'{"size_bytes": 67108864, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}','s1',1);
INSERT INTO "trees" VALUES('v3.1',1,'{"size_bytes": null, "thick": false, "fs": null, "uid": null, "gid": null, "mode": null, "nocow": false, "compression": null}',NULL,0);
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
INSERT INTO "volumes" VALUES(1,'eb7abacf-4172-4c57-a025-b1ea91a3a24a','db',NULL,1,'memory','v1.2',2,'inactive',67108864,'{"size": "64M", "label.team": "red"}','{"team": "red"}',0,'2026-03-04T05:07:07+00:00',NULL,NULL,NULL);
INSERT INTO "volumes" VALUES(2,'316fdcb4-676a-437b-a129-9e450f18467e','copy',NULL,1,'memory','v2.1',1,'inactive',67108864,'{"from": "db@one"}','{}',0,'2026-03-04T05:18:07+00:00',NULL,NULL,NULL);
INSERT INTO "volumes" VALUES(3,'caec1159-dffc-408f-9766-93a96454b7dd','kept','the ledger',1,'memory','v3.1',1,'inactive',NULL,'{}','{}',1,'2026-03-04T05:19:07+00:00',NULL,NULL,NULL);
INSERT INTO "volumes" VALUES(4,'28842d83-0618-42a0-885f-54c043e9d843','trashed',NULL,1,'memory','v4.1',1,'removed',NULL,'{"mode": "0750"}','{}',0,'2026-03-04T05:20:07+00:00','2026-03-04T05:22:07+00:00','2026-03-11T05:22:07+00:00',NULL);
INSERT INTO "volumes" VALUES(5,'4333e220-faa1-4059-a609-c03c81c3d478','purged',NULL,1,'memory',NULL,1,'purged',NULL,'{}','{}',0,'2026-03-04T05:23:07+00:00','2026-03-04T05:25:07+00:00',NULL,NULL);
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
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('pools',1);
INSERT INTO "sqlite_sequence" VALUES('volumes',5);
INSERT INTO "sqlite_sequence" VALUES('mounts',5);
INSERT INTO "sqlite_sequence" VALUES('snapshots',5);
INSERT INTO "sqlite_sequence" VALUES('apikeys',3);
COMMIT;
PRAGMA user_version = 1;
