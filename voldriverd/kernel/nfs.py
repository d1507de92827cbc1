"""NFS shares, mounted by mount.nfs(8): it asks the server for what mount(2) wants to be told."""

import errno
import os
from pathlib import Path
from typing import Final

from voldriverd.kernel import mount, run

TOOL: Final = "mount.nfs"
OPTIONS: Final = ("softerr", "timeo=100", "retrans=3", "nosuid", "nodev", "noexec")
"""nfs(5). `softerr` (Linux 5.2): what the server does not take within 30 s fails, instead of keeping a thread in the
kernel for ever, and with ETIMEDOUT: with `soft` it would be EIO, by which what cannot be read counts as damaged. Who
writes there looks at every error, and writes again what did not arrive."""
TIMEOUT_S: Final = 30.0
"""How long a server may take to answer before the mount is given up."""


def arguments(server: str, share: str, place: Path, options: str | None) -> list[str]:
    """Return the command that mounts a share; `options` (as after `-o`) come last, for the last of two counts."""
    given = [] if options is None else [options]
    return [TOOL, f"{server}:{share}", str(place), "-o", ",".join([*OPTIONS, *given])]


def attach(server: str, share: str, place: Path, options: str | None) -> None:
    """Mount a share. Raises OSError with what mount.nfs says (ENOPKG: this host has no NFS client)."""
    if run.missing([TOOL]):
        raise OSError(errno.ENOPKG, f"this host has no NFS client: {TOOL} is not installed (nfs-common, nfs-utils)")
    run.run(arguments(server, share, place, options), timeout_s=TIMEOUT_S)


def detach(place: Path) -> None:
    """Unmount what is mounted there; nothing is no error. Raises OSError (EBUSY: it is in use)."""
    if os.path.ismount(place):
        mount.unmount(place)
