"""The daemon: whether one runs and answers, which one it is, and its configuration and database."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import voldriverd
from voldriverd.doctor.finding import Check, Finding, Level, Trouble, fine, told
from voldriverd.doctor.scope import DatabaseState, Scope
from voldriverd.engine import remembered
from voldriverd.errors import Error

# The daemon

DEAD: Final = Trouble(
    Level.BAD,
    "no daemon holds the root, and the API does not answer",
    "Nothing can be created, mounted or unmounted. Containers that run keep their volumes.",
    "Mend what is bad below, then `systemctl start voldriverd`; `journalctl -u voldriverd` says why it ended.",
)
SILENT: Final = Trouble(
    Level.BAD,
    "a daemon holds the root, and the API does not answer",
    "It is starting (a pool may take minutes), stands still, or serves another socket than the one that was asked.",
    "`journalctl -u voldriverd`; if it stands still, `kill -ABRT {pid}` has it write where each thread stands.",
)
CLOSED: Final = Trouble(
    Level.NOTE,
    "this user may not use the socket of the API",
    "Nothing that the daemon knows can be looked at.",
    "Run this as root; for the API alone, join the group voldriver.",
)
OTHER_ROOT: Final = Trouble(
    Level.WARNING,
    "the daemon that answers has another root than the configuration that was read here",
    "What is said below of files and pools is about another place than the one the daemon uses.",
    "Give `--config`, `--root` and `--run-dir` as the daemon has them (`systemctl cat voldriverd`).",
)
OTHER_VERSION: Final = Trouble(
    Level.WARNING,
    "the daemon has another version than this program",
    "One of the two was upgraded: what is new in one, the other does not know.",
    "`systemctl restart voldriverd`; containers do not notice.",
)
APART: Final = Trouble(
    Level.WARNING,
    "the daemon lives in another mount namespace than this program",
    "What it mounts may be seen neither by dockerd nor here, and what is said below of mounts is about this namespace.",
    "Take options that make a mount namespace out of the unit (`PrivateTmp=` and the like, see docs/systemd.md); "
    "of a daemon in a container or a managed plugin, run this inside.",
)


@dataclass(frozen=True, slots=True)
class Daemon:
    """What there is of one."""

    pid: int | None
    api_fault: str | None
    is_root: bool
    version: str | None
    is_root_other: bool
    is_apart: bool
    where: str


def _look_daemon(scope: Scope) -> Daemon:
    known = scope.daemon
    root = None if known is None else known.root
    return Daemon(
        pid=scope.daemon_pid,
        api_fault=scope.api_fault,
        is_root=scope.is_root,
        version=None if known is None else known.version,
        is_root_other=root is not None and not scope.is_remote and root.resolve() != scope.config.root.resolve(),
        is_apart=scope.daemon_pid is not None and _namespace(scope.daemon_pid) not in {None, _namespace(os.getpid())},
        where="" if root is None else str(root),
    )


def judge_daemon(daemon: Daemon) -> Iterator[Finding]:
    """Judge whether it can be worked with."""
    pid = "" if daemon.pid is None else f" (pid {daemon.pid})"
    if daemon.api_fault is not None:
        if not daemon.is_root:
            trouble = CLOSED
        elif daemon.pid is None:
            trouble = DEAD
        else:
            trouble = SILENT
        who = "no daemon" if daemon.pid is None else f"a daemon{pid}"
        yield told(trouble, f"{who}: {daemon.api_fault}", pid=daemon.pid)
    elif daemon.version == voldriverd.__version__:
        yield fine(f"version {daemon.version}{pid} answers")
    else:
        yield told(OTHER_VERSION, f"the daemon{pid} has version {daemon.version}, this is {voldriverd.__version__}")
    if daemon.is_root_other:
        yield told(OTHER_ROOT, f"its root is {daemon.where}")
    if daemon.is_apart:
        yield told(APART, f"the daemon{pid} has a mount namespace of its own")


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:  # it ended, or we may not look
        return None


# The configuration

WRONG: Final = Trouble(
    Level.BAD,
    "the configuration cannot be read, or is refused",
    "A daemon with it does not start. What is said below goes by the default configuration.",
    "Correct the file; `voldriverd --check` says whether it is right.",
)


UNREAD: Final = Trouble(
    Level.NOTE,
    "the configuration cannot be read by another user than root",
    "What is said below goes by the default configuration.",
    "Run this as root.",
)


def judge_configuration(fault: str | None, *, is_root: bool) -> Iterator[Finding]:
    """Judge what became of reading it."""
    if fault is None:
        yield fine("it can be read")
    else:
        yield told(WRONG if is_root else UNREAD, fault)


# The database

DAMAGED: Final = Trouble(
    Level.BAD,
    "SQLite finds damage in the database",
    "No daemon starts with it, and none writes to it. What lies in the pools is not touched by that.",
    "`voldriverd rebuild` makes a new one from what lies in the pools; it shows first what it would make.",
)
NEWER: Final = Trouble(
    Level.BAD,
    "a later version of the daemon has written the database",
    "This version does not start with it: it would not understand what it reads.",
    "Install the later version again, or put the copy of the database back that was made before the upgrade.",
)
UNREADABLE: Final = Trouble(
    Level.BAD,
    "the database cannot be read at all",
    "The daemon cannot start. A disk that fails, or one that is not mounted, looks so.",
    "Look at the disk that the root lies on (`dmesg`, `df`).",
)
LOST: Final = Trouble(
    Level.BAD,
    "there is no database, and a pool tells of volumes",
    "The daemon would begin with an empty one, and leaves such pools alone: their volumes would not be listed.",
    "Is the disk of the root mounted? If the database is lost, `voldriverd rebuild` makes it from the pools.",
)
NONE_YET: Final = Trouble(
    Level.NOTE,
    "there is no database",
    "The daemon has never run with this root.",
    "Nothing; it makes one when it starts.",
)
_BY_STATE: Final = {
    DatabaseState.DAMAGED: DAMAGED,
    DatabaseState.NEWER: NEWER,
    DatabaseState.UNREADABLE: UNREADABLE,
}


@dataclass(frozen=True, slots=True)
class Database:
    """What can be said of it."""

    path: Path
    state: DatabaseState
    fault: str | None
    remembered: int
    """How many volumes the pools tell of, when there is no database."""


def _look_database(scope: Scope) -> Database:
    count = 0
    if scope.database is DatabaseState.ABSENT:
        for place in scope.places:
            try:
                count += remembered.read(place.config.path).volume_count
            except (Error, OSError):  # of a later version, or on a disk that fails: other checks tell
                continue
    return Database(scope.config.root, scope.database, scope.database_fault, count)


def judge_database(facts: Database) -> Iterator[Finding]:
    """Judge what it is like."""
    if facts.state is DatabaseState.SERVED:
        yield fine("the daemon has it open")
    elif facts.state is DatabaseState.SOUND:
        yield fine("it is sound")
    elif facts.state is DatabaseState.ABSENT and facts.remembered:
        yield told(LOST, f"there is none in {facts.path}, and the pools tell of {facts.remembered} volumes")
    elif facts.state is DatabaseState.ABSENT:
        yield told(NONE_YET, f"there is none in {facts.path}")
    else:
        yield told(_BY_STATE[facts.state], facts.fault or "")


CHECKS: Final = (
    Check(
        "daemon",
        "Daemon",
        "whether a daemon runs, answers, and is the one of this configuration and version",
        lambda scope: judge_daemon(_look_daemon(scope)),
        (DEAD, SILENT, CLOSED, OTHER_ROOT, OTHER_VERSION, APART),
        is_remote=True,
    ),
    Check(
        "configuration",
        "Daemon",
        "whether the configuration can be read",
        lambda scope: judge_configuration(scope.config_fault, is_root=scope.is_root),
        (WRONG, UNREAD),
    ),
    Check(
        "database",
        "Daemon",
        "the database, read from a copy if no daemon has it open",
        lambda scope: judge_database(_look_database(scope)),
        (DAMAGED, NEWER, UNREADABLE, LOST, NONE_YET),
        needs_root=True,
    ),
)
