"""`POST /v1/volumes/import`: a new volume from a tar archive in the body, or from a directory of the host.

An archive comes as it is, and what the volume should be stands in the query: `name=web&driverOpts.size=1G&labels.a=b`.
A directory is named in a JSON body. The daemon reads it as root, so only root may name one: a process of uid 0 at the
unix socket that sees the same directory at that path. Everybody else sends an archive of what they can read themselves.
With the path the daemon can share the data (reflinks, snapshots) and compare the copy with it.
"""

import asyncio
import os
from collections.abc import Iterator
from concurrent import futures
from datetime import datetime
from http import HTTPStatus
from typing import Final

from aiohttp import StreamReader, web

from voldriverd import names
from voldriverd.api import peers
from voldriverd.api.rancher import body, creations, problems, schemas, times
from voldriverd.api.rancher.body import Body
from voldriverd.api.rancher.kind import Made
from voldriverd.api.rancher.problems import Problem
from voldriverd.engine import adoption
from voldriverd.errors import Invalid, Unusable
from voldriverd.model import VolumeState
from voldriverd.service import API_ANSWER_S, Service

PATH: Final = ("volumes", "import")
TYPE: Final = "application/x-tar"
INPUT: Final = "volumeImportInput"
STALL_S: Final = 300.0
"""How long who sends an archive may send nothing: somebody may be changing a tape."""
_LOOK_S: Final = 0.5
"""How soon it is seen meanwhile that nobody wants it any more."""
_DESCRIPTIONS: Final = frozenset({"application/json", "application/x-www-form-urlencoded", "multipart/form-data"})
"""What a body is called that names a directory; curl calls JSON a form."""


def is_upload(request: web.BaseRequest) -> bool:
    """Tell whether the body of a request is an archive, and so is not to be read before its turn."""
    parts = [part.lower() for part in request.path.split("/") if part]
    return request.method == "POST" and tuple(parts[1:]) == PATH and request.content_type not in _DESCRIPTIONS


async def create(service: Service, request: web.BaseRequest) -> Made:
    """Make a volume; of an archive it is answered when all is done, of a directory while it goes on."""
    if is_upload(request):
        return await _archive(service, request)
    _check_peer(request)
    given = body.decode(await request.read(), request.headers.get("Content-Type", ""))
    fields = body.parse_creation(schemas.ALL[INPUT], given)
    path = str(fields["path"])
    if not await service.runner.in_thread(_is_seen, request, path):
        message = f"cannot import {path}: the process that asks does not see the same directory there as voldriverd"
        raise Problem(HTTPStatus.FORBIDDEN, message, field="path")
    wanted = await creations.request_of(service, _with_driver(service, given))
    is_instant = fields.get("snapshotPaths") is not None
    volume = await service.imports.directory(
        wanted, path, earlier=_earlier(fields), is_instant=is_instant, answer_s=API_ANSWER_S
    )
    status = HTTPStatus.ACCEPTED if volume.state is VolumeState.IMPORTING else HTTPStatus.CREATED
    return Made("volume", volume, status)


async def _archive(service: Service, request: web.BaseRequest) -> Made:
    query = request.query_string.encode(errors="surrogateescape")
    given = body.decode(query, "application/x-www-form-urlencoded", keeps_blank=True)  # `size=` is no form left blank
    wanted = await creations.request_of(service, _with_driver(service, given))
    is_plain = "Content-Encoding" not in request.headers
    content_bytes = request.content_length if is_plain else None
    upload = _Upload(request.content)
    try:
        volume = await service.imports.archive(wanted, upload.pieces(), content_bytes)
    finally:
        await upload.close()
    return Made("volume", volume, HTTPStatus.CREATED)


def _with_driver(service: Service, given: Body) -> Body:
    """Fill in the default driver where nothing says which it is."""
    options = given.get("driverOpts")
    is_named = "driver" in given or (isinstance(options, dict) and {"driver", "pool"} & options.keys())
    return given if is_named else {**given, "driver": service.engine.pools.default_driver}


class _Upload:
    """A body that comes, for a thread that is not the loop's."""

    def __init__(self, content: StreamReader) -> None:
        self._content = content
        self._loop = asyncio.get_running_loop()
        self._reading: asyncio.Task[bytes] | None = None

    async def close(self) -> None:
        """Wait for nothing more, so that others can read what still comes."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    def pieces(self) -> Iterator[bytes]:
        """Yield what comes, and an empty piece now and then as long as nothing does.

        Raises Invalid (who sends it has gone) and Unusable (nothing came for STALL_S).
        """
        waited_s = 0.0
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        while True:
            try:
                piece = reading.result(_LOOK_S)
            except TimeoutError as err:
                waited_s += _LOOK_S
                if waited_s >= STALL_S:
                    raise Unusable(f"cannot wait for the archive: nothing came for {STALL_S:.0f} s") from err
                yield b""
                continue
            except (ConnectionError, futures.CancelledError, web.RequestPayloadError) as err:
                raise Invalid("cannot read the archive: who sends it has gone") from err
            if not piece:
                return
            yield piece
            waited_s = 0.0
            reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)

    async def _read(self) -> bytes:
        self._reading = asyncio.current_task()
        try:
            return await self._content.readany()
        finally:
            self._reading = None


def _check_peer(request: web.BaseRequest) -> None:
    """Refuse a path to anybody but root of this host. Raises Problem (403)."""
    found = peers.credentials(request)
    if found is None or found[1] != 0:
        message = (
            "cannot import a directory of the host: only root may name one, at the unix socket; send what you can read "
            "yourself, with `tar -C DIRECTORY -c . | voldriver import tar - NAME`"
        )
        raise Problem(HTTPStatus.FORBIDDEN, message, field="path")


def _is_seen(request: web.BaseRequest, path: str) -> bool:
    """Tell whether who asks has the same directory at a path; what is none for us is refused later, and why."""
    pid = peers.pid(request)
    if pid is None:
        return False
    try:
        here = os.stat(path)
    except (OSError, ValueError):
        return True
    try:
        there = os.stat(f"/proc/{pid}/root{path}")
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _earlier(fields: Body) -> list[adoption.Earlier]:
    """Return the snapshots that are asked for, oldest first. Raises Problem (422)."""
    moments: dict[str, str] = fields.get("snapshotTimes") or {}
    found = []
    for name, path in (fields.get("snapshotPaths") or {}).items():
        taken_at = times.parse(moments.get(name))
        if not isinstance(taken_at, datetime):
            message = f"snapshotTimes has no ISO 8601 date for {name}"
            raise problems.invalid("InvalidDateFormat", message, field="snapshotTimes")
        found.append(adoption.Earlier(names.snapshot_name(name), path, taken_at))
    return sorted(found, key=lambda each: each.created_at)
