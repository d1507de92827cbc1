"""The API over TCP: a client with keys, ports, certificates, and the audit log of a daemon."""

import http.client
import json
import re
import socket
import ssl
import subprocess
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.running import Answer, Running

Key = tuple[str, str]


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int, *lines: str, host: str = "127.0.0.1") -> str:
    """Return the part of a configuration that has the API served on TCP."""
    return "\n".join(["[api]", f'listen = "{host}:{port}"', *lines, ""])


def basic(key: Key) -> str:
    """Return an Authorization header."""
    return "Basic " + b64encode(":".join(key).encode()).decode()


@dataclass
class Tcp:
    """One connection to a daemon, kept alive; it connects again when it was closed."""

    port: int
    key: Key | None = None
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    source: str | None = None
    """The address that it comes from."""

    def __post_init__(self) -> None:
        source = None if self.source is None else (self.source, 0)
        if self.tls is None:
            self.connection = http.client.HTTPConnection(self.host, self.port, timeout=30, source_address=source)
        else:
            self.connection = http.client.HTTPSConnection(self.host, self.port, timeout=30, context=self.tls)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def __call__(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask; a body that is not bytes is sent as JSON."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {} if self.key is None else {"Authorization": basic(self.key)}
        self.connection.request(method, path, content, given | dict(headers or {}))
        response = self.connection.getresponse()
        raw = response.read()
        is_json = "json" in (response.getheader("Content-Type") or "")
        return Answer(response.status, response.headers, json.loads(raw) if is_json and raw else raw)


def make_key(daemon: Running, **fields: object) -> Key:
    """Make a key over the unix socket."""
    made = daemon.api("POST", "/v1/apikeys", fields)
    assert made.status == 201, made.body
    return made.body["publicValue"], made.body["secretValue"]


def audited(daemon: Running, *, since: int = 0) -> list[dict[str, Any]]:
    """Return the lines of the audit log as maps, those after `since` characters of the whole log."""
    if daemon.api_socket.exists():
        daemon.api("GET", "/v1")  # a line is written after its answer, and before the next one
    lines = [line for line in daemon.log[since:].splitlines() if " audit " in line]
    return [fields_of(line.partition(" audit ")[2]) for line in lines]


def certificate(directory: Path, name: str = "server", *options: str) -> tuple[Path, Path]:
    """Make a self-signed certificate of localhost and 127.0.0.1, and its key."""
    made = directory / f"{name}.crt", directory / f"{name}.key"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2", *(options or ("-nodes",)))
    argv = ["openssl", "req", "-x509", *kind, *subject, "-out", str(made[0]), "-keyout", str(made[1])]
    subprocess.run(argv, check=True, capture_output=True)
    return made


def fields_of(line: str) -> dict[str, Any]:
    """Return the fields of a line of the audit log."""
    found = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)', line)
    return {name: json.loads(value) if value.startswith('"') else value for name, value in found}
