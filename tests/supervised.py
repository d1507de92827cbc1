"""A daemon that is started as a service manager starts it: told where to report, handed sockets, with fewer rights."""

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.running import DAEMON, SMALL, Running
from tests.world import until

LIMIT_S: Final = 30.0
_LAUNCH: Final = """
import os, sys
count, *rest = sys.argv[1:]
fds, argv = [os.dup(int(fd)) for fd in rest[:int(count)]], rest[int(count):]
high = [os.dup2(fd, 100 + at) for at, fd in enumerate(fds)]
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(argv[0], argv)
"""
"""Puts descriptors where a service expects them, and becomes the service."""


class Supervised(Running):
    """A daemon whose manager is the test."""

    def __init__(self, base: Path, *, config: str = SMALL, prefix: tuple[str, ...] = (), watchdog_s: float = 0) -> None:
        """Take what `Running` takes, what goes before the command, and the time of the watchdog (0: none)."""
        super().__init__(base, config=config)
        self._prefix = prefix
        self.held: dict[str, socket.socket] = {}
        """What the daemon is handed, by name, from the next start on."""
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(str(base / "notify"))
        self._told.settimeout(LIMIT_S)
        self._environment = {"NOTIFY_SOCKET": str(base / "notify")}
        if watchdog_s:
            self._environment["WATCHDOG_USEC"] = str(int(watchdog_s * 1_000_000))

    def start(self) -> None:
        """Start, and return when it has said that it is ready."""
        self.launch()
        heard = self.heard_until("READY=1")
        assert "READY=1" in heard, self.log

    def launch(self) -> None:
        """Start, and do not wait."""
        fds = [listener.fileno() for listener in self.held.values()]
        handed = {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(self.held)} if fds else {}
        argv = [*self._prefix, sys.executable, "-c", _LAUNCH, str(len(fds)), *map(str, fds)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*argv, sys.executable, "-c", DAEMON, *self._places()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                env={**os.environ, **self._environment, **handed},
            )

    def ended(self) -> int:
        """Wait for its end, and return its status."""
        process, self._process = self._process, None
        assert process is not None, "the daemon does not run"
        return process.wait(LIMIT_S)

    def heard(self) -> list[str]:
        """Return the lines of the next thing that it says."""
        return self._told.recv(4096).decode().splitlines()

    def heard_until(self, line: str) -> list[str]:
        """Return all lines up to one, in their order; up to its end if it ends without it."""
        lines: list[str] = []
        while line not in lines:
            assert self._process is not None
            until(self._has_said_or_ended, "a word of the daemon", within_s=LIMIT_S)
            if self._process.poll() is not None and not self._has_more():
                break
            lines += self.heard()
        return lines

    def close(self) -> None:
        """Leave nothing, the sockets that were held included."""
        super().close()
        for listener in self.held.values():
            listener.close()
        self._told.close()

    def _has_said_or_ended(self) -> bool:
        assert self._process is not None
        return self._has_more() or self._process.poll() is not None

    def _has_more(self) -> bool:
        readable, _, _ = select.select([self._told], [], [], 0)
        return bool(readable)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Hold a listening socket at a path, as a socket unit does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(16)
        yield listener
