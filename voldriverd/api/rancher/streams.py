"""Answers that are sent while they are read: from an iterator that blocks, a batch at a time, in bounded memory."""

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Final

from aiohttp import web

from voldriverd.errors import Error
from voldriverd.service import Service

_log = logging.getLogger(__name__)

BATCH_BYTES: Final = 256 << 10
"""How much is read ahead of the client: few enough thread switches to move 1 GB/s, small enough for hundreds."""


def line(value: Mapping[str, str]) -> bytes:
    """Write one JSON object on a line; what in a file's name is no UTF-8 becomes a lone surrogate."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


async def send(
    service: Service, request: web.BaseRequest, schemas_url: str, content_type: str, chunks: Iterator[bytes]
) -> web.StreamResponse:
    """Send all chunks; when this returns or raises, no thread works on the iterator.

    What fails before the first is raised. Later the connection is cut, which no client can take for the end.
    """
    batch = await _pull(service, chunks)
    response = web.StreamResponse(headers={"Content-Type": content_type, "X-API-Schemas": schemas_url})
    try:
        await response.prepare(request)
        while batch:
            await response.write(batch)
            batch = await _pull(service, chunks)
    except ConnectionError:
        _log.info("verb=send path=%s result=the client has gone", request.path)
    except (Error, OSError) as err:
        _log.warning("verb=send path=%s result=%s", request.path, err)
        if request.transport is not None:
            request.transport.close()
    return response


async def _pull(service: Service, chunks: Iterator[bytes]) -> bytes:
    """Read the next batch in a thread; a cancelled one is waited for, since an iterator bears one caller at a time."""
    task = asyncio.ensure_future(service.runner.read(_take, chunks))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _take(chunks: Iterator[bytes]) -> bytes:
    batch = bytearray()
    for chunk in chunks:
        batch += chunk
        if len(batch) >= BATCH_BYTES:
            break
    return bytes(batch)
