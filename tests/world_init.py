"""The first process of a World: starts the others, notes how they end, and takes all of them with it.

Reads one JSON request a line and answers each with one line. It ends at the end of its input, and with
it everything in its pid namespace.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_KEPT: Final = ("/", "/proc", "/sys", "/dev", "/etc")
"""Mounts that the world shares with its host: these, and what lies below them."""
_FRESH: Final = ("/run", "/etc/docker")
"""Directories of which the world has its own, empty."""

_ended: dict[int, int] = {}


def main() -> None:
    """Prepare the namespaces, then serve."""
    isolate()
    signal.signal(signal.SIGCHLD, lambda *_: reap())
    say({})
    for line in sys.stdin:
        request = json.loads(line)
        say(_ANSWERS[request.pop("do")](**request))


def isolate() -> None:
    """Let go of the mounts of others (a copy of ours would keep them alive) and hide what is the host's."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    others = [
        point
        for point in reversed(points)
        if not any(point == kept or (kept != "/" and point.startswith(f"{kept}/")) for kept in _KEPT)
    ]
    if others:  # at once: as long as they are here, their owners see them in use
        subprocess.run(["umount", "--lazy", *others], check=True)
    for point in _FRESH:
        Path(point).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", point], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)


def spawn(*, argv: list[str], env: dict[str, str], log: str) -> dict[str, Any]:
    """Start a process whose output is appended to a file; the pid is that of this namespace."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = (
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    )
    return {"pid": os.posix_spawnp(argv[0], argv, {**os.environ, **env}, file_actions=actions, setsid=True)}


def send(*, pid: int, number: int) -> dict[str, Any]:
    """Send a signal to a process; one that has ended is passed over."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return {}


def status(*, pid: int) -> dict[str, Any]:
    """Tell how a process ended: its status, the negative signal, or null if it runs."""
    return {"status": _ended.get(pid)}


def reap() -> None:
    """Note how children ended, orphans of others too."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            _ended[found[0]] = os.waitstatus_to_exitcode(found[1])


def say(answer: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


_ANSWERS: Final[dict[str, Callable[..., dict[str, Any]]]] = {"spawn": spawn, "send": send, "status": status}

if __name__ == "__main__":
    main()
