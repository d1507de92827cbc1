"""A long body while it is sent, of which the other end may have seen enough before the end."""

import functools
import http.client
import io
import select
import socket
import ssl
from collections.abc import Iterable


def send(connection: http.client.HTTPConnection, pieces: Iterable[bytes], *, is_chunked: bool) -> bytes:
    """Send a body, up to its end or to the answer that comes before; return what was read of that to see it."""
    for piece in pieces:
        begun = _begun_answer(connection.sock)
        if begun is not None:
            return begun
        connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
    if is_chunked:
        connection.send(b"0\r\n\r\n")
    return b""


def answer(connection: http.client.HTTPConnection, begun: bytes) -> http.client.HTTPResponse:
    """Wait for an answer, the beginning of which may have been read."""
    if begun:
        connection.response_class = functools.partial(_Begun, begun)  # type: ignore[assignment] # it is called alone
    try:
        return connection.getresponse()
    finally:
        connection.response_class = http.client.HTTPResponse


def _begun_answer(connection: socket.socket) -> bytes | None:
    """Return None if no answer comes yet, else what had to be read of it to know that: nothing, or its first byte.

    Under TLS 1.3 (RFC 8446, 4.6) the session tickets that follow the handshake make the socket readable too, and only
    who reads learns that there is nothing behind them.
    """
    if not select.select([connection], [], [], 0)[0]:
        return None
    if not isinstance(connection, ssl.SSLSocket):
        return b""
    timeout_s = connection.gettimeout()
    connection.setblocking(False)
    try:
        return connection.recv(1)
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return None
    finally:
        connection.settimeout(timeout_s)


class _Begun(http.client.HTTPResponse):
    """An answer whose beginning was read before."""

    def __init__(self, begun: bytes, sock: socket.socket, *, method: str | None = None) -> None:
        super().__init__(sock, method=method)
        self.fp = io.BufferedReader(_Behind(begun, self.fp))


class _Behind(io.RawIOBase):
    """Some bytes, and what follows them."""

    def __init__(self, begun: bytes, rest: io.BufferedReader) -> None:
        self._begun = begun
        self._rest = rest

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # BufferedReader gives no other
        """Fill the beginning of a buffer."""
        piece, self._begun = self._begun or self._rest.read1(len(buffer)), b""
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Close what follows."""
        self._rest.close()
        super().close()
