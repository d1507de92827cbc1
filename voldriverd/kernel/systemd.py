"""What a service manager and its service say to each other (sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)).

Three variables of the environment, a datagram socket and inherited descriptors: no library is needed for them.
"""

import os
import socket
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Final

LISTEN_FDS_START: Final = 3
"""SD_LISTEN_FDS_START of sd-daemon.h."""
_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
_UNNAMED: Final = "unknown"
"""As systemd calls a descriptor that nobody has named."""


@dataclass(frozen=True, slots=True)
class Manager:
    """What a service manager has given us on the way; nothing at all if there is none."""

    address: str | None = None
    """Where it wants to be told; None: nowhere."""
    watchdog_s: float | None = None
    """It kills us when it has heard nothing for so long; None: it waits for ever."""
    descriptors: tuple[tuple[str, int], ...] = ()
    """Listening sockets, each with its name."""

    def notify(self, *lines: str) -> None:
        """Tell it something, as `READY=1`; does not block. Raises OSError: it is not there, or has too much to read."""
        if self.address is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(self.address)
            sender.send("\n".join(lines).encode())

    def listeners(self) -> Iterator[tuple[str, socket.socket]]:
        """Yield the sockets that it opened for us, by name; each is the caller's to close. Raises OSError."""
        return ((name, socket.socket(fileno=fd)) for name, fd in self.descriptors)


def manager(environment: MutableMapping[str, str]) -> Manager:
    """Take what concerns us out of the environment, so that no tool that we start believes it is meant.

    To be called once, before anything else is opened: descriptors are numbers. Raises ValueError: it is malformed.
    """
    found = {name: environment.pop(name, "") for name in _VARIABLES}
    is_watched = found["WATCHDOG_USEC"] and found["WATCHDOG_PID"] in {"", str(os.getpid())}
    return Manager(
        address=_address(found["NOTIFY_SOCKET"]),
        watchdog_s=int(found["WATCHDOG_USEC"]) / 1_000_000 if is_watched else None,
        descriptors=_descriptors(found["LISTEN_FDS"], found["LISTEN_FDNAMES"])
        if found["LISTEN_PID"] == str(os.getpid())
        else (),
    )


def _address(text: str) -> str | None:
    """Read the address of a socket; with an @ in front its name is an abstract one (unix(7))."""
    if text and not text.startswith(("/", "@")):
        raise ValueError(f"NOTIFY_SOCKET is {text!r}, which is no address of a unix socket")
    return text.replace("@", "\0", 1) if text.startswith("@") else text or None


def _descriptors(count: str, names: str) -> tuple[tuple[str, int], ...]:
    fds = range(LISTEN_FDS_START, LISTEN_FDS_START + int(count or 0))
    for fd in fds:
        os.set_inheritable(fd, False)
    named = names.split(":") if names else [_UNNAMED] * len(fds)
    return tuple(zip(named, fds, strict=True))
