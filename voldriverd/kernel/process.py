"""Processes that keep a mount busy (proc(5): cwd, root, fd, fdinfo)."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from voldriverd.kernel import mount

_CONTAINER: Final = re.compile(
    r"(?:/|docker-|libpod-|cri-containerd-|crio-)([0-9a-f]{64})(?:\.scope)?(?:/|$)", re.MULTILINE
)


def openers(mount_point: Path) -> list[tuple[int, str, str]]:
    """Return (pid, name, path) of processes of our mount namespace that have something open in a mount, one each."""
    entry = mount.at(mount_point)
    if entry is None:
        return []
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            path = next(_opened(int(name), entry), None)
        except OSError:  # the process ended meanwhile
            continue
        if path is not None:
            found.append((int(name), mount.process_name(int(name)), path))
    return found


def shown(pid: int, name: str) -> str:
    """Return a process as people know it: its name and pid and, if it is not in ours, the short id of its container."""
    container = container_of(pid)
    if container is None or container == container_of(os.getpid()):
        return f"{name} (pid {pid})"
    return f"{name} (pid {pid}) of container {container[:12]}"


def container_of(pid: int) -> str | None:
    """Return the id of the container that a process is in."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii", errors="replace") as file:
            return container_in(file.read())
    except OSError:  # the process ended meanwhile
        return None


def container_in(groups: str) -> str | None:
    """Return the id of the innermost container in a cgroup file, by the names of docker, podman, containerd, cri-o."""
    found = _CONTAINER.findall(groups)
    return found[-1] if found else None


def started(pid: int) -> int | None:
    """Return when a process started, in ticks since the boot: with its pid a name for it; None if it has gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])  # field 22; the name before it may hold anything
    except OSError:
        return None


def _opened(pid: int, entry: mount.Entry) -> Iterator[str]:
    for link in ("cwd", "root"):
        path = os.readlink(f"/proc/{pid}/{link}")
        if path == entry.mount_point or path.startswith(f"{entry.mount_point}/"):
            yield path
    wanted = f"mnt_id:\t{entry.mount_id}\n"
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
            if wanted in file.read():
                yield os.readlink(f"/proc/{pid}/fd/{fd}")
