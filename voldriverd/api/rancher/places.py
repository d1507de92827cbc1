"""What is only looked at: mounts (who holds which volume), this host, and the schemas themselves."""

import socket
from dataclasses import dataclass
from typing import Any, Final

import voldriverd
from voldriverd import model
from voldriverd.api.rancher import ids, problems, schemas, times
from voldriverd.api.rancher.filters import Wish
from voldriverd.api.rancher.kind import ACCOUNT, Kind, number, transition
from voldriverd.api.rancher.schema import Schema
from voldriverd.service import Service


@dataclass(frozen=True, slots=True)
class _Host:
    id: int = 1


async def _find_mount(service: Service, text: str) -> model.Mount:
    mount_id = number(schemas.MOUNT, text)
    for mount in service.store.all_mounts():
        if mount.id == mount_id:
            return mount
    raise problems.not_found(f"there is no mount 1m{mount_id}")


async def _mounts(service: Service, wish: Wish) -> list[model.Mount]:
    wanted = wish.equal("volumeId")
    volume_id = None if wanted is None else ids.parse(schemas.VOLUME, wanted)
    if volume_id is not None:
        return list(service.store.mounts(model.VolumeId(volume_id)))
    return sorted(service.store.all_mounts(), key=lambda mount: mount.id)


def _show_mount(service: Service, mount: model.Mount) -> dict[str, Any]:
    volume = service.store.volume(mount.volume_id)
    return {
        "name": None,
        "state": "active",
        "accountId": ACCOUNT,
        "count": mount.count,
        "description": None,
        "holder": mount.holder,
        "instanceId": None,
        "kind": "mount",
        "path": None if volume is None else f"{service.engine.mounts}/{volume.key}",
        "permissions": "rw",
        "uuid": None,
        "volumeId": ids.show(schemas.VOLUME, mount.volume_id),
        **times.shown(created=mount.created_at, removed=None),
        **transition(is_going=False, fault=None),
    }


async def _find_host(_service: Service, text: str) -> _Host:
    if number(schemas.HOST, text) != 1:
        raise problems.not_found(f"there is no host {text}: this one is 1h1")
    return _Host()


async def _hosts(_service: Service, _wish: Wish) -> list[_Host]:
    return [_Host()]


def _show_host(service: Service, _host: _Host) -> dict[str, Any]:
    volumes = service.store.volumes()
    live = [volume for volume in volumes if volume.is_live]
    return {
        "name": socket.gethostname(),
        "state": "active",
        "accountId": ACCOUNT,
        "backupCount": service.store.backup_count(),
        "defaultDriver": service.engine.pools.default_driver,
        "description": None,
        "hostname": socket.gethostname(),
        "kind": "host",
        "longestStallMs": round(service.stalls.longest_s * 1e3),
        "mountedCount": sum(bool(service.store.mounts(volume.id)) for volume in live),
        "root": str(service.engine.root),
        "snapshotCount": sum(service.store.snapshot_summary(volume.id).count for volume in live),
        "stallMs": round(service.stalls.recent_s() * 1e3),
        "targetCount": len(service.store.targets()),
        "trashCount": len(volumes) - len(live),
        "uuid": None,
        "version": voldriverd.__version__,
        "volumeCount": len(live),
        **times.shown(created=None, removed=None),
        **transition(is_going=False, fault=None),
    }


MOUNTS: Final = Kind(
    schema=schemas.MOUNT,
    find=_find_mount,
    rows=_mounts,
    show=_show_mount,
    identify=lambda mount: ids.show(schemas.MOUNT, mount.id),
    why_fixed="mounts come and go with containers, and with the actions activate and deactivate of a volume",
)

HOSTS: Final = Kind(
    schema=schemas.HOST,
    reads=lambda *_: True,
    find=_find_host,
    rows=_hosts,
    show=_show_host,
    identify=lambda host: ids.show(schemas.HOST, host.id),
)


def find_schema(text: str) -> Schema:
    """Return the schema of an id in any case. Raises Problem (404)."""
    for schema in schemas.ALL.values():
        if schema.id.lower() == text.lower():
            return schema
    raise problems.not_found(f"there is no schema {text[:60]!r}")
