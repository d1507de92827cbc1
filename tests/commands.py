"""`voldriver` in this process, against a daemon or a stand-in for one."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from voldriverd.cli import client


def run(socket: Path, *arguments: str, stdin: str = "") -> Result:
    """Run a command; what it raises that is no exit fails the test."""
    return CliRunner().invoke(
        client.main,
        ["--socket", str(socket), *arguments],
        input=stdin,
        prog_name="voldriver",
        catch_exceptions=False,
    )


class Voldriver:
    """The commands of one daemon."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def __call__(self, *arguments: str, stdin: str = "") -> Result:
        return run(self._socket, *arguments, stdin=stdin)

    def out(self, *arguments: str) -> str:
        """Return what a command that must succeed prints on standard output."""
        result = self(*arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def json(self, *arguments: str) -> Any:
        """Return the resources that a command prints."""
        return json.loads(self.out("--json", *arguments))

    def refused(self, *arguments: str, stdin: str = "") -> str:
        """Return the one line on standard error of a command that must fail."""
        result = self(*arguments, stdin=stdin)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert result.stderr.startswith("voldriver: "), result.stderr
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("voldriver: ").rstrip("\n")


@contextmanager
def pretending(answers: Sequence[tuple[int, bytes]], seen: list[tuple[str, str, str]]) -> Iterator[str]:
    """Give the URL of a server that gives some answers in turn, and notes method, path and credentials."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.command, self.path, self.headers.get("Authorization", "")))
            status, body = left.pop(0)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - as http.server wants it

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
