"""A world of its own on this host: mount, pid and network namespaces that end with everything in them.

`/run` and `/etc/docker` are private and empty, so that the constant directory of Docker's plugins is too.
Files elsewhere are the host's. From outside, the world's files lie under `root`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

INIT: Final = Path(__file__).with_name("world_init.py")
LIMIT_S: Final = 30.0
"""For whatever a test waits for; reached only when something is wrong."""
_PAUSE_S: Final = 0.005

Done = subprocess.CompletedProcess[str]


class World:
    """Namespaces held by one process; `close` ends every process in them, and their mounts go too."""

    def __init__(self) -> None:
        namespaces = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--net"]
        self._holder = subprocess.Popen(
            ["unshare", *namespaces, sys.executable, INIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()
        self.pid = _only_child(self._holder.pid)

    @property
    def root(self) -> Path:
        """Where the host sees the world's files."""
        return Path(f"/proc/{self.pid}/root")

    def spawn(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> int:
        """Start a process that may outlive the test; returns its pid inside."""
        pid: int = self._ask(do="spawn", argv=list(argv), env=dict(env or {}), log=str(log))["pid"]
        return pid

    def send(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a process, by its pid inside."""
        self._ask(do="send", pid=pid, number=int(number))

    def status(self, pid: int) -> int | None:
        """Return the exit status of a process that was spawned, or the negative signal; None if it runs."""
        found: int | None = self._ask(do="status", pid=pid)["status"]
        return found

    def ended(self, pid: int, *, within_s: float = LIMIT_S) -> int:
        """Wait for the end of a process and return its status."""
        until(lambda: self.status(pid) is not None, f"process {pid} to end", within_s=within_s)
        found = self.status(pid)
        assert found is not None
        return found

    def stop(self, pid: int) -> None:
        """Kill a process and wait for its end."""
        self.send(pid, signal.SIGKILL)
        self.ended(pid)

    def run(self, *argv: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Done:
        """Run a command inside to its end."""
        inside = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--", *argv]
        return subprocess.run(
            inside,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=4 * LIMIT_S,
            env={**os.environ, **(env or {})},
        )

    def close(self) -> None:
        """End every process of the world."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()  # its first process reads this, and a pid namespace ends with its first process
        self._holder.wait(LIMIT_S)
        self._holder.stdout.close()

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self._holder.stdin is not None
        self._holder.stdin.write(json.dumps(request) + "\n")
        self._holder.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._holder.stdout is not None
        answer: dict[str, Any] = json.loads(self._holder.stdout.readline())
        return answer


def until(is_so: Callable[[], object], what: str, *, within_s: float = LIMIT_S, pause_s: float = _PAUSE_S) -> None:
    """Wait until something is so. Raises TimeoutError naming what was waited for."""
    deadline_s = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {within_s:.0f} s for {what}")
        time.sleep(pause_s)


def _only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)
