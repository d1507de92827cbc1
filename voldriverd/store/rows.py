"""Rows of the tables to and from the dataclasses of the model; pure."""

import functools
import json
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

from voldriverd import model
from voldriverd.driver import Key, StreamFormat, TreeOptions

_EMPTY: Final[Mapping[str, str]] = {}
"""Shared by all volumes without options or labels: 10,000 volumes need 1.3 MB less."""


def volume_values(volume: model.Volume) -> tuple[Any, ...]:
    """Return a volume's columns in the order of the table."""
    return (
        volume.id,
        volume.uuid,
        volume.name,
        volume.description,
        volume.pool_id,
        volume.driver,
        volume.key,
        volume.content,
        volume.state.value,
        volume.size_bytes,
        _mapped(volume.options),
        _mapped(volume.labels),
        volume.is_protected,
        volume.created_at.isoformat(),
        _text(volume.removed_at),
        _text(volume.destroy_at),
        volume.message,
    )


def volume(row: tuple[Any, ...]) -> model.Volume:
    """Return the volume of a row."""
    return model.Volume(
        id=model.VolumeId(row[0]),
        uuid=row[1],
        name=row[2],
        description=row[3],
        pool_id=model.PoolId(row[4]),
        driver=row[5],
        key=None if row[6] is None else Key(row[6]),
        content=row[7],
        state=model.VolumeState(row[8]),
        size_bytes=row[9],
        options=_mapping(row[10]),
        labels=_mapping(row[11]),
        is_protected=bool(row[12]),
        created_at=datetime.fromisoformat(row[13]),
        removed_at=_time(row[14]),
        destroy_at=_time(row[15]),
        message=row[16],
    )


def snapshot_values(snapshot: model.Snapshot) -> tuple[Any, ...]:
    """Return a snapshot's columns in the order of the table."""
    return (
        snapshot.id,
        snapshot.uuid,
        snapshot.volume_id,
        snapshot.name,
        snapshot.description,
        snapshot.key,
        snapshot.state.value,
        snapshot.is_automatic,
        snapshot.size_bytes,
        snapshot.created_at.isoformat(),
        _text(snapshot.expires_at),
        _text(snapshot.removed_at),
    )


def snapshot(row: tuple[Any, ...]) -> model.Snapshot:
    """Return the snapshot of a row."""
    return model.Snapshot(
        id=model.SnapshotId(row[0]),
        uuid=row[1],
        volume_id=model.VolumeId(row[2]),
        name=row[3],
        description=row[4],
        key=None if row[5] is None else Key(row[5]),
        state=model.SnapshotState(row[6]),
        is_automatic=bool(row[7]),
        size_bytes=row[8],
        created_at=datetime.fromisoformat(row[9]),
        expires_at=_time(row[10]),
        removed_at=_time(row[11]),
    )


def tree_values(tree: model.Tree) -> tuple[Any, ...]:
    """Return a tree's columns in the order of the table."""
    return (
        tree.key,
        tree.pool_id,
        _written(tree.options),
        tree.source,
        tree.is_settled,
    )


def tree(row: tuple[Any, ...]) -> model.Tree:
    """Return the tree of a row."""
    return model.Tree(
        key=Key(row[0]),
        pool_id=model.PoolId(row[1]),
        options=_made_with(row[2]),
        source=None if row[3] is None else Key(row[3]),
        is_settled=bool(row[4]),
    )


def mount_values(mount: model.Mount) -> tuple[Any, ...]:
    """Return a mount's columns in the order of the table."""
    return (mount.id, mount.volume_id, mount.holder, mount.count, mount.boot_id, mount.created_at.isoformat())


def mount(row: tuple[Any, ...]) -> model.Mount:
    """Return the mount of a row."""
    return model.Mount(
        id=model.MountId(row[0]),
        volume_id=model.VolumeId(row[1]),
        holder=row[2],
        count=row[3],
        boot_id=row[4],
        created_at=datetime.fromisoformat(row[5]),
    )


def api_key_values(key: model.ApiKey) -> tuple[Any, ...]:
    """Return an API key's columns in the order of the table."""
    return (
        key.id,
        key.uuid,
        key.name,
        key.description,
        key.public,
        key.secret_hash,
        key.role.value,
        key.created_at.isoformat(),
        _text(key.removed_at),
    )


def backup_times(row: tuple[Any, ...]) -> model.BackupTimes:
    """Return the times of a group of backups, behind its volume."""
    return model.BackupTimes(datetime.fromisoformat(row[1]), _time(row[2]))


def api_key(row: tuple[Any, ...]) -> model.ApiKey:
    """Return the API key of a row."""
    return model.ApiKey(
        id=model.ApiKeyId(row[0]),
        uuid=row[1],
        name=row[2],
        description=row[3],
        public=row[4],
        secret_hash=row[5],
        role=model.Role(row[6]),
        created_at=datetime.fromisoformat(row[7]),
        removed_at=_time(row[8]),
    )


def target_values(target: model.Target) -> tuple[Any, ...]:
    """Return a target's columns in the order of the table."""
    return (
        target.id,
        target.uuid,
        target.name,
        target.description,
        target.is_configured,
        target.url,
        target.endpoint,
        target.region,
        target.access_key,
        target.secret_key,
        target.passphrase,
        target.mount_options,
        target.repository_uuid,
        _text(target.created_at),
        _text(target.removed_at),
    )


def target(row: tuple[Any, ...]) -> model.Target:
    """Return the target of a row."""
    return model.Target(
        id=model.TargetId(row[0]),
        uuid=row[1],
        name=row[2],
        description=row[3],
        is_configured=bool(row[4]),
        url=row[5],
        endpoint=row[6],
        region=row[7],
        access_key=row[8],
        secret_key=row[9],
        passphrase=row[10],
        mount_options=row[11],
        repository_uuid=row[12],
        created_at=_time(row[13]),
        removed_at=_time(row[14]),
    )


def backup_values(backup: model.Backup) -> tuple[Any, ...]:
    """Return a backup's columns in the order of the table."""
    return (
        backup.id,
        backup.uuid,
        backup.target_id,
        backup.volume_id,
        backup.volume_uuid,
        backup.volume_name,
        backup.snapshot_id,
        backup.snapshot_uuid,
        backup.snapshot_name,
        backup.name,
        backup.description,
        backup.driver,
        None if backup.format is None else backup.format.value,
        backup.host,
        backup.state.value,
        backup.created_at.isoformat(),
        backup.taken_at.isoformat(),
        backup.parent_uuid,
        backup.key,
        backup.size_bytes,
        backup.content_bytes,
        backup.stored_bytes,
        backup.message,
        _text(backup.verified_at),
        _text(backup.removed_at),
        backup.is_of_snapshot,
    )


def backup(row: tuple[Any, ...]) -> model.Backup:
    """Return the backup of a row."""
    return model.Backup(
        id=model.BackupId(row[0]),
        uuid=row[1],
        target_id=model.TargetId(row[2]),
        volume_id=None if row[3] is None else model.VolumeId(row[3]),
        volume_uuid=row[4],
        volume_name=row[5],
        snapshot_id=None if row[6] is None else model.SnapshotId(row[6]),
        snapshot_uuid=row[7],
        snapshot_name=row[8],
        name=row[9],
        description=row[10],
        driver=row[11],
        format=None if row[12] is None else StreamFormat(row[12]),
        host=row[13],
        state=model.BackupState(row[14]),
        created_at=datetime.fromisoformat(row[15]),
        taken_at=datetime.fromisoformat(row[16]),
        parent_uuid=row[17],
        key=None if row[18] is None else Key(row[18]),
        size_bytes=row[19],
        content_bytes=row[20],
        stored_bytes=row[21],
        message=row[22],
        verified_at=_time(row[23]),
        removed_at=_time(row[24]),
        is_of_snapshot=bool(row[25]),
    )


def pool(row: tuple[Any, ...]) -> model.Pool:
    """Return the pool of a row."""
    return model.Pool(id=model.PoolId(row[0]), uuid=row[1], name=row[2], driver=row[3], path=row[4])


@functools.lru_cache
def _written(options: TreeOptions) -> str:
    return json.dumps({each.name: getattr(options, each.name) for each in fields(options)})


@functools.lru_cache
def _made_with(text: str) -> TreeOptions:
    return TreeOptions(**json.loads(text))


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _mapped(texts: Mapping[str, str]) -> str:
    return json.dumps(dict(texts)) if texts else "{}"


def _mapping(text: str) -> Mapping[str, str]:
    if text == "{}":
        return _EMPTY
    result: dict[str, str] = json.loads(text)
    return result
