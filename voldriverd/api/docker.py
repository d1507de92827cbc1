"""The Docker volume plugin protocol, version 1.2 (docs.docker.com/engine/extend/plugins_volume).

Errors are HTTP 500 with `Err`, for podman takes a 200 with `Err` for success; 400 is an unreadable
request, 404 an unknown method, 413 too large a body, all with `Err`. `Get` and `List` answer from
memory: one failed `Get` makes dockerd forget a volume and then delete it under a running container.
Content types are ignored.
"""

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from voldriverd import model, names
from voldriverd.engine import creation, use
from voldriverd.errors import Error, Invalid, NotFound
from voldriverd.service import CREATE_ANSWER_S, Service

_log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"
HOLDERS_MAX: Final = 20
"""How many holders `docker volume inspect` names; a volume that hundreds share stays readable."""
_HEADERS: Final = {"Content-Type": CONTENT_TYPE}
_UCRED: Final = struct.Struct("iII")
"""struct ucred of unix(7): pid, uid, gid."""

_Body = Mapping[str, Any]
_Answer = dict[str, Any]


class _Hangup(Exception):
    """A retry of dockerd with an empty body: an error answer would make it forget the volume (R3)."""


class Plugin:
    """Answers the plugin's calls; `handle` is what a site serves."""

    def __init__(self, service: Service) -> None:
        """Serve the volumes of a service."""
        self._service = service
        self._methods: dict[str, Callable[[web.BaseRequest, _Body], Awaitable[_Answer]]] = {
            "/Plugin.Activate": self._activate,
            "/VolumeDriver.Capabilities": self._capabilities,
            "/VolumeDriver.Create": self._create,
            "/VolumeDriver.Remove": self._remove,
            "/VolumeDriver.Mount": self._mount,
            "/VolumeDriver.Unmount": self._unmount,
            "/VolumeDriver.Path": self._path,
            "/VolumeDriver.Get": self._get,
            "/VolumeDriver.List": self._list,
        }
        self._reconciling: asyncio.Task[None] | None = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        method = self._methods.get(request.path)
        if method is None:
            return _error(404, f"no method {request.path}; this is a Docker volume plugin")
        try:
            answer = await method(request, await _body(request))
        except _Hangup:
            return _hang_up(request)
        except Error as err:
            return _error(400 if isinstance(err, Invalid) and err.field == _REQUEST else 500, str(err))
        except web.HTTPRequestEntityTooLarge:
            return _error(413, "the request is larger than any volume needs")
        except Exception:  # noqa: BLE001 - our own bug: the caller gets an answer that it can read, the log the traceback
            _log.exception("verb=%s result=internal error", request.path)
            return _error(500, "internal error of voldriverd; its log has the details")
        return _respond(200, answer)

    async def _activate(self, _request: web.BaseRequest, _body: _Body) -> _Answer:
        if self._reconciling is None or self._reconciling.done():  # a new dockerd, or a podman command
            self._reconciling = asyncio.create_task(self._service.reconcile())
        return {"Implements": ["VolumeDriver"]}

    async def _capabilities(self, _request: web.BaseRequest, _body: _Body) -> _Answer:
        return {"Capabilities": {"Scope": "local"}}

    async def _create(self, _request: web.BaseRequest, body: _Body) -> _Answer:
        name = names.volume_name(_text(body, "Name"))
        given = _options(body)
        request = creation.Request(name, names.parse_options(given), given)
        await self._service.create(request, answer_s=CREATE_ANSWER_S)
        return {}

    async def _remove(self, _request: web.BaseRequest, body: _Body) -> _Answer:
        volume = self._service.store.volume_named(_text(body, "Name"))
        if volume is not None:  # a missing one is success: dockerd repeats, and volumes go by other doors too
            await self._service.remove(volume.id)
        return {}

    async def _mount(self, request: web.BaseRequest, body: _Body) -> _Answer:
        volume, holder = self._volume(body), _text(body, "ID")
        path = await self._service.mount(volume.id, holder, peer_pid=_peer_pid(request))
        if request.transport is None or request.transport.is_closing():  # nobody will ever unmount it (R9)
            await self._service.unmount(volume.id, holder)
        return {"Mountpoint": str(path)}

    async def _unmount(self, _request: web.BaseRequest, body: _Body) -> _Answer:
        volume = self._service.store.volume_named(_text(body, "Name"))
        holder = _text(body, "ID")
        if volume is not None:
            await self._service.unmount(volume.id, holder)
        return {}

    async def _path(self, _request: web.BaseRequest, body: _Body) -> _Answer:
        return {"Mountpoint": self._mountpoint(self._volume(body))}

    async def _get(self, _request: web.BaseRequest, body: _Body) -> _Answer:
        volume = self._volume(body)
        return {
            "Volume": {
                "Name": volume.name,
                "Mountpoint": self._mountpoint(volume),
                "CreatedAt": volume.created_at.isoformat(),
                "Status": self._status(volume),
            }
        }

    async def _list(self, _request: web.BaseRequest, _body: _Body) -> _Answer:
        listed = [
            {"Name": volume.name, "Mountpoint": self._mountpoint(volume)}
            for volume in self._service.store.volumes()
            if volume.is_live
        ]
        return {"Volumes": listed}

    def _volume(self, body: _Body) -> model.Volume:
        name = _text(body, "Name")
        volume = self._service.store.volume_named(name)
        if volume is None:
            raise NotFound(f"no such volume: {name}")
        return volume

    def _mountpoint(self, volume: model.Volume) -> str:
        if not self._service.store.mounts(volume.id):
            return ""
        return f"{self._service.engine.root}/mounts/{volume.key}"

    def _status(self, volume: model.Volume) -> _Answer:
        held = self._service.store.mounts(volume.id)
        pool = self._service.engine.pools.get(volume.pool_id)
        snapshots = self._service.store.snapshot_summary(volume.id)
        usage = self._service.usage(volume)
        status = {
            "driver": volume.driver,
            "pool": pool.row.name,
            "state": model.shown_state(volume, is_mounted=bool(held)),
            "sizeBytes": volume.size_bytes,
            "usedBytes": None if usage is None else usage.used_bytes,
            "snapshots": snapshots.count,
            "snapshotNames": snapshots.newest,
            "holders": [use.holder_name(mount) for mount in held[:HOLDERS_MAX]],
            "options": volume.options,
        }
        if pool.driver is None:
            status |= {"state": "unavailable", "message": pool.reason}
        elif volume.message is not None:
            status["message"] = volume.message
        return status


_REQUEST: Final = "request"
"""The field of an Invalid that says that the request itself could not be read."""

_BODY_OPTIONAL: Final = frozenset({"/Plugin.Activate", "/VolumeDriver.Capabilities", "/VolumeDriver.List"})


async def _body(request: web.BaseRequest) -> _Body:
    if request.method != "POST":
        raise Invalid(f"{request.path} takes POST, not {request.method}", field=_REQUEST)
    raw = await request.read()
    if not raw.strip():
        if request.path == "/VolumeDriver.Get":
            raise _Hangup
        if request.path in _BODY_OPTIONAL:
            return {}
        raise Invalid(f"{request.path} needs a body", field=_REQUEST)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as err:
        raise Invalid(f"the body is not JSON: {err}", field=_REQUEST) from err
    if not isinstance(body, dict):
        raise Invalid(f"the body is not a JSON object but {type(body).__name__}", field=_REQUEST)
    return body


def _text(body: _Body, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise Invalid(f"{name} is missing or not a text", field=_REQUEST)
    return value


def _options(body: _Body) -> dict[str, str]:
    given = body.get("Opts") or {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise Invalid("Opts is not a map of texts", field=_REQUEST)
    return given


def _respond(status: int, answer: _Answer) -> web.Response:
    answer.setdefault("Err", "")
    return web.Response(status=status, body=json.dumps(answer, default=dict).encode(), headers=_HEADERS)


def _error(status: int, text: str) -> web.Response:
    return _respond(status, {"Err": text})


def _hang_up(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=400)


def _peer_pid(request: web.BaseRequest) -> int | None:
    """Return the pid of the process that asks, None if the kernel does not tell (another pid namespace)."""
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    pid: int = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0]
    return pid if pid not in {0, os.getpid()} else None
