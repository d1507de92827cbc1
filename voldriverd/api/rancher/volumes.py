"""Volumes as resources: create, set, remove, and their actions."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from voldriverd import model, names
from voldriverd.api.rancher import body, creations, exports, ids, problems, restores, schemas, snapshots, times
from voldriverd.api.rancher.body import Body
from voldriverd.api.rancher.filters import Wish
from voldriverd.api.rancher.kind import ACCOUNT, Kind, Made, number, transition
from voldriverd.api.rancher.problems import Problem
from voldriverd.engine import creation, use
from voldriverd.engine import restores as engine_restores
from voldriverd.errors import Error, Exists, InUse, NotFound
from voldriverd.model import VolumeState
from voldriverd.service import API_ANSWER_S, API_WAIT_S, Service

_GOING: Final = {
    *(VolumeState.REGISTERING, VolumeState.REVERTING, VolumeState.UPDATING, VolumeState.RESTORING),
    VolumeState.IMPORTING,
}
_VERBS: Final = {
    "reverttosnapshot": "revert",
    "restorefrombackup": "restore",
    "backup": "back up",
    "cancel": "cancel the restore of",
    "activate": "mount",
    "deactivate": "unmount",
}
"""How people say it; the other actions are verbs themselves."""
_SNAPSHOT_OF: Final = "snapshotId"


async def _find(service: Service, text: str) -> model.Volume:
    volume_id = model.VolumeId(number(schemas.VOLUME, text))
    volume = service.store.volume(volume_id)
    if volume is None:
        volume = await service.runner.in_thread(service.store.ended_volume, volume_id)
    if volume is None:
        fault = service.runner.fault(f"1v{volume_id}")
        raise problems.not_found(f"there is no volume 1v{volume_id}" + (f": {fault}" if fault else ""))
    return volume


async def _rows(service: Service, wish: Wish) -> list[model.Volume]:
    name = wish.equal("name")
    if name is not None and not wish.has_removed:
        volume = service.store.volume_named(name)
        return [] if volume is None else [volume]
    return [volume for volume in service.store.volumes() if wish.has_removed or volume.is_live]


def _identify(volume: model.Volume) -> str:
    return ids.show(schemas.VOLUME, volume.id)


async def _refresh(service: Service, rows: list[model.Volume]) -> None:
    await service.usages.refresh([volume for volume in rows if volume.key is not None])


def _show(service: Service, volume: model.Volume) -> dict[str, Any]:
    is_mounted = bool(service.store.mounts(volume.id))
    pool = service.engine.pools.get(volume.pool_id)
    usage = service.usages.known(volume.id)
    is_fault = volume.message is not None and engine_restores.is_fault(volume.message)
    ailing = service.engine.ailments.of(volume.id)
    fault = volume.message if is_fault else service.runner.fault(f"1v{volume.id}")
    if fault is None and model.health_of(ailing) is model.Health.UNAVAILABLE:
        fault = model.told(ailing)
    job = service.jobs.get(f"1v{volume.id}")
    return {
        "name": volume.name,
        "state": model.shown_state(volume, is_mounted=is_mounted),
        "accessMode": "singleHostRW",
        "accountId": ACCOUNT,
        "description": volume.description,
        "displacedSnapshotId": None,
        "driver": volume.driver,
        "driverOpts": volume.options,
        "externalId": None,
        "health": model.worst(pool.health, model.health_of(ailing)).value,
        "imageId": None,
        "instanceId": None,
        "isHostPath": False,
        "kind": "volume",
        "labelChanges": None,
        "labels": volume.labels,
        "mountpoint": f"{service.engine.mounts}/{volume.key}" if is_mounted else None,
        "protected": volume.is_protected,
        "sizeBytes": volume.size_bytes,
        "snapshotCount": service.store.snapshot_summary(volume.id).count,
        "storagePoolId": ids.show(schemas.STORAGE_POOL, volume.pool_id),
        "uri": f"local:///{volume.name}",
        "usedBytes": None if usage is None else usage.used_bytes,
        "uuid": volume.uuid,
        **times.shown(created=volume.created_at, removed=volume.removed_at, removeTime=volume.destroy_at),
        **transition(
            is_going=volume.state in _GOING or (job is not None and job.waits_for is not None),
            fault=fault,
            note=volume.message or model.told(ailing),
            job=job,
        ),
    }


def _offered(service: Service, volume: model.Volume) -> frozenset[str]:
    held = service.store.mounts(volume.id)
    has_host_holder = any(mount.holder == model.HOST_HOLDER for mount in held)
    return model.volume_actions(volume, is_mounted=bool(held), has_host_holder=has_host_holder)


async def _refusal(service: Service, volume: model.Volume, action: str) -> str:
    what = f"cannot {_VERBS.get(action, action)} volume {volume.name}"
    if not volume.is_live:
        return f"{what}: it is in the trash" if volume.state is VolumeState.REMOVED else f"{what}: it is destroyed"
    if volume.state in _GOING:
        return f"{what}: it is {volume.state.value}"
    held = service.store.mounts(volume.id)
    if held and action in {"reverttosnapshot", "restorefrombackup", "remove"}:
        try:
            return await service.runner.in_thread(use.describe, service.engine, volume, what)
        except Error:  # the pool has gone: the counter's word is all there is
            return f"{what}: it is mounted by {use.holder_name(held[0])}"
    reasons = {
        "cancel": "none is running",
        "restore": "it is not in the trash",
        "purge": "it is not in the trash; remove it first",
        "activate": "the host has it mounted already",
        "deactivate": "the host does not have it mounted",
    }
    return f"{what}: {reasons[action]}"


async def _update(service: Service, volume: model.Volume, given: Body) -> Made:
    fields = body.parse_update(schemas.VOLUME, given)
    changes: dict[str, object] = {}
    if "description" in fields:
        changes["description"] = fields["description"] or ""
    if "protected" in fields:
        changes["is_protected"] = fields["protected"]
    if "labels" in fields:
        changes["labels"] = creations.parse_labels(fields["labels"] or {})
    if fields.get("labelChanges"):
        changes["label_changes"] = creations.parse_labels(fields["labelChanges"])
    if not changes:
        return Made("volume", volume)
    return Made("volume", await service.set_properties(volume.id, **changes))


async def _remove(service: Service, volume: model.Volume) -> Made:
    """Remove a volume whatever the counters say: the kernel is asked whether it is used."""
    if not volume.is_live:
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, await _refusal(service, volume, "remove"))
    try:
        return Made("volume", await service.remove(volume.id, wait_s=API_WAIT_S))
    except NotFound as err:  # somebody else removed it while we waited
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, str(err)) from err
    except InUse as err:
        if not service.store.mounts(volume.id):
            raise
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, str(err)) from err


async def _remove_action(service: Service, volume: model.Volume, _body: Body) -> Made:
    return await _remove(service, volume)


async def _snapshot(service: Service, volume: model.Volume, given: Body) -> Made:
    fields = body.parse_creation(schemas.ALL["volumeSnapshotInput"], given)
    return Made("snapshot", await snapshots.make(service, volume, fields))


async def _revert(service: Service, volume: model.Volume, given: Body) -> Made:
    fields = body.parse_creation(schemas.ALL["revertToSnapshotInput"], given)
    snapshot = await _own_snapshot(service, volume, fields[_SNAPSHOT_OF], f"cannot revert volume {volume.name}")
    try:
        reverted, kept = await service.revert(volume.id, snapshot.id, answer_s=API_ANSWER_S)
    except NotFound as err:
        if (await service.read_snapshot(snapshot.id)).state is model.SnapshotState.CREATED:
            raise  # not the snapshot has gone while we waited, but the volume
        raise problems.invalid("InvalidReference", str(err), field=_SNAPSHOT_OF) from err
    return _answered(reverted, extra={"displacedSnapshotId": ids.show(schemas.SNAPSHOT, kept.id)})


async def _restore(service: Service, volume: model.Volume, given: Body) -> Made:
    fields = body.parse_creation(schemas.ALL["volumeRestoreInput"], given)
    name = names.volume_name(fields["name"]) if fields.get("name") else None
    try:
        return Made("volume", await service.restore(volume.id, name=name))
    except Exists as err:
        raise Problem(HTTPStatus.CONFLICT, str(err), field="name") from err


async def _purge(service: Service, volume: model.Volume, _given: Body) -> Made:
    return Made("volume", await service.purge(volume.id))


async def _activate(service: Service, volume: model.Volume, _given: Body) -> Made:
    await service.mount(volume.id, model.HOST_HOLDER, wait_s=API_WAIT_S)
    return Made("volume", service.row(volume.id))


async def _deactivate(service: Service, volume: model.Volume, _given: Body) -> Made:
    await service.unmount(volume.id, model.HOST_HOLDER, answer_s=API_WAIT_S)
    return Made("volume", service.row(volume.id))


async def _clone(service: Service, volume: model.Volume, given: Body) -> Made:
    fields = body.parse_creation(schemas.ALL["volumeCloneInput"], given)
    name, size = names.volume_name(fields["name"]), fields.get("size")
    snapshot_name = None
    if fields.get(_SNAPSHOT_OF) is not None:
        snapshot = await _own_snapshot(service, volume, fields[_SNAPSHOT_OF], f"cannot clone volume {volume.name}")
        snapshot_name = snapshot.shown_name
        named = await service.runner.in_thread(service.store.snapshot_named, volume.id, snapshot_name)
        if named is not None and named.id != snapshot.id:  # `from` would mean the other one
            message = f"cannot clone volume {volume.name}: snapshot 1s{named.id} bears the name {snapshot_name}"
            raise problems.invalid("InvalidReference", message, field=_SNAPSHOT_OF)
    source = names.Source(volume.name, snapshot_name)
    options = {"from": str(source)} | ({} if size is None else {"size": size})
    parsed = names.VolumeOptions(source=source, size_bytes=None if size is None else names.size(size))
    request = creation.Request(name, parsed, options, fields.get("description") or None, must_be_new=True)
    return await creations.make(service, request)


async def _resize(service: Service, volume: model.Volume, given: Body) -> Made:
    fields = body.parse_creation(schemas.ALL["volumeResizeInput"], given)
    return _answered(await service.resize(volume.id, names.size(fields["size"]), answer_s=API_ANSWER_S))


async def _own_snapshot(service: Service, volume: model.Volume, snapshot_id: int, what: str) -> model.Snapshot:
    """Return a snapshot that can be gone back to or cloned. Raises Problem (InvalidReference)."""
    snapshot = await service.runner.in_thread(service.store.snapshot, model.SnapshotId(snapshot_id))
    fault = None
    if snapshot is None:
        fault = "does not exist"
    elif snapshot.volume_id != volume.id:
        fault = "belongs to another volume"
    elif snapshot.state is not model.SnapshotState.CREATED:
        fault = f"is {snapshot.state.value}"
    if snapshot is None or fault is not None:
        message = f"{what}: snapshot 1s{snapshot_id} {fault}"
        raise problems.invalid("InvalidReference", message, field=_SNAPSHOT_OF)
    return snapshot


def _answered(volume: model.Volume, *, extra: Mapping[str, object] | None = None) -> Made:
    """Answer with 202 as long as it goes on."""
    status = HTTPStatus.ACCEPTED if volume.state in _GOING else HTTPStatus.OK
    return Made("volume", volume, status, extra or {})


KIND: Final = Kind(
    schema=schemas.VOLUME,
    find=_find,
    rows=_rows,
    show=_show,
    identify=_identify,
    offered=_offered,
    refusal=_refusal,
    refresh=_refresh,
    create=creations.create,
    update=_update,
    remove=_remove,
    actions={
        "snapshot": _snapshot,
        "reverttosnapshot": _revert,
        "remove": _remove_action,
        "restore": _restore,
        "purge": _purge,
        "activate": _activate,
        "deactivate": _deactivate,
        "clone": _clone,
        "resize": _resize,
        "backup": restores.back_up,
        "restorefrombackup": restores.restore,
        "cancel": restores.cancel,
    },
    streams={"export": exports.VOLUME},
)
