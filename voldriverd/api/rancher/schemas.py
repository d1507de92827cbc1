"""The one description of all types: schemas, the dispatch, the parsing of bodies and the filters come from it.

Fields and marks are those of Rancher 1.x (rancher-api 2.1 to 2.5, 3); what is ours is an `_own` field. No field of
ours bears the name of a link or an action, for Rancher's Python client binds those as methods.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from voldriverd import driver, model, names
from voldriverd.api.rancher.schema import Action, Field, Link, Schema

DESCRIPTION_MAX: Final = 1_024

TRANSITIONING: Final = ("yes", "no", "error")
VOLUME_STATES: Final = (
    *("registering", "active", "inactive", "reverting-active", "reverting-inactive", "restoring-inactive"),
    *("updating-active", "updating-inactive", "removed", "purged"),
)
SNAPSHOT_STATES: Final = ("creating", "created", "backing-up", "removed")
BACKUP_STATES: Final = tuple(state.value for state in model.BackupState)
HEALTHS: Final = tuple(health.value for health in model.Health)
FORMATS: Final = tuple(format_.value for format_ in driver.StreamFormat)
ROLES: Final = tuple(role.value for role in model.Role)


def _own(type_: str, description: str, **marks: Any) -> Field:
    return Field(type_, description=description, is_addition=True, **marks)


def _common(states: tuple[str, ...], *, unfiltered: tuple[str, ...] = ()) -> dict[str, Field]:
    """Return the fields that every resource has (rancher-api 3)."""
    fields = {
        "accountId": Field("reference[account]"),
        "created": Field("date"),
        "description": Field("string", max_length=DESCRIPTION_MAX),
        "id": Field("int"),
        "kind": Field("string", max_length=255),
        "name": Field("string", max_length=255),
        "removed": Field("date"),
        "state": Field("enum", options=states, nullable=False),
        "transitioning": Field("enum", options=TRANSITIONING, nullable=False),
        "transitioningMessage": Field("string"),
        "transitioningProgress": Field("int"),
        "uuid": Field("string", max_length=128),
    }
    return fields | {name: replace(fields[name], has_filter=False) for name in unfiltered}


_PROGRESS: Final = ("transitioningMessage", "transitioningProgress")
"""What changes all the time while something is made; the store, which filters very many, does not know it."""
_NAME: Final = Field("string", create=True, required=True, nullable=False, unique=True, max_length=names.NAME_MAX)
_DESCRIPTION: Final = Field("string", create=True, update=True, max_length=DESCRIPTION_MAX)
_SNAPSHOT_NAME: Final = Field("string", create=True, update=True, max_length=names.NAME_MAX)
_TARGET_NAME: Final = Field(
    "string",
    create=True,
    update=True,
    required=True,
    nullable=False,
    max_length=255,
    min_length=1,
    valid_chars="a-zA-Z0-9_.-",
)
_EXPIRES: Final = _own("date", "when it is removed by itself", create=True)
_BACKUP_NAME: Final = Field("string", create=True, max_length=255)
_TARGET_OF: Final = Field("reference[backupTarget]", create=True, max_length=255)

VOLUME: Final = Schema(
    id="volume",
    letters="v",
    collection_methods=("GET", "POST"),
    resource_methods=("GET", "PUT", "DELETE"),
    fields=_common(VOLUME_STATES)
    | {
        "name": _NAME,
        "description": _DESCRIPTION,
        "driver": Field("string", create=True, required=True, nullable=False),
        "driverOpts": Field("map[string]", create=True),
        "accessMode": Field("string", max_length=255),
        "externalId": Field("string", max_length=128),
        "imageId": Field("reference[image]"),
        "instanceId": Field("reference[instance]"),
        "isHostPath": Field("boolean", default=False, nullable=False),
        "uri": Field("string", max_length=512),
        "removeTime": _own("date", "when a removed volume is destroyed"),
        "storagePoolId": _own("reference[storagePool]", "the pool that it lies in"),
        "mountpoint": _own("string", "where it is mounted, while it is active"),
        "sizeBytes": _own("int", "its size; null: it has no limit"),
        "usedBytes": _own("int", "what is used of it; null: this driver does not tell"),
        "snapshotCount": _own("int", "how many snapshots it has", nullable=False),
        "labels": _own("map[string]", "free labels, replaced as a whole", create=True, update=True),
        "labelChanges": _own("map[string]", "labels to set, or to take away if empty; the others stay", update=True),
        "protected": _own("boolean", "whether its removal is refused", create=True, update=True, nullable=False),
        "health": Field("enum", options=HEALTHS, nullable=False, is_addition=True),
        "displacedSnapshotId": _own(
            "reference[snapshot]", "in the answer of reverttosnapshot and restorefrombackup: what was displaced"
        ),
    },
    actions={
        "snapshot": Action(input="volumeSnapshotInput", output="snapshot"),
        "reverttosnapshot": Action(input="revertToSnapshotInput", output="volume"),
        "restorefrombackup": Action(input="restoreFromBackupInput", output="volume"),
        "remove": Action(output="volume"),
        "restore": Action(input="volumeRestoreInput", output="volume"),
        "purge": Action(output="volume"),
        "activate": Action(output="volume"),
        "deactivate": Action(output="volume"),
        "clone": Action(input="volumeCloneInput", output="volume"),
        "resize": Action(input="volumeResizeInput", output="volume"),
        "backup": Action(input="volumeBackupInput", output="backup"),
        "cancel": Action(output="volume"),
    },
    links={
        "snapshots": Link("snapshot", here="id", there="volumeId"),
        "backups": Link("backup", here="id", there="volumeId"),
        "mounts": Link("mount", here="id", there="volumeId"),
        "storagepools": Link("storagePool", here="storagePoolId", there="id"),
    },
)

SNAPSHOT: Final = Schema(
    id="snapshot",
    letters="s",
    collection_methods=("GET", "POST"),
    resource_methods=("GET", "PUT", "DELETE"),
    fields=_common(SNAPSHOT_STATES, unfiltered=_PROGRESS)
    | {
        "name": _SNAPSHOT_NAME,
        "description": _DESCRIPTION,
        "volumeId": Field("reference[volume]", create=True, required=True, nullable=False),
        "managedVolumeUUID": Field("string"),
        "removeTime": _own("date", "when it is destroyed with its volume, which is in the trash"),
        "sizeBytes": _own("int", "the size of the volume then; null: it had no limit"),
        "automatic": _own("boolean", "whether a revert, a restore or a backup made it", nullable=False),
        "expires": _EXPIRES,
    },
    actions={
        "backup": Action(input="snapshotBackupInput", output="snapshot", other_output="backup"),
        "remove": Action(output="snapshot"),
    },
    links={
        "volume": Link("volume", here="volumeId", there="id", is_single=True),
        "backups": Link("backup", here="id", there="snapshotId"),
    },
)

BACKUP: Final = Schema(
    id="backup",
    letters="b",
    collection_methods=("GET",),
    resource_methods=("GET", "DELETE"),
    fields=_common(BACKUP_STATES, unfiltered=("transitioning", *_PROGRESS))
    | {
        "name": _SNAPSHOT_NAME,
        "description": _DESCRIPTION,
        "backupTargetId": Field("reference[backupTarget]"),
        "snapshotId": Field("reference[snapshot]"),
        "volumeId": Field("reference[volume]"),
        "uri": Field("string", max_length=4_096),
        "volumeName": _own("string", "of the volume then", nullable=False),
        "volumeUUID": _own("string", "of the volume, here or on the host that has it", nullable=False),
        "snapshotName": _own("string", "of the snapshot then"),
        "host": _own("string", "the name of the host that made it", nullable=False),
        "driver": _own("string", "of the volume then; it can be restored into any", nullable=False),
        "format": _own("enum", "how it is written down; null: not yet", options=FORMATS),
        "parentId": _own("reference[backup]", "the one that it builds on; null: it is a whole one", has_filter=False),
        "sizeBytes": _own("int", "the size of the volume then; null: it had no limit"),
        "contentBytes": _own("int", "the length of what was written down, uncompressed", nullable=False),
        "storedBytes": _own("int", "what the target holds for it and for none before it", nullable=False),
        "taken": _own("date", "when the snapshot was made", nullable=False),
        "verified": _own("date", "when all of it was last read and found right"),
    },
    actions={
        "remove": Action(output="backup"),
        "cancel": Action(output="backup"),
        "verify": Action(input="backupVerifyInput", output="backup"),
    },
    links={
        "backuptarget": Link("backupTarget", here="backupTargetId", there="id", is_single=True),
        "snapshot": Link("snapshot", here="snapshotId", there="id", is_single=True),
        "volume": Link("volume", here="volumeId", there="id", is_single=True),
    },
)

BACKUP_TARGET: Final = Schema(
    id="backupTarget",
    letters="bt",
    collection_methods=("GET", "POST"),
    resource_methods=("GET", "DELETE"),
    fields=_common(("created", "removed"))
    | {
        "name": _TARGET_NAME,
        "description": _DESCRIPTION,
        "nfsConfig": Field("nfsConfig", create=True),
        "url": _own("string", "s3://bucket/prefix, file:///directory or nfs://server/share", create=True),
        "endpoint": _own("string", "of an S3 server that is not Amazon's", create=True),
        "region": _own("string", "of the bucket", create=True),
        "accessKey": _own("password", "with secretKey, or else the daemon's environment; never shown", create=True),
        "secretKey": _own("password", "never shown", create=True),
        "passphrase": _own("password", "encrypts what is backed up; never shown", create=True),
        "isConfigured": _own("boolean", "whether the configuration file defines it", nullable=False),
        "isDefault": _own("boolean", "whether backups go there that name no target", nullable=False),
        "health": Field("enum", options=HEALTHS, nullable=False, is_addition=True),
        "freedBytes": _own("int", "in the answer of prune: what was deleted"),
    },
    actions={
        "remove": Action(output="backupTarget"),
        "scan": Action(output="backupTarget"),
        "prune": Action(output="backupTarget"),
    },
    links={"backups": Link("backup", here="id", there="backupTargetId")},
)

STORAGE_POOL: Final = Schema(
    id="storagePool",
    letters="sp",
    collection_methods=("GET",),
    fields=_common(("active", "inactive"))
    | {
        "blockDevicePath": Field("string"),
        "driverName": Field("string", max_length=255),
        "externalId": Field("string", max_length=128),
        "volumeAccessMode": Field("string", max_length=255),
        "volumeCapabilities": Field("array[string]"),
        "path": _own("string", "its root directory"),
        "capacityBytes": _own("int", "of its file system"),
        "freeBytes": _own("int", "of its file system"),
        "health": Field("enum", options=HEALTHS, nullable=False, is_addition=True),
        "volumeCount": _own("int", "how many volumes lie in it, those in the trash included", nullable=False),
        "orphans": _own("array[string]", "trees on disk that the daemon does not know; it leaves them alone"),
    },
    actions={"grow": Action(input="storagePoolGrowInput", output="storagePool")},
    links={"volumes": Link("volume", here="id", there="storagePoolId")},
)

MOUNT: Final = Schema(
    id="mount",
    letters="m",
    collection_methods=("GET",),
    fields=_common(("active",))
    | {
        "instanceId": Field("reference[instance]"),
        "path": Field("string", max_length=512),
        "permissions": Field("string", max_length=128),
        "volumeId": Field("reference[volume]"),
        "holder": _own("string", "the mount id of a container, or host", nullable=False),
        "count": _own("int", "how many times it was mounted for this holder", nullable=False),
    },
    links={"volume": Link("volume", here="volumeId", there="id", is_single=True)},
)

HOST: Final = Schema(
    id="host",
    letters="h",
    collection_methods=("GET",),
    fields=_common(("active",))
    | {
        "hostname": Field("string", max_length=255),
        "version": _own("string", "of voldriverd", nullable=False),
        "root": _own("string", "its root directory", nullable=False),
        "defaultDriver": _own("string", "of a volume that names none", nullable=False),
        "volumeCount": _own("int", "volumes that are not in the trash", nullable=False),
        "mountedCount": _own("int", "of these, how many are mounted", nullable=False),
        "snapshotCount": _own("int", "snapshots of these", nullable=False),
        "trashCount": _own("int", "volumes in the trash", nullable=False),
        "targetCount": _own("int", "places where backups go", nullable=False),
        "backupCount": _own("int", "backups that are known here", nullable=False),
        "stallMs": _own(
            "int", "the longest stall of the event loop in the last minute, in milliseconds", nullable=False
        ),
        "longestStallMs": _own("int", "the same since the daemon's start", nullable=False),
    },
)

API_KEY: Final = Schema(
    id="apiKey",
    letters="c",
    collection_methods=("GET", "POST"),
    resource_methods=("GET", "PUT", "DELETE"),
    fields=_common(("active", "removed"))
    | {
        "name": Field("string", create=True, update=True, unique=True, max_length=names.NAME_MAX),
        "description": _DESCRIPTION,
        "publicValue": Field("string", max_length=4_096),
        "secretValue": Field("password", is_shown_once=True),
        "role": Field("enum", create=True, nullable=False, default="full", options=ROLES, is_addition=True),
    },
    actions={"remove": Action(output="apiKey")},
)

SCHEMA: Final = Schema(
    id="schema",
    collection_methods=("GET",),
    fields={
        "pluralName": Field("string"),
        "includeableLinks": Field("array[string]"),
        "resourceActions": Field("map[json]"),
        "collectionActions": Field("map[json]"),
        "collectionFields": Field("map[json]"),
        "collectionFilters": Field("map[json]"),
        "resourceFields": Field("map[json]"),
        "resourceMethods": Field("array[string]"),
        "collectionMethods": Field("array[string]"),
    },
)

ERROR: Final = Schema(
    id="error",
    resource_methods=(),
    fields={
        "status": Field("int"),
        "code": Field("string"),
        "message": Field("string"),
        "detail": Field("string"),
        "fieldName": Field("string"),
    },
)

EVENT: Final = Schema(
    id="event",
    resource_methods=(),
    fields={
        "id": Field("string"),
        "time": Field("date", nullable=False),
        "resourceType": Field("string", nullable=False),
        "resourceId": Field("string", nullable=False),
        "name": Field("string"),
        "state": Field("string", nullable=False),
        "cause": Field("string", nullable=False, description="the verb"),
        "volumeId": Field("reference[volume]", description="the volume that it is about"),
        "volumeName": Field("string"),
        "holder": Field("string", description="of a mount"),
        "health": Field("enum", options=HEALTHS, description="of a pool, and of a volume whose health has changed"),
        "message": Field("string", description="what is wrong, if anything is"),
    },
)

API_VERSION: Final = Schema(id="apiVersion", collection_methods=("GET",), fields={})

INPUTS: Final = (
    Schema(
        id="volumeSnapshotInput",
        fields={
            "name": Field("string", create=True, nullable=False, max_length=names.NAME_MAX),
            "description": _own("string", "of the snapshot", create=True),
            "expires": _EXPIRES,
        },
    ),
    Schema(
        id="revertToSnapshotInput",
        fields={"snapshotId": Field("reference[snapshot]", create=True, required=True, nullable=False)},
    ),
    Schema(
        id="restoreFromBackupInput",
        fields={
            "backupId": Field("reference[backup]", create=True, required=True, nullable=False),
            "allowHoles": _own("boolean", "leave out what of it is damaged, and list that", create=True),
        },
    ),
    Schema(
        id="snapshotBackupInput",
        fields={
            "backupTargetId": _TARGET_OF,
            "name": _BACKUP_NAME,
            "description": _own("string", "of the backup", create=True, max_length=DESCRIPTION_MAX),
        },
    ),
    Schema(
        id="volumeBackupInput",
        fields={"backupTargetId": _TARGET_OF, "name": _BACKUP_NAME, "description": _DESCRIPTION},
    ),
    Schema(
        id="backupVerifyInput",
        fields={"sample": _own("string", "how much of it to read, as in 10%; all of it", create=True)},
    ),
    Schema(
        id="nfsConfig",
        fields={
            "server": Field("string", create=True, required=True, nullable=False),
            "share": Field("string", create=True, required=True, nullable=False),
            "mountOptions": Field("string", create=True),
        },
    ),
    Schema(
        id="volumeRestoreInput",
        fields={"name": _own("string", "another name, if the old one is taken", create=True)},
    ),
    Schema(
        id="volumeCloneInput",
        fields={
            "name": _NAME,
            "description": _DESCRIPTION,
            "snapshotId": _own("reference[snapshot]", "null: the content that the volume has now", create=True),
            "size": _own("string", "larger than its source's, as in 10G", create=True),
        },
    ),
    Schema(
        id="volumeImportInput",
        fields={
            "name": _NAME,
            "path": _own("string", "an absolute one, of a directory of the host", create=True, required=True),
            "description": _DESCRIPTION,
            "driver": Field("string", create=True, nullable=False),
            "driverOpts": Field("map[string]", create=True),
            "labels": _own("map[string]", "free labels", create=True),
            "protected": _own("boolean", "whether its removal is refused", create=True, nullable=False),
            "snapshotPaths": _own(
                "map[string]", "by the names of its snapshots; with it, all are taken over by snapshots", create=True
            ),
            "snapshotTimes": _own("map[string]", "when they were made, by the same names", create=True),
        },
    ),
    Schema(id="volumeResizeInput", fields={"size": Field("string", create=True, required=True, nullable=False)}),
    Schema(id="storagePoolGrowInput", fields={"size": Field("string", create=True, required=True, nullable=False)}),
)

ALL: Final[Mapping[str, Schema]] = {
    each.id: each
    for each in (
        *(API_KEY, API_VERSION, BACKUP, BACKUP_TARGET, ERROR, EVENT, HOST, MOUNT, SCHEMA, SNAPSHOT),
        *(STORAGE_POOL, VOLUME, *INPUTS),
    )
}
