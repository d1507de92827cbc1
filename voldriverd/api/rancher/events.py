"""`GET /v1/events`: what happens to volumes, snapshots, backups, mounts and the health of pools, as server-sent events.

    retry: 1000
    id: 5f3a9c21-16

    id: 5f3a9c21-17
    data: {"id": "5f3a9c21-17", "type": "event", "time": "2026-11-21T19:44:03Z", "resourceType": "volume",
           "resourceId": "1v5", "name": "db", "state": "inactive", "cause": "create", "volumeId": "1v5", ...}

There is one event for each change of a volume, snapshot or backup and for each mount that begins or ends, in the order
of the commits, and one more for a volume that becomes active or inactive by that, and for a snapshot that is backed up
or no more; `cause` is the verb, `health` where the kernel told of trouble, or that it is over, with a pool or with a
mounted volume, and `resize` where the device of a pool has another size. What befalls a volume in the trash befalls its
snapshots, without events of their own. The form is that of the HTML standard (9.2, server-sent events), and the first
lines of a stream tell where it begins: who is cut off before the first event misses nothing.

- Who comes with `Last-Event-ID` gets what happened since then. Where that is not known any more (KEPT_MAX events or a
  restart of the daemon lie between) the first event is a `gap`: read the lists again; from here on all is told.
- Every KEEPALIVE_S seconds without an event there is a comment.
- There is one queue, of KEPT_MAX events, for all readers, and none waits for another. Who is further behind is dropped:
  the last event is `dropped`, says so and has an id to come back with, to which the answer is a `gap`. Who takes
  nothing at all for STALL_S seconds can be told nothing, and is cut off.
- Ids mean something to this daemon only. Streams end when the daemon stops.
"""

import asyncio
import itertools
import json
import secrets
import threading
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from aiohttp import web

from voldriverd import model
from voldriverd.api.rancher import ids, schemas, times
from voldriverd.api.rancher.problems import Problem
from voldriverd.api.rancher.schema import Schema
from voldriverd.engine import pools
from voldriverd.runner import CAUSE
from voldriverd.service import Service

KEPT_MAX: Final = 10_000
"""How many events are kept, in 9 MB: a minute of 80 verbs a second."""
KEEPALIVE_S: Final = 15.0
"""Between two comments: half of what the most impatient proxies wait for."""
STALL_S: Final = 30.0
"""How long one piece of the stream may take to be taken."""
READERS_MAX: Final = 64
"""How many streams there may be at once; on TCP each takes one of the places of `api.tcp`."""
RETRY_MS: Final = 1_000
"""When a browser comes back that was cut off."""
_BATCH: Final = 256
"""How many events are written at once: 100 KB, so that a slow reader is met between two pieces."""


class _Event(NamedTuple):
    """What happened, to be written when it is read: a verb need not wait for that."""

    time: datetime
    schema: Schema
    number: int
    name: str | None
    state: str
    cause: str
    volume_id: model.VolumeId | None
    volume_name: str | None
    holder: str | None
    health: model.Health | None = None
    message: str | None = None


class Feed:
    """The last events, and who reads them."""

    def __init__(
        self,
        service: Service,
        *,
        kept_max: int = KEPT_MAX,
        keepalive_s: float = KEEPALIVE_S,
        stall_s: float = STALL_S,
    ) -> None:
        """Watch the store and the pools of a service from now on."""
        self._service = service
        self._keepalive_s = keepalive_s
        self._stall_s = stall_s
        self._run = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._kept: deque[_Event] = deque(maxlen=kept_max)
        self._last = 0
        """The number of the newest event."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._is_waking = False
        self._is_closed = False
        self._readers: set[asyncio.Transport] = set()
        service.store.watch(self._note_commit)
        service.engine.pools.watch(self._note_pool)
        service.engine.ailments.watch(self._note_ailing)

    def close(self) -> None:
        """End all streams; those that are stuck at once."""
        self._is_closed = True
        self._wake()
        for transport in self._readers:
            if transport.get_write_buffer_size() > 0:
                transport.abort()

    async def stream(self, request: web.BaseRequest, schemas_url: str) -> web.StreamResponse:
        """Answer with events until the client goes, is dropped, or the feed is closed."""
        if len(self._readers) >= READERS_MAX:
            message = f"cannot read events: {READERS_MAX} others do, and no more can"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, message)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-API-Schemas": schemas_url}
        response = web.StreamResponse(headers=headers)
        self._loop = asyncio.get_running_loop()
        self._readers.add(transport)
        try:
            await response.prepare(request)
            await self._pump(response, request.headers.get("Last-Event-ID"))
        except TimeoutError:
            transport.abort()
        except ConnectionError:  # the client has gone, as every client does
            pass
        finally:
            self._readers.discard(transport)
        return response

    async def _pump(self, response: web.StreamResponse, given: str | None) -> None:
        position, is_gap = self._resume(given)
        begin = f"retry: {RETRY_MS}\nid: {self._id(position)}\n\n"
        gap = self._notice("gap", position, "events are missing here: read the lists again") if is_gap else ""
        await self._write(response, begin + gap)
        while not self._is_closed:
            news = self._news
            batch = self._take(position)
            if batch is None:
                text = f"this reader was more than {self._kept.maxlen} events behind, and is dropped"
                await self._write(response, self._notice("dropped", position, text))
                return
            if batch:
                await self._write(response, "".join(itertools.starmap(self._line, enumerate(batch, position + 1))))
                position += len(batch)
                continue
            try:
                async with asyncio.timeout(self._keepalive_s):
                    await news.wait()
            except TimeoutError:
                await self._write(response, ":\n\n")

    async def _write(self, response: web.StreamResponse, text: str) -> None:
        async with asyncio.timeout(self._stall_s):
            await response.write(text.encode())

    def _resume(self, given: str | None) -> tuple[int, bool]:
        """Return the number of the event after which to begin, and whether some before are missing."""
        with self._lock:
            if not given:
                return self._last, False
            known = range(self._last - len(self._kept), self._last + 1)
            position = next((each for each in known if self._id(each) == given), None)
            return (self._last, True) if position is None else (position, False)

    def _take(self, position: int) -> list[_Event] | None:
        """Return some of the events after a position; None if they are not kept any more."""
        with self._lock:
            begin = len(self._kept) - (self._last - position)
            if begin < 0:
                return None
            return [self._kept[index] for index in range(begin, min(begin + _BATCH, len(self._kept)))]

    def _id(self, number: int) -> str:
        return f"{self._run}-{number}"

    def _line(self, number: int, event: _Event) -> str:
        event_id = self._id(number)
        return f"id: {event_id}\ndata: {json.dumps({'id': event_id, **_shown(event)})}\n\n"

    def _notice(self, name: str, position: int, message: str) -> str:
        return f"event: {name}\nid: {self._id(position)}\ndata: {json.dumps({'type': name, 'message': message})}\n\n"

    def _note_commit(self, commit: model.Commit) -> None:
        self._add(_committed(self._service, commit))

    def _note_pool(self, pool: pools.Pool) -> None:
        self._add([_pool(self._service, pool)])

    def _note_ailing(self, volume_id: model.VolumeId) -> None:
        volume = self._service.store.volume(volume_id)
        if volume is not None:
            ailments = self._service.engine.ailments.of(volume_id)
            event = _volume(self._service, volume)
            self._add([event._replace(health=model.health_of(ailments), message=model.told(ailments))])

    def _add(self, happened: Iterator[_Event] | list[_Event]) -> None:
        with self._lock:
            for event in happened:
                self._last += 1
                self._kept.append(event)
            must_wake = bool(self._readers) and not self._is_waking
            self._is_waking |= must_wake
        if must_wake and self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        with self._lock:
            self._is_waking = False
            news, self._news = self._news, asyncio.Event()
        news.set()


def _committed(service: Service, commit: model.Commit) -> Iterator[_Event]:
    """Yield the events of a commit; called by who commits, so that the store's memory is as the commit left it."""
    for row in commit.rows:
        if isinstance(row, model.Backup):
            yield from _backup(service, row)
        else:
            yield _volume(service, row) if isinstance(row, model.Volume) else _snapshot(service, row)
    for mount in commit.held:
        yield _mount(service, mount, "active")
    for mount in commit.released:
        yield _mount(service, mount, "removed")
    if not (commit.held or commit.released):
        return
    told = {row.id for row in commit.rows if isinstance(row, model.Volume)}
    for volume_id in sorted({mount.volume_id for mount in (*commit.held, *commit.released)} - told):
        volume, begun = (
            service.store.volume(volume_id),
            [mount for mount in commit.held if mount.volume_id == volume_id],
        )
        has_turned = len(service.store.mounts(volume_id)) == len(begun)  # nobody else holds it, or nobody at all
        if volume is not None and has_turned:
            yield _volume(service, volume)


def _volume(service: Service, volume: model.Volume) -> _Event:
    state = model.shown_state(volume, is_mounted=bool(service.store.mounts(volume.id)))
    return _event(service, schemas.VOLUME, volume.id, volume.name, state, volume=volume)


def _snapshot(service: Service, snapshot: model.Snapshot) -> _Event:
    volume = service.store.volume(snapshot.volume_id)
    is_created = snapshot.state is model.SnapshotState.CREATED
    state = "backing-up" if is_created and service.store.is_backing_up(snapshot.id) else snapshot.state.value
    return _event(service, schemas.SNAPSHOT, snapshot.id, snapshot.name, state, volume=volume)


def _backup(service: Service, backup: model.Backup) -> Iterator[_Event]:
    """Yield its event, and that of the snapshot which it keeps in `backing-up`, or does so no more."""
    volume = None if backup.volume_id is None else service.store.volume(backup.volume_id)
    event = _event(service, schemas.BACKUP, backup.id, backup.name, backup.state.value, volume=volume)
    yield event._replace(volume_name=backup.volume_name)
    snapshot = service.store.snapshot(backup.snapshot_id) if backup.is_of_snapshot and backup.snapshot_id else None
    if snapshot is not None:
        yield _snapshot(service, snapshot)


def _mount(service: Service, mount: model.Mount, state: str) -> _Event:
    volume = service.store.volume(mount.volume_id)
    return _event(service, schemas.MOUNT, mount.id, None, state, volume=volume, holder=mount.holder)


def _pool(service: Service, pool: pools.Pool) -> _Event:
    state = "inactive" if pool.health is model.Health.UNAVAILABLE else "active"
    event = _event(service, schemas.STORAGE_POOL, pool.row.id, pool.row.name, state)
    return event._replace(health=pool.health, message=pool.trouble)


def _event(
    service: Service,
    schema: Schema,
    number: int,
    name: str | None,
    state: str,
    *,
    volume: model.Volume | None = None,
    holder: str | None = None,
) -> _Event:
    cause, time = CAUSE.get(), service.engine.now()
    if volume is None:
        return _Event(time, schema, number, name, state, cause, None, None, holder)
    return _Event(time, schema, number, name, state, cause, volume.id, volume.name, holder)


def _shown(event: _Event) -> dict[str, Any]:
    return {
        "type": "event",
        **times.shown(time=event.time),
        "resourceType": event.schema.id,
        "resourceId": ids.show(event.schema, event.number),
        "name": event.name,
        "state": event.state,
        "cause": event.cause.partition("-")[0],
        "volumeId": None if event.volume_id is None else ids.show(schemas.VOLUME, event.volume_id),
        "volumeName": event.volume_name,
        "holder": event.holder,
        "health": None if event.health is None else event.health.value,
        "message": event.message,
    }
