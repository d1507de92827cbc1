"""A real daemon in a process of its own, on a temporary root, with its sockets, for as long as a test wants it.

    with Running(tmp_path, config=pools_config(...)) as daemon:
        daemon.api("POST", "/v1/volumes", {"name": "db", "driver": "btrfs"})
        daemon.plugin("VolumeDriver.Mount", Name="db", ID="c1")
        daemon.cli("volume", "ls")

`close` (or the end of the block) leaves nothing: no process, no mount, no loop device, no immutable directory.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from tests import unblocked
from tests.scratch import Scratch, loops_under, unmount_under
from voldriverd.kernel import fs

START_S: Final = 30.0
"""On a machine that other tests load."""
STOP_S: Final = 15.0
_TICK_S: Final = 0.02
_STACKS_S: Final = 10.0
"""How long a daemon is given to write down what it does."""
_SERVING: Final = "verb=start"
DAEMON: Final = (
    "import sys; sys.argv[0] = 'voldriverd'; from tests import unblocked; unblocked.watch_daemon(); "
    "from voldriverd.cli.daemon import main; main()"
)
CLIENT: Final = "import sys; sys.argv[0] = 'voldriver'; from voldriverd.cli.client import main; main()"

SMALL: Final = '[embedded]\nsize = "300M"\n'
"""The configuration of a host where nothing is configured, but for the size of the image."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, its body parsed if it is JSON."""

    status: int
    headers: http.client.HTTPMessage
    body: Any


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, *, timeout_s: float = 60.0) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Running:
    """One daemon at a time on one root; `restart` after `stop` or `kill` begins the next one."""

    def __init__(self, base: Path, *, config: str = SMALL) -> None:
        """Take a directory for root, run directory, configuration and log; nothing is started yet."""
        base.mkdir(parents=True, exist_ok=True)
        self.base = base
        self.root = base / "root"
        self.run_dir = base / "run"
        self.api_socket = self.run_dir / "api.sock"
        self.plugin_socket = self.run_dir / "voldriver.sock"
        self.log_file = base / "log"
        self.blocked_file = base / "blocked"
        self.config_file = base / "voldriver.toml"
        self.config_file.write_text(config)
        self.preamble = ""
        """What the process runs before it is the daemon."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process that serves."""
        assert self._process is not None, "the daemon does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """What all daemons on this root have logged."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def start(self) -> None:
        """Start and return when both sockets are served; a daemon that ends instead fails with its log."""
        before = self.log.count(_SERVING)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self.preamble + DAEMON, *self._places()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, unblocked.REPORT: str(self.blocked_file)},
            )
        for _ in range(int(START_S / _TICK_S)):
            if self.log.count(_SERVING) > before:
                return
            try:
                self._process.wait(_TICK_S)
            except subprocess.TimeoutExpired:
                continue
            break
        raise AssertionError(f"the daemon does not serve: {self.log}")

    def stacks(self) -> str:
        """Return what its threads and tasks do now."""
        before = len(self.log)
        os.kill(self.pid, unblocked.STACKS)
        deadline_s = time.monotonic() + _STACKS_S
        while unblocked.STACKS_END not in self.log[before:] and time.monotonic() < deadline_s:
            time.sleep(_TICK_S)
        return self.log[before:]

    def stop(self) -> None:
        """End it with SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, and wait; mounts stay."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it if it runs, and start the next one."""
        if self._process is not None:
            self.stop()
        self.start()

    def release(self) -> str:
        """Unmount with `voldriverd --release` what nobody uses; returns what it says."""
        argv = [sys.executable, "-c", DAEMON, *self._places(), "--release"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=STOP_S, check=False)
        return done.stdout + done.stderr

    def close(self) -> None:
        """Leave nothing, whatever happened."""
        if self._process is not None:
            self.kill()
        unmount_under(self.base)  # as --release does, in 1 ms and not in the half second that a process takes
        self._wait_for_loops()
        make_mutable(self.root / "embedded")
        assert not self.blocked_file.exists(), f"the event loop was blocked: {self.blocked_file.read_text()}"

    def api(self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        """Ask the API; a body that is not bytes is sent as JSON."""
        return request(self.api_socket, method, path, body, headers=headers)

    def plugin(self, method: str, **fields: object) -> Answer:
        """Ask the Docker plugin, as in `plugin("VolumeDriver.Get", Name="db")`."""
        return request(self.plugin_socket, "POST", f"/{method}", fields)

    def cli(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `voldriver` in a process of its own, not on a terminal."""
        return subprocess.run(
            [sys.executable, "-c", CLIENT, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "VOLDRIVER_SOCKET": str(self.api_socket), **environment},
        )

    def _wait_for_loops(self) -> None:
        """Return when the loop devices below have gone; one that stays is for the check for leaks to tell."""
        end_s = time.monotonic() + STOP_S
        while loops_under(self.base) and time.monotonic() < end_s:
            time.sleep(_TICK_S)

    def _places(self) -> list[str]:
        return ["--config", str(self.config_file), "--root", str(self.root), "--run-dir", str(self.run_dir)]

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        assert process is not None, "the daemon does not run"
        process.send_signal(number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def request(
    path: Path, method: str, target: str, body: object = None, *, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send one HTTP request to a unix socket."""
    connection = UnixConnection(path)
    try:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, target, content, dict(headers or {}))
        response = connection.getresponse()
        raw = response.read()
        is_json = "json" in (response.getheader("Content-Type") or "") and "ndjson" not in str(response.headers)
        return Answer(response.status, response.headers, json.loads(raw) if is_json and raw else raw)
    finally:
        connection.close()


def pools_config(**pools: tuple[str, Path]) -> str:
    """Return the configuration of some pools: a driver and a directory for each name."""
    sections = [f'[pools.{name}]\ndriver = "{driver}"\npath = "{path}"\n' for name, (driver, path) in pools.items()]
    return "\n".join(sections)


def scratch_config(scratch: Scratch) -> str:
    """Return the configuration of one pool for each driver, new ones on a shared btrfs; `fast` knows sizes."""
    place = scratch.shared("daemons", "btrfs") / uuid.uuid4().hex
    fast = f'[pools.fast]\ndriver = "btrfs"\npath = "{place}/fast"\nquota = "simple"\n'
    return fast + pools_config(images=("loop", place / "images"), plain=("directory", place / "plain"))


def make_mutable(directory: Path) -> None:
    """Let the directory under an embedded image be deleted; nothing may be mounted there."""
    if not directory.is_dir():
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fchmod(fd, 0o700)
    except PermissionError:
        fs.set_flags(fd, fs.get_flags(fd) & ~fs.FS_IMMUTABLE_FL)
    finally:
        os.close(fd)
