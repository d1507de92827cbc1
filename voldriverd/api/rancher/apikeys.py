"""API keys as resources. The secret is in the answer to the creation, and never seen again."""

from http import HTTPStatus
from typing import Any, Final

from voldriverd import model, names
from voldriverd.api.rancher import body, ids, problems, schemas, times
from voldriverd.api.rancher.body import Body
from voldriverd.api.rancher.filters import Wish
from voldriverd.api.rancher.kind import ACCOUNT, Kind, Made, number, transition
from voldriverd.api.rancher.problems import Problem
from voldriverd.service import Service


async def _find(service: Service, text: str) -> model.ApiKey:
    key_id = model.ApiKeyId(number(schemas.API_KEY, text))
    key = await service.runner.in_thread(service.store.api_key, key_id)
    if key is None:
        raise problems.not_found(f"there is no apiKey 1c{key_id}")
    return key


async def _rows(service: Service, _wish: Wish) -> list[model.ApiKey]:
    return service.store.api_keys()


def _identify(key: model.ApiKey) -> str:
    return ids.show(schemas.API_KEY, key.id)


def _show(_service: Service, key: model.ApiKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "state": "active" if key.removed_at is None else "removed",
        "accountId": ACCOUNT,
        "description": key.description,
        "kind": "apiKey",
        "publicValue": key.public,
        "role": key.role.value,
        "secretValue": None,
        "uuid": key.uuid,
        **times.shown(created=key.created_at, removed=key.removed_at),
        **transition(is_going=False, fault=None),
    }


def _offered(_service: Service, key: model.ApiKey) -> frozenset[str]:
    return frozenset({"remove"} if key.removed_at is None else ())


async def _refusal(_service: Service, key: model.ApiKey, action: str) -> str:
    return f"cannot {action} API key {key.shown_name}: it is removed"


async def _create(service: Service, given: Body) -> Made:
    fields = body.parse_creation(schemas.API_KEY, given)
    key, secret = await service.create_api_key(
        name=_name(fields), description=fields.get("description") or None, role=model.Role(fields["role"])
    )
    return Made("apiKey", key, HTTPStatus.CREATED, {"secretValue": secret.text})


async def _update(service: Service, key: model.ApiKey, given: Body) -> Made:
    fields = body.parse_update(schemas.API_KEY, given)
    if key.removed_at is not None:
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, await _refusal(service, key, "change"))
    changes = {name: value or None for name, value in fields.items()}
    if "name" in changes:
        changes["name"] = _name(fields)
    return Made("apiKey", await service.set_api_key(key.id, changes) if changes else key)


async def _remove(service: Service, key: model.ApiKey) -> Made:
    if key.removed_at is not None:
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, await _refusal(service, key, "remove"))
    return Made("apiKey", await service.revoke_api_key(key.id))


async def _remove_action(service: Service, key: model.ApiKey, _body: Body) -> Made:
    return await _remove(service, key)


def _name(fields: dict[str, Any]) -> str | None:
    """Return the checked name; a blank one is none."""
    name = (fields.get("name") or "").strip()
    return names.name(name, thing="API key") if name else None


KIND: Final = Kind(
    schema=schemas.API_KEY,
    find=_find,
    rows=_rows,
    show=_show,
    identify=_identify,
    offered=_offered,
    refusal=_refusal,
    create=_create,
    update=_update,
    remove=_remove,
    actions={"remove": _remove_action},
)
