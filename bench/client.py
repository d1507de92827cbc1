"""A keep-alive HTTP client that costs as little as possible, so that what is measured is the server."""

import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self


class Client:
    """One connection to a unix socket; requests one after the other."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def server_pid(self) -> int:
        """The process that listens (SO_PEERCRED in unix(7))."""
        pid, _, _ = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)

    def post(self, path: str, body: Any = None, *, method: str = "POST") -> Any:
        """Send a request and return the parsed answer; a status other than 2xx is an error of the bench."""
        status, answer = self.raw(request(path, body, method=method))
        if status // 100 != 2:
            raise RuntimeError(f"{path}: {status} {answer[:300]!r}")
        return json.loads(answer)

    def raw(self, message: bytes) -> tuple[int, bytes]:
        """Send bytes and return (status, body) of the answer."""
        self._socket.sendall(message)
        head, _, self._rest = self._until(b"\r\n\r\n")
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0])
        while len(self._rest) < length:
            self._rest += self._receive()
        body, self._rest = self._rest[:length], self._rest[length:]
        return int(head[9:12]), body

    def timed(self, message: bytes) -> float:
        """Return how long one answer took, in ms."""
        begun = time.perf_counter()
        status, body = self.raw(message)
        took = (time.perf_counter() - begun) * 1e3
        if status // 100 != 2:
            raise RuntimeError(f"{message!r}: {status} {body[:300]!r}")
        return took

    def _until(self, mark: bytes) -> tuple[bytes, bytes, bytes]:
        while mark not in self._rest:
            self._rest += self._receive()
        return self._rest.partition(mark)

    def _receive(self) -> bytes:
        received = self._socket.recv(1 << 20)
        if not received:
            raise ConnectionError("the server closed the connection")
        return received


def request(path: str, body: Any = None, *, method: str = "POST") -> bytes:
    """Return the bytes of a request, as dockerd sends it."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@contextmanager
def apart(*clients: Client) -> Iterator[None]:
    """Run the servers of some clients on one core and this process on another, if there are two.

    The scheduler lets a process without threads and its client share a core and gives one with threads another, which
    is a third of the time of an answer (2 cores, 6.18): it would be measured instead of the servers.
    """
    ours = os.sched_getaffinity(0)
    server_core, client_core = min(ours), max(ours)
    pids = [client.server_pid for client in clients]
    try:
        for pid in pids:
            _place(pid, {server_core})
        os.sched_setaffinity(0, {client_core})
        yield
    finally:
        os.sched_setaffinity(0, ours)
        for pid in pids:
            _place(pid, ours)


def _place(pid: int, cores: set[int]) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), cores)
