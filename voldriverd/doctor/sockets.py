"""The two sockets: whether somebody is behind them, and who may connect."""

import errno
import grp
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from voldriverd.doctor.finding import Act, Check, Finding, Fix, Level, Trouble, fine, told
from voldriverd.doctor.scope import Scope

MODE: Final = 0o660
_TRY_S: Final = 2.0
_PLUGIN: Final = "plugin"

DEAD: Final = Trouble(
    Level.BAD,
    "a socket file has nobody behind it",
    "A daemon that was killed left it. With that of the plugin every docker command that asks for volumes waits 15 s.",
    "`voldriver doctor --fix` removes it while no daemon runs, and starting the daemon replaces it; if one runs, "
    "`systemctl restart voldriverd`.",
)
MISSING: Final = Trouble(
    Level.BAD,
    "the daemon runs, and a socket is missing",
    "Somebody removed the file: dockerd does not find the plugin, or clients the API.",
    "`systemctl restart voldriverd`; if systemd holds them, that of `voldriverd.socket` and `voldriverd-api.socket`.",
)
NO_SOCKET: Final = Trouble(
    Level.BAD,
    "what lies at the path of a socket is something else",
    "The daemon cannot listen there and does not start.",
    "Look at what it is, and move it away: {path}",
)
WIDE: Final = Trouble(
    Level.BAD,
    "others than root and the group may connect",
    "Whoever can connect to the plugin or the API can read and destroy every volume.",
    "`voldriver doctor --fix`, or `chmod 660 {path}`; under systemd, `SocketMode=0660` in the unit.",
)
NARROW: Final = Trouble(
    Level.WARNING,
    "the group of a socket is not the one that should use it, or may not connect",
    "Members of the group docker (plugin) or voldriver (API) are refused.",
    "`voldriver doctor --fix`, or `chgrp {group} {path}` and `chmod 660 {path}`.",
)
NO_GROUP: Final = Trouble(
    Level.NOTE,
    "this host has no group of the name docker (plugin) or voldriver (API)",
    "Root alone may use that socket.",
    "Nothing; or `groupadd --system {group}`, and restart the daemon.",
)


class State(StrEnum):
    """What is at a path."""

    MISSING = "missing"
    OTHER = "other"
    DEAD = "dead"
    ALIVE = "alive"
    UNSEEN = "unseen"
    """We may not connect."""


@dataclass(frozen=True, slots=True)
class Socket:
    """One of the two."""

    name: str
    path: Path
    group: str
    state: State
    mode: int = MODE
    gid: int = 0
    wanted_gid: int | None = None
    """None: there is no such group."""
    is_daemon_alive: bool = False


def state_of(path: Path) -> State:
    """Tell what is at a path. Under socket activation that starts the daemon, as every client does."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return State.MISSING
    if not stat.S_ISSOCK(mode):
        return State.OTHER
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_TRY_S)
        try:
            probe.connect(str(path))
        except OSError as err:
            if err.errno == errno.ECONNREFUSED:
                return State.DEAD
            if err.errno in {errno.EACCES, errno.EPERM}:
                return State.UNSEEN
            return State.MISSING if err.errno == errno.ENOENT else State.ALIVE  # a full backlog: somebody is there
    return State.ALIVE


def _look(scope: Scope) -> Iterator[Socket]:
    config = scope.config
    for name, path, group in ((_PLUGIN, config.docker_socket, "docker"), ("api", config.api_socket, "voldriver")):
        state, is_alive = state_of(path), scope.daemon_pid is not None
        if state in {State.MISSING, State.OTHER}:
            yield Socket(name, path, group, state, is_daemon_alive=is_alive)
            continue
        status = os.stat(path)
        mode = stat.S_IMODE(status.st_mode)
        yield Socket(name, path, group, state, mode, status.st_gid, _group_id(group), is_daemon_alive=is_alive)


def judge(found: Socket) -> Iterator[Finding]:
    """Judge one socket."""
    what = f"{found.name}: {found.path}"
    if found.state is State.MISSING:
        yield (
            told(MISSING, f"{what} is missing")
            if found.is_daemon_alive
            else fine(f"{what} is not there, as no daemon is")
        )
        return
    if found.state is State.OTHER:
        yield told(NO_SOCKET, f"{what} is no socket", path=found.path)
        return
    if found.state is State.DEAD:
        fix = None if found.is_daemon_alive else Fix(Act.REMOVE_SOCKET, str(found.path))
        yield told(DEAD, f"{what} has nobody behind it", fix=fix)
        return
    yield from _judge_access(found, what)


def _judge_access(found: Socket, what: str) -> Iterator[Finding]:
    wanted_gid = found.wanted_gid or 0
    has_wrong_group = found.gid != wanted_gid
    if found.mode & ~MODE:
        fix = Fix(Act.MODE, str(found.path), f"{MODE:o}")
        yield told(WIDE, f"{what} has mode {found.mode:04o}", fix=fix, path=found.path)
    elif found.mode != MODE:
        fix = Fix(Act.MODE, str(found.path), f"{MODE:o}")
        text = f"{what} has mode {found.mode:04o}"
        yield told(NARROW, text, fix=fix, path=found.path, group=found.group)
    if has_wrong_group:
        fix = Fix(Act.GROUP, str(found.path), str(wanted_gid))
        text = f"{what} has group {_group_name(found.gid)}, and should have {_group_name(wanted_gid)}"
        yield told(NARROW, text, fix=fix, path=found.path, group=_group_name(wanted_gid))
    if found.wanted_gid is None:
        yield told(NO_GROUP, f"{what}: there is no group {found.group}", group=found.group)
    elif found.mode == MODE and not has_wrong_group:
        yield fine(f"{what}, 0660 root:{found.group}")


def _group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


CHECKS: Final = (
    Check(
        "sockets",
        "Daemon",
        "the sockets of the plugin and of the API: who is behind them, who may connect",
        lambda scope: (finding for found in _look(scope) for finding in judge(found)),
        (DEAD, MISSING, NO_SOCKET, WIDE, NARROW, NO_GROUP),
    ),
)
