"""Processes that keep a mount busy (proc(5): cwd, root, fd, fdinfo)."""

import os
from collections.abc import Iterator
from pathlib import Path

from voldriverd.kernel import mount


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
