"""Backups as resources: those that were made here, and those that a scan of a target has found there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from voldriverd import model, names
from voldriverd.api.rancher import body, ids, problems, schemas, searches, streams, targets, times
from voldriverd.api.rancher.body import Body
from voldriverd.api.rancher.filters import Wish
from voldriverd.api.rancher.kind import ACCOUNT, Kind, Made, Stream, number, transition
from voldriverd.api.rancher.problems import Problem
from voldriverd.engine import chains
from voldriverd.errors import NotFound
from voldriverd.model import BackupState
from voldriverd.service import Service

_GOING: Final = {BackupState.CREATING, BackupState.REMOVING}


@dataclass(frozen=True, slots=True)
class Row:
    """A backup, where it lies, and the one that it builds on as far as that is known here."""

    backup: model.Backup
    place: str
    """The URL of its target."""
    parent_id: model.BackupId | None


async def made(service: Service, backup: model.Backup) -> Made:
    """Return a backup as an answer."""
    (row,) = await service.runner.in_thread(_rows, service, [backup])
    return Made("backup", row)


def wish(service: Service, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return target, name and description of a new backup from the parsed input of an action; blank ones are none.

    Raises Problem (422): there is no such target, or none is the default one.
    """
    name = (fields.get("name") or "").strip()
    if not name.isprintable():
        raise problems.invalid("InvalidCharacters", "name is not one line of text", field="name")
    target_id = targets.chosen(service, fields.get("backupTargetId"))
    return {"target_id": target_id, "name": name or None, "description": fields.get("description") or None}


async def restorable(service: Service, backup_id: int, what: str, *, field: str = "backupId") -> model.Backup:
    """Return a backup that can be restored. Raises Problem (InvalidReference)."""
    backup = await service.runner.in_thread(service.store.backup, model.BackupId(backup_id))
    if backup is None or backup.state is not BackupState.CREATED:
        fault = "does not exist" if backup is None else f"is {backup.state.value}"
        raise problems.invalid("InvalidReference", f"{what}: backup 1b{backup_id} {fault}", field=field)
    return backup


def _rows(service: Service, backups: list[model.Backup]) -> list[Row]:
    parents, places = service.store.parents(backups), {}
    for target_id in {backup.target_id for backup in backups}:
        target = service.store.target(target_id) or service.store.ended_target(target_id)
        assert target is not None, f"target 1bt{target_id} went before its backups"
        places[target_id] = target.url
    return [Row(backup, places[backup.target_id], parents.get(backup.id)) for backup in backups]


async def _find(service: Service, text: str) -> Row:
    backup_id = model.BackupId(number(schemas.BACKUP, text))

    def find() -> list[Row]:
        backup = service.store.backup(backup_id)
        return [] if backup is None else _rows(service, [backup])

    for row in await service.runner.in_thread(find):
        return row
    raise problems.not_found(f"there is no backup 1b{backup_id}")


async def _select(service: Service, wish: Wish, offset: int, limit: int) -> list[Row]:
    def select() -> list[Row]:
        return _rows(service, service.store.search_backups(searches.backups(wish, offset, limit)))

    return await service.runner.in_thread(select)


def _identify(row: Row) -> str:
    return ids.show(schemas.BACKUP, row.backup.id)


def _show(service: Service, row: Row) -> dict[str, Any]:
    backup = row.backup
    return {
        "name": backup.name,
        "state": backup.state.value,
        "accountId": ACCOUNT,
        "backupTargetId": ids.show(schemas.BACKUP_TARGET, backup.target_id),
        "contentBytes": backup.content_bytes,
        "description": backup.description,
        "driver": backup.driver,
        "format": None if backup.format is None else backup.format.value,
        "host": backup.host,
        "kind": "backup",
        "parentId": None if row.parent_id is None else ids.show(schemas.BACKUP, row.parent_id),
        "sizeBytes": backup.size_bytes,
        "snapshotId": None if backup.snapshot_id is None else ids.show(schemas.SNAPSHOT, backup.snapshot_id),
        "snapshotName": backup.snapshot_name,
        "storedBytes": backup.stored_bytes,
        "uri": f"{row.place}/volumes/{backup.volume_uuid}/backups/{backup.uuid}",
        "uuid": backup.uuid,
        "volumeId": None if backup.volume_id is None else ids.show(schemas.VOLUME, backup.volume_id),
        "volumeName": backup.volume_name,
        "volumeUUID": backup.volume_uuid,
        **times.shown(
            created=backup.created_at, removed=backup.removed_at, taken=backup.taken_at, verified=backup.verified_at
        ),
        **_transition(service, backup),
    }


def _transition(service: Service, backup: model.Backup) -> dict[str, object]:
    job, note = service.jobs.get(backup.shown_name), backup.message
    is_faulty = backup.state is BackupState.ERROR or chains.is_damage(note)
    return transition(
        is_going=job is not None or backup.state in _GOING,
        fault=note if is_faulty else service.runner.fault(backup.shown_name),
        job=job,
        note=note,
    )


def _offered(_service: Service, row: Row) -> frozenset[str]:
    return model.backup_actions(row.backup)


async def _refusal(_service: Service, row: Row, action: str) -> str:
    hint = "; cancel it" if (row.backup.state, action) == (BackupState.CREATING, "remove") else ""
    return f"cannot {action} backup {row.backup.shown_name}: it is {row.backup.state.value}{hint}"


async def _remove(service: Service, row: Row) -> Made:
    if "remove" not in _offered(service, row):
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, await _refusal(service, row, "remove"))
    try:
        return await made(service, await service.backups.remove(row.backup.id))
    except NotFound as err:  # it went while we waited
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, str(err)) from err


async def _remove_action(service: Service, row: Row, _given: Body) -> Made:
    return await _remove(service, row)


async def _cancel(service: Service, row: Row, _given: Body) -> Made:
    return await made(service, await service.backups.cancel(row.backup.id))


async def _verify(service: Service, row: Row, given: Body) -> Made:
    """Begin it, and answer that it goes on: who looks again learns what has come of it, however soon that was."""
    fields = body.parse_creation(schemas.ALL["backupVerifyInput"], given)
    backup = await service.backups.verify(row.backup.id, sample=_sample(fields.get("sample")), answer_s=0.0)
    return replace(await made(service, backup), status=HTTPStatus.ACCEPTED)


def _sample(text: str | None) -> float:
    """Return the part of a backup that is to be read: a percentage, or a fraction as programs send it."""
    if text is None:
        return 1.0
    sample = names.share(text, field="sample")
    if sample == 0.0:
        names.refuse("sample", text, "nothing of it would be read")
    return sample


async def _archive(service: Service, row: Row, request: web.BaseRequest, schemas_url: str) -> web.StreamResponse:
    """Answer with one file or folder as a tar stream; a path may hold bytes that are no UTF-8."""
    query = dict(parse_qsl(request.rel_url.raw_query_string, errors="surrogateescape"))
    async with service.backups.archive(row.backup.id, query.get("path", "")) as chunks:
        return await streams.send(service, request, schemas_url, _ARCHIVE.content_type, chunks)


_ARCHIVE: Final = Stream(_archive, "application/x-tar", {"path": "of one file or folder; all of it"})

KIND: Final = Kind(
    schema=schemas.BACKUP,
    find=_find,
    select=_select,
    show=_show,
    identify=_identify,
    offered=_offered,
    refusal=_refusal,
    remove=_remove,
    why_fixed="a backup is made by the action backup of a volume or of a snapshot",
    actions={"remove": _remove_action, "cancel": _cancel, "verify": _verify},
    streams={"archive": _ARCHIVE},
)
