"""Whether dockerd sees what is mounted here: a mount is made for a moment and looked for in its mount table.

A dockerd counts if it lives with us: it sees our root, or the directory of our plugin's socket. One in a container has
plugins of its own.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd.doctor.finding import Check, Finding, Level, Trouble, fine, told
from voldriverd.doctor.scope import Scope
from voldriverd.kernel import mount

NAME: Final = "dockerd"
PREFIX: Final = ".probe-"

BLIND: Final = Trouble(
    Level.BAD,
    "a mount that was made here does not show in the mount table of dockerd",
    "Containers would get empty directories for volumes, and write into them. The daemon refuses to mount for such a "
    "dockerd.",
    "dockerd has a mount namespace of its own that gets nothing from here: take `PrivateMounts=`, `PrivateTmp=`, "
    "`MountFlags=` and the like out of docker.service (`systemctl cat docker`), or start it after "
    "`mount --make-rshared /`.",
)
NOBODY: Final = Trouble(
    Level.NOTE,
    "no dockerd runs here",
    "There is nobody to see our mounts. podman needs none: it asks from the namespace that it mounts in.",
    "Nothing, if Docker is not used.",
)
NO_PLACE: Final = Trouble(
    Level.NOTE,
    "the directory of mount points does not exist",
    "The daemon has never run with this root, so there is no place to try a mount at.",
    "Nothing; the daemon makes it when it starts.",
)


@dataclass(frozen=True, slots=True)
class Dockerd:
    """One that lives with us."""

    pid: int
    sees_probe: bool


def _look(scope: Scope) -> list[Dockerd] | None:
    """Return each dockerd with whether it sees a mount of ours; None: there is no place to mount at."""
    root = scope.config.root.resolve()
    pids = [pid for pid in _processes() if _lives_with_us(pid, root, scope.config.docker_socket.parent)]
    if not pids:
        return []
    points = root / "mounts"
    if not points.is_dir():
        return None
    point = Path(tempfile.mkdtemp(dir=points, prefix=PREFIX))
    try:
        mount.mount("voldriver-probe", point, fs_type="tmpfs", flags=mount.MS_NOSUID | mount.MS_NODEV, data="size=4k")
        try:
            return [Dockerd(pid, _sees(pid, point)) for pid in pids]
        finally:
            mount.unmount(point)
    finally:
        point.rmdir()


def _processes() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit() and mount.process_name(int(name)) == NAME:
            yield int(name)


def _lives_with_us(pid: int, *places: Path) -> bool:
    return any(place.is_dir() and _is_same(pid, place) for place in places)


def _sees(pid: int, point: Path) -> bool:
    """Tell whether a process has the mount in its table, at the same place below its root directory."""
    device = os.stat(point).st_dev  # of this tmpfs alone
    wanted = f"{os.major(device)}:{os.minor(device)}", str(point)
    try:
        return any((entry.device, entry.mount_point) == wanted for entry in mount.table(pid))
    except FileNotFoundError:  # it ended, and cannot say that it does not
        return True


def _is_same(pid: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.stat(f"/proc/{pid}/root{path}"))
    except OSError:  # it ended, or sees nothing there
        return False


def judge(found: list[Dockerd] | None) -> Iterator[Finding]:
    """Judge what each sees."""
    if found is None:
        yield told(NO_PLACE, "not tried")
        return
    if not found:
        yield told(NOBODY, "no dockerd")
    for each in found:
        what = f"dockerd (pid {each.pid})"
        yield fine(f"{what} sees what is mounted here") if each.sees_probe else told(BLIND, f"{what} does not see it")


CHECKS: Final = (
    Check(
        "propagation",
        "Docker",
        "whether dockerd sees our mounts: a tmpfs of 4 KiB is mounted for a moment and looked for in its mount table",
        lambda scope: judge(_look(scope)),
        (BLIND, NOBODY, NO_PLACE),
        needs_root=True,
    ),
)
