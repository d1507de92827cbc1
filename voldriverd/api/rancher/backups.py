"""Backups and their targets as resources: there are none yet, and each refusal says so."""

from typing import Any, Final, NoReturn

from voldriverd.api.rancher import body, problems, schemas
from voldriverd.api.rancher.body import Body
from voldriverd.api.rancher.filters import Wish
from voldriverd.api.rancher.kind import Kind, Made, number
from voldriverd.api.rancher.schema import Schema
from voldriverd.service import Service

NONE_YET: Final = "this release of voldriverd makes no backups"


def _kind(schema: Schema, **more: Any) -> Kind[None]:
    """Return a type of which there are no resources."""

    async def find(_service: Service, text: str) -> NoReturn:
        raise problems.not_found(f"there is no {schema.id} {number(schema, text)}: {NONE_YET}")

    async def rows(_service: Service, _wish: Wish) -> list[None]:
        return []

    return Kind(schema=schema, find=find, rows=rows, show=_show, identify=_identify, **more)


def _show(_service: Service, _row: None) -> NoReturn:
    raise AssertionError("there is no row to show")


def _identify(_row: None) -> NoReturn:
    raise AssertionError("there is no row to identify")


async def _create_target(_service: Service, given: Body) -> Made:
    fields = body.parse_creation(schemas.BACKUP_TARGET, given)
    raise problems.invalid("Unsupported", f"cannot create backup target {fields['name']}: {NONE_YET}", field=None)


BACKUPS: Final = _kind(schemas.BACKUP, why_fixed="a backup is made by the action backup of a snapshot")
TARGETS: Final = _kind(schemas.BACKUP_TARGET, create=_create_target)
