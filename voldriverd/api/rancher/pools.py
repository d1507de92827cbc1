"""Pools as resources of the type `storagePool`: read, and grow where the file system is ours."""

from dataclasses import dataclass
from typing import Any, Final

from voldriverd import model, names
from voldriverd.api.rancher import body, ids, problems, schemas, times
from voldriverd.api.rancher.body import Body
from voldriverd.api.rancher.filters import Wish
from voldriverd.api.rancher.kind import ACCOUNT, Kind, Made, number, transition
from voldriverd.engine import pools
from voldriverd.service import Service


@dataclass(frozen=True, slots=True)
class _Row:
    pool: pools.Pool
    space: tuple[int, int] | None
    """(total, free) bytes; None if the pool is unavailable."""


async def _find(service: Service, text: str) -> _Row:
    pool_id = number(schemas.STORAGE_POOL, text)
    for pool in service.engine.pools:
        if pool.row.id == pool_id:
            return _Row(pool, (await service.usages.spaces()).get(pool.row.id))
    raise problems.not_found(f"there is no storagePool {text}")


async def _rows(service: Service, _wish: Wish) -> list[_Row]:
    spaces = await service.usages.spaces()
    return [_Row(pool, spaces.get(pool.row.id)) for pool in sorted(service.engine.pools, key=lambda pool: pool.row.id)]


def _identify(row: _Row) -> str:
    return ids.show(schemas.STORAGE_POOL, row.pool.row.id)


def _show(service: Service, row: _Row) -> dict[str, Any]:
    pool = row.pool
    serves = pool.health is not model.Health.UNAVAILABLE
    capacity_bytes, free_bytes = row.space or (None, None)
    return {
        "name": pool.row.name,
        "state": "active" if serves else "inactive",
        "accountId": ACCOUNT,
        "blockDevicePath": None,
        "capacityBytes": capacity_bytes,
        "description": None,
        "driverName": pool.row.driver,
        "externalId": None,
        "freeBytes": free_bytes,
        "health": pool.health.value,
        "kind": "storagePool",
        "orphans": sorted(pool.orphans),
        "path": pool.row.path,
        "uuid": pool.row.uuid or None,
        "volumeAccessMode": "singleHostRW",
        "volumeCapabilities": ["snapshot"],
        "volumeCount": sum(volume.pool_id == pool.row.id for volume in service.store.volumes()),
        **times.shown(created=None, removed=None),
        **transition(is_going=False, fault=None if serves else pool.trouble, note=pool.trouble),
    }


def _offered(_service: Service, row: _Row) -> frozenset[str]:
    is_ours = row.pool.spec is not None and row.pool.spec.grow is not None
    return frozenset({"grow"} if is_ours and row.pool.driver is not None else ())


async def _refusal(_service: Service, row: _Row, action: str) -> str:
    what = f"cannot {action} pool {row.pool.row.name}"
    if row.pool.driver is None:
        return f"{what}: it is unavailable: {row.pool.reason}"
    return f"{what}: its file system is not ours; grow what lies under {row.pool.row.path}, and the pool has it"


async def _grow(service: Service, row: _Row, given: Body) -> Made:
    fields = body.parse_creation(schemas.ALL["storagePoolGrowInput"], given)
    await service.grow(row.pool.row.id, names.size(fields["size"]))
    return Made("storagePool", await _find(service, str(row.pool.row.id)))


KIND: Final = Kind(
    schema=schemas.STORAGE_POOL,
    find=_find,
    rows=_rows,
    show=_show,
    identify=_identify,
    offered=_offered,
    refusal=_refusal,
    why_fixed="the configuration file defines the pools",
    actions={"grow": _grow},
)
