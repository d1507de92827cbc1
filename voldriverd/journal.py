"""The journal of systemd, in its own protocol: a line with its facts as fields (systemd.io/JOURNAL_NATIVE_PROTOCOL).

    journalctl -u voldriverd VOLDRIVER_VOLUME=db VOLDRIVER_RESULT=in_use -o verbose

A datagram is sent or not: who logs never waits. What the journal does not take, because it is busy or not there, is
lost, counted, and told with the first line that it takes again.
"""

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from voldriverd import logs

SOCKET: Final = Path("/run/systemd/journal/socket")
IDENTIFIER: Final = "voldriverd"
PREFIX: Final = "VOLDRIVER_"
"""Before the names of our own fields: `verb` is `VOLDRIVER_VERB`."""
MESSAGE_MAX_BYTES: Final = 64 << 10
"""A line and a traceback; a datagram of 208 KiB (net.core.wmem_default) holds it with all fields."""
_SEND_BUFFER_BYTES: Final = 8 << 20
"""As sd_journal_send(3) asks for; the kernel gives what it allows."""
_NAME_MAX: Final = 64
_PRIORITIES: Final = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}
"""Those of syslog(3)."""


class Journal(logging.Handler):
    """Sends each line to the journal, and never raises for the want of one."""

    def __init__(self, path: Path = SOCKET) -> None:
        """Make a socket; whether somebody listens at the path shows with each line."""
        super().__init__()
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._exceptions = logging.Formatter()
        self.lost = 0
        """How many lines the journal did not take."""
        self._untold = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; `logging` holds this handler's lock meanwhile."""
        if self._untold and self._send(_entry(_lost(self._untold), "")):
            self._untold = 0
        if not self._send(_entry(record, self._traceback(record))):
            self.lost += 1
            self._untold += 1

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _send(self, entry: bytes) -> bool:
        try:
            self._socket.sendto(entry, self._path)
        except OSError:  # EAGAIN: its queue is full; ENOENT, ECONNREFUSED: it is not there; EBADF: we have ended
            return False
        return True

    def _traceback(self, record: logging.LogRecord) -> str:
        return f"\n{self._exceptions.formatException(record.exc_info)}" if record.exc_info else ""


def is_standard_error(environ: Mapping[str, str]) -> bool:
    """Tell whether what is written to standard error goes to the journal (JOURNAL_STREAM of systemd.exec(5))."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if not (device.isdecimal() and inode.isdecimal()):
        return False
    try:
        status = os.fstat(2)
    except OSError:  # it is closed
        return False
    return (status.st_dev, status.st_ino) == (int(device), int(inode))


def lost() -> int:
    """Return how many lines the journals of this process did not take."""
    return sum(handler.lost for handler in logging.getLogger().handlers if isinstance(handler, Journal))


def _entry(record: logging.LogRecord, traceback: str) -> bytes:
    return b"".join(_field(name, value) for name, value in _fields(record, traceback))


def _fields(record: logging.LogRecord, traceback: str) -> Iterator[tuple[str, str]]:
    yield "MESSAGE", logs.text(record) + traceback
    yield "PRIORITY", str(next((shown for level, shown in _PRIORITIES.items() if record.levelno >= level), 7))
    yield "SYSLOG_IDENTIFIER", IDENTIFIER
    yield "LOGGER", record.name
    for key, value in logs.facts(record).items():
        yield f"{PREFIX}{key.upper()}"[:_NAME_MAX], value[: logs.VALUE_MAX]


def _field(name: str, value: str) -> bytes:
    """Write one field; one of several lines with its length before it."""
    content = value.encode(errors="backslashreplace")[:MESSAGE_MAX_BYTES]
    if b"\n" not in content:
        return b"%s=%s\n" % (name.encode(), content)
    return b"%s\n%s%s\n" % (name.encode(), len(content).to_bytes(8, "little"), content)


def _lost(count: int) -> logging.LogRecord:
    line = logs.Line({"verb": "log", "lost": count, "result": "the journal did not take these lines"})
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, line, None, None)
