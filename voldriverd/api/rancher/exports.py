"""`GET …/export`: all of a volume at one instant, or of a snapshot, as a tar stream."""

from typing import Final

from aiohttp import web

from voldriverd import model
from voldriverd.api.rancher import streams
from voldriverd.api.rancher.kind import Stream
from voldriverd.service import Service

_TYPE: Final = "application/x-tar"


async def _export(
    service: Service, source: model.Volume | model.Snapshot, request: web.BaseRequest, schemas_url: str
) -> web.StreamResponse:
    async with service.export(source) as chunks:
        return await streams.send(service, request, schemas_url, _TYPE, chunks)


VOLUME: Final[Stream[model.Volume]] = Stream(_export, _TYPE, {})
SNAPSHOT: Final[Stream[model.Snapshot]] = Stream(_export, _TYPE, {})
