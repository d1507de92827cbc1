"""New volumes: what a body asks for, in the fields of a volume and in the options of its driver."""

from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from voldriverd import model, names
from voldriverd.api.rancher import backups, body, ids, problems, schemas
from voldriverd.api.rancher.body import Body
from voldriverd.api.rancher.kind import Made
from voldriverd.engine import creation
from voldriverd.errors import Invalid
from voldriverd.service import API_ANSWER_S, API_WAIT_S, Service

_BACKUP: Final = "backup:"


async def create(service: Service, given: Body) -> Made:
    """Make a volume of a body."""
    return await make(service, await request_of(service, given))


async def request_of(service: Service, given: Body) -> creation.Request:
    """Return what a body asks for. Raises Problem (422), Invalid."""
    fields = body.parse_creation(schemas.VOLUME, await _with_driver(service, given))
    name = names.volume_name(fields["name"])
    options = fields.get("driverOpts") or {}
    parsed = _parse_options(fields, options)
    if isinstance(parsed.source, names.BackupSource):
        backup_id = ids.parse(schemas.BACKUP, parsed.source.id)
        await backups.restorable(service, backup_id or 0, f"cannot create volume {name}", field="driverOpts")
    return creation.Request(name, parsed, options, fields.get("description") or None, must_be_new=True)


async def make(service: Service, request: creation.Request) -> Made:
    """Make a volume; what takes long goes on after the answer."""
    volume = await service.create(request, answer_s=API_ANSWER_S, wait_s=API_WAIT_S)
    return Made("volume", volume, HTTPStatus.CREATED)


async def _with_driver(service: Service, given: Body) -> Body:
    """Fill in the driver of a creation whose options say which it is: by its name, its pool or its source.

    A pool or source that does not exist is refused later, by the engine's own words.
    """
    options = given.get("driverOpts")
    if "driver" in given or not isinstance(options, dict):
        return given
    if isinstance(options.get("driver"), str):
        return {**given, "driver": options["driver"]}
    found = [pool.row.driver for pool in service.engine.pools if pool.row.name == options.get("pool")]
    if not found and isinstance(options.get("from"), str):
        found = await _drivers_of(service, options["from"])
    is_named = bool({"pool", "from"} & options.keys())
    return {**given, "driver": (found or [service.engine.pools.default_driver])[0]} if is_named else given


async def _drivers_of(service: Service, text: str) -> list[str]:
    """Return the driver that a source implies: that of the volume, or the one a backup was made from if it is here."""
    if not text.startswith(_BACKUP):
        source = service.store.volume_named(text.partition("@")[0])
        return [] if source is None else [source.driver]
    backup_id = model.BackupId(ids.parse(schemas.BACKUP, text.removeprefix(_BACKUP)) or 0)
    backup = await service.runner.in_thread(service.store.backup, backup_id)
    return [pool.row.driver for pool in service.engine.pools if backup is not None and pool.row.driver == backup.driver]


def _parse_options(fields: Body, options: Mapping[str, str]) -> names.VolumeOptions:
    """Parse the driver's options together with the fields that say the same. Raises Invalid, Problem (they differ)."""
    parsed = names.parse_options(options)
    labels = parse_labels(fields.get("labels") or {})
    is_protected = fields.get("protected")
    pairs = [("driver", parsed.driver, fields["driver"]), ("protected", parsed.protected, is_protected)]
    pairs += [("labels", parsed.labels.get(key), value) for key, value in labels.items()]
    for field, option, value in pairs:
        if option is not None and value is not None and option != value:
            message = f"cannot use {field} {value}: driverOpts says {option}"
            raise problems.invalid("InvalidOption", message, field=field)
    return replace(
        names.parse_options({**options, "driver": fields["driver"]}),
        protected=parsed.protected if is_protected is None else is_protected,
        labels={**parsed.labels, **labels},
    )


def parse_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Check labels. Raises Problem (422)."""
    try:
        return names.parse_options({f"label.{key}": value for key, value in labels.items()}).labels
    except Invalid as err:
        raise problems.invalid("InvalidOption", str(err), field="labels") from err
