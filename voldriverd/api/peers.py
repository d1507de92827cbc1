"""Who is at the other end of a connection, as the kernel says."""

import asyncio
import os
import socket
import struct
from typing import Final

from aiohttp import web

_UCRED: Final = struct.Struct("iII")
"""struct ucred of unix(7): pid, uid, gid."""


def credentials(request: web.BaseRequest) -> tuple[int, int] | None:
    """Return (pid, uid) of who connected to a unix socket; a pid of 0 is one of another pid namespace. None: TCP."""
    return None if request.transport is None else _credentials(request.transport)


def pid_behind(transport: asyncio.Transport) -> int | None:
    """Return the pid of who connected to a unix socket, 0 if it is of another pid namespace. None: TCP, or it went."""
    found = _credentials(transport)
    return None if found is None else found[0]


def _credentials(transport: asyncio.BaseTransport) -> tuple[int, int] | None:
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def pid(request: web.BaseRequest) -> int | None:
    """Return the pid of the process that asks, None if the kernel does not tell (another pid namespace)."""
    found = credentials(request)
    return None if found is None or found[0] in {0, os.getpid()} else found[0]
