"""Targets, the places where backups go, as resources. Their secrets come in and are never seen again."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from voldriverd import model, names
from voldriverd.api.rancher import body, ids, problems, schemas, times
from voldriverd.api.rancher.body import Body
from voldriverd.api.rancher.filters import Wish
from voldriverd.api.rancher.kind import ACCOUNT, Kind, Made, number, transition
from voldriverd.api.rancher.problems import Problem
from voldriverd.errors import Invalid, NotFound, Unsupported, Unusable
from voldriverd.model import Secret, TargetDraft
from voldriverd.service import API_ANSWER_S, Service

_SECRETS: Final = ("accessKey", "secretKey", "passphrase")
_OF_S3: Final = ("endpoint", "region", "accessKey", "secretKey")


def chosen(service: Service, target_id: int | None) -> model.TargetId | None:
    """Return the target that was asked for; None means the default one. Raises Problem (422): there is no such one."""
    if target_id is None:
        try:
            service.backups.default_target()
        except Invalid as err:
            raise problems.invalid("MissingRequired", str(err), field="backupTargetId") from err
        return None
    target = service.store.target(model.TargetId(target_id))
    if target is None:
        message = f"cannot back up: there is no backup target 1bt{target_id}"
        raise problems.invalid("InvalidReference", message, field="backupTargetId")
    return target.id


async def _find(service: Service, text: str) -> model.Target:
    target_id = model.TargetId(number(schemas.BACKUP_TARGET, text))
    target = service.store.target(target_id)
    if target is None:
        target = await service.runner.in_thread(service.store.ended_target, target_id)
    if target is None:
        raise problems.not_found(f"there is no backupTarget 1bt{target_id}")
    return target


async def _rows(service: Service, _wish: Wish) -> list[model.Target]:
    return service.store.targets()


def _identify(target: model.Target) -> str:
    return ids.show(schemas.BACKUP_TARGET, target.id)


def _show(service: Service, target: model.Target) -> dict[str, Any]:
    is_live = target.removed_at is None
    health, reason = service.backups.health(target.id) if is_live else (model.Health.UNAVAILABLE, None)
    share = names.nfs_share(target.url)
    config = share and {"server": share[0], "share": share[1], "mountOptions": target.mount_options}
    job = service.jobs.get(_identify(target))
    return {
        "name": target.name,
        "state": "created" if is_live else "removed",
        "accessKey": None,
        "accountId": ACCOUNT,
        "description": target.description,
        "endpoint": target.endpoint,
        "freedBytes": None,
        "health": health.value,
        "isConfigured": target.is_configured,
        "isDefault": is_live and _is_default(service, target),
        "kind": "backupTarget",
        "nfsConfig": config,
        "passphrase": None,
        "region": target.region,
        "secretKey": None,
        "url": target.url,
        "uuid": target.uuid,
        **times.shown(created=target.created_at, removed=target.removed_at),
        **transition(is_going=job is not None, fault=reason or service.runner.fault(_identify(target)), job=job),
    }


def _is_default(service: Service, target: model.Target) -> bool:
    try:
        return service.backups.default_target().id == target.id
    except Invalid:  # there is none
        return False


def _offered(_service: Service, target: model.Target) -> frozenset[str]:
    if target.removed_at is not None:
        return frozenset()
    return frozenset({"scan", "prune"} if target.is_configured else {"scan", "prune", "remove"})


async def _refusal(_service: Service, target: model.Target, action: str) -> str:
    reason = "it is removed" if target.removed_at is not None else "the configuration file defines it"
    return f"cannot {action} backup target {target.name}: {reason}"


async def _create(service: Service, given: Body) -> Made:
    fields = body.parse_creation(schemas.BACKUP_TARGET, given)
    for name in _SECRETS:
        if fields.get(name) == "":  # of a variable that is not set; without it nothing would be encrypted
            raise problems.invalid("MinLengthExceeded", f"cannot use {name}: it is empty", field=name)
    draft = _draft({name: value for name, value in fields.items() if value is not None and value != ""})
    try:
        target = await service.backups.create_target(draft)
    except Unusable as err:
        field = "nfsConfig" if fields.get("nfsConfig") else "url"
        raise problems.invalid("InvalidOption", str(err), field=field) from err
    return Made("backupTarget", target, HTTPStatus.CREATED)


def _draft(fields: Mapping[str, Any]) -> TargetDraft:
    """Check what goes with what. Raises Problem (422), Invalid."""
    config = fields.get("nfsConfig")
    if config is not None and "url" in fields:
        raise problems.invalid("InvalidOption", "cannot use url together with nfsConfig", field="url")
    if config is None and "url" not in fields:
        raise problems.invalid("MissingRequired", "url or nfsConfig is required, and both are missing", field="url")
    if config is None:
        url, mount_options = names.target_url(fields["url"]), None
    else:
        url = names.nfs_url(config["server"], config["share"], field="nfsConfig")
        given = config.get("mountOptions")
        mount_options = names.mount_options(given, field="nfsConfig") if given else None
    for name in _OF_S3:
        if name in fields and not url.startswith("s3:"):
            message = f"cannot use {name}: it is for s3 targets, and this one is {url}"
            raise problems.invalid("InvalidOption", message, field=name)
    for name, other in (("accessKey", "secretKey"), ("secretKey", "accessKey")):
        if name in fields and other not in fields:
            raise problems.invalid("MissingRequired", f"cannot use {name} without {other}", field=other)
    return TargetDraft(
        name=names.name(fields["name"], thing="target"),
        description=fields.get("description"),
        url=url,
        endpoint=names.endpoint(fields["endpoint"]) if "endpoint" in fields else None,
        region=names.region(fields["region"]) if "region" in fields else None,
        access_key=_secret(fields, "accessKey"),
        secret_key=_secret(fields, "secretKey"),
        passphrase=_secret(fields, "passphrase"),
        mount_options=mount_options,
    )


def _secret(fields: Mapping[str, Any], name: str) -> Secret | None:
    return Secret(fields[name]) if name in fields else None


async def _remove(service: Service, target: model.Target) -> Made:
    if "remove" not in _offered(service, target):
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, await _refusal(service, target, "remove"))
    try:
        return Made("backupTarget", await service.backups.remove_target(target.id))
    except (NotFound, Unsupported) as err:  # it went while we waited
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, str(err)) from err


async def _remove_action(service: Service, target: model.Target, _given: Body) -> Made:
    return await _remove(service, target)


async def _scan(service: Service, target: model.Target, _given: Body) -> Made:
    async def work() -> dict[str, object]:
        await service.backups.scan(target.id)
        return {}

    return await _long(service, target, work)


async def _prune(service: Service, target: model.Target, _given: Body) -> Made:
    async def work() -> dict[str, object]:
        pruned = await service.backups.prune(target.id)
        freed = f"{pruned.chunks} chunks deleted, {names.format_size(pruned.stored_bytes)} freed"
        return {"freedBytes": pruned.stored_bytes, "transitioningMessage": "; ".join([freed, *pruned.skipped])}

    return await _long(service, target, work)


async def _long(service: Service, target: model.Target, work: Callable[[], Awaitable[dict[str, object]]]) -> Made:
    """Answer with 202 what goes on after API_ANSWER_S seconds; why it fails then is shown with the target."""
    service.runner.forget_fault(_identify(target))
    found: dict[str, object] = {}

    async def attempt(begun: Callable[[model.Target], None]) -> model.Target:
        begun(target)
        found.update(await work())
        return target

    await service.runner.answered(attempt, _identify, answer_s=API_ANSWER_S)
    is_going = service.jobs.get(_identify(target)) is not None
    status = HTTPStatus.ACCEPTED if is_going else HTTPStatus.OK
    return Made("backupTarget", await _find(service, _identify(target)), status, found)


KIND: Final = Kind(
    schema=schemas.BACKUP_TARGET,
    find=_find,
    rows=_rows,
    show=_show,
    identify=_identify,
    offered=_offered,
    refusal=_refusal,
    create=_create,
    remove=_remove,
    actions={"remove": _remove_action, "scan": _scan, "prune": _prune},
)
