"""The Docker volume plugin protocol, version 1.2 (docs.docker.com/engine/extend/plugins_volume).

Errors are HTTP 500 with `Err`, for podman takes a 200 with `Err` for success; 400 is an unreadable
request, 404 an unknown method, 413 too large a body, all with `Err`. `Get` and `List` answer from
memory: one failed `Get` makes dockerd forget a volume and then delete it under a running container.
Content types are ignored. With `--log-level debug` every call is a line of the log.
"""

import asyncio
import functools
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from aiohttp import HttpVersion11, web

from voldriverd import model, names
from voldriverd.api import peers
from voldriverd.driver import Usage
from voldriverd.engine import creation, use
from voldriverd.errors import Error, NotFound
from voldriverd.service import CREATE_ANSWER_S, Service

_log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"
HOLDERS_MAX: Final = 20
"""How many holders `docker volume inspect` names; a volume that hundreds share stays readable."""
BODY_S: Final = 30.0
"""How long a body may take to come."""
WRITTEN_MAX: Final = 4_096
"""How many answers to `Get` are kept as bytes: some 2 MiB, and a third of the time of an answer."""

_GET: Final = "/VolumeDriver.Get"
_MOUNT: Final = "/VolumeDriver.Mount"
_BODY_OPTIONAL: Final = frozenset({"/Plugin.Activate", "/VolumeDriver.Capabilities", "/VolumeDriver.List"})
_READING: Final = frozenset({*_BODY_OPTIONAL, _GET, "/VolumeDriver.Path"})
_HOLDER: Final = re.compile(r"[!-~]{1,255}")
"""A holder as dockerd and podman name it (64 hex digits), and as anybody else sensibly would."""
_HEADERS: Final = {"Content-Type": CONTENT_TYPE}
_OK: Final = 200
_OTHER: Final = "other"
"""What is counted as the method of calls that are none of the protocol."""

_Body = Mapping[str, Any]
_Answer = dict[str, Any]
_Method = Callable[[web.BaseRequest, _Body], Awaitable[_Answer | bytes]]


class _HangUp(Exception):
    """The caller gets no answer, for it would draw the wrong conclusion from any."""


class _Refused(Exception):
    """The request itself is wrong, whatever it is about."""

    def __init__(self, text: str, *, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Plugin:
    """Answers the plugin's calls; `handle` is what a site serves."""

    def __init__(self, service: Service) -> None:
        """Serve the volumes of a service."""
        self._service = service
        self._methods: dict[str, _Method] = {
            "/Plugin.Activate": self._activate,
            "/VolumeDriver.Capabilities": self._capabilities,
            "/VolumeDriver.Create": self._create,
            "/VolumeDriver.Remove": self._remove,
            _MOUNT: self._mount,
            "/VolumeDriver.Unmount": self._unmount,
            "/VolumeDriver.Path": self._path,
            _GET: self._get,
            "/VolumeDriver.List": self._list,
        }
        self._written: dict[model.VolumeId, tuple[_Facts, bytes]] = {}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        body: _Body = {}
        try:
            method = self._method(request)
            body = await _body(request)
            response = _respond(_OK, await method(request, body))
        except (_HangUp, ConnectionError, web.RequestPayloadError):
            response = _hang_up(request)
        except _Refused as err:
            response = _error(err.status, str(err))
        except Error as err:
            response = _error(500, str(err))
        except Exception:  # noqa: BLE001 - our own bug: the caller gets an answer that it can read, the log the traceback
            _log.exception("call=%s result=internal error", request.path)
            response = _internal_error(request)
        called = request.path if request.path in self._methods else _OTHER
        self._service.requests["plugin", called, response.status] += 1
        if _log.isEnabledFor(logging.DEBUG):
            name, holder = body.get("Name"), body.get("ID")
            _log.debug("call=%s name=%.300s holder=%.300s status=%d", request.path, name, holder, response.status)
        if request.path == _MOUNT and response.status == _OK and not await _is_delivered(request, response):
            await self._unmount(request, body)  # nobody else ever will (R9)
        return response

    def _method(self, request: web.BaseRequest) -> _Method:
        method = self._methods.get(request.path)
        if method is None:
            raise _Refused(f"no method {request.path}; this is a Docker volume plugin", status=404)
        if request.method != "POST":
            raise _Refused(f"{request.path} takes POST, not {request.method}")
        return method

    def refuse(self, status: int, text: str) -> web.Response:
        """Return the answer to what cannot even be read as a request."""
        return _error(status, text)

    async def _activate(self, _request: web.BaseRequest, _body: _Body) -> _Answer:
        self._service.reconcile_soon()  # a new dockerd, or a podman command
        return {"Implements": ["VolumeDriver"]}

    async def _capabilities(self, _request: web.BaseRequest, _body: _Body) -> _Answer:
        return {"Capabilities": {"Scope": "local"}}

    async def _create(self, _request: web.BaseRequest, body: _Body) -> bytes:
        name = names.volume_name(_text(body, "Name"))
        given = _options(body)
        request = creation.Request(name, names.parse_options(given), given)
        await self._service.create(request, answer_s=CREATE_ANSWER_S)
        return _NOTHING

    async def _remove(self, _request: web.BaseRequest, body: _Body) -> bytes:
        volume = self._service.store.volume_named(_text(body, "Name"))
        if volume is None:  # that is success: dockerd repeats
            return _NOTHING
        try:
            await self._service.remove(volume.id)
        except NotFound:
            left = self._service.store.volume(volume.id)
            if left is not None and left.is_live:  # else it went meanwhile
                raise
        return _NOTHING

    async def _mount(self, request: web.BaseRequest, body: _Body) -> _Answer:
        volume, holder = self._volume(body), _holder(body)
        path = await self._service.mount(volume.id, holder, peer_pid=peers.pid(request))
        return {"Mountpoint": str(path)}

    async def _unmount(self, request: web.BaseRequest, body: _Body) -> bytes:
        volume, holder = self._service.store.volume_named(_text(body, "Name")), _holder(body)
        if volume is not None:
            await self._service.unmount(volume.id, holder, peer_pid=peers.pid(request))
        return _NOTHING

    async def _path(self, _request: web.BaseRequest, body: _Body) -> bytes:
        return _mounted_at(self._mountpoint(self._volume(body)))

    async def _get(self, _request: web.BaseRequest, body: _Body) -> bytes:
        volume = self._volume(body)
        facts = self._facts(volume)
        known = self._written.get(volume.id)
        if known is not None and known[0] == facts:  # the rows are the same objects until a commit replaces them
            return known[1]
        written = _encode({"Volume": self._show(facts)})
        if len(self._written) >= WRITTEN_MAX:
            self._written.clear()
        self._written[volume.id] = facts, written
        return written

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

    def _facts(self, volume: model.Volume) -> "_Facts":
        """Return all that the answer to `Get` depends on."""
        pool = self._service.engine.pools.get(volume.pool_id)
        return _Facts(
            volume,
            self._service.store.mounts(volume.id),
            self._service.store.snapshot_summary(volume.id),
            self._service.usages.of(volume),
            pool.row.name,
            pool.reason if pool.driver is None else None,
        )

    def _show(self, facts: "_Facts") -> _Answer:
        volume = facts.volume
        return {
            "Name": volume.name,
            "Mountpoint": self._mountpoint(volume),
            "CreatedAt": volume.created_at.isoformat(),
            "Status": _status(facts),
        }


class _Facts(NamedTuple):
    """All that the answer to `Get` depends on; compared by identity first, which a dataclass does not."""

    volume: model.Volume
    held: tuple[model.Mount, ...]
    snapshots: model.SnapshotSummary
    usage: Usage
    pool: str
    unavailable: str | None
    """Why the pool is unavailable; None if it is not."""


def _status(facts: _Facts) -> _Answer:
    volume = facts.volume
    status = {
        "driver": volume.driver,
        "pool": facts.pool,
        "state": model.shown_state(volume, is_mounted=bool(facts.held)),
        "sizeBytes": volume.size_bytes,
        "usedBytes": facts.usage.used_bytes,
        "snapshots": facts.snapshots.count,
        "snapshotNames": facts.snapshots.newest,
        "holders": [use.holder_name(mount) for mount in facts.held[:HOLDERS_MAX]],
        "options": dict(volume.options),
    }
    if facts.unavailable is not None:
        status |= {"state": "unavailable", "message": facts.unavailable}
    elif volume.message is not None:
        status["message"] = volume.message
    return status


def is_change(request: web.BaseRequest) -> bool:
    """Tell whether a call may change anything."""
    return request.path not in _READING


async def _body(request: web.BaseRequest) -> _Body:
    if request.version >= HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
        assert request.transport is not None, "nothing was awaited yet"
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        raw = await _received(request)
    except TimeoutError as err:
        if request.path == _GET:
            raise _HangUp from err
        raise _Refused(f"cannot wait for the body any longer than {BODY_S:.0f} s", status=408) from err
    except web.HTTPRequestEntityTooLarge as err:
        raise _Refused("the request is larger than any volume needs", status=413) from err
    if not raw.strip():
        if request.path == _GET:  # dockerd repeats a lost request without its body; an error would make it forget (R3)
            raise _HangUp
        if request.path in _BODY_OPTIONAL:
            return {}
        raise _Refused(f"{request.path} needs a body")
    try:
        body = json.loads(raw.decode())  # from text: for bytes it would guess the encoding
    except (ValueError, RecursionError) as err:
        raise _Refused(f"the body is not JSON: {err}") from err
    if not isinstance(body, dict):
        raise _Refused(f"the body is not a JSON object but {type(body).__name__}")
    return body


async def _received(request: web.BaseRequest) -> bytes:
    """Return the body, which mostly has come together with the head. Raises TimeoutError."""
    if request.content.is_eof():
        return await request.read()
    async with asyncio.timeout(BODY_S):
        return await request.read()


def _text(body: _Body, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise _Refused(f"{name} is missing or not a text")
    return value


def _holder(body: _Body) -> str:
    holder = _text(body, "ID")
    if not _HOLDER.fullmatch(holder):
        raise _Refused("ID is not 1 to 255 printable characters without spaces")
    return holder


def _options(body: _Body) -> dict[str, str]:
    given = body.get("Opts")
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise _Refused("Opts is not a map of texts")
    return given


def _respond(status: int, answer: _Answer | bytes) -> web.Response:
    content = answer if isinstance(answer, bytes) else _encode(answer)
    return web.Response(status=status, body=content, headers=_HEADERS)


def _encode(answer: _Answer) -> bytes:
    answer.setdefault("Err", "")
    return json.dumps(answer).encode()


@functools.lru_cache(maxsize=WRITTEN_MAX)
def _mounted_at(mountpoint: str) -> bytes:
    return _encode({"Mountpoint": mountpoint})


_NOTHING: Final = _encode({})


def _error(status: int, text: str) -> web.Response:
    return _respond(status, {"Err": text})


def _internal_error(request: web.BaseRequest) -> web.Response:
    if request.path == _GET:  # an error would make dockerd forget the volume (R2); without an answer it keeps it
        return _hang_up(request)
    return _error(500, "internal error of voldriverd; its log has the details")


async def _is_delivered(request: web.BaseRequest, response: web.StreamResponse) -> bool:
    """Send an answer; tells whether its caller was still there to take it."""
    try:
        await response.prepare(request)
        await response.write_eof()
    except ConnectionError:
        return False
    return request.transport is not None and not request.transport.is_closing()


def _hang_up(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=400)
