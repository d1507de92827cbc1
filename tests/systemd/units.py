"""The units as they lie in the checkout."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).parent.parent.parent
UNITS: Final = CHECKOUT / "systemd"
SERVICE: Final = UNITS / "voldriverd.service"
SOCKETS: Final = (UNITS / "voldriverd.socket", UNITS / "voldriverd-api.socket")


def settings(unit: Path) -> Iterator[tuple[str, str]]:
    """Yield each setting of a unit with its value, in their order."""
    for line in unit.read_text().splitlines():
        name, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            yield name, value


def capabilities() -> list[str]:
    """Return the capabilities that the daemon keeps."""
    return [each for name, value in settings(SERVICE) if name == "CapabilityBoundingSet" for each in value.split()]


def limited_to(kept: list[str]) -> tuple[str, ...]:
    """Return what goes before a command so that it has these capabilities, as far as we have them, and no others."""
    (line,) = re.findall(r"CapBnd:\s+(\w+)", Path("/proc/self/status").read_text())
    numbers = {name: number for number, name in enumerate(_NAMES)}
    there = [name for name in kept if int(line, 16) >> numbers[name] & 1]
    bounding = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in there)])
    return ("setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs", "--")


_NAMES: Final = [
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID"),
    *("CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST"),
    *("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO"),
    *("CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE"),
    *("CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE"),
    *("CAP_AUDIT_CONTROL", "CAP_SETFCAP"),
]
"""linux/capability.h, from 0."""
