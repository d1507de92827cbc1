"""Snapshots as resources, and what can be read out of them."""

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from voldriverd import model, names
from voldriverd.api.rancher import backups, body, exports, ids, problems, schemas, searches, streams, times
from voldriverd.api.rancher.body import Body
from voldriverd.api.rancher.filters import Wish
from voldriverd.api.rancher.kind import ACCOUNT, Kind, Made, Stream, number, transition
from voldriverd.api.rancher.problems import Problem
from voldriverd.engine.snapshots import Wish as SnapshotWish
from voldriverd.errors import NotFound
from voldriverd.model import SnapshotState
from voldriverd.service import API_ANSWER_S, Service

_VERBS: Final = {"backup": "back up"}
"""How people say it; the other actions are verbs themselves."""


async def make(service: Service, volume: model.Volume, fields: Mapping[str, Any]) -> model.Snapshot:
    """Make a snapshot from the parsed fields of an action's input or of a creation; a blank name is none."""
    name, expires_at = (fields.get("name") or "").strip(), fields.get("expires")
    _check_expiry(service, expires_at)
    wish = SnapshotWish(names.snapshot_name(name) if name else None, fields.get("description") or None, expires_at)
    return await service.snapshot(volume.id, wish, answer_s=API_ANSWER_S)


def _check_expiry(service: Service, expires_at: datetime | None) -> None:
    if expires_at is not None and expires_at <= service.engine.now():
        raise problems.invalid("InvalidOption", "cannot use expires: it is in the past", field="expires")


async def _find(service: Service, text: str) -> model.Snapshot:
    snapshot_id = model.SnapshotId(number(schemas.SNAPSHOT, text))
    snapshot = await service.runner.in_thread(service.store.snapshot, snapshot_id)
    if snapshot is None:
        fault = service.runner.fault(f"1s{snapshot_id}")
        raise problems.not_found(f"there is no snapshot 1s{snapshot_id}" + (f": {fault}" if fault else ""))
    return snapshot


async def _select(service: Service, wish: Wish, offset: int, limit: int) -> list[model.Snapshot]:
    return await service.runner.in_thread(service.store.search_snapshots, searches.snapshots(wish, offset, limit))


def _is_live(service: Service, snapshot: model.Snapshot) -> bool:
    """Tell whether it is neither gone nor in the trash together with its volume."""
    volume = service.store.volume(snapshot.volume_id)
    return snapshot.state is not SnapshotState.REMOVED and volume is not None and volume.is_live


def _identify(snapshot: model.Snapshot) -> str:
    return ids.show(schemas.SNAPSHOT, snapshot.id)


def _reads(service: Service, snapshot: model.Snapshot) -> bool:
    """Tell whether its volume is destroyed, and so in the database alone."""
    return service.store.volume(snapshot.volume_id) is None


def _show(service: Service, snapshot: model.Snapshot) -> dict[str, Any]:
    volume = service.store.volume(snapshot.volume_id) or service.store.ended_volume(snapshot.volume_id)
    state, removed_at, destroy_at = snapshot.state, snapshot.removed_at, None
    if volume is not None and not volume.is_live and state is not SnapshotState.REMOVED:
        state, removed_at, destroy_at = SnapshotState.REMOVED, volume.removed_at, volume.destroy_at
    going = [] if state is not SnapshotState.CREATED else _going(service, snapshot)
    return {
        "name": snapshot.name,
        "state": "backing-up" if going else state.value,
        "accountId": ACCOUNT,
        "automatic": snapshot.is_automatic,
        "description": snapshot.description,
        "kind": "snapshot",
        "managedVolumeUUID": None if volume is None else volume.uuid,
        "sizeBytes": snapshot.size_bytes,
        "uuid": snapshot.uuid,
        "volumeId": ids.show(schemas.VOLUME, snapshot.volume_id),
        **times.shown(
            created=snapshot.created_at, expires=snapshot.expires_at, removed=removed_at, removeTime=destroy_at
        ),
        **transition(
            is_going=state is SnapshotState.CREATING or bool(going),
            fault=None,
            job=service.jobs.get(going[0].shown_name) if going else None,
        ),
    }


def _going(service: Service, snapshot: model.Snapshot) -> list[model.Backup]:
    """Return the backups on their way by which it is `backing-up` (D7)."""
    return [
        each for each in service.store.creating_backups() if each.is_of_snapshot and each.snapshot_id == snapshot.id
    ]


def _offered(service: Service, snapshot: model.Snapshot) -> frozenset[str]:
    volume = service.store.volume(snapshot.volume_id)
    return frozenset() if volume is None else model.snapshot_actions(snapshot, volume)


async def _refusal(service: Service, snapshot: model.Snapshot, action: str) -> str:
    what = f"cannot {_VERBS.get(action, action)} snapshot {snapshot.shown_name}"
    if snapshot.state is SnapshotState.CREATED and not _is_live(service, snapshot):
        return f"{what}: it is in the trash with its volume"
    return f"{what}: it is {snapshot.state.value}"


async def _create(service: Service, given: Body) -> Made:
    fields = body.parse_creation(schemas.SNAPSHOT, given)
    volume = service.store.volume(model.VolumeId(fields["volumeId"]))
    if volume is None or not volume.is_live:
        state = "does not exist" if volume is None else "is in the trash"
        message = f"cannot create a snapshot: volume 1v{fields['volumeId']} {state}"
        raise problems.invalid("InvalidReference", message, field="volumeId")
    return Made("snapshot", await make(service, volume, fields), HTTPStatus.CREATED)


async def _update(service: Service, snapshot: model.Snapshot, given: Body) -> Made:
    fields = body.parse_update(schemas.SNAPSHOT, given)
    if not _is_live(service, snapshot):
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, await _refusal(service, snapshot, "change"))
    changes = {key: (fields[key] or "").strip() if key in fields else None for key in ("name", "description")}
    if changes["name"]:
        names.snapshot_name(changes["name"])
    return Made("snapshot", await service.set_snapshot(snapshot.id, **changes) if fields else snapshot)


async def _remove(service: Service, snapshot: model.Snapshot) -> Made:
    if "remove" not in _offered(service, snapshot):
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, await _refusal(service, snapshot, "remove"))
    try:
        return Made("snapshot", await service.remove_snapshot(snapshot.id))
    except NotFound as err:  # it went while we waited for the volume
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, str(err)) from err


async def _remove_action(service: Service, snapshot: model.Snapshot, _body: Body) -> Made:
    return await _remove(service, snapshot)


async def _backup(service: Service, snapshot: model.Snapshot, given: Body) -> Made:
    """Begin a backup: with a target the answer is the backup, without one the snapshot (D7)."""
    wish = backups.wish(service, body.parse_creation(schemas.ALL["snapshotBackupInput"], given))
    backup = await service.backups.create(snapshot.id, **wish)
    if wish["target_id"] is not None:
        return await backups.made(service, backup)
    return Made("snapshot", await service.read_snapshot(snapshot.id))


async def _difference(
    service: Service, snapshot: model.Snapshot, request: web.BaseRequest, schemas_url: str
) -> web.StreamResponse:
    """Answer with one JSON object a line, `{"path": …, "change": "added"}`, sorted by path."""
    wanted = request.query.get("to")
    other = None if wanted is None else await _other(service, snapshot, wanted)
    async with service.difference(snapshot, other) as changes:
        lines = (streams.line({"path": change.path, "change": change.kind.value}) for change in changes)
        return await streams.send(service, request, schemas_url, _DIFFERENCE.content_type, lines)


async def _other(service: Service, snapshot: model.Snapshot, text: str) -> model.Snapshot:
    found = ids.parse(schemas.SNAPSHOT, text)
    other = None
    if found is not None:
        other = await service.runner.in_thread(service.store.snapshot, model.SnapshotId(found))
    if other is None:
        raise problems.invalid("InvalidReference", f"there is no snapshot {text[:60]!r}", field="to")
    if other.volume_id != snapshot.volume_id:
        message = f"cannot compare snapshot 1s{snapshot.id} with 1s{other.id}: it belongs to another volume"
        raise problems.invalid("InvalidReference", message, field="to")
    return other


async def _archive(
    service: Service, snapshot: model.Snapshot, request: web.BaseRequest, schemas_url: str
) -> web.StreamResponse:
    """Answer with one file or folder as a tar stream; a path may hold bytes that are no UTF-8."""
    query = dict(parse_qsl(request.rel_url.raw_query_string, errors="surrogateescape"))
    async with service.archive(snapshot, query.get("path", "")) as chunks:
        return await streams.send(service, request, schemas_url, _ARCHIVE.content_type, chunks)


_DIFFERENCE: Final = Stream(_difference, "application/x-ndjson", {"to": "a later snapshot, or the volume as it is"})
_ARCHIVE: Final = Stream(_archive, "application/x-tar", {"path": "of one file or folder; all of it"})

KIND: Final = Kind(
    schema=schemas.SNAPSHOT,
    find=_find,
    select=_select,
    show=_show,
    identify=_identify,
    offered=_offered,
    refusal=_refusal,
    reads=_reads,
    create=_create,
    update=_update,
    remove=_remove,
    actions={"backup": _backup, "remove": _remove_action},
    streams={"difference": _DIFFERENCE, "archive": _ARCHIVE, "export": exports.SNAPSHOT},
)
