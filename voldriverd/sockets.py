"""Unix sockets that are never stolen from a daemon that lives, and replaced when they are dead."""

import grp
import logging
import os
import socket
from pathlib import Path
from typing import Final

from voldriverd.errors import InUse

_log = logging.getLogger(__name__)

BACKLOG: Final = 1_024
"""dockerd asks for all its volumes at once at its start, each on a connection of its own."""
_MODE: Final = 0o660
_PROBE_S: Final = 2.0


def bind(path: Path, *, group: str) -> socket.socket:
    """Return a listening socket with mode 0660 for root and a group (root's where the group is missing).

    Raises InUse: somebody answers at that path. A dead socket is replaced; anything else there is an OSError.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if _is_alive(path):
        raise InUse(f"cannot listen on {path}: another daemon does")
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
