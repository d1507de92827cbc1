"""The rows: pools, volumes, snapshots, backups and their targets, mounts, trees, API keys.

Data and pure questions, no effects. Times are aware datetimes in UTC. Sizes are bytes. A row is never changed: a verb
commits a new one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, NewType

from voldriverd.driver import Key, StreamFormat, TreeOptions

PoolId = NewType("PoolId", int)
VolumeId = NewType("VolumeId", int)
SnapshotId = NewType("SnapshotId", int)
MountId = NewType("MountId", int)
ApiKeyId = NewType("ApiKeyId", int)
TargetId = NewType("TargetId", int)
BackupId = NewType("BackupId", int)


class VolumeState(StrEnum):
    """Where a volume is in its life; being mounted is not a state of the row but of its mounts."""

    REGISTERING = "registering"
    """Begun; its tree may be missing. Recovery ends it."""
    INACTIVE = "inactive"
    """At rest, mounted or not (a mounted one is shown as `active`)."""
    REVERTING = "reverting"
    UPDATING = "updating"
    """`size_bytes` is the size aimed at; recovery makes the tree so."""
    RESTORING = "restoring"
    """A backup is being brought back. A new volume's tree may be missing and the restore is begun again; one that had
    content rests again with that content after a crash."""
    IMPORTING = "importing"
    """A new volume is being filled from outside, which nobody can take up again: a crash ends it, and its trees go."""
    REMOVED = "removed"
    """In the trash until `destroy_at`."""
    PURGED = "purged"
    """A tombstone: it has no tree any more."""


class SnapshotState(StrEnum):
    """Where a snapshot is in its life."""

    CREATING = "creating"
    CREATED = "created"
    REMOVED = "removed"
    """A tombstone: it has no tree any more."""


class BackupState(StrEnum):
    """Where a backup is in its life."""

    CREATING = "creating"
    """Its bytes are on their way; after a crash they are sent again, except for those that arrived."""
    CREATED = "created"
    """The target holds all of it."""
    ERROR = "error"
    """It was given up, `message` says why; the target lists no such backup."""
    REMOVING = "removing"
    REMOVED = "removed"
    """A tombstone."""


class Health(StrEnum):
    """Whether a pool, target or volume can be used now."""

    AVAILABLE = "available"
    DEGRADED = "degraded"
    """It serves, and the kernel tells of trouble below it; targets are never so."""
    UNAVAILABLE = "unavailable"


class Trouble(StrEnum):
    """What the kernel tells of a file system or of a device below it."""

    SHUT_DOWN = "shut-down"
    """Every call fails."""
    DEVICE_GONE = "device-gone"
    DEVICE_OFFLINE = "device-offline"
    DEVICE_READ_ONLY = "device-read-only"
    DEVICE_SHRUNK = "device-shrunk"
    """It became smaller, or is smaller than its file system."""
    MEMBERS_MISSING = "members-missing"
    """Of an array or of a btrfs with several devices."""
    IMAGE_SHORT = "image-short"
    """The file of a loop device ends before the device does."""
    IMAGE_DELETED = "image-deleted"
    READ_ONLY = "read-only"
    ERRORS = "errors"
    """The file system has counted some."""


_FATAL: Final = frozenset({Trouble.SHUT_DOWN, Trouble.DEVICE_GONE, Trouble.DEVICE_OFFLINE})
"""With these nothing can be read or written any more."""


@dataclass(frozen=True, slots=True)
class Ailment:
    """One trouble of a pool or of a mounted volume."""

    trouble: Trouble
    text: str
    """What there is to see, for people."""


class Role(StrEnum):
    """What an API key may do."""

    FULL = "full"
    READ_ONLY = "read-only"
    """Look at everything, change nothing."""


@dataclass(frozen=True, slots=True)
class Pool:
    """One root directory and its driver; `uuid` stands in the marker file there too."""

    id: PoolId
    uuid: str
    name: str
    driver: str
    path: str


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree that the database knows, pointed to or not."""

    key: Key
    pool_id: PoolId
    options: TreeOptions
    """How to make it when it is an empty one; what its origin was made with when it is a clone."""
    source: Key | None
    """The tree it is cloned from; None for an empty one."""
    is_settled: bool
    """Known to survive power loss; an unsettled empty tree may be missing and is made again."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A named volume; `key` is None once it is purged."""

    id: VolumeId
    uuid: str
    name: str
    description: str | None
    pool_id: PoolId
    driver: str
    key: Key | None
    content: int
    """How many trees the volume has had: the number behind the dot of the newest key."""
    state: VolumeState
    size_bytes: int | None
    """The limit; None if it has none."""
    options: Mapping[str, str]
    """The options as the user gave them."""
    labels: Mapping[str, str]
    is_protected: bool
    created_at: datetime
    removed_at: datetime | None = None
    destroy_at: datetime | None = None
    message: str | None = None
    """Why the volume needs an operator, or what ended it; None if nothing is to be said."""

    @property
    def is_live(self) -> bool:
        """Neither in the trash nor purged: it holds its name."""
        return self.state not in {VolumeState.REMOVED, VolumeState.PURGED}

    @property
    def tree(self) -> Key:
        """The key of a volume that is not purged."""
        assert self.key is not None, f"volume {self.name} has no tree"
        return self.key


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The frozen content of a volume; `name` is None for a nameless one, `key` None once it is removed."""

    id: SnapshotId
    uuid: str
    volume_id: VolumeId
    name: str | None
    description: str | None
    key: Key | None
    state: SnapshotState
    is_automatic: bool
    size_bytes: int | None
    created_at: datetime
    expires_at: datetime | None = None
    removed_at: datetime | None = None

    @property
    def tree(self) -> Key:
        """The key of a snapshot that is not removed."""
        assert self.key is not None, f"snapshot {self.id} has no tree"
        return self.key

    @property
    def shown_name(self) -> str:
        """The name, or the API id of a nameless one."""
        return self.name or f"1s{self.id}"


@dataclass(frozen=True, slots=True)
class Mount:
    """One holder's use of a volume; `count` times, since `docker cp` mounts under the container's own id."""

    id: MountId
    volume_id: VolumeId
    holder: str
    count: int
    boot_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key to the API on TCP; what `engine.apikeys` makes of its secret is all that is kept of that."""

    id: ApiKeyId
    uuid: str
    name: str | None
    """Unique among live keys; None for a nameless one."""
    description: str | None
    public: str
    """What the client gives as the user's name."""
    secret_hash: str | None = field(repr=False)
    """None once it is revoked; such a row is a tombstone."""
    role: Role
    created_at: datetime
    removed_at: datetime | None = None

    @property
    def shown_name(self) -> str:
        """The name, or the API id of a nameless one."""
        return self.name or f"1c{self.id}"


@dataclass(frozen=True, slots=True)
class Target:
    """A place for backups; `uuid` is this row's, not that of the repository there."""

    id: TargetId
    uuid: str
    name: str
    """Unique among live targets."""
    description: str | None
    is_configured: bool
    """It stands in the configuration file, which then is the only place where it can be changed or removed."""
    url: str
    """`s3://bucket/prefix`, `file:///directory`, or `nfs://server/share`."""
    endpoint: str | None = None
    """s3: the URL of the service; None for that of the region."""
    region: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    """s3: both or neither; neither: the AWS environment, or the files of a configured target."""
    passphrase: str | None = field(default=None, repr=False)
    """None: not encrypted, or the file of a configured target."""
    mount_options: str | None = None
    """nfs: as mount(8) takes them."""
    repository_uuid: str | None = None
    """What was found there when it was first used; a place that holds another one now is not mounted, or not it."""
    created_at: datetime | None = None
    removed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup in a target, made here or found there: the index card; what it holds stands in its manifest."""

    id: BackupId
    uuid: str
    target_id: TargetId
    volume_id: VolumeId | None
    """The volume here that it was made from; None for one of another host, or of a volume that is forgotten."""
    volume_uuid: str
    """The folder in the target."""
    volume_name: str
    snapshot_id: SnapshotId | None
    """The snapshot here that it was made from; None as for the volume."""
    snapshot_uuid: str
    snapshot_name: str | None
    name: str | None
    description: str | None
    driver: str
    """That of the volume it was made from."""
    format: StreamFormat | None
    """None until it has been sent."""
    host: str
    """The name of the host that made it."""
    state: BackupState
    created_at: datetime
    """When it was begun."""
    taken_at: datetime
    """When the snapshot was made: the instant that a restore brings back."""
    parent_uuid: str | None = None
    """The backup that it builds on; None for a whole one, and until it has been sent."""
    key: Key | None = None
    """The tree here that it is made from and, until a later one is done, the base of the next; None if it has none."""
    size_bytes: int | None = None
    """What the volume could hold; None if that had no limit."""
    content_bytes: int = 0
    """The length of its stream: what it takes to write it down, uncompressed."""
    stored_bytes: int = 0
    """What was added to the target for it."""
    message: str | None = None
    """Why it was given up, or what is to be known about it."""
    verified_at: datetime | None = None
    """When all its bytes were last read and found right."""
    removed_at: datetime | None = None
    is_of_snapshot: bool = False
    """Whether it was asked for without a target: then the snapshot is shown as `backing-up` until it ends (D7)."""

    @property
    def shown_name(self) -> str:
        """The API id: names of backups need not be unique."""
        return f"1b{self.id}"


@dataclass(frozen=True, slots=True)
class BackupTimes:
    """What the complete backups of a volume come to."""

    taken_at: datetime
    """The instant that the newest one brings back."""
    verified_at: datetime | None
    """When any of them was last found right; None if none ever was."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A text that is shown to its owner only; whatever prints this prints `***`."""

    text: str = field(repr=False)

    def __repr__(self) -> str:
        return "***"


@dataclass(frozen=True, slots=True)
class TargetDraft:
    """What a new target should be; the texts are checked ones (`names`)."""

    name: str
    url: str
    description: str | None = None
    endpoint: str | None = None
    region: str | None = None
    access_key: Secret | None = None
    secret_key: Secret | None = None
    """s3: both or neither; neither: the AWS environment."""
    passphrase: Secret | None = None
    """None: what goes there is not encrypted."""
    mount_options: str | None = None
    """nfs: as mount(8) takes them."""


SUMMARY_NAMES: Final = 20
"""How many snapshot names `docker volume inspect` shows."""


@dataclass(frozen=True, slots=True)
class SnapshotSummary:
    """What `docker volume inspect` tells of a volume's snapshots, kept in memory."""

    count: int = 0
    newest: tuple[str, ...] = field(default=())
    """The names (or `s<id>`) of the newest ones, newest first."""

    def and_newer(self, snapshot: Snapshot) -> "SnapshotSummary":
        """Return the summary with a snapshot that is newer than all."""
        return SnapshotSummary(self.count + 1, (snapshot.name or f"s{snapshot.id}", *self.newest)[:SUMMARY_NAMES])


Row = Volume | Snapshot | Backup
"""What whoever watches the store is told of."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What one transaction changed, for who watches the store."""

    rows: tuple[Row, ...]
    """As they are now, in the order of the changes."""
    held: tuple[Mount, ...]
    """Mounts that are new; one that is counted anew is none."""
    released: tuple[Mount, ...]
    """Mounts that are gone."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on a column of a list."""

    field: str
    comparison: str
    """eq, ne, lt, lte, gt, gte, prefix, like, notlike (with % and _, by case), null, notnull."""
    value: str | int | None
    """None where the comparison needs none; with `ne` it means any value at all."""


@dataclass(frozen=True, slots=True)
class Search:
    """A part of a list: the conditions all hold, ties are in the order of ids."""

    conditions: tuple[Condition, ...]
    sort: str | None
    is_descending: bool
    has_removed: bool
    """Whether it has what is in the trash, and tombstones."""
    offset: int
    limit: int


HOST_HOLDER = "host"
"""The holder of `voldriver volume mount` and of the API action `activate`; it ends with the boot."""

_KEY: Final = re.compile(r"v[1-9][0-9]{0,17}\.[1-9][0-9]{0,17}|[sb][1-9][0-9]{0,17}")
"""The numbers fit into the 63 bits of an id."""

NO_SNAPSHOTS = SnapshotSummary()


def volume_key(volume_id: VolumeId, content: int) -> Key:
    """Return the key of a volume's content-th tree."""
    return Key(f"v{volume_id}.{content}")


def snapshot_key(snapshot_id: SnapshotId) -> Key:
    """Return the key of a snapshot's tree."""
    return Key(f"s{snapshot_id}")


def backup_key(backup_id: BackupId) -> Key:
    """Return the key of the tree that a backup is made from."""
    return Key(f"b{backup_id}")


def is_key(name: str) -> bool:
    """Tell whether a name that was found on disk is a key; people put things of their own beside the trees."""
    return _KEY.fullmatch(name) is not None


def key_number(key: Key) -> tuple[str, int]:
    """Return (letter, id) of a key, so that new ids start above every key on disk."""
    return key[0], int(key[1:].partition(".")[0])


def health_of(ailments: Iterable[Ailment]) -> Health:
    """Return how somebody with these ailments fares."""
    troubles = {ailment.trouble for ailment in ailments}
    if troubles & _FATAL:
        return Health.UNAVAILABLE
    return Health.DEGRADED if troubles else Health.AVAILABLE


def worst(*healths: Health) -> Health:
    """Return the worst of some healths."""
    return max(healths, key=list(Health).index)


def told(ailments: Iterable[Ailment]) -> str | None:
    """Return ailments on one line; None for none."""
    return "; ".join(ailment.text for ailment in ailments) or None


def shown_state(volume: Volume, *, is_mounted: bool) -> str:
    """Return the state in the words of the Rancher API (rancher-api: 4.2, with D8 of the design)."""
    if volume.state is VolumeState.INACTIVE:
        return "active" if is_mounted else "inactive"
    if volume.state is VolumeState.REVERTING:
        return "reverting-inactive"
    if volume.state is VolumeState.UPDATING:
        return "updating-active" if is_mounted else "updating-inactive"
    if volume.state is VolumeState.RESTORING:
        return "restoring-inactive"
    if volume.state is VolumeState.IMPORTING:
        return VolumeState.REGISTERING.value
    return volume.state.value


def volume_actions(volume: Volume, *, is_mounted: bool, has_host_holder: bool) -> frozenset[str]:
    """Return the actions that a volume offers now; both the `actions` map and the check ask here."""
    if volume.state is VolumeState.REMOVED:
        return frozenset({"restore", "purge"})
    if volume.state in {VolumeState.RESTORING, VolumeState.IMPORTING}:
        return frozenset({"cancel"})
    if volume.state is not VolumeState.INACTIVE:
        return frozenset()
    offered = {"snapshot", "backup", "clone", "resize", "activate"}
    if has_host_holder:
        offered = offered - {"activate"} | {"deactivate"}
    if not is_mounted:
        offered |= {"reverttosnapshot", "restorefrombackup", "remove"}
    return frozenset(offered)


def snapshot_actions(snapshot: Snapshot, volume: Volume) -> frozenset[str]:
    """Return the actions that a snapshot offers now; one in the trash goes with its volume."""
    if snapshot.state is SnapshotState.CREATED and volume.is_live:
        return frozenset({"backup", "remove"})
    return frozenset()


def backup_actions(backup: Backup) -> frozenset[str]:
    """Return the actions that a backup offers now."""
    if backup.state is BackupState.CREATING:
        return frozenset({"cancel"})
    if backup.state is BackupState.CREATED:
        return frozenset({"verify", "remove"})
    return frozenset({"remove"}) if backup.state is BackupState.ERROR else frozenset()
