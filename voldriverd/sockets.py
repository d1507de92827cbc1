"""Listening sockets. One on a path is never stolen from a daemon that lives, and replaced when it is dead."""

import errno
import grp
import logging
import os
import socket
from pathlib import Path
from typing import Final

from voldriverd.errors import InUse, Unusable

_log = logging.getLogger(__name__)

BACKLOG: Final = 1_024
"""dockerd asks for all its volumes at once at its start, each on a connection of its own."""
_MODE: Final = 0o660
_PROBE_S: Final = 2.0
LOCALHOST: Final = "localhost"
_LOOPBACK: Final = ("127.0.0.1", "::1")
_NO_IPV6: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_BACKLOG_TCP: Final = 128
_STALL_MS: Final = 300_000
"""How long a client may leave an answer unread (TCP_USER_TIMEOUT of tcp(7)): somebody may be paging in a pipe."""


def bind(path: Path, *, group: str) -> socket.socket:
    """Return a listening socket with mode 0660 for root and a group (root's where the group is missing).

    Raises InUse: somebody answers at that path. A dead socket is replaced; anything else there is an OSError.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    ensure_free(path)
    if path.is_socket():
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~0o600)  # nobody else may connect before the group is set
    try:
        listener.bind(str(path))
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    os.chown(path, 0, _group_id(group))
    path.chmod(_MODE)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def ensure_free(path: Path) -> None:
    """Raise InUse if somebody answers at a path."""
    if _is_alive(path):
        raise InUse(f"cannot listen on {path}: another daemon does")


def check(listener: socket.socket, name: str, path: Path | None) -> None:
    """Check that a socket that somebody has opened for us listens where it is wanted. Raises Unusable, OSError."""
    if path is None:
        raise Unusable(f"cannot use socket {name} of the service manager: nothing is served under that name")
    is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (listener.family, listener.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not is_listening:
        raise Unusable(f"cannot use socket {name} of the service manager: no stream socket that listens on a path")
    place = os.fsdecode(listener.getsockname())
    if os.path.realpath(place) != os.path.realpath(path):
        raise Unusable(f"cannot use socket {name} of the service manager: it is {place}, and {path} is configured")


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets on an IP address, or on both loopback addresses for `localhost`.

    Raises InUse (somebody listens there) and Unusable. `::` takes IPv4 too.
    """
    listeners: list[socket.socket] = []
    for each in _LOOPBACK if host == LOCALHOST else (host,):
        try:
            listeners.append(_listen_tcp(each, port))
        except OSError as err:
            if listeners and err.errno in _NO_IPV6:
                continue
            for listener in listeners:
                listener.close()
            kind = InUse if err.errno == errno.EADDRINUSE else Unusable
            where = f"[{each}]:{port}" if ":" in each else f"{each}:{port}"
            raise kind(f"cannot listen on {where}: {(err.strerror or str(err)).lower()}") from err
    return listeners


def _listen_tcp(address: str, port: int) -> socket.socket:
    is_6 = ":" in address
    listener = socket.socket(socket.AF_INET6 if is_6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if is_6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALL_MS)
        listener.bind((address, port))
        listener.listen(_BACKLOG_TCP)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as err:  # full backlog, no permission: somebody is there
            _log.info("verb=listen socket=%s result=%s", path, err)
            return path.is_socket()
    return True


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return 0
